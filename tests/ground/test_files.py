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
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import ffstream as ff
from ffstream.ground.files import find_current, sha256_file, storage_errors, to_absolute
from ffstream.ground.folder import Folder
from ffstream.ground.lock import RunLock, is_holder_name
from ffstream.storage import tensor_file
from ffstream.storage.manifest import read_manifest, write_manifest
from ffstream.storage.metrics import MetricsFile
from ffstream.storage.tensor_file import save_tensors


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "file"
    Folder(tmp_path).write("file", b"old")
    with pytest.raises(ZeroDivisionError), Folder(tmp_path).writing("file") as file:
        file.write(b"new")
        1 / 0  # noqa: B018
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture
def no_current_folder(tmp_path, monkeypatch):
    """Somebody deletes the folder in which the program runs."""
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()


@pytest.mark.skipif(sys.platform == "win32", reason="a current folder cannot be deleted there")
def test_absolute_paths_need_no_current_folder(no_current_folder, small_config, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["relative", str(tmp_path)]))
    monkeypatch.setattr(sys, "path", ["", "relative", *sys.path])
    config = small_config(layers=2, cache__tier="disk", cache__folder=str(tmp_path), data_root=str(tmp_path))
    run = ff.train(config, tmp_path / "run")
    assert ff.resume(run.path, layers=3).num_layers_done == 3
    run.export(tmp_path / "net.safetensors")
    images = torch.rand(3, 8, 8) * 16
    assert torch.equal(ff.load(tmp_path / "net.safetensors")(images), ff.load(run.path)(images))
    assert len(run.predict(images).labels) == 3
    run.evaluate()
    ff.write_negatives(tmp_path / "negatives.safetensors", data=config.data)


@pytest.mark.skipif(sys.platform == "win32", reason="a current folder cannot be deleted there")
def test_relative_paths_without_a_current_folder_are_refused_in_one_line(no_current_folder, small_config, tmp_path):
    assert find_current() is None
    assert to_absolute(tmp_path) == tmp_path
    for attempt in (
        lambda: ff.train(small_config(), "run"),
        lambda: ff.train(small_config()),
        lambda: ff.train(small_config(data_root="data"), tmp_path / "run"),
        lambda: ff.make_plan(small_config(), "run"),
        lambda: ff.make_plan(small_config()),
        lambda: ff.resume("run"),
        lambda: ff.load("run"),
    ):
        with pytest.raises(ff.FFStreamError) as refused:
            attempt()
        assert "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_a_written_file_has_the_mode_of_an_ordinary_one(tmp_path):
    Folder(tmp_path).write("ours", b"")
    (tmp_path / "ordinary").touch()
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


@pytest.mark.parametrize("number", sorted({*errno.errorcode} - {errno.ENOENT}))
def test_whatever_a_system_says_of_a_file_is_a_storage_error_that_names_it(number, tmp_path, monkeypatch):
    def fail(*_arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(ff.StorageError) as caught, storage_errors(tmp_path / "file"):
        Folder(tmp_path).write("file", b"")
    assert str(caught.value).startswith(f"cannot write {tmp_path / 'file'}: {os.strerror(number)}; free space or mend")
    assert list(tmp_path.iterdir()) == []


def test_a_manifest_reads_back_and_any_flipped_bit_is_detected(tmp_path):
    path, content = tmp_path / "manifest.json", {"layer": 3, "digests": {"weights": "ab"}, "error": 0.25}
    write_manifest(Folder(tmp_path), "manifest.json", content)
    assert read_manifest(Folder(tmp_path), "manifest.json", {}) == content
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
                assert read_manifest(Folder(tmp_path), "manifest.json", {}) == content
            else:
                with pytest.raises(ff.CorruptFileError, match=r"manifest\.json"):
                    read_manifest(Folder(tmp_path), "manifest.json", {})


@pytest.mark.parametrize("data", [b"", b"[]", b"3", b"{}", b"\xff\xfe", b"[" * 100_000, b'{"manifest_sha256": 1}'])
def test_what_is_no_manifest_is_refused(data, tmp_path):
    (tmp_path / "manifest.json").write_bytes(data)
    with pytest.raises(ff.CorruptFileError):
        read_manifest(Folder(tmp_path), "manifest.json", {})


def test_sha256_is_that_of_the_whole_file(tmp_path):
    import hashlib

    data = os.urandom((1 << 20) + 17)
    (tmp_path / "file").write_bytes(data)
    assert sha256_file(tmp_path / "file") == hashlib.sha256(data).hexdigest()


HOLD = """
import sys, time
from pathlib import Path
from ffstream.ground.lock import RunLock, is_holder_name
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
    metrics = MetricsFile(Folder(tmp_path))
    for layer in (1, 2):
        for epoch in (1, 2, 3):
            metrics.append({"kind": "epoch", "layer": layer, "epoch": epoch})
        metrics.append({"kind": "layer", "layer": layer})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "epo')
    metrics.rewind(None, num_layers=1, num_epochs=2)
    assert [(r["kind"], r["layer"], r.get("epoch")) for r in metrics.read(None)] == [
        ("epoch", 1, 1),
        ("epoch", 1, 2),
        ("epoch", 1, 3),
        ("layer", 1, None),
        ("epoch", 2, 1),
        ("epoch", 2, 2),
    ]


@pytest.mark.parametrize("call", ["fsync", "open", "rename"])
def test_a_disk_that_fails_at_any_step_leaves_the_old_file_and_no_other(call, tmp_path, monkeypatch):
    folder = Folder(tmp_path)
    folder.write("file", b"old")

    def fail(*_args, **_options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, fail)
    match = f"cannot write {tmp_path}: No space left on device"
    with pytest.raises(ff.StorageError, match=match), storage_errors(tmp_path):
        folder.write("file", b"new")
    monkeypatch.undo()
    assert (tmp_path / "file").read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_the_mode_of_a_file_follows_the_umask_of_the_process(umask, mode, tmp_path):
    code = "import sys, pathlib, ffstream.ground.folder as f; f.Folder(pathlib.Path(sys.argv[1])).write('file', b'')"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, umask=umask)
    assert (tmp_path / "file").stat().st_mode & 0o777 == mode


def test_importing_the_package_leaves_the_umask_as_it_was():
    code = "import os; os.umask(0o027); import ffstream.ground.folder; assert os.umask(0) == 0o027"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_manifest_with_content_taken_out_or_put_in_is_refused(tmp_path):
    path = tmp_path / "manifest.json"
    write_manifest(Folder(tmp_path), "manifest.json", {"layer": 3, "list": [1, 2]})
    sealed = json.loads(path.read_bytes())
    for changed in (sealed | {"more": 1}, {k: v for k, v in sealed.items() if k != "list"}, sealed | {"list": [2, 1]}):
        path.write_text(json.dumps(changed))
        with pytest.raises(ff.CorruptFileError, match="altered"):
            read_manifest(Folder(tmp_path), "manifest.json", {})


@pytest.mark.parametrize("depth", [10, 400, 900, 990, 2_000, 50_000])
def test_a_manifest_nested_to_any_depth_is_refused_and_not_a_crash(depth, tmp_path):
    text = '{"manifest_sha256": "x", "a": ' + "[" * depth + "]" * depth + "}"
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ff.CorruptFileError):
        read_manifest(Folder(tmp_path), "manifest.json", {})


def test_an_absent_manifest_is_told_from_a_corrupt_one(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_manifest(Folder(tmp_path), "manifest.json", {})


@pytest.mark.parametrize("holder_file", [None, "", "[]", '{"pid": 3}', "\u00ff"])
def test_a_held_lock_is_refused_even_when_its_holder_cannot_be_read(holder_file, holder, tmp_path):
    (announced,) = (path for path in tmp_path.iterdir() if is_holder_name(path.name))
    announced.unlink()
    if holder_file is not None:
        announced.write_text(holder_file, encoding="latin-1")
    with pytest.raises(ff.RunLockedError, match="in use by another process"), RunLock(tmp_path):
        pass


def test_a_lock_is_freed_when_its_holder_raises(tmp_path):
    with pytest.raises(ZeroDivisionError), RunLock(tmp_path):
        1 / 0  # noqa: B018
    with RunLock(tmp_path):
        (announced,) = (path for path in tmp_path.iterdir() if is_holder_name(path.name))
        assert json.loads(announced.read_text())["pid"] == os.getpid()
    assert not announced.exists()


def test_tensors_are_read_into_the_memory_that_is_there(tmp_path):
    path, folder = tmp_path / "file", Folder(tmp_path)
    held = {"a": torch.randn(3, 5), "b": torch.randn(7).bfloat16(), "c": torch.tensor(4.0), "d": torch.empty(0, 2)}
    digest = tensor_file.write_tensors(folder, "file", held)()
    targets = {name: torch.zeros_like(tensor) for name, tensor in held.items()}
    places = [target.data_ptr() for target in targets.values()]
    tensor_file.fill_tensors(folder, "file", digest, targets)
    assert all(torch.equal(targets[name], held[name]) for name in held)
    assert [target.data_ptr() for target in targets.values()] == places
    for other in ({"a": torch.zeros(3, 5)}, targets | {"a": torch.zeros(5, 3)}, targets | {"b": torch.zeros(7)}):
        with pytest.raises(ff.CorruptFileError, match="this configuration needs"):
            tensor_file.fill_tensors(folder, "file", digest, other)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(ff.CorruptFileError, match="altered"):
        tensor_file.fill_tensors(folder, "file", digest, targets)


def test_tensors_that_are_written_are_those_that_safetensors_reads(tmp_path):
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "byte": torch.tensor([1, 2, 3], dtype=torch.uint8),
        "flag": torch.tensor([True, False]),
        "weight": torch.randn(5, 3, generator=generator),
        "turned": torch.randn(4, 6, generator=generator).t(),
        "half": torch.randn(7, generator=generator).bfloat16(),
        "number": torch.tensor(5),
        "nothing": torch.empty(0, 4),
        "double": torch.randn(2, dtype=torch.float64, generator=generator),
    }
    with (tmp_path / "a").open("wb", buffering=0) as file:
        digest = save_tensors(file, {name: tensor.contiguous() for name, tensor in tensors.items()}, {"format": "x"})
    assert digest == sha256_file(tmp_path / "a")
    found = load_file(tmp_path / "a")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    with safe_open(tmp_path / "a", framework="pt") as file:
        assert file.metadata() == {"format": "x"}
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
