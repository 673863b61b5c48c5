"""Standard output and error: each fails once, in one line, whatever is at their other end."""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import struct
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from rich.console import Console

from ffstream.cli.app import fail, say
from ffstream.cli.reporting import print_line
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


SENTENCE = "ffstream: config objective.scale: found -1.0, allowed a number of at least one; use another, such as 5.0"


def write(to, text, num_columns):
    """Write the same by each way that a line has to the user."""
    with contextlib.suppress(SystemExit):
        fail(text, 1)
    say(text, err=True)
    print_line(Console(file=to, width=num_columns), text)
    to.flush()


@pytest.mark.skipif(os.name != "posix", reason="needs a terminal")
@pytest.mark.parametrize("num_columns", [40, 80])
def test_a_line_that_is_longer_than_a_terminal_is_cut_between_words(num_columns, monkeypatch):
    import fcntl
    import termios

    monkeypatch.delenv("COLUMNS", raising=False)
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, num_columns, 0, 0))
    with open(theirs, "w") as terminal:  # noqa: PTH123 - a descriptor
        monkeypatch.setattr(sys, "stderr", terminal)
        write(terminal, SENTENCE, num_columns)
    found = b""
    with contextlib.suppress(OSError):  # at the end
        while part := os.read(ours, 1 << 16):
            found += part
    os.close(ours)
    lines = found.decode().splitlines()
    assert max(map(len, lines)) <= num_columns
    assert len(lines) >= 3 * 2
    assert found.decode().split() == 3 * SENTENCE.split()


def test_a_file_gets_the_line_whole(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    with (tmp_path / "log").open("w") as file:
        monkeypatch.setattr(sys, "stderr", file)
        write(file, SENTENCE, 40)
    assert (tmp_path / "log").read_text().splitlines() == 3 * [SENTENCE]
