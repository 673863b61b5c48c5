"""Commands on existing runs: evaluate and predict, inspect and plot, repair and clean, export."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ffstream.cli.app import app, check_is_there, open_run, say, show, when_stopped
from ffstream.cli.options import (
    AcceptEnvironment,
    DataRootOfRun,
    Download,
    FirstLayer,
    Force,
    Json,
    Method,
    MovedData,
    OneDevice,
    Plugins,
    RunDir,
    SplitName,
)
from ffstream.errors import ConfigError, to_command
from ffstream.ground.units import count
from ffstream.settings.names import METHODS, SPLITS, check_word

if TYPE_CHECKING:
    from ffstream.data.images import NamedImages
    from ffstream.run.run import Run


def _note(text: str | None) -> None:
    """Print a note on a result to stderr, if there is one."""
    if text is not None:
        say(f"ffstream: note: {text}", err=True)


def _note_unfinished(run: Run) -> None:
    """If a run is not finished, say that only its finished layers, or its last round, are used."""
    from ffstream.run.remainder import is_open

    config, num_layers, num_done = run.config, run.config.layers, run.num_layers_done
    if config.schedule.is_stream:
        return
    if config.in_rounds and num_done and is_open(run.directory, config):
        _note(
            f"run {run.path}: {run.directory.round} of {config.epochs} rounds are taken, the last of which is used "
            "here; go on with: " + to_command("resume", run.path)
        )
    elif 0 < num_done < num_layers:
        _note(
            f"run {run.path}: {num_done} of {num_layers} layers are finished, and used here; go on with: "
            + to_command("resume", run.path)
        )


def _describe_stream(run: Run) -> str:
    """How much of a stream is learnt, and how often the network was wrong before it learnt the last windows."""
    from ffstream.cli.reporting import NUM_WINDOWS
    from ffstream.cli.tables import format_share

    records = run.directory.metrics.read(run.directory.read_seal())
    found = [record for record in records if "error_before" in record and record["layer"] == run.config.layers]
    samples = sum(record["num_samples"] for record in found) // run.config.schedule.replays
    learnt = f"a stream: {count(run.directory.round, 'window')} of {samples:,} samples in all learnt"
    errors = [record["error_before"] for record in found if record["error_before"] is not None]
    if not errors:
        return learnt
    last = errors[-NUM_WINDOWS:]
    return f"{learnt}; {format_share(sum(last) / len(last))} wrong before learning, in the last {len(last)} of them"


@app.command()
@when_stopped()
def evaluate(
    run: RunDir,
    method: Method = "auto",
    split: SplitName = "test",
    first_layer: FirstLayer = 2,
    device: OneDevice = "auto",
    data: MovedData = None,
    data_root: DataRootOfRun = None,
    download: Download = False,
    plugin: Plugins = None,
    accept_environment: AcceptEnvironment = False,
    as_json: Json = False,
) -> None:
    """Measure the error of a run on a split, by depth and by class; only one layer is on the device at a time."""
    check_word("method", method, METHODS)
    check_word("split", split, SPLITS)
    opened = open_run(run, plugin)
    from rich.console import Console

    from ffstream.cli.tables import evaluation_report

    _note_unfinished(opened)
    found = opened.evaluate(
        method,
        split,
        first_layer=first_layer,
        device=device,
        data=data or "",
        data_root=data_root or "",
        download=download,
        accept_environment=accept_environment,
    )
    _note(found.warning)
    if as_json:
        typer.echo(json.dumps(found.to_mapping(), indent=1))
        return
    show(evaluation_report(found, Console().width))


@app.command()
@when_stopped(file="output")
def predict(
    run: RunDir,
    files: Annotated[
        list[Path],
        typer.Argument(
            readable=False, metavar="FILE...", help="Images, folders of them, or arrays (.npy, .npz, .safetensors)."
        ),
    ],
    method: Method = "auto",
    first_layer: FirstLayer = 2,
    uncalibrated: Annotated[
        bool,
        typer.Option(
            "--uncalibrated", help="Leave the probabilities as they are, for a run without a validation split."
        ),
    ] = False,
    output: Annotated[
        Path | None, typer.Option(readable=False, help="A .csv or .json file to write (CSV on standard output).")
    ] = None,
    force: Force = False,
    device: OneDevice = "auto",
    data: MovedData = None,
    data_root: DataRootOfRun = None,
    download: Download = False,
    plugin: Plugins = None,
    accept_environment: AcceptEnvironment = False,
    as_json: Json = False,
) -> None:
    """Label images, each with the probability of its label; only one layer is on the device at a time.

    JSON has the probabilities of all classes. Probabilities are calibrated on the run's validation split.
    Arrays have to be in the units of the training data.
    """
    suffix = "" if output is None else output.suffix.lower()
    if output is not None and suffix not in (".csv", ".json"):
        raise ConfigError(f"--output {output}: found {output.suffix or 'no suffix'!r}, allowed .csv or .json")
    if as_json and suffix == ".csv":
        raise ConfigError(f"--json: found with --output {output}, allowed with a .json file; leave one of them out")
    check_word("method", method, METHODS)
    found = open_run(run, plugin)
    from ffstream.infer.predictions import is_earlier_csv, is_earlier_json
    from ffstream.storage.earlier_output import to_json
    from ffstream.storage.outputs import Output, holds
    from ffstream.studies.offline import list_data_files

    _note_unfinished(found)
    in_json = as_json or suffix == ".json"
    images: NamedImages | None = None
    class_names = found.directory.read_data().class_names

    text: str | None = None

    def is_own(file: io.FileIO) -> bool:
        names = None if images is None else images.names  # None, for any images, until these are read
        if in_json:
            return is_earlier_json(file, str(run), names)
        if text is not None:  # CSV has no place for a digest: a label may have been corrected by hand
            return holds(file, text.encode())
        return is_earlier_csv(file, class_names, names)

    written = None
    if output is not None:
        inputs = [run, *files, *list_data_files(data or found.config.data, data_root or found.config.data_root)]
        written = Output(output, inputs, force=force, is_own=is_own)
    images = found.load_images(files)
    _note(images.note)
    if written is not None:
        written.check()
    predictions = found.predict(
        images.images,
        method,
        first_layer=first_layer,
        calibrated=not uncalibrated,
        device=device,
        data=data or "",
        data_root=data_root or "",
        download=download,
        accept_environment=accept_environment,
    )
    _note(predictions.warning)
    text = predictions.to_csv(images.names)
    if in_json:
        text = to_json({"run": str(run)} | predictions.to_mapping(images.names))
    if written is None:
        typer.echo(text, nl=False)
        return
    written.write(text.encode())
    say(f"{len(images)} predictions written to {output}")


@app.command()
@when_stopped()
def inspect(
    run: RunDir,
    verify: Annotated[bool, typer.Option("--verify", help="Check every digest of what is committed.")] = False,
    as_json: Json = False,
) -> None:
    """Show what is done in a run and the figures of each layer; with --verify, check that its files are whole."""
    found = open_run(run)
    from ffstream.cli.tables import layer_table
    from ffstream.run.remainder import is_open
    from ffstream.settings.sizes import Sizes

    directory = found.directory
    num_rounds, layers, progress = directory.round, found.layers, directory.read_progress()
    origin = directory.initial.origin
    if progress and directory.has_stale_progress():  # of a finished layer: it is removed when the run ends
        progress = None
    if verify:
        found.verify()
    reads = found.config.list_reads()[: len(layers)]
    if as_json:
        content = {
            "run": str(run),
            "config": found.config.to_mapping(),
            "num_layers_done": len(layers),
            "num_rounds_done": num_rounds,
            "progress": {"layer": progress[0] + 1, "epochs": progress[1]} if progress else None,
            "started_from": None if origin is None else origin.summary,
            "verified": verify,
            "layers": [figures.to_mapping() | {"reads": each} for figures, each in zip(layers, reads, strict=True)],
        }
        typer.echo(json.dumps(content, indent=1))
        return
    config = found.config
    units = "" if config.network.layers else f" of {config.width} units"
    say(
        f"run {run}: {len(layers)} of {count(config.layers, 'layer')}{units} done, "
        f"data {config.data}, recipe {config.recipe}"
    )
    if origin is not None:
        say(origin.summary)
    if config.schedule.is_stream:
        say(_describe_stream(found))
    elif config.in_rounds:
        written = directory.under_way()
        say(f"{num_rounds} of {count(config.epochs, 'round')} done, {written.count_layers()} layers of the next one")
    windows = directory.read_windows() if progress else None
    if windows is not None:
        passes = "passes of the next window" if config.schedule.is_stream else "windows of the next round"
        say(f"{windows.num_done} of {windows.num} {passes} are saved")
    elif progress and config.in_rounds:
        say(f"layer {progress[0] + 1} of round {progress[1] + 1} is saved within its epoch")
    elif progress:
        num_epochs = config.count_epochs(progress[0]) * Sizes.of(config).num_tiles
        say(f"layer {progress[0] + 1} is saved after epoch {progress[1]} of {num_epochs}")
    if layers:
        all_epochs = [config.count_epochs(index) for index in range(config.layers)]
        is_labelled, num_in_stack = config.labels.method != "none", config.network.stack_layers
        table = layer_table(
            layers, is_labelled=is_labelled, num_in_stack=num_in_stack, num_epochs=all_epochs, reads=reads
        )
        show([table])
    if verify:
        say("every digest of what is committed is right")
    if is_open(directory, config):
        say(f"go on with: {to_command('resume', run)}")


@app.command()
@when_stopped(file="output")
def plot(
    runs: Annotated[list[Path], typer.Argument(readable=False, metavar="RUN...", help="Run directories.")],
    output: Annotated[Path, typer.Option(readable=False, help="The PNG file to write.")] = Path("errors.png"),
    force: Force = False,
) -> None:
    """Plot the validation error of runs against depth, a curve per run; nothing is computed anew."""
    for path in runs:
        check_is_there(path)
    from ffstream.studies.charts import draw_errors

    curves = {str(path): open_run(path).validation_errors_by_depth for path in runs}
    try:
        draw_errors(curves, "validation error of the layers to here", output, runs, force=force)
    except ModuleNotFoundError as error:
        raise ConfigError("plot: found no matplotlib, which draws; pip install 'ffstream[plot]'") from error
    say(f"picture in {output}")


@app.command()
@when_stopped("what was moved lies in damaged-N in the run; do it again")
def repair(
    run: RunDir,
    apply: Annotated[
        bool, typer.Option("--apply", help="Move what is damaged aside; without this it is only listed.")
    ] = False,
) -> None:
    """Show what can be kept of a damaged run, and with --apply put the rest aside, so that the run can go on.

    All layers below the first damaged one are kept. What is put aside is not lost: it is moved to a folder in the run.
    The exit code is 1 as long as there is damage.
    """
    directory = open_run(run).directory
    from ffstream.run.repair import diagnose, put_aside

    found, aside = put_aside(directory) if apply else (diagnose(directory), None)
    for problem in found.problems:
        say(problem)
    if not found.problems:
        say(f"run {run}: nothing is damaged; {count(found.num_valid, 'layer')} committed")
        return
    if not found.damaged:
        say(f"run {run}: nothing has to be put aside; go on with: {to_command('resume', run)}")
        raise typer.Exit(1)
    say(f"run {run}: {found.num_valid} of {found.num_committed} committed layers can be kept")
    names = ", ".join(os.path.relpath(path, directory.path) for path in found.damaged)
    if not apply:
        say(f"to be put aside: {names}; do it with: {to_command('repair --apply', run)}")
        raise typer.Exit(1)
    done = f"put aside into {aside}" if aside is not None else "removed, to be made again"
    say(f"{done}: {names}; go on with: {to_command('resume', run)}")


@app.command()
@when_stopped("some of it may have been removed; run it again")
def clean(run: RunDir) -> None:
    """Remove from a run what can be made again: its caches, and files that killed processes left. Layers stay."""
    found = open_run(run)
    from ffstream.ground.units import format_bytes
    from ffstream.run.cleaning import clean_run

    num_bytes = clean_run(found)
    removed = f"removed {num_bytes:,} bytes ({format_bytes(num_bytes)})" if num_bytes else "there was nothing to remove"
    say(f"run {run}: {removed}")


@app.command()
@when_stopped(file="file")
def export(
    run: RunDir,
    file: Annotated[Path, typer.Argument(readable=False, help="The .safetensors file to write.")],
    force: Force = False,
    plugin: Plugins = None,
    accept_environment: AcceptEnvironment = False,
) -> None:
    """Write the finished layers to one safetensors file, for ffstream.load()."""

    found = open_run(run, plugin)
    _note_unfinished(found)
    num_layers = found.export(file, force=force, accept_environment=accept_environment)
    say(f"{count(num_layers, 'layer')} written to {file}; in Python: ffstream.load({str(file)!r})")
