"""Where the command starts: what an interrupt, or a folder that is gone, leads to before anything else is imported."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType


def main() -> None:
    """Run the command line, and end the process."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else whoever started this wants it ignored
        signal.signal(signal.SIGINT, _stop_early)
    try:
        os.getcwd()  # noqa: PTH109 - pathlib takes as long to import as all that is done here
    except OSError as error:  # of which the libraries that are loaded next die, each in its own words
        sys.exit(f"ffstream: the current folder cannot be used ({error.strerror}); change to another one")
    from ffstream.cli import main as run

    run()


def _stop_early(number: int, _frame: FrameType | None) -> None:
    """While modules are imported there is nothing to clean up, and a KeyboardInterrupt would be told as a traceback."""
    os.write(2, b"ffstream: interrupted\n")
    os._exit(128 + number)
