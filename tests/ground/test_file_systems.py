"""File systems of all kinds: what they cannot do is noted or said in one line, and a resume is exact."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import ffstream as ff
from ffstream.ground import files, scratch
from ffstream.run.repair import diagnose, put_aside
from tests.helpers import InterruptAt, check_resumed_equals, layer_digests


@pytest.fixture
def whole(small_config, tmp_path):
    return ff.train(small_config(cache__tier="disk"), tmp_path / "whole").path


@pytest.fixture
def stopped(small_config, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        ff.train(small_config(cache__tier="disk"), tmp_path / "run", observer=InterruptAt("on_epoch", 4))
    return tmp_path / "run"


class Hearing(ff.Observer):
    def __init__(self):
        self.said = []

    def on_warning(self, text):
        self.said.append(text)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
def test_a_folder_that_cannot_be_synced_is_noted_once_and_trained_in(number, whole, stopped, monkeypatch):
    fsync = os.fsync

    def refuse_folders(descriptor):
        if Path(f"/proc/self/fd/{descriptor}").resolve().is_dir():
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse_folders)
    monkeypatch.setattr(files, "_noted", set())
    files.take_notes()
    hearing = Hearing()
    ff.resume(stopped, observer=hearing)
    assert len([text for text in hearing.said if "cannot write a folder through" in text]) == 1
    check_resumed_equals(whole, stopped)


CALLS = ["rename", "fsync", "open", "unlink", "mkdir", "listdir", "rmdir"]
NUMBERS = [errno.EBUSY, errno.ESTALE, errno.ETIMEDOUT, errno.EFBIG, errno.ENOTCONN, errno.EXDEV, errno.EPERM, errno.EIO]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("number", NUMBERS)
def test_any_error_of_any_call_is_one_line_and_the_resume_is_exact(call, number, whole, stopped, monkeypatch):
    right, calls = getattr(os, call), []

    def fail_sometimes(*arguments, **options):
        calls.append(call)
        if len(calls) % 7 == number % 7:
            raise OSError(number, os.strerror(number), "a file")
        return right(*arguments, **options)

    monkeypatch.setattr(os, call, fail_sometimes)
    with contextlib.suppress(ff.FFStreamError):  # whose text is one line, whatever it quotes
        ff.resume(stopped)
    monkeypatch.undo()
    ff.resume(stopped)
    check_resumed_equals(whole, stopped)


def test_a_repair_works_where_folders_cannot_be_renamed_into_others(whole, stopped, monkeypatch):
    """As in the lower layer of an overlay."""
    weights = stopped / "layers/000/weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    rename = os.rename

    def refuse_folders(source, target, *, src_dir_fd=None, dst_dir_fd=None):
        place = os.stat(source, dir_fd=src_dir_fd)
        if src_dir_fd != dst_dir_fd and os.path.stat.S_ISDIR(place.st_mode):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        rename(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

    monkeypatch.setattr(os, "rename", refuse_folders)
    directory = ff.Run(stopped).directory
    _, aside = put_aside(directory)
    assert (aside / "layers/000/weights.safetensors").is_file()
    monkeypatch.undo()
    assert layer_digests(ff.resume(stopped).path) == layer_digests(whole)


def test_a_clock_that_stands_still_is_no_error(small_config, tmp_path, monkeypatch):
    monkeypatch.setattr(time, "perf_counter", lambda: 1000.0)
    assert ff.train(small_config(), tmp_path / "run").verify() == 3


TOP = [
    "run.json",
    "config.toml",
    "data.json",
    "environment.json",
    "validation.safetensors",
    "metrics.jsonl",
    "lock.json",  # of earlier versions
]
BELOW = ["layers/000/manifest.json", "layers/000/weights.safetensors", "progress/manifest.json", "lock"]


@pytest.mark.parametrize("name", TOP + BELOW)
@pytest.mark.parametrize("kind", ["FIFO", "device", "6 GB", "folder"])
def test_what_should_be_a_file_of_a_run_is_opened_as_one_or_refused_at_once(kind, name, stopped):
    path = stopped / name
    if kind != "6 GB":
        path.unlink(missing_ok=True)
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        with path.open("ab") as file:
            file.truncate(6_000_000_000)
    with pytest.raises(ff.FFStreamError) as caught:
        ff.resume(stopped)
        ff.Run(stopped).verify()
        if (kind, name) in (("6 GB", "lock"), ("6 GB", "metrics.jsonl")):  # what is too much is not read
            raise ff.FFStreamError
    assert "\n" not in str(caught.value)


def test_a_killed_evaluation_leaves_nothing_that_lasts(stopped, tmp_path, small_data):
    """Its caches lie in the system's folder for such, where the next start removes them."""
    program = (
        "import os, signal, sys, ffstream as ff; from ffstream.ground.scratch import make_scratch\n"
        "with make_scratch() as folder:\n"
        "    (folder.path / 'shard').write_text('x')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    place = tmp_path / "scratch"
    place.mkdir()
    environment = os.environ | {"TMPDIR": str(place)}
    killed = subprocess.run([sys.executable, "-c", program], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    (left,) = place.iterdir()
    (place / "ffstream-scratch-mine").mkdir()
    (place / left.name.replace("-", "_", 1)).mkdir()
    living = shutil.copytree(left, place / f"ffstream-scratch-{scratch.make_tag()}-x")
    with scratch.make_scratch(place):
        assert not left.exists()
    assert living.exists()
    assert len(list(place.iterdir())) == 3


def test_the_readout_is_verified_as_everything_else(whole):
    run = ff.Run(whole)
    run.evaluate("softmax")
    weights = whole / "readout/weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[900] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ff.CorruptFileError, match="readout/weights"):
        run.verify()
    assert [path.name for path in diagnose(run.directory).damaged] == ["readout"]
    (whole / "readout/manifest.json").write_text("{")
    with pytest.raises(ff.CorruptFileError, match="readout/manifest"):
        run.verify()
    assert [path.name for path in diagnose(run.directory).damaged] == ["readout"]


@pytest.mark.parametrize("file", ["data.json", "config.toml", "run.json", "environment.json", "validation.safetensors"])
def test_no_advice_deletes_more_than_what_is_damaged(file, whole):
    path = whole / file
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ff.CorruptFileError, match=file) as caught:
        ff.Run(whole).verify()
    assert "folder" not in str(caught.value)
    assert "restore it from a copy" in str(caught.value)
