"""The command line: parses, calls, renders; nothing else. torch is imported by what it calls, not here."""

from __future__ import annotations

import errno
import inspect as inspect_module
import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from ffstream import __version__
from ffstream.errors import ConfigError, FFStreamError

if TYPE_CHECKING:
    from ffstream.config import Config
    from ffstream.observer import Observer
    from ffstream.run import Run

app = typer.Typer(
    name="ffstream",
    help="Train deep Forward-Forward networks one layer at a time, on a device that could never hold them whole.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

RunDir = Annotated[Path, typer.Argument(metavar="RUN", help="The run directory.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Device = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
OneDevice = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
FirstLayer = Annotated[int, typer.Option("--first-layer", help="First layer that counts, from 1; of each stack.")]
Cache = Annotated[str | None, typer.Option("--cache", help="Cache tier: auto, device, host or disk.")]
Budget = Annotated[str | None, typer.Option(help="Most device memory to take, such as 1GiB (most of what is free).")]
DataRoot = Annotated[
    str | None,
    typer.Option("--data-root", help="Where torchvision's archives lie ($FFSTREAM_DATA or the user's cache)."),
]


@app.command()
def train(
    data: Annotated[
        str | None,
        typer.Option(
            help="digits, mnist, fashion-mnist, kmnist, cifar10, a folder by class, .safetensors, .npz (digits)."
        ),
    ] = None,
    layers: Annotated[int | None, typer.Option(help="Number of layers (4).")] = None,
    width: Annotated[int | None, typer.Option(help="Units a layer (500).")] = None,
    stack_layers: Annotated[
        int | None, typer.Option(help="Layers after which one reads the images again (0: never).")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs a layer (20).")] = None,
    batch: Annotated[int | None, typer.Option(help="Samples a step (auto).")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate (of the recipe).")] = None,
    recipe: Annotated[str | None, typer.Option(help="One that `ffstream recipes` shows (inject).")] = None,
    negatives_per_sample: Annotated[
        str | None, typer.Option(help="Wrong labels (overlay; all) or hybrids cached a sample.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random (0).")] = None,
    device: Device = None,
    precision: Annotated[str | None, typer.Option(help="Of matrix products: auto, bf16 or fp32 (auto).")] = None,
    cache: Cache = None,
    cache_dtype: Annotated[str | None, typer.Option(help="Of cached rows: bf16, fp16 or fp32 (bf16).")] = None,
    views: Annotated[int | None, typer.Option(help="Shifted views cached of every training image (1: none).")] = None,
    restream: Annotated[
        bool | None, typer.Option("--restream", help="Shift the training images anew for every epoch.")
    ] = None,
    max_shift: Annotated[int | None, typer.Option(help="Pixels by which a shift moves an image at most (2).")] = None,
    data_root: DataRoot = None,
    budget: Budget = None,
    host_budget: Annotated[str | None, typer.Option(help="Most host memory for this process.")] = None,
    disk_budget: Annotated[str | None, typer.Option(help="Most disk space for the run.")] = None,
    config: Annotated[Path | None, typer.Option(help="A TOML file of settings.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Any setting; may be repeated.")
    ] = None,
    run_dir: Annotated[Path | None, typer.Option(help="(runs/<data>-<layers>x<width>-<time>).")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with --run-dir if it is there already.")] = False,
) -> None:
    """Train a network, layer by layer.

    Settings: the recipe's, then --config, then --set, then the options here.
    """
    resolved = _resolve_settings(dict(locals()))
    from ffstream.session import default_run_dir
    from ffstream.session import train as start

    path = run_dir or default_run_dir(resolved)
    _train(path, lambda observer: start(resolved, path, resume=resume, observer=observer))


def plan(
    machine: Annotated[
        str | None,
        typer.Option(help="Plan for another machine: device=8GiB,30TFLOP/s;h2d=12GB/s;host=32GiB;disk=1TiB,3GB/s."),
    ] = None,
    samples: Annotated[
        int | None, typer.Option(help="Plan for so many training samples of no data in particular.")
    ] = None,
    features: Annotated[int, typer.Option(help="Features of each, with --samples.")] = 784,
    classes: Annotated[int, typer.Option(help="Classes, with --samples.")] = 10,
    as_json: Json = False,
    **options: Any,
) -> None:
    """Show what `train` with the same options would do and take; nothing is written."""
    resolved = _resolve_settings(options)
    from rich.console import Console

    from ffstream.footprint import DataShape
    from ffstream.reporting import plan_report
    from ffstream.session import make_plan

    data = DataShape.of(samples, features, classes, resolved.validation_fraction) if samples is not None else None
    found = make_plan(resolved, options["run_dir"], resume=options["resume"], machine=machine, data=data)
    if as_json:
        typer.echo(json.dumps(found.to_mapping(), indent=1))
        return
    for part in plan_report(found):
        Console().print(part, highlight=False, soft_wrap=isinstance(part, str))


def _add_options_of(source: Callable[..., None], target: Callable[..., None]) -> None:
    """Give `target`, in place of its **options, those of `source`."""
    theirs, own = (inspect_module.signature(f, eval_str=True).parameters.values() for f in (source, target))
    mine = [p.replace(kind=p.KEYWORD_ONLY) for p in own if p.kind is not p.VAR_KEYWORD]
    vars(target)["__signature__"] = inspect_module.Signature([*theirs, *mine])
    target.__annotations__ = {parameter.name: parameter.annotation for parameter in [*theirs, *mine]}


_add_options_of(train, plan)
app.command()(plan)


@app.command()
def resume(
    run: RunDir,
    layers: Annotated[int | None, typer.Option(help="Grow the network to this many layers.")] = None,
    device: Device = None,
    cache: Cache = None,
    budget: Budget = None,
    data_root: DataRoot = None,
) -> None:
    """Go on with a run after any interruption, or grow a finished one."""
    from ffstream.session import resume as go_on

    _train(
        run,
        lambda observer: go_on(
            run, layers=layers, device=device, cache=cache, budget=budget, data_root=data_root, observer=observer
        ),
    )


@app.command()
def evaluate(
    run: RunDir,
    method: Annotated[
        str,
        typer.Option(
            help="goodness (label sweep), fitted (its layers weighted), softmax (linear readout), or auto: goodness "
            "if labels were shown."
        ),
    ] = "auto",
    split: Annotated[str, typer.Option(help="test, validation or train.")] = "test",
    first_layer: FirstLayer = 2,
    device: OneDevice = "auto",
    data_root: DataRoot = None,
    as_json: Json = False,
) -> None:
    """Error of a run on a split, by depth and by class; never more than one layer is on the device."""
    from rich.console import Console

    from ffstream.reporting import evaluation_report
    from ffstream.run import Run

    found = Run(run).evaluate(method, split, first_layer=first_layer, device=device, data_root=data_root or "")
    if as_json:
        typer.echo(json.dumps(found.to_mapping(), indent=1))
        return
    console = Console()
    for part in evaluation_report(found, console.width):
        console.print(part, highlight=False, markup=False, soft_wrap=isinstance(part, str))


@app.command()
def predict(
    run: RunDir,
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE...", help="Images, folders of them, or arrays (.npy, .npz, .safetensors)."),
    ],
    method: Annotated[
        str, typer.Option(help="goodness (label sweep) or fitted (its layers weighted as fits the validation split).")
    ] = "goodness",
    first_layer: FirstLayer = 2,
    uncalibrated: Annotated[
        bool, typer.Option("--uncalibrated", help="Probabilities as they are, for a run without a validation split.")
    ] = False,
    output: Annotated[Path | None, typer.Option(help="A .csv or .json file to write (CSV on standard output).")] = None,
    device: OneDevice = "auto",
    data_root: DataRoot = None,
    as_json: Json = False,
) -> None:
    """Label each image, with its probability (in JSON those of all classes); one layer is on the device at a time.

    Probabilities are calibrated on the run's validation split. Arrays are in the units of the training data.
    """
    if output is not None and output.suffix not in (".csv", ".json"):
        raise ConfigError(f"--output {output}: found {output.suffix or 'no suffix'!r}, allowed .csv or .json")
    if output is not None and as_json and output.suffix != ".json":
        raise ConfigError(f"--json: found with --output {output}, allowed with a .json file; leave one of them out")
    from ffstream.files import write_atomic
    from ffstream.predictions import find_unit_mismatch
    from ffstream.run import Run

    found = Run(run)
    images = found.load_images(files)
    oddity = find_unit_mismatch(images.images, found.directory.read_data()["scale"])
    if oddity is not None:
        typer.echo(f"ffstream: note: {oddity}", err=True)
    predictions = found.predict(
        images.images,
        method,
        first_layer=first_layer,
        calibrated=not uncalibrated,
        device=device,
        data_root=data_root or "",
    )
    in_json = as_json or (output is not None and output.suffix == ".json")
    text = predictions.to_csv(images.names)
    if in_json:
        text = json.dumps({"run": str(run)} | predictions.to_mapping(images.names), indent=1) + "\n"
    if output is None:
        typer.echo(text, nl=False)
        return
    write_atomic(output, text.encode())
    typer.echo(f"{len(images)} predictions written to {output}")


@app.command()
def inspect(
    run: RunDir,
    verify: Annotated[bool, typer.Option("--verify", help="Check every digest of what is committed.")] = False,
    as_json: Json = False,
) -> None:
    """What is done in a run, the figures of each layer, and whether its files are whole."""
    from rich.console import Console

    from ffstream.reporting import layer_table
    from ffstream.run import Run

    found = Run(run)
    layers, progress = found.layers, found.directory.read_progress()
    if progress and progress[0] != len(layers):  # of a layer that is finished: it goes when the run ends
        progress = None
    if verify:
        found.verify()
    if as_json:
        content = {
            "run": str(run),
            "config": found.config.to_mapping(),
            "num_layers_done": len(layers),
            "progress": {"layer": progress[0] + 1, "epochs": progress[1]} if progress else None,
            "verified": verify,
            "layers": [figures.to_mapping() for figures in layers],
        }
        typer.echo(json.dumps(content, indent=1))
        return
    config = found.config
    typer.echo(
        f"run {run}: {len(layers)} of {config.layers} layers of {config.width} units done, "
        f"data {config.data}, recipe {config.recipe}"
    )
    if progress:
        num_epochs = config.epochs * config.num_tiles
        typer.echo(f"layer {progress[0] + 1} is saved after epoch {progress[1]} of {num_epochs}")
    if layers:
        Console().print(layer_table(layers))
    if verify:
        typer.echo("every digest of what is committed is right")
    if len(layers) < config.layers:
        typer.echo(f"go on with: ffstream resume {run}")


@app.command()
def plot(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run directories.")],
    output: Annotated[Path, typer.Option(help="The PNG file to write.")] = Path("errors.png"),
) -> None:
    """A picture of the validation error against depth, a curve for each run; nothing is computed."""
    from ffstream.picture import draw_errors
    from ffstream.run import Run

    curves = {str(path): Run(path).validation_errors_by_depth for path in runs}
    try:
        draw_errors(curves, "validation error of the layers to here", output)
    except ModuleNotFoundError as error:
        raise ConfigError("plot: found no matplotlib, which draws; pip install 'ffstream[plot]'") from error
    typer.echo(f"picture in {output}")


@app.command()
def repair(
    run: RunDir,
    apply: Annotated[
        bool, typer.Option("--apply", help="Put aside what is damaged; otherwise it is only said.")
    ] = False,
) -> None:
    """What can be kept of a damaged run: the longest prefix of layers without damage. What is put aside is not lost."""
    from ffstream.repair import diagnose, put_aside
    from ffstream.run import Run

    directory = Run(run).directory
    found = diagnose(directory)
    for problem in found.problems:
        typer.echo(problem)
    if not found.problems:
        typer.echo(f"run {run}: nothing is damaged; {found.num_valid} layers are committed")
        return
    typer.echo(f"run {run}: {found.num_valid} of {found.num_committed} committed layers can be kept")
    names = ", ".join(str(path.relative_to(directory.path)) for path in found.damaged)
    if not apply:
        typer.echo(f"to be put aside: {names}; do it with: ffstream repair {run} --apply")
        return
    typer.echo(f"put aside into {put_aside(directory, found)}: {names}; go on with: ffstream resume {run}")


@app.command()
def export(run: RunDir, file: Annotated[Path, typer.Argument(help="The .safetensors file to write.")]) -> None:
    """Write the finished layers to one file, for ffstream.load()."""
    from ffstream.run import Run

    num_layers = Run(run).export(file)
    typer.echo(f"{num_layers} layers written to {file}; in Python: ffstream.load({str(file)!r})")


@app.command()
def profile(
    depths: Annotated[str, typer.Option(help="Numbers of layers.")] = "2,7,12,22,47",
    width: Annotated[int, typer.Option(help="Units a layer.")] = 2000,
    batch: Annotated[int, typer.Option(help="Samples a step.")] = 5000,
    micro_batch: Annotated[
        int | None,
        typer.Option(help="Samples at once, for ffstream, resident and accumulation (a tenth of the batch)."),
    ] = None,
    methods: Annotated[
        str, typer.Option(help="Of ffstream, resident, backprop, checkpointing and accumulation.")
    ] = "ffstream,resident,backprop,checkpointing,accumulation",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    precision: Annotated[str, typer.Option(help="Of matrix products: auto, bf16 or fp32.")] = "auto",
    output: Annotated[
        Path | None, typer.Option(help="Folder for profile.json and profile.png (runs/profile-<width>x<batch>).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure peak memory against depth, beside resident FF and backprop; goes on where it was interrupted.

    Every point is measured in a process of its own, on images of noise with 784 features.
    """
    from rich.console import Console

    from ffstream.memory_profile import METHODS, Point, ProfileSettings, measure_profile
    from ffstream.picture import draw_profile
    from ffstream.reporting import format_point, profile_table

    def show(point: Point) -> None:
        label = f"{METHODS[point.method]}, {point.num_layers} layers"
        typer.echo(f"{label}: {format_point(point)} MiB, {point.elapsed_s:.0f} s", err=as_json)

    settings = ProfileSettings.here(
        device=device, precision=precision, width=width, batch=batch, micro_batch=micro_batch
    )
    folder = output or Path("runs") / f"profile-{width}x{batch}"
    try:
        found = measure_profile(settings, _words(methods), _numbers("--depths", depths), folder, show)
    except KeyboardInterrupt:
        _fail("ffstream: stopped; the points above are kept, go on with the same command", 130)
    if as_json:
        typer.echo(json.dumps(found.to_mapping(), indent=1))
    else:
        Console().print(profile_table(found))
    try:
        draw_profile(found, folder / "profile.png")
        drawn = f"picture in {folder / 'profile.png'}"
    except ModuleNotFoundError:
        drawn = "no picture, as matplotlib is not installed; pip install 'ffstream[plot]', then the same command again"
    typer.echo(f"figures in {folder / 'profile.json'}, {drawn}", err=as_json)


@app.command()
def recipes(as_json: Json = False) -> None:
    """What can be chosen: recipes, label methods, objectives, goodnesses, negative samplers, layer kinds."""
    from rich.console import Console

    from ffstream.catalogue import read_catalogue
    from ffstream.reporting import catalogue_tables

    found = read_catalogue()
    if as_json:
        typer.echo(json.dumps(found.to_mapping(), indent=1))
        return
    for table in catalogue_tables(found):
        Console().print(table)


@app.callback(invoke_without_command=True)
def version(show: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Handle --version."""
    if show:
        typer.echo(f"ffstream {__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line. A user's error is one line and exit code 1; Ctrl-C is 130; a bug keeps its traceback."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        app(standalone_mode=True)
    except FFStreamError as error:
        _fail(f"ffstream: {error}", 1)
    except KeyboardInterrupt:
        _fail("ffstream: interrupted", 130)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EPIPE):
            raise
        _fail(f"ffstream: {error}", 1)


def _train(path: Path, start: Callable[[Observer], Run]) -> None:
    """Run with a report on the terminal; say where the run is first and last, and how to go on after a stop."""
    from rich.console import Console

    from ffstream.reporting import make_observer

    observer = make_observer(Console())
    try:
        run = start(observer)
    except KeyboardInterrupt:
        observer.on_stop()
        _fail(f"ffstream: stopped; everything up to the last epoch is saved. Go on with: ffstream resume {path}", 130)
    except BaseException:
        observer.on_stop()
        raise
    typer.echo(f"run {run.path}: done. Next: ffstream evaluate {run.path}")


# The options of `train` that are settings of other names.
_SETTINGS = {
    "stack_layers": "network.stack_layers",
    "lr": "optimiser.learning_rate",
    "negatives_per_sample": "negatives.per_sample",
    "cache": "cache.tier",
    "cache_dtype": "cache.dtype",
    "views": "augmentation.views",
    "restream": "augmentation.restream",
    "max_shift": "augmentation.max_shift",
    "budget": "memory.budget",
    "host_budget": "memory.host_budget",
    "disk_budget": "memory.disk_budget",
}


def _resolve_settings(options: dict[str, Any]) -> Config:
    """The configuration that the options of `train` ask for."""
    from ffstream.config import Config, parse_assignment, read_toml

    if options["resume"] and options["run_dir"] is None:
        raise ConfigError("--resume: found no --run-dir, which says what to go on with; add one, or leave --resume out")
    options = options | {"negatives_per_sample": _number_or_word(options["negatives_per_sample"])}
    given = dict(parse_assignment(text) for text in options["set_"] or [])
    for name, value in options.items():
        if value is not None and name not in ("config", "set_", "run_dir", "resume"):
            given[_SETTINGS.get(name, name)] = value
    settings = read_toml(options["config"]) if options["config"] else {}
    if "recipe" in given:  # the base that everything else is laid over
        settings["recipe"] = given["recipe"]
    return Config.from_mapping(settings).override(given)


def _words(text: str) -> list[str]:
    return list(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))


def _numbers(option: str, text: str) -> list[int]:
    """Whole numbers from 1, in ascending order."""
    words = _words(text)
    if not words or not all(word.isdecimal() and int(word) for word in words):
        raise ConfigError(f"{option} {text}: allowed whole numbers from 1, such as 2,7,12")
    return sorted(int(word) for word in words)


def _number_or_word(text: str | None) -> int | str | None:
    return int(text) if text is not None and text.lstrip("-").isdigit() else text


def _terminate(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _fail(message: str, code: int) -> NoReturn:
    print(" ".join(message.split("\n")), file=sys.stderr)
    sys.exit(code)
