"""How much work it is to train a layer: arithmetic, bytes read and written, and the time at given rates. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ffstream.cache import CacheLayout
from ffstream.device.ledger import Work
from ffstream.device.parts import PartSizes, part_sizes
from ffstream.field.blueprint import Blueprint
from ffstream.field.network import LayerSpec, count_in_stack
from ffstream.plan.footprint import PaperLayer, cache_layouts
from ffstream.plan.plan import LayerPlan, Rates
from ffstream.settings.config import Config
from ffstream.training.propagation import chunk_samples


def plan_layers(
    blueprint: Blueprint, on_paper: list[PaperLayer], rates: Rates | None, tier: str | None, layer_tier: str
) -> list[LayerPlan]:
    """Plans of the first layers of a stack, each with the layers that are like it.

    The last of `on_paper` stands for all later layers of a stack. `tier` is the one that shards are loaded from, None
    if they are not loaded; `layer_tier` the one in which layers are between the windows of a round.
    """
    plans = []
    config, distinct, candidates = blueprint.config, blueprint.distinct, blueprint.method.candidates
    shapes = [cache_layouts(blueprint, spec.row) for spec in distinct]
    reads = config.list_reads()
    by_representative: dict[int, list[LayerSpec]] = {}
    for spec, index in zip(blueprint.specs, blueprint.representatives, strict=True):
        by_representative.setdefault(index, []).append(spec)
    for spec, layer, layouts in zip(distinct, on_paper, shapes, strict=True):
        alike = by_representative[spec.index]
        cached = sum(layout.num_bytes for layout in layouts.values())
        num_tiles = len(blueprint.tiles_of(spec))
        num_epochs = spec.num_epochs * num_tiles
        train, num_windows = layouts["train"], count_windows(blueprint)
        in_epochs = num_epochs * sum(layout.epoch_bytes for layout in layouts.values())
        in_epochs += num_epochs * (num_windows - 1) * train.epoch_bytes
        measured = _num_measured(config, spec, num_tiles, train) * (train.epoch_bytes // train.num_samples)
        hands_on = any(other.hands_on for other in alike)
        num_passes = _num_passes(config, spec)
        moved = num_passes * sum(layouts[name].num_bytes for name in _lasting(config, layouts)) if hands_on else 0
        moved += num_passes * (num_windows - 1) * train.num_bytes if hands_on else 0
        if layer.settle.num_operators:
            measured += num_passes * num_windows * train.num_bytes
        read_bytes = in_epochs + measured + moved
        written_bytes = moved // spec.row.num_features * spec.next_row.num_features
        anew = Work()
        if config.restreams:
            once, more_read, more_written = _fresh_input(blueprint, on_paper, shapes, alike)
            anew, read_bytes = once * num_epochs, read_bytes + more_read * num_epochs
            written_bytes += more_written * num_epochs
        seconds = hiding_units = hiding_samples = None
        if rates is not None:
            work = _all_work(blueprint, spec, layer, layouts) + anew
            loading = read_bytes / rates.loaded_bytes_per_s[tier] if tier is not None else 0.0
            seconds = rates.seconds(work) | {"loading": loading}
            if config.in_rounds:
                # The layer and its optimiser are read from the disk, and written there, in every round.
                moved_bytes = 2 * (layer.footprint.weights + layer.footprint.optimiser)
                moving_s = moved_bytes / rates.loaded_bytes_per_s[layer_tier]
                state_s = moved_bytes / rates.loaded_bytes_per_s["disk"] + (num_windows - 1) * moving_s
                num_worked = num_epochs * num_windows * train.num_samples
                hiding_samples = moving_s * num_worked / sum(seconds[name] for name in seconds if name != "loading")
                seconds |= {"the layer's state": num_passes * state_s}
            if tier is not None:
                used = 1 if candidates.shares_row else candidates.num_candidates  # rows per sample in a step
                loaded_bytes = train.row_bytes / train.num_features * train.num_rows / used
                hiding_units = loaded_bytes * rates.flops_per_s / (4 * rates.loaded_bytes_per_s[tier])
        plans.append(
            LayerPlan(
                numbers=[other.index + 1 for other in alike],
                shape=spec.describe(),
                reads=" or ".join(dict.fromkeys(reads[other.index] for other in alike)),
                carried_features=sum(spec.row.carried_features),
                in_features=spec.in_features,
                num_units=spec.num_units,
                num_tiles=num_tiles,
                num_epochs=spec.num_epochs,
                footprint=layer.footprint,
                cache_bytes=cached,
                read_bytes=read_bytes,
                written_bytes=written_bytes,
                seconds=seconds,
                hiding_units=hiding_units,
                hiding_samples=hiding_samples,
            )
        )
    return plans


def count_windows(blueprint: Blueprint) -> int:
    """The number of windows in which training samples pass through the layers: 1 without rounds."""
    return blueprint.config.schedule.count_windows(blueprint.data.num_samples["train"])


def _num_passes(config: Config, spec: LayerSpec) -> int:
    """How often a layer hands on what it has made of the lasting caches: once it is trained, or in every round."""
    return spec.num_epochs if config.in_rounds else 1


def _num_measured(config: Config, spec: LayerSpec, num_tiles: int, train: CacheLayout) -> int:
    """How many samples, counting every view, are measured while a layer trains, for later tiles to build on."""
    if config.restreams:  # all tiles so far, anew before every epoch
        return spec.num_epochs * num_tiles * (num_tiles - 1) // 2 * train.num_samples
    return (num_tiles - 1) * train.num_stored


def _all_work(blueprint: Blueprint, spec: LayerSpec, layer: PaperLayer, layouts: Mapping[str, CacheLayout]) -> Work:
    """The work of training a layer, measuring it after every epoch and handing on; all tiles count as the largest."""
    config, sizes, num_tiles = blueprint.config, blueprint.sizes, len(blueprint.tiles_of(spec))
    train, num_epochs, parts = layouts["train"], spec.num_epochs * num_tiles, layer.parts
    num_windows = count_windows(blueprint)
    work = layer.step * (num_epochs * num_windows * -(-train.num_samples // sizes.batch))
    num_measured = _num_measured(config, spec, num_tiles, train)
    work += layer.measure * -(-num_measured // chunk_samples(train.num_rows, parts, spec))
    if "validation" in layouts:
        validation = layouts["validation"]
        num_in_chunk = chunk_samples(validation.num_rows, parts, spec)
        work += layer.sweep * (num_epochs * -(-validation.num_samples // num_in_chunk))
    num_passes = _num_passes(config, spec)
    num_settled = num_passes * num_windows * train.num_stored if layer.settle.num_operators else 0
    work += layer.settle * -(-num_settled // chunk_samples(train.num_rows, parts, spec))
    if config.in_rounds and spec.place == 0:
        num_in_chunk = chunk_samples(train.num_rows, part_sizes("cpu"))  # images are made into rows on the host
        work += layer.write * (num_passes * num_windows * -(-train.num_samples // num_in_chunk))
    num_moved = num_passes * sum(layouts[name].num_stored for name in _lasting(config, layouts))
    num_moved += num_passes * (num_windows - 1) * train.num_stored
    return work + layer.hand_on * _num_chunks(layouts, num_moved, parts, spec)


def _fresh_input(
    blueprint: Blueprint,
    on_paper: list[PaperLayer],
    shapes: list[dict[str, CacheLayout]],
    alike: Sequence[LayerSpec],
) -> tuple[Work, int, int]:
    """Work, bytes read and bytes written to write a layer's input anew once, as means over several layers.

    The images are written first; then each layer below in the stack reads what the one below it wrote.
    """
    images, num_layers = shapes[0]["train"], len(alike)
    num_in_chunk = chunk_samples(images.num_rows, part_sizes("cpu"))  # images are made into rows on the host
    work = on_paper[0].write * (num_layers * -(-images.num_samples // num_in_chunk))
    read, written = 0, num_layers * images.num_bytes
    # How many layers below, in the same stack, the layers of each position have that a certain layer stands for.
    of_stack = blueprint.representatives[: count_in_stack(blueprint.config)]
    below: list[dict[int, int]] = [{}]
    for index in of_stack:
        below.append(below[-1] | {index: below[-1].get(index, 0) + 1})
    for layer, spec, layouts in zip(on_paper, blueprint.distinct, shapes, strict=True):
        num_passes = sum(below[other.place].get(spec.index, 0) for other in alike)
        written_layout = cache_layouts(blueprint, spec.next_row)["train"]
        num_chunks = _num_chunks(layouts, layouts["train"].num_samples, layer.parts, spec)
        work += layer.hand_on * (num_passes * num_chunks)
        read += num_passes * layouts["train"].num_bytes
        written += num_passes * written_layout.num_bytes
    return work // num_layers, read // num_layers, written // num_layers


def _lasting(config: Config, layouts: Mapping[str, CacheLayout]) -> list[str]:
    """The splits whose caches move on to the next layer."""
    return [name for name in layouts if name != "train" or not config.restreams]


def _num_chunks(layouts: Mapping[str, CacheLayout], num_samples: int, parts: PartSizes, spec: LayerSpec) -> int:
    """How often a chunk of each split is handed on until `num_samples` samples of all splits are."""
    in_chunks = (min(chunk_samples(each.num_rows, parts, spec), each.num_samples) for each in layouts.values())
    first_chunks = sum(in_chunks)
    return -(-num_samples // first_chunks)
