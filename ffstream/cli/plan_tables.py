"""What `plan` shows: tables of a row for each shape of layer, which fit into 80 columns, and lines between them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

from rich.table import Table

from ffstream.cli.tables import format_duration, make_table
from ffstream.ground.units import count, format_briefly, format_bytes
from ffstream.plan.footprint import Footprint
from ffstream.plan.plan import Plan, name_layers
from ffstream.settings.reads import BELOW, IMAGE

_LAYER, _SHAPE = "layer", "reads and units"
# Headings of the terms of a layer's bytes, in two lines where a word is wide.
_TERMS = {"optimiser": "opti-\nmiser", "activities": "activ-\nities", "gradient": "gradi-\nent"}


def plan_report(plan: Plan) -> Iterator[Table | str]:
    """The plan as three tables: the work of each shape of layer, its bytes, and the peaks; then lines on the rest.

    Sizes by layer are in K, M and G, which are KiB, MiB and GiB.
    """
    for of_layers in _tabulate(plan):
        yield of_layers
        yield ""
    table = make_table(("", "needs", "may take", "of which"), "most at once", left=("",), flexible=("of which",))
    for need in (plan.device, plan.host, plan.disk):
        terms = sorted(need.terms.items(), key=lambda item: -item[1])
        parts = ", ".join(f"{name} {format_bytes(size)}" for name, size in terms if size)
        excess = f"\nby {format_bytes(need.excess_bytes)} too much" if need.excess_bytes else ""
        table.add_row(
            need.noun.replace(" (", "\n(").replace(", ", ",\n"),
            f"{format_bytes(need.num_bytes)}{excess}",
            format_bytes(need.allowed_bytes),
            parts,
        )
    yield table
    yield ""
    yield from _describe(plan)


def _list_work(plan: Plan) -> dict[str, list[str]]:
    """What each shape of layer is, what it reads and hands on, and how long that takes: cells by heading."""
    layers = plan.layers
    columns = {_SHAPE: [each.shape for each in layers], "epochs": [str(each.num_epochs) for each in layers]}
    if any(each.num_tiles > 1 for each in layers):
        columns["tiles"] = [str(each.num_tiles) for each in layers]
    columns["reads\nin all"] = [format_briefly(each.read_bytes) for each in layers]
    columns["hands\non"] = [format_briefly(each.written_bytes) for each in layers]
    if plan.total_s is not None:
        columns["takes\nabout"] = [format_duration(each.total_s) for each in layers]
        columns["bottle-\nneck"] = [str(each.bottleneck) for each in layers]
    return columns


def _list_bytes(plan: Plan) -> dict[str, list[str]]:
    """What a layer takes on the device: term by term while it trains, then in all."""
    columns = {}
    for name in [item.name for item in dataclasses.fields(Footprint) if item.name != "handing_on"]:
        columns[_TERMS.get(name, name)] = [format_briefly(getattr(each.footprint, name)) for each in plan.layers]
    columns["train-\ning"] = [format_briefly(each.footprint.training) for each in plan.layers]
    columns["handing\non"] = [format_briefly(each.footprint.handing_on) for each in plan.layers]
    return columns


def _tabulate(plan: Plan) -> list[Table]:
    """A table of the work and one of the bytes; layers of which both say the same have one row."""
    both = [_list_work(plan), _list_bytes(plan)]
    rows: dict[tuple[str, ...], list[int]] = {}  # the numbers of its layers, by all cells of both tables
    for layer, *found in zip(plan.layers, *both[0].values(), *both[1].values(), strict=True):
        rows.setdefault(tuple(found), []).extend(layer.numbers)
    titles = (
        "the work of a layer, from cache to cache (K, M and G: KiB, MiB and GiB)",
        "a layer on the device, while it trains term by term, and while it hands on",
    )
    tables, start = [], 0
    for title, columns in zip(titles, both, strict=True):
        table = make_table([_LAYER, *columns], title, left=(_LAYER, _SHAPE))
        for cells, numbers in rows.items():
            table.add_row(name_layers(sorted(numbers)), *cells[start : start + len(columns)])
        start += len(columns)
        tables.append(table)
    return tables


def _describe(plan: Plan) -> Iterator[str]:
    """What the plan is for, and what it chose."""
    data, held_out = plan.data, plan.data.num_samples.get("validation")
    shape = (
        f"images of {' x '.join(map(str, data.image_shape))}" if data.image_shape else f"{data.num_features} features"
    )
    yield (
        f"for {data.num_samples['train']:,} training samples{f' and {held_out:,} held out' if held_out else ''}: "
        f"{shape}, {data.num_classes} classes"
    )
    for layer in plan.layers:
        if layer.reads not in (IMAGE, BELOW) or layer.carried_features:
            carried = f"; its rows carry {layer.carried_features:,} features for later ones"
            yield f"{layer.name} reads {layer.reads}{carried if layer.carried_features else ''}"
    cache = max(layer.cache_bytes for layer in plan.layers)
    batch = f"batch {plan.config.batch}"
    if plan.sizes.num_in_micro_batch != plan.config.batch:
        batch += f" in micro-batches of {plan.sizes.num_in_micro_batch}"
    if any(layer.num_tiles > 1 for layer in plan.layers):
        batch += f", tiles of {plan.sizes.tile_units} units"
    yield (
        f"cache on {plan.tier}: {format_bytes(cache)} in {plan.config.cache.dtype}, shards of "
        f"{plan.config.cache.shard_samples} samples; {batch}, precision {plan.config.precision}"
    )
    hidden = [layer.hiding_units for layer in plan.layers if layer.hiding_units is not None]
    if hidden:
        yield f"loading is hidden by the products of layers of {max(hidden):,.0f} units or more"
    windows = [layer.hiding_samples for layer in plan.layers if layer.hiding_samples is not None]
    if windows:
        yield (
            f"moving a layer in and out takes as long as its work on {math.ceil(max(windows)):,} samples: --window N "
            "pays from there on"
        )
    if plan.note is not None:
        yield plan.note
    if plan.warning is not None:
        yield f"warning: {plan.warning}"
    if plan.total_s is not None:
        rounds = f" in {count(plan.config.epochs, 'round')}" if plan.config.in_rounds else ""
        yield f"{count(plan.config.layers, 'layer')}{rounds}: about {format_duration(plan.total_s)} in all"
    if not plan.fits:
        lacking = [need for need in (plan.device, plan.host, plan.disk) if need.excess_bytes]
        found = ", ".join(f"{need.noun} lacks {format_bytes(need.excess_bytes)}" for need in lacking)
        yield f"this does not fit: {found}"
