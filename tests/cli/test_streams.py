"""Standard output and error: each fails once, in one line, whatever is at their other end."""

from __future__ import annotations

import io
import os
import shlex
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ffstream.cli.streams import _RawStream
from ffstream.errors import OutputError


class Failing(io.RawIOBase):
    """A stream that takes some bytes and then fails."""

    def __init__(self, room, error):
        self.room, self.error, self.written = room, error, b""

    def writable(self):
        return True

    def write(self, data):
        if not self.room:
            raise self.error
        taken = bytes(data[: self.room])
        self.room -= len(taken)
        self.written += taken
        return len(taken)


def test_a_stream_fails_once_and_takes_everything_from_then_on():
    raw = Failing(5, OSError(28, "No space left on device"))
    stream = io.TextIOWrapper(io.BufferedWriter(_RawStream(raw, "standard output")))
    stream.write("0123456789")
    with pytest.raises(OutputError, match=r"standard output: cannot be written \(No space left on device\)"):
        stream.flush()
    for _ in range(3):
        stream.write("more" * 10_000)
        stream.flush()
    stream.close()
    assert raw.written == b"01234"


def test_the_main_thread_is_told_of_what_failed_in_another():
    stream = _RawStream(Failing(0, BrokenPipeError(32, "Broken pipe")), "standard output")
    thread = threading.Thread(target=lambda: stream.write(b"x"))
    thread.start()
    thread.join()
    with pytest.raises(OutputError, match="its reader has closed it"):
        stream.write(b"x")
    assert stream.write(b"x") == 1


def process(arguments, **options):
    command = [sys.executable, "-m", "ffstream", *map(str, arguments)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **options)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_output_is_one_line_and_no_full_disk(run):
    with open("/dev/full", "w") as full:  # noqa: PTH123 - a device
        done = process(["inspect", run.path], stdout=full)
        _, error = done.communicate()
    assert done.returncode == 1
    assert error.count("\n") == 1
    assert error.startswith("ffstream: standard output: cannot be written (No space left on device)")


def test_a_reader_that_is_gone_is_said(run):
    done = process(["inspect", run.path, "--json"], stdout=subprocess.PIPE)
    done.stdout.close()
    error = done.stderr.read()
    assert done.wait() == 1
    assert error.count("\n") == 1
    assert "standard output: its reader has closed it" in error


def test_an_encoding_that_lacks_a_character_does_not_matter(run, tmp_path):
    environment = os.environ | {"PYTHONIOENCODING": "ascii:strict"}
    done = process(["inspect", run.path], env=environment, stdout=subprocess.PIPE)
    output, error = done.communicate()
    assert done.returncode == 0, error
    assert "cat:\\xe9" in output
    done = process(["inspect", tmp_path / "漢é"], env=environment)
    _, error = done.communicate()
    assert done.returncode == 1
    assert error.count("\n") == 1
    assert "\\u6f22\\xe9" in error


@pytest.mark.skipif(os.name != "posix", reason="asks a shell")
@pytest.mark.parametrize("command", ["recipes", "--version", "--help"])
def test_streams_that_are_closed_from_the_start(command, tmp_path):
    """Nobody would see what a command shows, so it fails; what is meant for standard error goes nowhere else."""
    start = f"{shlex.quote(sys.executable)} -m ffstream"
    done = subprocess.run(["sh", "-c", f"{start} {command} >&-"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "standard output: is closed" in done.stderr
    done = subprocess.run(["sh", "-c", f"{start} inspect nothing 2>&-"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
