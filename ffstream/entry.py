"""The entry point of the command, with what has to be settled before anything else is imported."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

# How often an idle OpenMP thread looks for work before it sleeps. By default it does so for many milliseconds, while
# threads of other processes wait for its core: two trainings side by side on two cores took ten times as long as one.
# A smaller number would slow down a single training (docs/ablations/threads.md).
_SPIN_COUNT = "20000"
_WAITING = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME")  # with which users set this themselves


def main() -> None:
    """Run the command line, and end the process."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else whoever started this wants it ignored
        signal.signal(signal.SIGINT, _stop_early)
    if not any(name in os.environ for name in _WAITING):
        os.environ["GOMP_SPINCOUNT"] = _SPIN_COUNT
    try:
        os.getcwd()  # noqa: PTH109 - pathlib takes as long to import as all that is done here
    except OSError as error:  # the libraries that are loaded next would fail, each with its own message
        sys.exit(f"ffstream: the current folder cannot be used ({error.strerror}); change to another one")
    from ffstream.cli import main as run

    run()


def _stop_early(number: int, _frame: FrameType | None) -> None:
    """Exit at once: during imports there is nothing to clean up, and a KeyboardInterrupt would print a traceback."""
    os.write(2, b"ffstream: interrupted\n")
    os._exit(128 + number)
