"""One writer: also where the operating system's locks do nothing, and where somebody deletes the lock's files."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys

import pytest

import ffstream as ff
from ffstream.ground import lock
from ffstream.ground.folder import Folder
from ffstream.ground.lock import HOLDER, LOCK, RunLock
from ffstream.ground.processes import Process, is_of_dead_process, make_tag
from ffstream.run.cleaning import clean_run
from tests.helpers import layer_digests

HOLD = """
import sys
from pathlib import Path
from ffstream.ground.lock import RunLock
with RunLock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


@pytest.fixture(params=["lies", errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL])
def no_locks(request, monkeypatch):
    """File systems whose locks do nothing, and say so or not."""

    def flock(*_arguments):
        if request.param != "lies":
            raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", flock)


def test_a_second_writer_is_refused_where_locks_do_nothing(no_locks, holder, tmp_path):
    with pytest.raises(ff.RunLockedError, match=f"process {holder.pid} on"), RunLock(tmp_path):
        pass


def test_a_dead_holder_does_not_keep_anybody_out(no_locks, holder, tmp_path):
    holder.kill()
    holder.wait()
    with RunLock(tmp_path):
        assert json.loads((tmp_path / HOLDER).read_text())["pid"] == os.getpid()
    assert not (tmp_path / HOLDER).exists()


def test_another_process_of_the_same_number_is_not_taken_for_the_holder(no_locks, tmp_path):
    here = Process.here().to_mapping()
    (tmp_path / HOLDER).write_text(json.dumps({"format": "ffstream lock", "token": "x"} | here | {"start": 1}))
    with RunLock(tmp_path):
        pass


def test_a_holder_on_another_machine_is_believed_where_locks_do_nothing(tmp_path, monkeypatch):
    there = Process.here().to_mapping() | {"machine": "elsewhere/1/2"}
    (tmp_path / HOLDER).write_text(json.dumps({"format": "ffstream lock", "token": "x"} | there))
    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOLCK, "No locks available")))
        with pytest.raises(ff.RunLockedError, match=r"on elsewhere.*gone for sure, delete .*lock\.json"):
            RunLock(tmp_path).__enter__()
    with RunLock(tmp_path):  # where they work, nobody holds it
        pass


@pytest.mark.parametrize("deleted", [[LOCK], [HOLDER], [LOCK, HOLDER]])
def test_a_writer_whose_lock_was_taken_over_stops_before_it_commits(deleted, tmp_path):
    with RunLock(tmp_path) as first:
        for name in deleted:
            (tmp_path / name).unlink()
        first.check()  # nobody else is there: it holds it still
        for name in (LOCK, HOLDER):
            (tmp_path / name).unlink(missing_ok=True)
        with RunLock(tmp_path) as second:
            with pytest.raises(ff.RunLockedError, match="has taken it over"):
                first.folder.write("file", b"first")
            second.folder.write("file", b"second")
        assert [path.name for path in tmp_path.iterdir() if path.name != LOCK] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"second"


def test_a_run_that_is_taken_over_ends_in_one_line_and_the_other_one_has_it(small_config, tmp_path):
    """As by a process on another machine, of a disk whose locks do nothing."""
    whole, run = ff.train(small_config(), tmp_path / "whole").path, tmp_path / "run"
    there = {"format": "ffstream lock", "token": "x"} | Process.here().to_mapping() | {"machine": "elsewhere/1/2"}

    class TakenOver(ff.Observer):
        def on_epoch(self, layer, epoch, *_):
            if (layer, epoch) == (2, 1):
                (tmp_path / "holder").write_text(json.dumps(there))
                (tmp_path / "holder").replace(run / HOLDER)

    with pytest.raises(ff.RunLockedError, match=r"on elsewhere has taken it over.*commits nothing more"):
        ff.train(small_config(), run, observer=TakenOver())
    assert ff.Run(run).num_layers_done == 1
    assert json.loads((run / HOLDER).read_text()) == there
    (run / HOLDER).unlink()
    assert layer_digests(ff.resume(run).path) == layer_digests(whole)


@pytest.mark.parametrize("content", ["", '{"format": "ffstr', '{"pid": 3, "host": "a"}', "\0\0\0"])
def test_a_holder_that_is_torn_or_old_is_replaced(content, tmp_path):
    (tmp_path / HOLDER).write_text(content)
    with RunLock(tmp_path):
        pass


@pytest.mark.parametrize("content", ['{"my": "lock"}', "[]", "mine"])
def test_somebodys_file_of_that_name_is_left(content, tmp_path):
    (tmp_path / HOLDER).write_text(content)
    with pytest.raises(ff.StorageError, match=r"lock\.json: is no file of ffstream; move it away"), RunLock(tmp_path):
        pass
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(HOLDER, content)]


def test_two_locks_of_one_process_exclude_each_other(no_locks, tmp_path):
    with RunLock(tmp_path), pytest.raises(ff.RunLockedError), RunLock(tmp_path):
        pass
    with RunLock(tmp_path):
        pass


def test_tags_tell_living_processes_from_dead_ones(holder):
    assert not is_of_dead_process(make_tag())
    tag = f"{holder.pid}-{make_tag().partition('-')[2]}"  # another start than that of this process
    holder.kill()
    holder.wait()
    assert is_of_dead_process(tag)
    for other in ("1-2-00000000", "x", "", f"{tag}x", tag.replace("-", "_")):
        assert not is_of_dead_process(other)


def test_a_holder_of_nested_brackets_is_somebodys(tmp_path):
    (tmp_path / HOLDER).write_text("[" * 60_000)
    with pytest.raises(ff.StorageError, match="is no file of ffstream; move it away"), RunLock(tmp_path):
        pass
    assert (tmp_path / HOLDER).stat().st_size == 60_000


def fill_disk(monkeypatch, name):
    """From here on no file of that name can be written, or made."""
    if name == HOLDER:
        monkeypatch.setattr(lock, "write_all", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
        return
    make = Folder.append

    def append(folder, asked):
        if asked == name:
            raise OSError(errno.ENOSPC, "full")
        return make(folder, asked)

    monkeypatch.setattr(Folder, "append", append)


@pytest.mark.parametrize("name", [LOCK, HOLDER])
def test_a_lock_that_finds_the_disk_full_leaves_nothing(no_locks, name, tmp_path):
    with pytest.MonkeyPatch.context() as full:
        fill_disk(full, name)
        with pytest.raises(ff.StorageError, match="full"), RunLock(tmp_path):
            pass
    assert list(tmp_path.iterdir()) == []
    with RunLock(tmp_path):
        pass


@pytest.mark.parametrize("name", [LOCK, HOLDER])
def test_a_full_disk_can_be_cleaned(name, small_config, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    observer = ff.Observer()
    observer.on_epoch = stop
    with pytest.raises(KeyboardInterrupt):
        ff.train(small_config(cache__tier="disk"), tmp_path / "run", observer=observer)
    (tmp_path / "run" / LOCK).unlink()
    fill_disk(monkeypatch, name)
    with pytest.raises(ff.StorageError, match="full"):
        ff.resume(tmp_path / "run")
    assert clean_run(ff.Run(tmp_path / "run")) > 0
    assert not (tmp_path / "run/cache").exists()
    assert not (tmp_path / "run" / HOLDER).exists()


def test_a_torn_holder_says_what_to_delete_where_locks_do_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOLCK, "no locks")))
    (tmp_path / HOLDER).write_bytes(b"")
    with pytest.raises(ff.RunLockedError, match=f"should it be gone for sure, delete {tmp_path / HOLDER}"):
        RunLock(tmp_path).__enter__()
