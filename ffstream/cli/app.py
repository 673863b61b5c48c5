"""The application, what its commands have in common, and how it ends."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, ParamSpec, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup

from ffstream import __version__
from ffstream.cli.streams import fit_to_terminal, flush_streams, guard_streams
from ffstream.errors import FFStreamError, OutputError, RunError, printable, say_no_run
from ffstream.ground.files import exists, expand_home
from ffstream.ground.interrupts import Interrupts

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from ffstream.run.run import Run

_Options = ParamSpec("_Options")
_Function = TypeVar("_Function", bound=Callable[..., Any])
_FILE_COLUMNS = 120
# Signals that a shell ignores for some of its children: of the terminal's keys, and of a terminal that was closed.
_MAY_BE_IGNORED = [getattr(signal, name) for name in ("SIGINT", "SIGHUP") if hasattr(signal, name)]


def _show_no_value(options: list[Any]) -> list[Any]:
    """Leave out the type of value that typer shows, such as `<bool>`, of options that take no value."""
    for option in options:
        if getattr(option, "is_flag", False):
            option.metavar = ""
    return options


class _Command(TyperCommand):
    """A command whose help shows what an option takes."""

    def get_params(self, ctx: Any) -> list[Any]:
        """All options and arguments, with the option that shows the help."""
        return _show_no_value(super().get_params(ctx))


class _Commands(TyperGroup):
    """If a signal ends a command, says what became of it, unless the command has said so itself."""

    def get_params(self, ctx: Any) -> list[Any]:
        """All options, with the one that shows the help."""
        return _show_no_value(super().get_params(ctx))

    def invoke(self, ctx: Any) -> Any:
        """Run the command that is asked for."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:  # typer itself would end the process without a message
            fail_stopped(stop, f"{ctx.invoked_subcommand} was not finished")


class _Application(typer.Typer):
    """Whose commands show what their options take."""

    def command(self, *arguments: Any, **options: Any) -> Callable[[_Function], _Function]:
        """Make a function a command."""
        return super().command(*arguments, cls=_Command, **options)


app = _Application(
    name="ffstream",
    cls=_Commands,
    help="Train deep Forward-Forward networks one layer at a time, on a device that could never hold them whole.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)

# The base of what typer raises for options that do not parse; where it is defined depends on the version of typer.
_UsageError: Any = typer.BadParameter.__mro__[2]


@app.callback(invoke_without_command=True)
def version(show: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Handle --version."""
    if show:
        typer.echo(f"ffstream {__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line, and end the process.

    A user's error prints one line and gives exit code 1, or 2 for options that do not parse. A signal prints one line
    and gives 128 plus its number. A bug keeps its traceback.
    """
    guard_streams()
    signal.signal(signal.SIGTERM, _stop)
    for number in _MAY_BE_IGNORED:
        if signal.getsignal(number) not in (signal.SIG_IGN, None):  # else whoever started this wants it ignored
            signal.signal(number, _stop)
    try:
        code = _run()
    except SystemExit as end:
        code = end.code
    except KeyboardInterrupt as stop:  # another one, while the first was reported
        code = stopped_by(stop)[1]
    _handle_stops(signal.SIG_DFL)  # a signal can do no more harm
    try:
        flush_streams()
    except OutputError as error:
        code = code or _report(f"ffstream: {error}", 1)
    sys.exit(code)


def _run() -> Any:
    """Run the command that the command line asks for. Returns, or raises SystemExit with, the exit code."""
    try:
        _check_words(sys.argv[1:])
        with Interrupts():
            return app(standalone_mode=False)
    except _UsageError as error:
        return _report_usage(error)
    except FFStreamError as error:
        return _report(f"ffstream: {error}", 1)
    except KeyboardInterrupt as stop:  # foreign code had turned it into another error, so no command saw it
        _handle_stops(signal.SIG_IGN)  # another one would be reported in the middle of this one
        name, code = stopped_by(stop)
        if name == "SIGINT":
            return _report("ffstream: interrupted", code)
        return _report(
            f"ffstream: stopped by {name}; files that were written whole are kept, and no other was changed", code
        )
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
        return _report(f"ffstream: {where}{reason}; mend that on this machine, then do it again", 1)
    except ImportError as error:
        if ".so" not in str(error) and "DLL" not in str(error):  # else a library of torch's could not be loaded
            raise
        reason = " ".join(str(error).split())
        return _report(f"ffstream: a library cannot be loaded ({reason}); free memory, or install torch anew", 1)
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        return _report(f"ffstream: {_explain_no_thread(error) or 'out of memory; free some, then do it again'}", 1)


def _check_words(words: list[str]) -> None:
    """Raise a usage error for an empty word: a shell makes one of an unset variable, and as a path it means `.`."""
    for word in words:
        if word == "" or (word.startswith("--") and word.endswith("=") and word.count("=") == 1):
            what = f"option {word[:-1]}" if word else "an argument"
            raise typer.BadParameter(f"{what} is empty, allowed a value; a variable of the shell may not be set")


def _explain_no_thread(error: BaseException) -> str | None:
    if "torch" not in sys.modules:
        return None
    from ffstream.device.memory import explain_no_thread

    return explain_no_thread(error)


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or "torch" not in sys.modules:
        return isinstance(error, MemoryError)
    from ffstream.device.memory import is_out_of_memory

    return is_out_of_memory(error)


def _report_usage(error: Any) -> int:
    """Say what is wrong with the options. Without any, typer has shown the help already, or gives it as the message."""
    message = str(error.format_message())
    if type(error).__name__ == "NoArgsIsHelpError":
        print(message, end="\n" if message else "")
        return 2
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "ffstream"
    return _report(f"ffstream: {message.rstrip('.?')}; see {command} --help", 2)


def _stop(number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt(number)


def _handle_stops(handler: signal.Handlers) -> None:
    """Give the signals that end this process another handler."""
    for number in (signal.SIGTERM, *_MAY_BE_IGNORED):
        if signal.getsignal(number) not in (signal.SIG_IGN, signal.SIG_DFL, None):
            signal.signal(number, handler)


def when_stopped(
    left: str = "nothing was written", file: str = ""
) -> Callable[[Callable[_Options, None]], Callable[_Options, None]]:
    """Decorate a command with a line for when a signal ends it.

    The line says `left`, or whether the file of the option named `file` was written.
    """

    def wrap(command: Callable[_Options, None]) -> Callable[_Options, None]:
        @functools.wraps(command)
        def wrapped(*arguments: _Options.args, **options: _Options.kwargs) -> None:
            path = options.get(file)
            before = _stamp(path)
            try:
                command(*arguments, **options)
            except KeyboardInterrupt as stop:
                text = left
                if path is not None:
                    text = f"{path} was {'not ' if _stamp(path) == before else ''}written"
                fail_stopped(stop, f"{command.__name__} was not finished: {text}")

        return wrapped

    return wrap


def _stamp(path: Any) -> tuple[int, int] | None:
    """What identifies the file that a path leads to, in its present state; None if there is none."""
    try:
        found = Path(path).stat()
    except (OSError, TypeError, ValueError):
        return None
    return found.st_ino, found.st_mtime_ns


def stopped_by(stop: KeyboardInterrupt) -> tuple[str, int]:
    """The name of the signal that ended a command, and the exit code for it."""
    number = signal.Signals(stop.args[0] if stop.args else signal.SIGINT)
    return number.name, 128 + number


def fail_stopped(stop: KeyboardInterrupt, text: str) -> NoReturn:
    """End the process with one line on stderr that names the signal and says what became of the work."""
    _handle_stops(signal.SIG_IGN)
    name, code = stopped_by(stop)
    fail(f"ffstream: stopped by {name}; {text}", code)


def fail(message: str, code: int) -> NoReturn:
    """End the process with one line on stderr."""
    sys.exit(_report(message, code))


def _report(message: str, code: int) -> int:
    """Print one line on stderr, if that can be written. Returns the code."""
    with contextlib.suppress(OSError, OutputError):
        print(fit_to_terminal(printable(message), sys.stderr), file=sys.stderr)
    return code


def import_plugins(names: list[str] | None) -> None:
    """Import the modules that a user names, also from the current folder."""
    from ffstream.ground.plugins import load_plugins

    load_plugins(names or (), search_here=True)


def open_run(path: Path, plugins: list[str] | None = None) -> Run:
    """The run in a folder, once the modules that a user names are imported.

    A folder that does not exist is reported before that. Raises RunError, ConfigError.
    """
    check_is_there(path)
    import_plugins(plugins)
    from ffstream.run.run import Run

    return Run(path)


def check_is_there(path: Path) -> None:
    """Raise RunError if a run's folder does not exist, before torch is imported."""
    if not exists(expand_home(path)):
        raise RunError(say_no_run(path))


def say(line: str, *, err: bool = False) -> None:
    """Print one line, with whatever a terminal would obey in it escaped."""
    stream = sys.stderr if err else sys.stdout
    print(fit_to_terminal(printable(line), stream), file=stream, flush=True)


def show(parts: Iterable[Table | str]) -> None:
    """Print tables and lines in their order."""
    from ffstream.cli.reporting import print_line, print_table

    console = make_console()
    for part in parts:
        if isinstance(part, str):
            print_line(console, part)
        else:
            print_table(console, part)


def make_console() -> Console:
    """A console of the terminal's width; of 120 columns where output is no terminal and COLUMNS is not set."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal or "COLUMNS" in os.environ else Console(width=_FILE_COLUMNS)
