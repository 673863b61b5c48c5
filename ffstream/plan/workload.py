"""How much work it is to train a layer: arithmetic, bytes read and written, and the time at given rates. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ffstream.cache import CacheLayout
from ffstream.device.ledger import Work
from ffstream.device.parts import PartSizes, part_sizes
from ffstream.field.blueprint import Blueprint
from ffstream.plan.footprint import PaperLayer, cache_layouts
from ffstream.plan.plan import LayerPlan, Rates
from ffstream.settings.config import Config
from ffstream.training.propagation import chunk_samples


def plan_layers(
    blueprint: Blueprint, on_paper: list[PaperLayer], rates: Rates | None, tier: str | None
) -> list[LayerPlan]:
    """Plans of the first layers of a stack, each with the layers that are like it.

    The last of `on_paper` stands for all later layers of a stack. `tier` is the one that shards are loaded from, None
    if they are not loaded.
    """
    plans = []
    config, specs, candidates = blueprint.config, blueprint.specs, blueprint.method.candidates
    shapes = [cache_layouts(blueprint, spec.in_features) for spec in specs[: len(on_paper)]]
    for spec, layer, layouts in zip(specs, on_paper, shapes, strict=False):
        alike = [other for other in specs if min(other.place, len(on_paper) - 1) == spec.index]
        cached = sum(layout.num_bytes for layout in layouts.values())
        num_tiles = blueprint.sizes.num_tiles
        num_epochs = config.epochs * num_tiles
        in_epochs = num_epochs * sum(layout.epoch_bytes for layout in layouts.values())
        train = layouts["train"]
        measured = _num_measured(blueprint, train) * (train.epoch_bytes // train.num_samples)
        hands_on = any(other.hands_on for other in alike)
        moved = sum(layouts[name].num_bytes for name in _lasting(config, layouts)) if hands_on else 0
        read_bytes, written_bytes = in_epochs + measured + moved, moved // spec.in_features * spec.out_features
        anew = Work()
        if config.augmentation.restream:
            once, more_read, more_written = _fresh_input(on_paper, shapes, [other.place for other in alike])
            anew, read_bytes = once * num_epochs, read_bytes + more_read * num_epochs
            written_bytes += more_written * num_epochs
        seconds = hiding_units = None
        if rates is not None:
            work = _all_work(blueprint, layer, layouts) + anew
            loading = read_bytes / rates.loaded_bytes_per_s[tier] if tier is not None else 0.0
            seconds = rates.seconds(work) | {"loading": loading}
            if tier is not None:
                used = 1 if candidates.shares_row else candidates.num_candidates  # rows per sample in a step
                loaded_bytes = train.row_bytes / train.num_features * train.num_rows / used
                hiding_units = loaded_bytes * rates.flops_per_s / (4 * rates.loaded_bytes_per_s[tier])
        plans.append(
            LayerPlan(
                numbers=[other.index + 1 for other in alike],
                in_features=spec.in_features,
                num_units=spec.num_units,
                num_tiles=num_tiles,
                footprint=layer.footprint,
                cache_bytes=cached,
                read_bytes=read_bytes,
                written_bytes=written_bytes,
                seconds=seconds,
                hiding_units=hiding_units,
            )
        )
    return plans


def _num_measured(blueprint: Blueprint, train: CacheLayout) -> int:
    """How many samples, counting every view, are measured while a layer trains, for later tiles to build on."""
    config, num_tiles = blueprint.config, blueprint.sizes.num_tiles
    if config.augmentation.restream:  # all tiles so far, anew before every epoch
        return config.epochs * num_tiles * (num_tiles - 1) // 2 * train.num_samples
    return (num_tiles - 1) * train.num_stored


def _all_work(blueprint: Blueprint, layer: PaperLayer, layouts: Mapping[str, CacheLayout]) -> Work:
    """The work of training a layer, measuring it after every epoch and handing on; all tiles count as the largest."""
    config, sizes = blueprint.config, blueprint.sizes
    train, num_epochs, parts = layouts["train"], config.epochs * sizes.num_tiles, layer.parts
    work = layer.step * (num_epochs * -(-train.num_samples // sizes.batch))
    work += layer.measure * -(-_num_measured(blueprint, train) // chunk_samples(train.num_rows, parts))
    if "validation" in layouts:
        validation = layouts["validation"]
        work += layer.sweep * (num_epochs * -(-validation.num_samples // chunk_samples(validation.num_rows, parts)))
    num_moved = sum(layouts[name].num_stored for name in _lasting(config, layouts))
    return work + layer.hand_on * _num_chunks(layouts, num_moved, parts)


def _fresh_input(
    on_paper: list[PaperLayer], shapes: list[dict[str, CacheLayout]], places: Sequence[int]
) -> tuple[Work, int, int]:
    """Work, bytes read and bytes written to write a layer's input anew once, as means over several layers.

    `places` are their positions in a stack. The images are written first; then each layer below reads what the one
    below it wrote.
    """
    images, num_layers = shapes[0]["train"], len(places)
    num_in_chunk = chunk_samples(images.num_rows, part_sizes("cpu"))  # images are made into rows on the host
    work = on_paper[0].write * (num_layers * -(-images.num_samples // num_in_chunk))
    read, written = 0, num_layers * images.num_bytes
    for kind, (layer, layouts) in enumerate(zip(on_paper, shapes, strict=True)):
        # Pairs of a layer and one below it that is of this kind; the last kind stands for all later layers.
        num_passes = sum(max(k - kind, 0) if kind + 1 == len(shapes) else k > kind for k in places)
        work += layer.hand_on * (num_passes * _num_chunks(layouts, layouts["train"].num_samples, layer.parts))
        read += num_passes * layouts["train"].num_bytes
        written += num_passes * shapes[min(kind + 1, len(shapes) - 1)]["train"].num_bytes
    return work // num_layers, read // num_layers, written // num_layers


def _lasting(config: Config, layouts: Mapping[str, CacheLayout]) -> list[str]:
    """The splits whose caches move on to the next layer."""
    return [name for name in layouts if name != "train" or not config.augmentation.restream]


def _num_chunks(layouts: Mapping[str, CacheLayout], num_samples: int, parts: PartSizes) -> int:
    """How often a chunk of each split is handed on until `num_samples` samples of all splits are."""
    first_chunks = sum(min(chunk_samples(layout.num_rows, parts), layout.num_samples) for layout in layouts.values())
    return -(-num_samples // first_chunks)
