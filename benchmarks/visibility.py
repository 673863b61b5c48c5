"""What hides data from a layer, and from where on: `python -m benchmarks.visibility` prints a table in Markdown.

Tables of two classes, which the first of their features tells apart, and the embedded digits, are changed step by step;
two layers are trained on each, plain and with every feature standardised.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

import ffstream as ff
from benchmarks.machine import describe_machine
from ffstream.data import Scaling, load_dataset
from ffstream.training.visibility import find_hidden

_NUM_TRAINING, _NUM_TEST = 500, 100
_CONFIG = ff.Config(layers=2, width=64, epochs=20, device="cpu")


def main() -> None:
    """Train and print."""
    machine = describe_machine("cpu")
    print(f"{machine['device']}, torch {machine['torch']}, ffstream {machine['commit']}; recipe {_CONFIG.recipe},")
    print(f"{_CONFIG.layers} layers of {_CONFIG.width}, {_CONFIG.epochs} epochs a layer, seed 0; test error in %.\n")
    print("| data | plain | standardised | what is said |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, images, labels, num_training) in enumerate(_cases()):
            path = Path(folder) / f"{number}.npz"
            train, test = slice(num_training), slice(num_training, None)
            np.savez(path, x_train=images[train], y_train=labels[train], x_test=images[test], y_test=labels[test])
            errors = []
            for standardise in ("none", "features"):
                config = _CONFIG.override({"data": str(path), "standardise": standardise})
                errors.append(ff.train(config, Path(folder) / f"{number}-{standardise}").evaluate().error)
            shown = torch.from_numpy(images[train]).float()
            said = find_hidden(shown, torch.from_numpy(labels[train]), Scaling(float(shown.abs().max())), "none")
            words = "" if said is None else " ".join(said.split()[:8]) + " ..."
            print(f"| {name} | {errors[0]:.1%} | {errors[1]:.1%} | {words} |".replace("%", ""), flush=True)


def _cases() -> Iterator[tuple[str, np.ndarray, np.ndarray, int]]:
    labels = np.arange(_NUM_TRAINING + _NUM_TEST) % 2
    for num_features in (6, 30):
        drawn = np.random.default_rng(0)
        table = drawn.normal(size=(len(labels), num_features))
        table[:, 0] += 4 * labels
        noun = f"{num_features} features"
        for offset in (0, 2, 4, 5, 7, 10, 30, 300):
            yield f"{noun}, all + {offset}", table + offset, labels, _NUM_TRAINING
        for size in (3, 10, 30, 100, 1000):
            changed = table.copy()
            changed[:, 5] *= size
            yield f"{noun}, one times {size}", changed, labels, _NUM_TRAINING
        for value in (-99, -9999):
            for share in (0.01, 0.05, 0.2):
                changed, chosen = table.copy(), drawn.random(table.shape) < share
                chosen[:, 0] = False
                changed[chosen] = value
                yield f"{noun}, {share:.0%} of all but the first {value}", changed, labels, _NUM_TRAINING
        for outlier in (1e4, 1e5, 1e6, 1e7, 1e9):
            changed = table.copy()
            changed[3, 2] = outlier
            yield f"{noun}, one value {outlier:g}", changed, labels, _NUM_TRAINING
    digits = load_dataset("digits")
    assert digits.test is not None
    images = np.concatenate([split.images[:].numpy() for split in (digits.train, digits.test)]).astype(np.float32)
    classes = np.concatenate([split.labels.numpy() for split in (digits.train, digits.test)])
    images = images.reshape(len(images), 8, 8)
    for offset in (0, 16, 32, 100):
        yield f"digits, all + {offset}", images + offset, classes, len(digits.train)
    for border in (0, 4, 8):
        padded = np.pad(images, ((0, 0), (border, border), (border, border)))
        yield f"digits, black on white, a border of {border}", 16 - padded, classes, len(digits.train)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
