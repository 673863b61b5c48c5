"""Commands that train, or say what training would take."""

from __future__ import annotations

import inspect as inspect_module
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ffstream.cli.app import (
    AcceptEnvironment,
    Budget,
    Cache,
    CacheDir,
    DataRoot,
    Device,
    Download,
    Json,
    MovedData,
    Plugins,
    RunDir,
    app,
    fail,
    import_plugins,
    make_console,
    say,
    show,
    stopped_by,
)
from ffstream.errors import ConfigError, OutputError, to_command
from ffstream.ground.files import exists, expand_home
from ffstream.ground.units import parse_integer

if TYPE_CHECKING:
    from ffstream.run.run import Run
    from ffstream.settings.config import Config
    from ffstream.training.observer import Observer, RunOutline


@app.command()
def train(
    data: Annotated[
        str | None,
        typer.Option(
            help="digits, mnist, fashion-mnist, kmnist, cifar10, a folder by class, .safetensors, .npz (digits)."
        ),
    ] = None,
    layers: Annotated[int | None, typer.Option(help="Number of layers (4).")] = None,
    width: Annotated[int | None, typer.Option(help="Units a layer (512).")] = None,
    stack_layers: Annotated[
        int | None, typer.Option(help="Layers after which one reads the images again (4; 0: never).")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs a layer (20).")] = None,
    batch: Annotated[int | None, typer.Option(help="Samples a step (auto).")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate (of the recipe).")] = None,
    recipe: Annotated[
        str | None,
        typer.Option(help="Of `ffstream recipes` (inject; deep for over 8 layers of MNIST and the like)."),
    ] = None,
    negatives_per_sample: Annotated[
        str | None, typer.Option(help="Wrong labels (overlay; all) or hybrids cached a sample.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random (0).")] = None,
    device: Device = None,
    precision: Annotated[str | None, typer.Option(help="Of matrix products: auto, bf16 or fp32 (auto).")] = None,
    cache: Cache = None,
    cache_dir: CacheDir = None,
    cache_dtype: Annotated[str | None, typer.Option(help="Of cached rows: bf16, fp16, fp32 or int8 (bf16).")] = None,
    views: Annotated[int | None, typer.Option(help="Shifted views cached of every training image (1: none).")] = None,
    restream: Annotated[
        bool | None, typer.Option("--restream", help="Shift the training images anew for every epoch.")
    ] = None,
    max_shift: Annotated[int | None, typer.Option(help="Pixels by which a shift moves an image at most (2).")] = None,
    data_root: DataRoot = None,
    bad_images: Annotated[
        str | None, typer.Option(help="Files of a folder that cannot be read: refuse or skip (refuse).")
    ] = None,
    standardise: Annotated[
        str | None, typer.Option(help="Bring each to mean 0 and spread 1: none, features or channels (none).")
    ] = None,
    budget: Budget = None,
    host_budget: Annotated[str | None, typer.Option(help="Most host memory for this process.")] = None,
    disk_budget: Annotated[str | None, typer.Option(help="Most disk space for the run.")] = None,
    config: Annotated[Path | None, typer.Option(readable=False, help="A TOML file of settings.")] = None,
    plugin: Plugins = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Any setting; may be repeated.")
    ] = None,
    run_dir: Annotated[
        Path | None,
        typer.Option(
            readable=False,
            help="A folder of its own, missing or empty (a new one below runs, named by data, layers, width and time).",
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with --run-dir if it is there already.")] = False,
    accept_environment: AcceptEnvironment = False,
) -> None:
    """Train a network, layer by layer.

    Settings: the recipe's, then --config, then --set, then the options here.
    """
    resolved = _resolve_settings(dict(locals()))
    from ffstream.run.launch import train as start

    _train(
        run_dir,
        lambda observer: start(
            resolved, run_dir, resume=resume, accept_environment=accept_environment, observer=observer
        ),
    )


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

    from ffstream.cli.tables import plan_report
    from ffstream.data.shape import DataShape
    from ffstream.run.launch import make_plan

    data = DataShape.of(samples, features, classes, resolved.validation_fraction) if samples is not None else None
    found = make_plan(resolved, options["run_dir"], resume=options["resume"], machine=machine, data=data)
    if as_json:
        typer.echo(json.dumps(found.to_mapping(), indent=1))
        return
    show(plan_report(found))


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
    cache_dir: CacheDir = None,
    budget: Budget = None,
    data: MovedData = None,
    data_root: DataRoot = None,
    download: Download = False,
    plugin: Plugins = None,
    accept_environment: AcceptEnvironment = False,
) -> None:
    """Go on with a run after any interruption, or grow a finished one."""
    from ffstream.run.launch import resume as go_on

    import_plugins(plugin)

    _train(
        run,
        lambda observer: go_on(
            run,
            layers=layers,
            device=device,
            cache=cache,
            cache_dir=cache_dir,
            budget=budget,
            data=data,
            data_root=data_root,
            download=download,
            accept_environment=accept_environment,
            observer=observer,
        ),
    )


def _train(path: Path | None, start: Callable[[Observer], Run]) -> None:
    """Run with a report on the terminal; say where the run is first and last, and how to go on after a stop.

    Without a path, the run's folder is known from when it starts on.
    """
    from ffstream.cli.reporting import make_observer

    observer = make_observer(make_console())
    path = None if path is None else expand_home(path)
    places = [str(path)] if path is not None and exists(path / "config.toml") else []
    tell_start = observer.on_start

    def remember(outline: RunOutline) -> None:
        places.append(outline.path)
        tell_start(outline)

    setattr(observer, "on_start", remember)  # noqa: B010 - of this one
    try:
        run = start(observer)
    except KeyboardInterrupt as stop:
        observer.on_stop()
        _, code = stopped_by(stop)
        if not places:
            fail("ffstream: stopped before the run was started; nothing was written", code)
        fail(f"ffstream: stopped; everything up to the last epoch is saved. {_go_on(places[-1])}", code)
    except OutputError as error:
        observer.on_stop()
        saved = f"; everything up to the last epoch is saved. {_go_on(places[-1])}" if places else ""
        fail(f"ffstream: {error}{saved}", 1)
    except BaseException:
        observer.on_stop()
        raise
    say(f"run {run.path}: done. Next: {to_command('evaluate', run.path)}")


def _go_on(path: str) -> str:
    return f"Go on with: {to_command('resume', path)}"


_NOT_SETTINGS = ("config", "plugin", "set_", "run_dir", "resume", "accept_environment")

# The options of `train` that are settings of other names.
_SETTINGS = {
    "stack_layers": "network.stack_layers",
    "lr": "optimiser.learning_rate",
    "negatives_per_sample": "negatives.per_sample",
    "cache": "cache.tier",
    "cache_dir": "cache.folder",
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
    from ffstream.settings.config import Config, flatten, parse_assignment, read_toml
    from ffstream.settings.recipes import AUTO, DEFAULT

    if options["resume"] and options["run_dir"] is None:
        raise ConfigError("--resume: found no --run-dir, which says what to go on with; add one, or leave --resume out")
    options = options | {"negatives_per_sample": _number_or_word(options["negatives_per_sample"])}
    given = dict(parse_assignment(text) for text in options["set_"] or [])
    settings = read_toml(options["config"]) if options["config"] else {}
    if options["plugin"]:
        given["plugins"] = options["plugin"]
    names = given.get("plugins", settings.get("plugins", []))
    import_plugins(list(names) if isinstance(names, list) else None)  # whose recipes and parts may be named
    for name, value in options.items():
        if value is not None and name not in _NOT_SETTINGS:
            given[_SETTINGS.get(name, name)] = value
    asked = flatten(settings) | given
    saved = expand_home(options["run_dir"]) / "config.toml" if options["resume"] else None
    if asked.get("recipe", AUTO) == AUTO and saved is not None and exists(saved):
        asked["recipe"] = read_toml(saved).get("recipe", DEFAULT)
    config = Config.from_mapping(asked)
    if config.recipe not in (asked.get("recipe"), DEFAULT):
        typer.echo(
            f"recipe {config.recipe}, as for all deep networks of images unless one is asked for; of fewer layers it "
            f"is {DEFAULT} (--recipe)",
            err=True,
        )
    return config


def _number_or_word(text: str | None) -> int | str | None:
    try:
        number = parse_integer(text or "")
    except ValueError as error:
        raise ConfigError(f"--negatives-per-sample: found {error}; allowed an integer >= 1, or 'all'") from error
    return text if number is None else number
