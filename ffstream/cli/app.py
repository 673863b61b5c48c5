"""The application, what its commands have in common, and how it ends."""

from __future__ import annotations

import errno
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import typer

from ffstream import __version__
from ffstream.errors import FFStreamError
from ffstream.interrupts import Interrupts

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


# Of the system: a disk that is full or failing, or a name that a file of the user's cannot have.
_USERS_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EPIPE, errno.EIO, errno.EMFILE}
_USERS_ERRORS |= {errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR}


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
        with Interrupts():
            app(standalone_mode=True)
    except FFStreamError as error:
        fail(f"ffstream: {error}", 1)
    except KeyboardInterrupt:
        fail("ffstream: interrupted", 130)
    except OSError as error:
        if error.errno not in _USERS_ERRORS:
            raise
        fail(f"ffstream: {error}", 1)


def _terminate(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def fail(message: str, code: int) -> NoReturn:
    """End with one line on stderr."""
    print(" ".join(message.split("\n")), file=sys.stderr)
    sys.exit(code)
