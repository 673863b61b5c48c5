"""The command that learns from a stream."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ffstream.cli.app import app, make_console
from ffstream.cli.options import DATA, TRAINING, setting_option
from ffstream.cli.training import add_options_of, resolve_settings, train, train_shown

_NO_END = 1_000_000_000  # windows
_OF_DATA_SETS = {"data", "views", "patience", "epochs", "order", "window"}  # options of `train` that a stream has not


def stream(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A folder of .npz or .safetensors files that hold images and labels; - or a pipe of .npy records; or "
            "a data set, each sample of which comes once.",
        ),
    ],
    window: Annotated[int, setting_option("window", "N", TRAINING)] = 4096,
    replays: Annotated[int | None, setting_option("replays", "N", TRAINING)] = None,
    windows: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="End after so many windows. Default: with the stream.", rich_help_panel=TRAINING
        ),
    ] = None,
    classes: Annotated[
        int | None,
        typer.Option(
            min=2,
            metavar="N",
            help="All classes that may ever come. Default: those of the source, or else of the first window.",
            rich_help_panel=DATA,
        ),
    ] = None,
    follow: Annotated[bool, setting_option("follow", "", DATA, flag="--follow")] = False,
    **options: Any,
) -> None:
    """Learn from a stream, window after window, for as long as it lasts.

    Each window passes through all layers --replays times, and the network after
    it is committed. What is told of a window is how often the network was wrong
    in it before it learnt it.
    """
    given = {"data": source, "window": str(window), "replays": replays, "follow": follow or None}
    asked = options | given | {"order": "stream", "epochs": _NO_END if windows is None else windows}
    resolved = resolve_settings(asked | dict.fromkeys(_OF_DATA_SETS - asked.keys()))
    from ffstream.cli.reporting import make_observer
    from ffstream.run.launch import stream as start

    run_dir = options["run_dir"]
    accept_environment, resume = options["accept_environment"], options["resume"]
    train_shown(
        run_dir,
        lambda observer: start(
            resolved,
            source,
            run_dir,
            num_classes=classes,
            resume=resume,
            accept_environment=accept_environment,
            observer=observer,
        ),
        make_observer(make_console(), is_stream=True),
    )


add_options_of(train, stream, _OF_DATA_SETS)
app.command()(stream)
