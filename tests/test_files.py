"""Durable files, manifests and the lock."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time

import pytest

import ffstream as ff
from ffstream.files import atomic_path, read_manifest, remove_temporaries, sha256_file, write_atomic, write_manifest
from ffstream.lock import RunLock
from ffstream.metrics import MetricsFile


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "file"
    write_atomic(path, b"old")
    with pytest.raises(ZeroDivisionError), atomic_path(path) as temporary:
        temporary.write_bytes(b"new")
        1 / 0  # noqa: B018
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_written_file_has_the_mode_of_an_ordinary_one(tmp_path):
    write_atomic(tmp_path / "ours", b"")
    (tmp_path / "ordinary").touch()
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS, errno.EMFILE])
def test_a_failing_disk_is_a_storage_error_that_names_the_file(number, tmp_path):
    with pytest.raises(ff.StorageError, match=r"file.*free space or mend"), atomic_path(tmp_path / "file"):
        raise OSError(number, os.strerror(number))


def test_an_error_that_is_not_the_disks_stays_what_it_is(tmp_path):
    with pytest.raises(OSError, match="odd") as caught, atomic_path(tmp_path / "file"):
        raise OSError(errno.ENOTTY, "odd")
    assert not isinstance(caught.value, ff.FFStreamError)


def test_what_a_killed_process_left_is_removed(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / ".tmp-x").touch()
    (tmp_path / "a" / "kept").touch()
    remove_temporaries(tmp_path)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["kept"]


def test_a_manifest_reads_back_and_any_flipped_bit_is_detected(tmp_path):
    path, content = tmp_path / "manifest.json", {"layer": 3, "digests": {"weights": "ab"}, "error": 0.25}
    write_manifest(path, content)
    assert read_manifest(path) == content
    data = path.read_bytes()
    for position in range(len(data)):
        for bit in (0, 3, 6):
            altered = data[:position] + bytes([data[position] ^ (1 << bit)]) + data[position + 1 :]
            path.write_bytes(altered)
            try:
                harmless = json.loads(altered) == json.loads(data)  # white space, or another way to write it
            except ValueError:
                harmless = False
            if harmless:
                assert read_manifest(path) == content
            else:
                with pytest.raises(ff.CorruptFileError, match=r"manifest\.json"):
                    read_manifest(path)


@pytest.mark.parametrize("data", [b"", b"[]", b"3", b"{}", b"\xff\xfe", b"[" * 100_000, b'{"manifest_sha256": 1}'])
def test_what_is_no_manifest_is_refused(data, tmp_path):
    (tmp_path / "manifest.json").write_bytes(data)
    with pytest.raises(ff.CorruptFileError):
        read_manifest(tmp_path / "manifest.json")


def test_sha256_is_that_of_the_whole_file(tmp_path):
    import hashlib

    data = os.urandom((1 << 20) + 17)
    (tmp_path / "file").write_bytes(data)
    assert sha256_file(tmp_path / "file") == hashlib.sha256(data).hexdigest()


HOLD = """
import sys, time
from pathlib import Path
from ffstream.lock import RunLock
with RunLock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(100)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_held_lock_is_refused_naming_the_process(holder, tmp_path):
    with pytest.raises(ff.RunLockedError, match=f"process {holder.pid} on"), RunLock(tmp_path):
        pass


def test_a_lock_dies_with_its_process_even_when_killed(holder, tmp_path):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    for _ in range(100):
        try:
            with RunLock(tmp_path):
                return
        except ff.RunLockedError:  # the kernel may still be closing the dead process's files
            time.sleep(0.05)
    raise AssertionError("the lock outlived its process")


def test_a_released_lock_can_be_taken_again(tmp_path):
    for _ in range(2):
        with RunLock(tmp_path):
            pass


def test_metrics_rewind_to_a_cursor_and_leave_out_a_torn_line(tmp_path):
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    for layer in (1, 2):
        for epoch in (1, 2, 3):
            metrics.append({"kind": "epoch", "layer": layer, "epoch": epoch})
        metrics.append({"kind": "layer", "layer": layer})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "epo')
    metrics.rewind(num_layers=1, num_epochs=2)
    assert [(r["kind"], r["layer"], r.get("epoch")) for r in metrics.read()] == [
        ("epoch", 1, 1),
        ("epoch", 1, 2),
        ("epoch", 1, 3),
        ("layer", 1, None),
        ("epoch", 2, 1),
        ("epoch", 2, 2),
    ]
