"""The entry point of the command, with what has to be settled before anything else is imported."""

from __future__ import annotations

import os
import signal
import sys
import time
from types import FrameType

# How often an idle OpenMP thread looks for work before it sleeps, where other processes compute too. By default it does
# so for many milliseconds, which keeps its core from threads that have work. A single training on an idle machine needs
# the default: it takes 7 % longer with this count (docs/ablations/threads.md).
_SPIN_COUNT = "5000"
_LOAD, _NUM_LOOKS, _LOOK_S = "/proc/loadavg", 3, 0.001
_WAITING = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME")  # with which users set this themselves


def main() -> None:
    """Run the command line, and end the process."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else whoever started this wants it ignored
        signal.signal(signal.SIGINT, _stop_early)
    if not any(name in os.environ for name in _WAITING) and _others_compute():
        os.environ["GOMP_SPINCOUNT"] = _SPIN_COUNT
    try:
        os.getcwd()  # noqa: PTH109 - pathlib takes as long to import as all that is done here
    except OSError as error:  # the libraries that are loaded next would fail, each with its own message
        sys.exit(f"ffstream: the current folder cannot be used ({error.strerror}); change to another one")
    from ffstream.cli import main as run

    run()


def _others_compute() -> bool:
    """Whether threads of other processes have work at this moment; False where the system does not tell.

    What this decides changes how long a run takes, and none of its bits.
    """
    try:
        for look in range(_NUM_LOOKS):  # a thread that works for a moment only is gone at one of these looks
            if look:
                time.sleep(_LOOK_S)
            with open(_LOAD, "rb") as file:  # noqa: PTH123 - as above
                if int(file.read().split()[3].partition(b"/")[0]) <= 1:  # this thread is one of those that have work
                    return False
    except (OSError, ValueError, IndexError):  # only Linux has the file, and only its torch comes with such threads
        return False
    return True


def _stop_early(number: int, _frame: FrameType | None) -> None:
    """Exit at once: during imports there is nothing to clean up, and a KeyboardInterrupt would print a traceback."""
    os.write(2, b"ffstream: interrupted\n")
    os._exit(128 + number)
