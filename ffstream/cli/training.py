"""Commands that train, or that show what training would take."""

from __future__ import annotations

import inspect as inspect_module
import json
import math
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ffstream.cli.app import app, check_is_there, fail, import_plugins, make_console, say, show, stopped_by
from ffstream.cli.options import (
    DATA,
    MEMORY,
    NETWORK,
    RENAMED,
    RUN,
    TRAINING,
    AcceptEnvironment,
    Budget,
    BudgetOfRun,
    Cache,
    CacheDir,
    CacheDirOfRun,
    CacheOfRun,
    DataRoot,
    DataRootOfRun,
    Device,
    DeviceOfRun,
    Download,
    Json,
    MovedData,
    Plugins,
    RunDir,
    setting_option,
)
from ffstream.errors import ConfigError, OutputError, to_command
from ffstream.ground.files import exists, expand_home
from ffstream.ground.units import parse_integer

if TYPE_CHECKING:
    from ffstream.data.shape import DataShape
    from ffstream.run.run import Run
    from ffstream.settings.config import Config
    from ffstream.training.observer import Observer, RunOutline


@app.command()
def train(
    data: Annotated[str | None, setting_option("data", "DATA", DATA)] = None,
    data_root: DataRoot = None,
    bad_images: Annotated[str | None, setting_option("bad_images", "WORD", DATA)] = None,
    standardise: Annotated[str | None, setting_option("standardise", "WORD", DATA)] = None,
    views: Annotated[int | None, setting_option("views", "N", DATA)] = None,
    restream: Annotated[bool | None, setting_option("restream", "", DATA, flag="--restream")] = None,
    max_shift: Annotated[int | None, setting_option("max_shift", "N", DATA)] = None,
    transforms: Annotated[str | None, setting_option("transforms", "LIST", DATA)] = None,
    layers: Annotated[int | None, setting_option("layers", "N", NETWORK)] = None,
    width: Annotated[int | None, setting_option("width", "N", NETWORK)] = None,
    network: Annotated[str | None, setting_option("network", "LAYERS", NETWORK)] = None,
    stack_layers: Annotated[int | None, setting_option("stack_layers", "N", NETWORK)] = None,
    recipe: Annotated[str | None, setting_option("recipe", "NAME", TRAINING)] = None,
    epochs: Annotated[int | None, setting_option("epochs", "N", TRAINING)] = None,
    order: Annotated[str | None, setting_option("order", "WORD", TRAINING)] = None,
    window: Annotated[str | None, setting_option("window", "N", TRAINING)] = None,
    batch: Annotated[int | None, setting_option("batch", "N", TRAINING)] = None,
    lr: Annotated[float | None, setting_option("lr", "X", TRAINING)] = None,
    patience: Annotated[int | None, setting_option("patience", "N", TRAINING)] = None,
    negatives_per_sample: Annotated[str | None, setting_option("negatives_per_sample", "N", TRAINING)] = None,
    seed: Annotated[int | None, setting_option("seed", "N", TRAINING)] = None,
    device: Device = None,
    precision: Annotated[str | None, setting_option("precision", "TYPE", MEMORY)] = None,
    budget: Budget = None,
    host_budget: Annotated[str | None, setting_option("host_budget", "SIZE", MEMORY)] = None,
    disk_budget: Annotated[str | None, setting_option("disk_budget", "SIZE", MEMORY)] = None,
    cache: Cache = None,
    cache_dir: CacheDir = None,
    cache_dtype: Annotated[str | None, setting_option("cache_dtype", "TYPE", MEMORY)] = None,
    save_every: Annotated[str | None, setting_option("save_every", "TIME", RUN)] = None,
    init_from: Annotated[str | None, setting_option("init_from", "RUN", RUN)] = None,
    run_dir: Annotated[
        Path | None,
        typer.Option(
            readable=False,
            metavar="FOLDER",
            help="A folder of the run's own, missing or empty. Default: a new one in ./runs, named by data, layers, "
            "width and time.",
            rich_help_panel=RUN,
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with the run in --run-dir, if there is one.", rich_help_panel=RUN),
    ] = False,
    config: Annotated[
        Path | None,
        typer.Option(readable=False, metavar="FILE", help="A TOML file of settings.", rich_help_panel=RUN),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Any setting that `ffstream config` lists, such as objective.scale=5; may be repeated.",
            rich_help_panel=RUN,
        ),
    ] = None,
    plugin: Plugins = None,
    accept_environment: AcceptEnvironment = False,
) -> None:
    """Train a network, layer by layer.

    A setting has the value of the recipe, unless the file of --config has another.
    --set takes precedence over both, and the options below over everything.
    """
    resolved = resolve_settings(dict(locals()))
    from ffstream.run.launch import train as start

    train_shown(
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
        int | None, typer.Option(help="Plan for so many training samples, such as those of --data.")
    ] = None,
    shape: Annotated[
        str | None,
        typer.Option(help="Shape of each, such as 3x32x32, with --samples. Default: that of --data, or 28x28."),
    ] = None,
    features: Annotated[
        int | None, typer.Option(help="Features of each, with --samples, where they have no places.")
    ] = None,
    classes: Annotated[
        int | None, typer.Option(help="Classes, with --samples. Default: those of --data, or 10.")
    ] = None,
    as_json: Json = False,
    **options: Any,
) -> None:
    """Show what `train` with the same options would do, and what it would take; nothing is written.

    The exit code is 1 where the run does not fit.
    """
    resolved = resolve_settings(options)

    from ffstream.cli.plan_tables import plan_report
    from ffstream.run.preparation import make_plan

    data = _describe_data(samples, shape, features, classes, resolved, has_data=options["data"] is not None)
    found = make_plan(resolved, options["run_dir"], resume=options["resume"], machine=machine, data=data)
    if as_json:
        typer.echo(json.dumps(found.to_mapping(), indent=1))
    else:
        show(plan_report(found))
        if samples is not None and options["data"] is None and shape is None and features is None:
            say("images of 28 x 28 are assumed; name others by --shape, --features or --data")
    if not found.fits:
        raise typer.Exit(1)


def _describe_data(
    samples: int | None, shape: str | None, features: int | None, classes: int | None, config: Config, *, has_data: bool
) -> DataShape | None:
    """Data of so many samples, to be planned for: like those of the configuration if it names some. Else None."""
    from ffstream.data.shape import DataShape, parse_shape

    if samples is None:
        for option, value in (("shape", shape), ("features", features), ("classes", classes)):
            if value is not None:
                raise ConfigError(f"--{option} {value}: found without --samples; add it, or leave this out")
        return None
    if shape is not None and features is not None:
        raise ConfigError(f"--features {features}: found with --shape {shape}, allowed one of them; leave one out")
    like = DataShape(784, 10, {}, (28, 28))
    if has_data:
        from ffstream.data import load_dataset

        skips_bad = config.bad_images == "skip"
        dataset = load_dataset(config.data, config.data_root, skips_bad=skips_bad, is_held=False)
        like = DataShape(dataset.num_features, dataset.num_classes, {}, dataset.image_shape)
    image_shape = None if features is not None else like.image_shape if shape is None else parse_shape(shape)
    num_features = like.num_features if features is None else features
    num_features = num_features if image_shape is None else math.prod(image_shape)
    num_classes = like.num_classes if classes is None else classes
    return DataShape.of(samples, num_features, num_classes, config.validation_fraction, image_shape)


def add_options_of(source: Callable[..., None], target: Callable[..., None], without: Collection[str] = ()) -> None:
    """Give `target` the options of `source` in place of its **options, without some of them."""
    theirs, own = (inspect_module.signature(f, eval_str=True).parameters.values() for f in (source, target))
    kept = [parameter for parameter in theirs if parameter.name not in without]
    mine = [p.replace(kind=p.KEYWORD_ONLY) for p in own if p.kind is not p.VAR_KEYWORD]
    vars(target)["__signature__"] = inspect_module.Signature([*kept, *mine])
    target.__annotations__ = {parameter.name: parameter.annotation for parameter in [*kept, *mine]}


add_options_of(train, plan)
app.command()(plan)


@app.command()
def resume(
    run: RunDir,
    layers: Annotated[int | None, typer.Option(help="Grow the network to this many layers.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Take so many rounds in all, in a run in rounds.")] = None,
    device: DeviceOfRun = None,
    cache: CacheOfRun = None,
    cache_dir: CacheDirOfRun = None,
    budget: BudgetOfRun = None,
    save_every: Annotated[str | None, setting_option("save_every", "TIME", RUN, is_of_run=True)] = None,
    data: MovedData = None,
    data_root: DataRootOfRun = None,
    download: Download = False,
    plugin: Plugins = None,
    accept_environment: AcceptEnvironment = False,
) -> None:
    """Go on with a run after any interruption, or grow a finished one."""
    check_is_there(run)
    import_plugins(plugin)
    from ffstream.cli.reporting import make_observer
    from ffstream.run.launch import resume as go_on
    from ffstream.run.run import Run

    is_stream = Run(run).config.schedule.is_stream
    train_shown(
        run,
        lambda observer: go_on(
            run,
            layers=layers,
            epochs=epochs,
            device=device,
            cache=cache,
            cache_dir=cache_dir,
            budget=budget,
            save_every=save_every,
            data=data,
            data_root=data_root,
            download=download,
            accept_environment=accept_environment,
            observer=observer,
        ),
        make_observer(make_console(), is_stream=is_stream),
    )


def train_shown(path: Path | None, start: Callable[[Observer], Run], observer: Observer | None = None) -> None:
    """Train with a report on the terminal. Say at the end where the run is and, after a stop, how to go on.

    Without a path, the run's folder is known only once the run starts.
    """
    from ffstream.cli.reporting import make_observer

    observer = observer or make_observer(make_console())
    path = None if path is None else expand_home(path)
    places = [str(path)] if path is not None and exists(path / "config.toml") else []
    tell_start = observer.on_start

    def remember(outline: RunOutline) -> None:
        places.append(outline.path)
        tell_start(outline)

    setattr(observer, "on_start", remember)  # noqa: B010 - of this instance only
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
    say(f"run {run.path}: done. Next: {_next(run)}")


def _next(run: Run) -> str:
    """The command that evaluates a run: on the validation split where there are no test data, with its plug-ins."""
    from ffstream.data.stream_source import can_be_read_again

    facts = run.directory.read_data()
    if facts.is_stream and not can_be_read_again(run.config.data):
        return f"{to_command('evaluate', run.path)} --data DATA, with any data of its shape and classes"
    has_test = facts.test_digest is not None or facts.is_stream
    words = [] if has_test or not run.config.validation_fraction else ["--split validation"]
    words += [f"--plugin {name}" for name in run.config.plugins]
    return " ".join([to_command("evaluate", run.path), *words])


def _go_on(path: str) -> str:
    return f"Go on with: {to_command('resume', path)}"


_NOT_SETTINGS = ("config", "plugin", "set_", "run_dir", "resume", "accept_environment")


def resolve_settings(options: dict[str, Any]) -> Config:
    """The configuration that the options of `train` ask for."""
    from ffstream.ground.plugins import has_loaded
    from ffstream.settings.config import Config, flatten
    from ffstream.settings.names import check_names
    from ffstream.settings.recipes import AUTO, DEFAULT
    from ffstream.settings.toml import parse_assignment, read_toml

    if options["resume"] and options["run_dir"] is None:
        raise ConfigError("--resume: found no --run-dir, which says what to go on with; add one, or leave --resume out")
    options = options | {name: _number_or_word(options[name]) for name in ("negatives_per_sample", "window")}
    given = dict(parse_assignment(text) for text in options["set_"] or [])
    settings = read_toml(options["config"]) if options["config"] else {}
    if options["plugin"]:
        given["plugins"] = options["plugin"]
    names = given.get("plugins", settings.get("plugins", []))
    import_plugins(list(names) if isinstance(names, list) else None)  # these may register recipes and parts
    for name, value in options.items():
        if value is not None and name not in _NOT_SETTINGS:
            given[RENAMED.get(name, name)] = value
    asked = flatten(settings) | given
    saved = expand_home(options["run_dir"]) / "config.toml" if options["resume"] else None
    if asked.get("recipe", AUTO) == AUTO and saved is not None and exists(saved):
        asked["recipe"] = read_toml(saved).get("recipe", DEFAULT)
    config = Config.from_mapping(asked)
    # A run that is gone on with knows where parts of its own come from.
    if not has_loaded() and (saved is None or not exists(saved)):
        check_names(config.to_flat())
    if config.recipe not in (asked.get("recipe"), DEFAULT):
        say(
            f"recipe {config.recipe}, the default of deep networks on images; of fewer layers it is {DEFAULT}; choose "
            "another with --recipe",
            err=True,
        )
    return config


def _number_or_word(text: str | None) -> int | str | None:
    try:
        number = parse_integer(text or "")
    except ValueError as error:
        raise ConfigError(f"--negatives-per-sample: found {error}; allowed an integer >= 1, or 'all'") from error
    return text if number is None else number
