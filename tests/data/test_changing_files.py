"""Files that change while or after they are read."""

from __future__ import annotations

import contextlib
import os

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import ffstream.data.array_file
from ffstream.data import load_dataset
from tests.data.hostile_files import refuse

pytestmark = pytest.mark.usefixtures("nothing_blocks", "nothing_is_started")


@contextlib.contextmanager
def altering(monkeypatch, path, alter):
    """A file that is altered when a part of its data has been read."""
    read = ffstream.data.array_file.read_exactly
    count = []

    def read_then_alter(stream, num_bytes):
        data = read(stream, num_bytes)
        if num_bytes == 1 << 18:
            count.append(1)
            if len(count) == 1:
                alter(path)
        return data

    with monkeypatch.context() as patched:
        patched.setattr(ffstream.data.array_file, "read_exactly", read_then_alter)
        yield
    assert count


def overwrite(path):
    data = path.read_bytes()
    path.write_bytes(bytes(byte ^ 0x55 for byte in data[:100]) + data[100:])


def append(path):
    with path.open("ab") as file:
        file.write(b"more")


CHANGES = {
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "emptied": lambda path: os.truncate(path, 0),
    "appended": append,
    "overwritten": overwrite,
    "replaced": lambda path: [path.rename(path.with_suffix(".old")), path.write_bytes(b"other")],
    "removed": lambda path: path.unlink(),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_a_file_that_changes_while_it_is_read_is_refused_or_read_as_it_was(change, suffix, tmp_path, monkeypatch):
    path = tmp_path / f"data{suffix}"
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (20_000, 8, 8), dtype=np.uint8))
    content = {"x_train": images, "y_train": torch.arange(20_000) % 4}
    if suffix == ".npz":
        np.savez_compressed(path, **{name: tensor.numpy() for name, tensor in content.items()})
    else:
        save_file(content, path)
    wanted = load_dataset(str(path)).digest()
    with altering(monkeypatch, path, CHANGES[change]):
        if change in ("replaced", "removed"):  # what is open is still what it was
            assert load_dataset(str(path)).digest() == wanted
        else:
            refuse(path)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_what_was_read_does_not_change_with_the_file(suffix, tmp_path):
    path, content = tmp_path / f"data{suffix}", {"x_train": torch.rand(1000, 8, 8), "y_train": torch.arange(1000) % 4}
    if suffix == ".npz":
        np.savez(path, **{name: tensor.numpy() for name, tensor in content.items()})
    else:
        save_file(content, path)
    dataset = load_dataset(str(path))
    before = dataset.digest()
    size = path.stat().st_size
    with path.open("r+b") as file:  # in place, as a map would see it
        file.write(b"\xff" * size)
    os.truncate(path, 0)
    assert dataset.digest() == before
    assert torch.equal(dataset.train.images, content["x_train"])
