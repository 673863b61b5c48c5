"""Standard output and standard error: a failure to write to them is reported once, in one line."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import select
import sys
import textwrap
import threading
from typing import Any

from ffstream.errors import OutputError

_MOST_COLUMNS = 80  # of a terminal that does not say how wide it is
_NAMES = {"stdout": "standard output", "stderr": "standard error"}


class _RawStream(io.RawIOBase):
    """Passes on what is written, and raises OutputError once that fails; from then on all output is dropped.

    This tells a full disk behind a stream from a full disk behind a run, and leaves nothing to be written, and to fail
    again, when the interpreter ends. The error is raised in the main thread only, as in another thread it would end
    that thread alone.
    """

    def __init__(self, raw: Any, noun: str) -> None:
        self._raw = raw
        self._noun = noun
        self._failure: OutputError | None = None
        self._is_told = False

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return bool(self._raw.isatty())

    def fileno(self) -> int:
        return int(self._raw.fileno())

    def write(self, data: Any) -> int:
        """Write some of the data. Once the stream has failed, all of it counts as written."""
        if self._failure is None:
            try:
                while (num_bytes := self._raw.write(data)) is None:  # a non-blocking stream with a slow reader
                    select.select([], [self._raw], [])
                return int(num_bytes)
            except OSError as error:
                self._failure = _explain(self._noun, error)
        if not self._is_told and threading.current_thread() is threading.main_thread():
            self._is_told = True
            raise self._failure
        return len(memoryview(data).cast("B"))


class _ClosedStream(io.RawIOBase):
    """Stands for a standard output that was closed before the command started."""

    def writable(self) -> bool:
        return True

    def write(self, _data: Any) -> int:
        """Raises OSError."""
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))


def guard_streams() -> None:
    """Have both streams raise OutputError if they cannot be written, and escape what their encoding does not have."""
    _open_missing()
    if sys.stdout is None:
        sys.stdout = io.TextIOWrapper(io.BufferedWriter(_ClosedStream()), line_buffering=True)
    for name, noun in _NAMES.items():
        stream: Any = getattr(sys, name)
        buffer = getattr(stream, "buffer", None)
        if stream is None or buffer is None:
            continue
        stream.flush()
        guarded = io.TextIOWrapper(
            io.BufferedWriter(_RawStream(getattr(buffer, "raw", buffer), noun)),
            encoding=stream.encoding,
            errors="backslashreplace",
            line_buffering=stream.line_buffering or stream.write_through,
        )
        setattr(sys, name, guarded)
    if sys.stderr is None:  # else messages for it would go to standard output
        sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115 - a device, for as long as the process lives


def fit_to_terminal(line: str, stream: Any) -> str:
    """A line as it is, or several that end between words where a terminal is narrower and would cut words in two.

    A file or another program gets the line whole.
    """
    if stream is None or not stream.isatty():
        return line
    columns = _count_columns(stream)
    if len(line) <= columns:
        return line
    indent = line[: len(line) - len(line.lstrip())]
    return textwrap.fill(line, columns, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _count_columns(stream: Any) -> int:
    """The columns of a terminal: those of $COLUMNS, if it has a number, as other programs take it."""
    with contextlib.suppress(ValueError):
        asked = int(os.environ.get("COLUMNS", ""))
        if asked > 0:
            return asked
    try:
        return os.get_terminal_size(stream.fileno()).columns or _MOST_COLUMNS
    except OSError:
        return _MOST_COLUMNS


def flush_streams() -> None:
    """Write what both streams have buffered. Raises OutputError."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()


def _explain(noun: str, error: OSError) -> OutputError:
    reason = error.strerror or type(error).__name__
    if isinstance(error, BrokenPipeError):
        return OutputError(f"{noun}: its reader has closed it ({reason}); nothing more is shown")
    if error.errno == errno.EBADF:
        return OutputError(f"{noun}: is closed, allowed a file, a pipe or a terminal; give it /dev/null to see nothing")
    return OutputError(f"{noun}: cannot be written ({reason}); free space there, or give it another place")


def _open_missing() -> None:
    """Open /dev/null for standard streams that are closed: the next file that is opened would get their number."""
    with contextlib.suppress(OSError):
        for number in range(3):
            try:
                os.fstat(number)
            except OSError:
                os.open(os.devnull, os.O_RDWR)
