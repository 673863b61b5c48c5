"""Pictures of figures, as PNG files. matplotlib, which the `plot` extra brings, is imported when one is drawn."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from ffstream.memory_profile import METHODS, Profile

_SIZE_INCHES = (7.5, 4.5)
_DOTS_PER_INCH = 150
_MIB = 1 << 20
_LARGEST_SHARE_SHOWN = 2.5  # of the median: the first layers' errors would press all others together


def draw_profile(profile: Profile, path: Path) -> None:
    """Peak memory against depth, a curve for each method; ours in evaluation is dashed. Raises ModuleNotFoundError."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    figure = Figure(figsize=_SIZE_INCHES, dpi=_DOTS_PER_INCH, layout="constrained")
    axes = figure.subplots()
    for method, label in METHODS.items():
        points = profile.curve(method)
        known = [(point.num_layers, point.training_bytes / _MIB) for point in points if point.training_bytes]
        (line,) = axes.plot(*zip(*known, strict=True), marker="o", label=label) if known else (None,)
        if method == "ffstream" and line is not None:
            line.set_linewidth(2.5)
            evaluated = [
                (point.num_layers, point.evaluation_bytes / _MIB) for point in points if point.evaluation_bytes
            ]
            axes.plot(*zip(*evaluated, strict=True), "--", color=line.get_color(), label=f"{label}, evaluation")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda mib, _: f"{mib:,.0f} MiB" if mib < 1024 else f"{mib / 1024:.1f} GiB")
    )
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xticks(sorted({point.num_layers for point in profile.points}))
    axes.set_xlabel(f"layers of {profile.settings.width} units")
    axes.set_ylabel("peak device memory")
    axes.set_title(f"Training at batch {profile.settings.batch}, {profile.settings.precision}", fontsize="medium")
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(fontsize="small")
    figure.savefig(path)


def draw_errors(curves: Mapping[str, Sequence[float]], axis: str, path: Path) -> None:
    """Error against depth, a curve for each label: shares in [0, 1], of the layers to each depth from 1.

    `axis` says which error it is. Raises ModuleNotFoundError.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=_SIZE_INCHES, dpi=_DOTS_PER_INCH, layout="constrained")
    axes = figure.subplots()
    for label, errors in curves.items():
        axes.plot(range(1, len(errors) + 1), [100 * error for error in errors], marker="o", markersize=3, label=label)
    shown = _LARGEST_SHARE_SHOWN * max(statistics.median(errors) for errors in curves.values())
    axes.set_ylim(top=min(axes.get_ylim()[1], 100 * shown) if shown else None)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("layers")
    axes.set_ylabel(f"{axis}, %")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path)
