"""What commands show: tables, and lines between them.

Names come from files and from users. In a cell they are made `_plain`, so that nothing in them is taken for markup or
obeyed by a terminal. Lines are escaped where they are printed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from ffstream.errors import printable
from ffstream.field.catalogue import Catalogue
from ffstream.ground.units import format_bytes
from ffstream.infer.combination import ProbabilityFigures
from ffstream.infer.evaluation import Evaluation
from ffstream.settings.reads import BELOW, IMAGE
from ffstream.studies.demo import Demonstration
from ffstream.studies.doctor import MachineSpeeds, TimeAccount
from ffstream.studies.memory_profile import METHODS, Point, Profile
from ffstream.training.observer import LayerFigures

if TYPE_CHECKING:
    from rich.console import JustifyMethod

_MINUTE_S, _DAY_S = 60, 24 * 3600
_MAX_CLASS_NAME = 14
_MAX_PAIRS = 15


def make_table(headings: Sequence[str], title: str, left: Sequence[str] = (), flexible: Sequence[str] = ()) -> Table:
    """An empty table whose cells are never cut, and are wrapped only in columns with a heading in `flexible`.

    Columns are aligned to the right, except those with a heading in `left` or `flexible`. A table that is wider than
    the terminal is shown row by row (`reporting.print_table`).
    """
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for heading in headings:
        wraps = heading in flexible
        justify: JustifyMethod = "left" if wraps or heading in left else "right"
        table.add_column(heading, justify=justify, no_wrap=not wraps)
    return table


def layer_table(
    layers: list[LayerFigures],
    *,
    is_labelled: bool = True,
    num_in_stack: int = 0,
    num_epochs: Sequence[int] = (),
    reads: Sequence[str] = (),
) -> Table:
    """A table with one row per layer.

    Where there are several stacks of `num_in_stack` layers, a column says which layer begins each. `num_epochs` of each
    layer are shown if they differ, and `reads`, what it reads, if that is not the layer below.
    """
    of = "error" if is_labelled else "hybrid\nerror"
    figures = ("loss", "goodness\npositive", "\nnegative", "separa-\ntion", f"{of}\nalone", f"{of}\nto here")
    has_stacks = 0 < num_in_stack < len(layers)
    title = "layers; the first one of a stack reads the images again" if has_stacks else "layers"
    own = (["stack"] if has_stacks else []) + (["epochs"] if len(set(num_epochs)) > 1 else [])
    shown = [] if all(each in (IMAGE, BELOW) for each in reads) else ["reads"]
    table = make_table(["layer", *own, *figures, "samples\n/ s", "time\n/ s", *shown], title, left=("reads",))
    for number, each in enumerate(layers):
        stack, place = divmod(each.layer - 1, num_in_stack) if has_stacks else (0, 0)
        told = {"stack": "" if place else str(stack + 1)}
        told["epochs"] = str(num_epochs[each.layer - 1]) if "epochs" in own else ""
        table.add_row(
            str(each.layer),
            *(told[name] for name in own),
            f"{each.loss:.4f}",
            f"{each.goodness_positive:.4g}",
            f"{each.goodness_negative:.4g}",
            f"{each.separation:.4f}",
            format_share(each.validation_error),
            format_share(each.validation_error_to_here),
            f"{each.samples_per_s:,.0f}",
            f"{each.elapsed_s:.1f}",
            *(reads[number] for _ in shown),
        )
    return table


def evaluation_report(found: Evaluation, width: int) -> Iterator[Table | str]:
    """Errors by depth, the confusion of classes in `width` columns, and how far probabilities can be trusted."""
    combination = found.combination
    total = sum(combination.weights) if combination is not None else 1.0
    for depth, error in enumerate(found.errors_by_depth, found.first_depth):
        alone = f", {format_share(found.layer_errors[depth - 1])} alone" if found.layer_errors else ""
        weight = ""
        if combination is not None and combination.ridge is not None:
            weight = f", weight {100 * combination.weights[depth - 1] / total:.1f} %"
        yield f"layer {depth}: {format_share(error)} to here{alone}{weight}"
    yield ""
    yield from confusion_report(found, width)
    yield f"{found.split} error {format_share(found.error)} on {found.num_samples} samples, by {found.method}"
    as_they_are = _describe_probabilities(found.uncalibrated)
    if found.calibrated is None:
        why = "" if found.method == "softmax" else " (no validation split to calibrate them on)"
        yield f"probabilities{why}: {as_they_are}"
        return
    where = "this very split" if found.split == "validation" else "the validation split"
    yield f"probabilities calibrated on {where}: {_describe_probabilities(found.calibrated)}"
    yield f"not calibrated: {as_they_are}"


def confusion_report(found: Evaluation, width: int) -> Iterator[Table | str]:
    """The confusion matrix or, where that is wider than `width`, the most confused pairs of classes."""
    counts, names = found.confusion, [printable(name) for name in found.class_names]
    cells = [[str(count) if count else "." for count in row] for row in counts]
    labels = [_shorten(name, _MAX_CLASS_NAME) for name in names]
    room = (width - max(len("true"), *map(len, labels)) - len(" 100.00 %")) // len(names) - 1
    headings = _make_headings(names, room)
    if headings is None or max(len(cell) for row in cells for cell in row) > room:
        yield from _confused_pairs(found)
        return
    title = "samples: true classes in rows, predicted in columns"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    table.add_column("true", no_wrap=True)
    for heading in (*headings, "error"):
        table.add_column(_plain(heading), justify="right", no_wrap=True)
    for number, (label, row) in enumerate(zip(labels, cells, strict=True)):
        styled = [Text(cell, "bold" if column == number else "") for column, cell in enumerate(row)]
        table.add_row(_plain(label), *styled, format_share(_class_error(counts[number], number)))
    yield table


def _confused_pairs(found: Evaluation) -> Iterator[Table | str]:
    pairs = [
        (count, true, predicted)
        for true, row in enumerate(found.confusion)
        for predicted, count in enumerate(row)
        if count and true != predicted
    ]
    shown = sorted(pairs, key=lambda pair: (-pair[0], *pair[1:]))[:_MAX_PAIRS]
    title = "classes taken for others most often"
    table = make_table(("true", "predicted", "samples", "of the true class"), title, left=("true", "predicted"))
    for num_samples, true, predicted in shown:
        names = (printable(found.class_names[number]) for number in (true, predicted))
        table.add_row(
            *(_plain(_shorten(name, 2 * _MAX_CLASS_NAME)) for name in names),
            str(num_samples),
            format_share(num_samples / sum(found.confusion[true])),
        )
    if shown:
        yield table
    num_left = sum(num_samples for num_samples, _, _ in pairs) - sum(num_samples for num_samples, _, _ in shown)
    if num_left:
        yield f"and {num_left} samples in {len(pairs) - len(shown)} more pairs (all in --json)"


def _make_headings(names: list[str], room: int) -> list[str] | None:
    """Names, their first words, last words or beginnings: the first kind whose texts all differ and fit into `room`."""
    words = [name.split() or [name] for name in names]
    first, last, beginnings = [w[0] for w in words], [w[-1] for w in words], [name[: max(room, 0)] for name in names]
    for headings in (names, first, last, beginnings):
        if len(set(headings)) == len(names) and max(map(len, headings)) <= room:
            return headings
    return None


def _class_error(row: list[int], number: int) -> float | None:
    return 1 - row[number] / sum(row) if any(row) else None


def _shorten(name: str, length: int) -> str:
    return name if len(name) <= length else f"{name[: length - 1]}…"


def _plain(text: str) -> Text:
    return Text(printable(text))


def _describe_probabilities(figures: ProbabilityFigures) -> str:
    return (
        f"negative log likelihood {figures.negative_log_likelihood:.4f}, expected calibration error "
        f"{format_share(figures.expected_calibration_error)}"
    )


def demonstration_report(found: Demonstration) -> Iterator[Table | str]:
    """The figures of the demo, beside those of two other methods on the same images."""
    num_layers = len(found.errors_by_depth)
    depths = [*(depth for depth in (1, 2, 4, 8) if depth < num_layers), num_layers]
    table = make_table(("", "test error"), "", left=("",))
    for depth in depths:
        noun = f"{depth} layer{'s' * (depth > 1)}, one at a time on the device"
        table.add_row(noun, format_share(found.errors_by_depth[depth - 1]))
    table.add_row("the label of the nearest training image", format_share(found.nearest_neighbour_error))
    table.add_row("two hidden layers by backpropagation", format_share(found.mlp_error))
    yield table
    yield (
        f"memory of training on the device: {format_bytes(found.training_bytes)}; backpropagation of the same network "
        f"takes {format_bytes(found.backprop_bytes)}"
    )
    same = "the same bits as" if found.is_same else "other bits than"
    yield (
        f"killed in epoch {found.killed_epoch + 1} of layer {found.killed_layer} and resumed: {same} the run that was "
        "not interrupted"
    )


def speeds_report(found: MachineSpeeds) -> Iterator[Table | str]:
    """What a machine can do, and what it has room for."""
    table = make_table(("what", "figure"), printable(found.device_name), left=("what",))
    for precision, flops in found.product_flops_per_s.items():
        chosen = ", which auto takes here" if precision == found.precision else ""
        table.add_row(f"matrix products in {precision}{chosen}", f"{flops / 1e12:.2f} TFLOP/s")
    table.add_row("what else a step moves in memory", _per_s(found.moved_bytes_per_s))
    table.add_row("starting an operator", f"{1e6 * found.operator_s:.1f} us")
    table.add_section()
    if found.to_device_bytes_per_s is not None and found.from_device_bytes_per_s is not None:
        table.add_row("host to device", _per_s(found.to_device_bytes_per_s))
        table.add_row("device to host", _per_s(found.from_device_bytes_per_s))
    if found.read_bytes_per_s is not None:
        table.add_row("reading the disk", _per_s(found.read_bytes_per_s))
    table.add_row("reading what the system caches of it", _per_s(found.cached_read_bytes_per_s))
    table.add_row("writing to the disk", _per_s(found.written_bytes_per_s))
    table.add_row("making a small file durable", f"{1e3 * found.sync_s:.1f} ms")
    table.add_section()
    if found.device_type != "cpu":
        table.add_row("free on the device", format_bytes(found.free_device_bytes))
    table.add_row("free host memory", format_bytes(found.free_host_bytes))
    table.add_row("free on the disk", format_bytes(found.free_disk_bytes))
    table.add_row("threads", str(found.num_threads))
    yield table
    if found.machine is not None:
        yield f'elsewhere, a plan for this machine: ffstream plan --machine "{found.machine}"'
    for warning in found.warnings:
        yield f"warning: {warning}"


def account_report(found: TimeAccount) -> Iterator[Table | str]:
    """Where the time of a run went, and advice."""
    total_s = sum(found.seconds.values())
    title = f"{_format_spent(total_s)} of layers that are finished"
    table = make_table(("went to", "time", "share"), title, left=("went to",))
    for noun, seconds in found.seconds.items():
        table.add_row(_plain(noun), _format_spent(seconds), f"{100 * seconds / total_s:.1f} %")
        for part, share in found.training.items() if noun == "training" else ():
            table.add_row(
                _plain(f"  {part}, about"), _format_spent(share * seconds), f"{100 * share * seconds / total_s:.1f} %"
            )
    yield table
    yield from found.advice or ["nothing stands out: most of the time went to the work itself"]


def _format_spent(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds < _MINUTE_S else format_duration(seconds)


def format_duration(seconds: float | None) -> str:
    """75 -> "1 min 15 s", 3725 -> "1 h 02 min"; None -> "-"."""
    if seconds is None or seconds >= 2 * _DAY_S:
        return format_seconds(seconds)
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _per_s(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:,.2f} GB/s"


def profile_table(profile: Profile) -> Table:
    """Peak memory, with one row per depth and one column per method."""
    methods = [method for method in METHODS if profile.curve(method)]
    title = "peak device memory in MiB, training / evaluation"
    table = make_table(["layers", *(METHODS[method].replace(", ", ",\n") for method in methods)], title)
    for num_layers in sorted({point.num_layers for point in profile.points}):
        points = [profile.find(method, num_layers) for method in methods]
        table.add_row(str(num_layers), *("" if point is None else format_point(point) for point in points))
    return table


def format_point(point: Point) -> str:
    """ "100.2 / 62.6", MiB of training and of evaluation."""
    if point.training_bytes is None or point.evaluation_bytes is None:
        return "out of memory"
    sizes = (num_bytes / (1 << 20) for num_bytes in (point.training_bytes, point.evaluation_bytes))
    return " / ".join(f"{mib:,.0f}" if mib >= 1000 else f"{mib:.1f}" for mib in sizes)


def format_share(share: float | None) -> str:
    """0.0135 -> "1.35 %"; None -> "-"."""
    return "-" if share is None else f"{100 * share:.2f} %"


def format_seconds(seconds: float | None) -> str:
    """3725 -> "1:02:05", 864000 -> "10 days"; None -> "-"."""
    if seconds is None:
        return "-"
    if seconds >= 2 * _DAY_S:
        return f"{seconds / _DAY_S:,.0f} days"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def catalogue_tables(catalogue: Catalogue) -> list[Table]:
    """A table of recipes with what they set, then a table for each setting with the parts that it may name."""
    columns = ("recipe", "what it is", "what it sets")
    recipes = make_table(columns, "--recipe", left=("recipe", "what it sets"), flexible=("what it is",))
    for name, (line, sets) in catalogue.recipes.items():
        settings = "\n".join(printable(f"{key}={value}") for key, value in sets.items())
        recipes.add_row(_plain(name), _plain(line), Text(settings or "(the defaults)"), end_section=True)
    tables = [recipes]
    for setting, parts in catalogue.parts.items():
        table = make_table(("name", "what it is"), f"--set {setting}=", left=("name",), flexible=("what it is",))
        for name, line in parts.items():
            table.add_row(_plain(name), _plain(line))
        tables.append(table)
    return tables
