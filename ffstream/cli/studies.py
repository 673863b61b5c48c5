"""Commands besides those on a run: what can be chosen, negatives written ahead, how memory grows, where time goes."""

from __future__ import annotations

import json
import shutil
import textwrap
from pathlib import Path
from typing import Annotated

import typer

from ffstream.cli.app import app, check_is_there, import_plugins, make_console, say, show, when_stopped
from ffstream.cli.options import DATA, DataRoot, Device, Force, Json, Plugins, setting_option
from ffstream.errors import ConfigError, to_command
from ffstream.ground.units import count, parse_integer
from ffstream.settings.config import find_setting
from ffstream.settings.names import check_word


@app.command()
@when_stopped("the points that are measured are kept; go on with the same command")
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
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N, xpu, mps.")] = "auto",
    precision: Annotated[str, typer.Option(help="Of matrix products: auto, bf16, fp16 or fp32.")] = "auto",
    output: Annotated[
        Path | None,
        typer.Option(readable=False, help="Folder for profile.json and profile.png (runs/profile-<width>x<batch>)."),
    ] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Measure peak memory against depth, for ffstream, resident FF and backprop; resumes if it was interrupted.

    Every point is measured in a process of its own, on noise images with 784 features.
    """
    from ffstream.cli.tables import format_point, profile_table
    from ffstream.studies.charts import draw_profile, open_profile_picture
    from ffstream.studies.memory_profile import METHODS, Point, ProfileSettings, measure_profile

    def tell(point: Point) -> None:
        label = f"{METHODS[point.method]}, {count(point.num_layers, 'layer')}"
        say(f"{label}: {format_point(point)} MiB, {point.elapsed_s:.0f} s", err=as_json)

    settings = ProfileSettings.here(
        device=device, precision=precision, width=width, batch=batch, micro_batch=micro_batch
    )
    folder = output or Path("runs") / f"profile-{width}x{batch}"
    picture = folder / "profile.png"
    open_profile_picture(picture, force=force)  # refused, if at all, before anything is measured
    found = measure_profile(settings, _words(methods), _numbers("--depths", depths), folder, tell, force=force)
    if as_json:
        typer.echo(json.dumps(found.to_mapping(), indent=1))
    else:
        show([profile_table(found)])
    try:
        draw_profile(found, picture, force=force)
        drawn = f"picture in {picture}"
    except ModuleNotFoundError:
        drawn = "no picture, as matplotlib is not installed; pip install 'ffstream[plot]', then the same command again"
    say(f"figures in {folder / 'profile.json'}, {drawn}", err=as_json)


@app.command()
@when_stopped("what is trained is kept; go on with the same command")
def demo(
    output: Annotated[Path, typer.Option(readable=False, help="Folder for the run and demo.png (runs/demo).")] = Path(
        "runs/demo"
    ),
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N, xpu, mps.")] = "auto",
    force: Force = False,
) -> None:
    """Show in a minute what ffstream is for: a deep network in the memory of one layer, and an exact resume."""
    from ffstream.cli.reporting import make_observer
    from ffstream.cli.tables import demonstration_report
    from ffstream.device.device import resolve_device
    from ffstream.studies.charts import DEMO, draw_errors, open_picture
    from ffstream.studies.demo import demonstrate

    picture = output / "demo.png"
    open_picture(picture, DEMO, force=force)  # refused, if at all, before anything is trained
    found = demonstrate(output, str(resolve_device(device)), make_observer(make_console()), say)
    show(demonstration_report(found))
    curves = {
        "ffstream": found.errors_by_depth,
        "nearest neighbour": [found.nearest_neighbour_error] * len(found.errors_by_depth),
        "two hidden layers by backpropagation": [found.mlp_error] * len(found.errors_by_depth),
    }
    try:
        draw_errors(curves, "test error of the layers to here", picture, [output / "run"], force=force, content=DEMO)
        say(f"picture in {picture}; look at the run with: {to_command('inspect', output / 'run')}")
    except ModuleNotFoundError:
        say("no picture, as matplotlib is not installed; pip install 'ffstream[plot]', then the same command again")


@app.command()
def config(as_json: Json = False) -> None:
    """List every setting, with its default and what it means: for --set, and for a TOML file that --config reads."""
    from ffstream.settings.config import describe_settings

    if as_json:
        found = {
            name: {"default": default, "help": text}
            for _, settings in describe_settings()
            for name, default, text in settings
        }
        typer.echo(json.dumps(found, indent=1))
        return
    width = max(shutil.get_terminal_size().columns, 40)
    for section, settings in describe_settings():
        if section:
            say("")
        say(f"# {section or 'outside of any section'}")
        for name, default, text in settings:
            say(f"{name} = {json.dumps('auto' if default is None else default)}")
            for line in textwrap.wrap(text, width - 4):
                say(f"  # {line}")


@app.command()
@when_stopped()
def doctor(
    run: Annotated[
        Path | None, typer.Argument(readable=False, metavar="[RUN]", help="Where the time of this run went.")
    ] = None,
    device: Device = None,
    check: Annotated[
        bool, typer.Option("--check", help="Check that the device does what a run relies on; exits with 1 if not.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Measure how fast this machine does what a run does; with RUN, show where its time went and what would help.

    With --check, a minute of small runs shows whether a device keeps what ffstream promises: a line for each check.
    """
    if check:
        _check_device(run, device or "auto", as_json=as_json)
        return
    if run is not None:
        check_is_there(run)
    from ffstream.cli.tables import account_report, speeds_report
    from ffstream.device.device import resolve_device
    from ffstream.studies.doctor import examine_machine, examine_run

    if run is not None:
        account = examine_run(run, device)
        found, parts = account.to_mapping(), account_report(account)
    else:
        speeds = examine_machine(resolve_device(device or "auto"), Path("runs"))
        found, parts = speeds.to_mapping(), speeds_report(speeds)
    if as_json:
        typer.echo(json.dumps(found, indent=1))
        return
    show(parts)


def _check_device(run: Path | None, device: str, *, as_json: bool) -> None:
    """Say what holds, and exit with 1 if something does not."""
    if run is not None:
        raise ConfigError("--check: found with a run, allowed alone; a run is checked by ffstream inspect RUN --verify")
    import tempfile

    from ffstream.studies.self_check import FAILS, check_device

    found = []
    for each in check_device(device, Path(tempfile.gettempdir())):
        found.append(each)
        if not as_json:
            say(f"{each.outcome:<11}  {each.name}: {each.text}")
    if as_json:
        typer.echo(json.dumps([each.to_mapping() for each in found], indent=1))
    if any(each.outcome == FAILS for each in found):
        raise typer.Exit(1)


@app.command()
@when_stopped(file="output")
def negatives(
    output: Annotated[
        Path, typer.Argument(readable=False, metavar="FILE", help="A .safetensors file, to be given as --data.")
    ],
    data: Annotated[str, typer.Option(help="The data that negatives are made for, as train takes them.")] = "digits",
    per_sample: Annotated[int, typer.Option(help="Negatives for each training image.")] = 8,
    blurs: Annotated[int, typer.Option(help="How often the random bits that become a mask are blurred.")] = 6,
    seed: Annotated[int, typer.Option(help="The seed of everything random.")] = 0,
    run: Annotated[
        Path | None,
        typer.Option(
            readable=False,
            help="A run that learnt without labels; of several hybrids, the one that it gives the most goodness is "
            "taken.",
        ),
    ] = None,
    draws: Annotated[int, typer.Option(help="Hybrids drawn for each negative, with --run.")] = 4,
    force: Force = False,
    data_root: DataRoot = None,
    bad_images: Annotated[str, setting_option("bad_images", "WORD", DATA)] = "refuse",
) -> None:
    """Write hybrid images, the negatives of --recipe unsupervised, to one file with the data they are made for."""
    check_word("--bad-images", bad_images, find_setting("bad_images").choices)
    from ffstream.studies.offline import write_negatives

    shape = write_negatives(
        output,
        data,
        data_root=data_root or "",
        per_sample=per_sample,
        blurs=blurs,
        seed=seed,
        run=run,
        draws=draws,
        force=force,
        skips_bad=bad_images == "skip",
        on_warning=lambda text: say(f"ffstream: note: {text}", err=True),
    )
    say(
        f"{shape[1]} negatives for each of {shape[0]:,} images in {output}. Next: ffstream train --recipe unsupervised "
        f"--data {output} --negatives-per-sample {shape[1]}"
    )


@app.command()
@when_stopped()
def recipes(plugin: Plugins = None, as_json: Json = False) -> None:
    """List what can be chosen: recipes, label methods, objectives, goodnesses, negative samplers, layer kinds."""
    from ffstream.cli.tables import catalogue_tables
    from ffstream.field.catalogue import read_catalogue

    import_plugins(plugin)
    found = read_catalogue()
    if as_json:
        typer.echo(json.dumps(found.to_mapping(), indent=1))
        return
    show(catalogue_tables(found))


def _words(text: str) -> list[str]:
    return list(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))


def _numbers(option: str, text: str) -> list[int]:
    """Whole numbers from 1, in ascending order."""
    try:
        found = [parse_integer(word) for word in _words(text)]
    except ValueError as error:
        raise ConfigError(f"{option}: {error}; allowed whole numbers from 1, such as 2,7,12") from error
    numbers = [number for number in found if number is not None and number > 0]
    if not numbers or len(numbers) < len(found):
        raise ConfigError(f"{option} {text}: allowed whole numbers from 1, such as 2,7,12")
    return sorted(numbers)
