"""Charts as PNG files. matplotlib, which the `plot` extra installs, is imported when a chart is drawn."""

from __future__ import annotations

import contextlib
import io
import json
import os
import statistics
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ffstream.errors import ConfigError, OutputError, printable
from ffstream.storage.earlier_output import read_png_text, to_png
from ffstream.storage.outputs import Output
from ffstream.studies.memory_profile import METHODS, Profile

_SIZE_INCHES = (7.5, 4.5)
_DOTS_PER_INCH = 150
_MIB = 1 << 20
_LARGEST_SHARE_SHOWN = 2.5  # times the median error: larger errors, of the first layers, would flatten the rest
_KEY = "ffstream"  # the key, in a picture, of the text that says what it shows
_PROFILE: dict[str, Any] = {"command": "profile"}
_PLOT: dict[str, Any] = {"command": "plot"}
DEMO: dict[str, Any] = {"command": "demo"}


def open_picture(
    path: str | Path, content: Mapping[str, Any], inputs: Sequence[str | Path] = (), *, force: bool = False
) -> Output:
    """The output for a picture that shows `content`.

    It may replace a picture that the same command drew, which can be drawn again, or, with `force`, any file except
    `inputs`. Raises ConfigError for a name that ends in another suffix than .png,
    OutputError.
    """
    path = Path(path)
    if path.suffix.lower() not in (".png", ""):
        raise ConfigError(f"output {path}: found {path.suffix!r}, allowed a name that ends in .png, or has no suffix")
    return Output(path, inputs, force=force, is_own=lambda file: _find_command(file) == content["command"])


def open_profile_picture(path: str | Path, *, force: bool = False) -> Output:
    """The same for the picture of a profile."""
    return open_picture(path, _PROFILE, force=force)


def draw_profile(profile: Profile, path: str | Path, *, force: bool = False) -> None:
    """Draw peak memory against depth, a curve per method; a dashed one shows ffstream in evaluation.

    A file of that name is replaced as `open_picture` says. Raises ModuleNotFoundError, ConfigError, OutputError,
    StorageError.
    """
    output = open_profile_picture(path, force=force)
    with _without_backend():
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
    output.write(_render(figure, _PROFILE))


def draw_errors(
    curves: Mapping[str, Sequence[float]],
    axis: str,
    path: str | Path,
    inputs: Sequence[str | Path] = (),
    *,
    force: bool = False,
    content: Mapping[str, Any] = _PLOT,
) -> None:
    """Draw error against depth, a curve per label: the error in [0, 1] of the layers up to each depth, from 1 on.

    `axis` says which error it is, and `content` which command draws. A file of that name is
    replaced as `open_picture` says. Raises ModuleNotFoundError, ConfigError, OutputError, StorageError.
    """
    content = {**content, "axis": axis, "runs": sorted(curves)}
    output = open_picture(path, content, inputs, force=force)
    with _without_backend():
        from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=_SIZE_INCHES, dpi=_DOTS_PER_INCH, layout="constrained")
    axes = figure.subplots()
    for label, errors in curves.items():
        name = printable(label if not label.startswith("_") else f" {label}")  # else the legend omits it
        axes.plot(range(1, len(errors) + 1), [100 * error for error in errors], marker="o", markersize=3, label=name)
    shown = _LARGEST_SHARE_SHOWN * max(statistics.median(errors) for errors in curves.values())
    axes.set_ylim(top=min(axes.get_ylim()[1], 100 * shown) if shown else None)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("layers")
    axes.set_ylabel(f"{axis}, %")
    axes.grid(alpha=0.3)
    for text in axes.legend(fontsize="small").get_texts():
        text.set_parse_math(False)  # names may hold a dollar sign, which would start a formula
    output.write(_render(figure, content))


@contextlib.contextmanager
def _without_backend() -> Iterator[None]:
    """Import matplotlib without the backend that a notebook sets for its child processes: no window is opened here."""
    own = Path("matplotlibrc")
    if own.exists() and not own.is_file():  # matplotlib would open it, and wait for somebody to write into it
        raise OutputError("matplotlibrc: in the current folder, is no regular file; move it away, or change the folder")
    named = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib as mpl

        mpl.rcdefaults()  # else a matplotlibrc in the current folder, whoever put it there, would decide
        yield
    finally:
        if named is not None:
            os.environ["MPLBACKEND"] = named


def _render(figure: Any, content: Mapping[str, Any]) -> bytes:
    """A figure as a PNG file that says what it shows."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about characters that the font lacks
        figure.savefig(file, format="png", metadata={_KEY: _describe(content)})
    return to_png(file.getvalue())


def _find_command(file: io.FileIO) -> str | None:
    """Which command drew a picture; None for any other file, and for a picture that was edited since."""
    try:
        return str(json.loads(read_png_text(file, _KEY) or "{}")["command"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _describe(content: Mapping[str, Any]) -> str:
    return json.dumps(content, sort_keys=True)
