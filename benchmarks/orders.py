"""How often a held-out split in another order is named: `python -m benchmarks.orders [DATA ...] [--data-root FOLDER]`.

A table in Markdown. Random parts of the training and the test images are compared as they are, where nothing should be
said, and in other orders. DATA are names or folders as `--data` takes them, digits by default; tables come always.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.machine import describe_machine
from ffstream.data import load_dataset
from ffstream.data.arrangements import list_arrangements
from ffstream.data.class_means import ClassMeans

_NUM_PARTS, _MOST_TRAINING, _SIZES = 24, 5000, (60, 100, 300, 1000)
_ANY, _NEGATED, _MOVED_ON = "features in any order", "negated", "classes moved on by one"
_OTHERS = (_ANY, _NEGATED, _MOVED_ON, "two classes exchanged")
_TABLES = ((2, 5), (2, 16), (4, 16), (10, 50))  # classes and columns


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.orders")
    parser.add_argument("data", nargs="*", default=["digits"])
    parser.add_argument("--data-root", default="data")
    asked = parser.parse_args()
    machine = describe_machine("cpu")
    print(f"torch {machine['torch']}, ffstream {machine['commit']}; of {_NUM_PARTS} random parts, those warned of.\n")
    print(f"| data | order | {' | '.join(f'{size} held out' for size in _SIZES)} |\n|---|---|{'---|' * len(_SIZES)}")
    for name in asked.data:
        found = load_dataset(name, asked.data_root)
        assert found.test is not None
        splits = [(split.images[:], split.labels) for split in (found.train, found.test)]
        _print_rates(name, found.image_shape, found.num_classes, partial(_take, splits))
    for classes, columns in _TABLES:
        _print_rates(
            f"table, {classes} classes, {columns} columns", (columns,), classes, partial(_make_table, classes, columns)
        )


def _print_rates(
    name: str,
    shape: tuple[int, ...],
    num_classes: int,
    draw: Callable[[int, torch.Generator], list[tuple[Tensor, Tensor]]],
) -> None:
    others = dict(list_arrangements(shape))
    for order in ("as given", *others, *_OTHERS):
        rates = []
        for size in _SIZES:
            num_named = 0
            for seed in range(_NUM_PARTS):
                drawn = torch.Generator().manual_seed(seed)
                train, (images, labels) = draw(size, drawn)
                if order in others:
                    images = images.flatten(1)[:, others[order]].view_as(images)
                elif order in _OTHERS:
                    images, labels = _change(order, images, labels, num_classes, drawn)
                num_named += ClassMeans.of(*train).find_other(images, labels) is not None
            rates.append(str(num_named))
        print(f"| {name} | {order} | {' | '.join(rates)} |", flush=True)


def _change(
    order: str, images: Tensor, labels: Tensor, num_classes: int, drawn: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Change a split in one of `_OTHERS`."""
    if order == _ANY:
        rows = images.flatten(1)
        return rows[:, torch.randperm(rows.shape[1], generator=drawn)].view_as(images), labels
    if order == _NEGATED:
        return -images.float(), labels
    if order == _MOVED_ON:
        return images, (labels + 1) % num_classes
    numbers, pair = torch.arange(num_classes), torch.randperm(num_classes, generator=drawn)[:2]
    numbers[pair] = pair.flip(0)
    return images, numbers[labels]


def _take(splits: list[tuple[Tensor, Tensor]], size: int, drawn: torch.Generator) -> list[tuple[Tensor, Tensor]]:
    chosen = [
        torch.randperm(len(labels), generator=drawn)[:most]
        for (_, labels), most in zip(splits, (_MOST_TRAINING, size), strict=True)
    ]
    return [(images[some], labels[some]) for (images, labels), some in zip(splits, chosen, strict=True)]


def _make_table(num_classes: int, num_columns: int, size: int, drawn: torch.Generator) -> list[tuple[Tensor, Tensor]]:
    centres = torch.randn(num_classes, num_columns, generator=drawn)
    labels = [torch.randint(num_classes, (num,), generator=drawn) for num in (600, size)]
    return [(centres[own] + torch.randn(len(own), num_columns, generator=drawn), own) for own in labels]


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
