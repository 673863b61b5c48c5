"""One writer: also where the operating system's locks do nothing, and where somebody deletes the lock's files."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import subprocess
import sys

import pytest

import ffstream as ff
from ffstream.ground import lock
from ffstream.ground.folder import Folder
from ffstream.ground.lock import LOCK, RunLock, is_holder_name
from ffstream.ground.processes import Process, is_of_dead_process, make_tag
from ffstream.run.cleaning import clean_run
from tests.helpers import layer_digests

OLD_HOLDER = "lock.json"  # of earlier versions

HOLD = """
import sys
from pathlib import Path
from ffstream.ground.lock import RunLock
with RunLock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def holders(folder):
    return [path for path in folder.iterdir() if is_holder_name(path.name)]


def announce(folder, process, content=None):
    """Make the file by which another process says that it holds the lock."""
    code = hashlib.sha256(process["machine"].encode()).hexdigest()[:8]
    path = folder / f"lock-{process['pid']}-{process['start']}-{code}-0123456789abcdef.json"
    path.write_text(json.dumps({"format": "ffstream lock", "token": "x"} | process) if content is None else content)
    return path


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
        assert [json.loads(path.read_text())["pid"] for path in holders(tmp_path)] == [os.getpid()]
    assert holders(tmp_path) == []


def test_another_process_of_the_same_number_is_not_taken_for_the_holder(no_locks, tmp_path):
    announce(tmp_path, Process.here().to_mapping() | {"start": 1})
    with RunLock(tmp_path):
        pass
    assert holders(tmp_path) == []


@pytest.mark.parametrize("content", ["", '{"format": "ffstr'])
def test_a_holder_that_has_not_written_its_file_yet_is_believed(no_locks, content, holder, tmp_path):
    for path in holders(tmp_path):
        path.write_text(content)
    with pytest.raises(ff.RunLockedError, match="in use by another process"), RunLock(tmp_path):
        pass
    assert len(holders(tmp_path)) == 1


def test_of_two_processes_that_find_a_dead_holder_one_gets_the_lock(no_locks, tmp_path, monkeypatch):
    """The other one comes between the moment when the first has found the dead one and its removal."""
    dead = announce(tmp_path, Process.here().to_mapping() | {"start": 1})
    first, second, remove = RunLock(tmp_path), RunLock(tmp_path), Folder.remove
    came = []

    def remove_late(folder, name):
        if name == dead.name and folder is first.folder:
            with contextlib.suppress(ff.RunLockedError):
                second.__enter__()
                came.append(second)
        return remove(folder, name)

    monkeypatch.setattr(Folder, "remove", remove_late)
    with contextlib.suppress(ff.RunLockedError):
        first.__enter__()
        came.append(first)
    (held,) = came
    held.check()
    assert len(holders(tmp_path)) == 1
    held.__exit__(None, None, None)
    assert holders(tmp_path) == []


def test_a_holder_on_another_machine_is_believed_where_locks_do_nothing(tmp_path, monkeypatch):
    path = announce(tmp_path, Process.here().to_mapping() | {"machine": "elsewhere/1/2"})
    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOLCK, "No locks available")))
        with pytest.raises(ff.RunLockedError, match=rf"on elsewhere.*gone for sure, delete {path}"):
            RunLock(tmp_path).__enter__()
    with RunLock(tmp_path):  # where they work, nobody holds it
        pass


@pytest.mark.parametrize("deleted", ["the lock", "the holder"])
def test_a_writer_goes_on_while_nobody_else_can_have_come_in(deleted, tmp_path):
    with RunLock(tmp_path) as first:
        for path in [tmp_path / LOCK] if deleted == "the lock" else holders(tmp_path):
            path.unlink()
        first.check()
        with pytest.raises(ff.RunLockedError), RunLock(tmp_path):
            pass
        first.check()


def test_a_writer_stops_where_another_one_may_have_come_and_gone(tmp_path):
    with RunLock(tmp_path) as first:
        for path in (tmp_path / LOCK, *holders(tmp_path)):
            path.unlink()
        with RunLock(tmp_path) as second:
            second.folder.write("file", b"second")
        with pytest.raises(ff.RunLockedError, match=r"may have taken it over.*commits nothing more"):
            first.folder.write("file", b"first")
    assert (tmp_path / "file").read_bytes() == b"second"


def test_a_writer_whose_lock_was_taken_over_stops_before_it_commits(tmp_path):
    with RunLock(tmp_path) as first:
        for path in (tmp_path / LOCK, *holders(tmp_path)):
            path.unlink()
        with RunLock(tmp_path) as second:
            with pytest.raises(ff.RunLockedError, match="has taken it over"):
                first.folder.write("file", b"first")
            second.folder.write("file", b"second")
        assert [path.name for path in tmp_path.iterdir() if path.name != LOCK] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"second"


@pytest.mark.parametrize(("inode", "is_believed"), [(0, True), (1, False)])
def test_a_disk_may_have_another_number_on_another_machine(inode, is_believed, tmp_path, monkeypatch):
    """A copy has another inode; the number of the device differs between machines that share a network disk."""
    monkeypatch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOLCK, "no locks")))
    found = tmp_path.stat()
    there = {"machine": "elsewhere/1/2", "folder": [found.st_dev + 1, found.st_ino + inode]}
    announce(tmp_path, Process.here().to_mapping() | there)
    with pytest.raises(ff.RunLockedError) if is_believed else contextlib.nullcontext(), RunLock(tmp_path):
        pass


def test_a_run_that_is_taken_over_ends_in_one_line_and_the_other_one_has_it(small_config, tmp_path):
    """As by a process on another machine, of a disk whose locks do nothing."""
    whole, run = ff.train(small_config(), tmp_path / "whole").path, tmp_path / "run"
    there = Process.here().to_mapping() | {"machine": "elsewhere/1/2"}
    taken = []

    class TakenOver(ff.Observer):
        def on_epoch(self, layer, epoch, *_):
            if (layer, epoch) == (2, 1):
                own = holders(run)
                taken.append(announce(run, there))  # first: a check on another thread may come at any moment
                for path in [run / LOCK, *own]:
                    path.unlink()

    with pytest.raises(ff.RunLockedError, match=r"on elsewhere has taken it over.*commits nothing more"):
        ff.train(small_config(), run, observer=TakenOver())
    assert ff.Run(run).num_layers_done == 1
    assert holders(run) == taken
    taken[0].unlink()
    assert layer_digests(ff.resume(run).path) == layer_digests(whole)


@pytest.mark.parametrize("content", ["", '{"format": "ffstr', '{"pid": 3, "host": "a"}', "\0\0\0"])
@pytest.mark.parametrize("is_old", [True, False])
def test_a_holder_that_is_torn_or_old_is_replaced(content, is_old, tmp_path):
    if is_old:
        (tmp_path / OLD_HOLDER).write_text(content)
    else:
        announce(tmp_path, Process.here().to_mapping() | {"start": 1}, content)
    with RunLock(tmp_path):
        assert len(holders(tmp_path)) == 1
    assert holders(tmp_path) == []


@pytest.mark.parametrize("content", ['{"my": "lock"}', "[]", "mine"])
def test_somebodys_file_of_that_name_is_left(content, tmp_path):
    (tmp_path / OLD_HOLDER).write_text(content)
    with pytest.raises(ff.StorageError, match=r"lock\.json: is no file of ffstream; move it away"), RunLock(tmp_path):
        pass
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(OLD_HOLDER, content)]


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
    path = announce(tmp_path, Process.here().to_mapping(), "[" * 60_000)
    with pytest.raises(ff.StorageError, match="is no file of ffstream; move it away"), RunLock(tmp_path):
        pass
    assert path.stat().st_size == 60_000


def fill_disk(monkeypatch, name):
    """From here on no file of that name can be written, or made."""
    if name != LOCK:
        monkeypatch.setattr(lock, "write_all", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
        return
    make = Folder.append

    def append(folder, asked):
        if asked == name:
            raise OSError(errno.ENOSPC, "full")
        return make(folder, asked)

    monkeypatch.setattr(Folder, "append", append)


@pytest.mark.parametrize("name", [LOCK, "the holder"])
def test_a_lock_that_finds_the_disk_full_leaves_nothing(no_locks, name, tmp_path):
    with pytest.MonkeyPatch.context() as full:
        fill_disk(full, name)
        with pytest.raises(ff.StorageError, match="full"), RunLock(tmp_path):
            pass
    assert list(tmp_path.iterdir()) == []
    with RunLock(tmp_path):
        pass


@pytest.mark.parametrize("name", [LOCK, "the holder"])
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
    assert holders(tmp_path / "run") == []


def test_a_torn_holder_says_what_to_delete_where_locks_do_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOLCK, "no locks")))
    (tmp_path / OLD_HOLDER).write_bytes(b"")
    with pytest.raises(ff.RunLockedError, match=f"should it be gone for sure, delete {tmp_path / OLD_HOLDER}"):
        RunLock(tmp_path).__enter__()
