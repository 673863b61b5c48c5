"""The room that data may take: they are held against it before they are read, and take no more."""

from __future__ import annotations

import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import ffstream.data.picture_file
import ffstream.data.room
from ffstream.data import SOURCES, load_dataset
from ffstream.data.images import load_images
from ffstream.data.room import Room
from ffstream.errors import BudgetError
from tests.data.hostile_files import MIB, npy_header, peak_bytes, refuse, to_npy, write_safetensors
from tests.data.torchvision_sets import write_cifar, write_idx_set
from tests.helpers import write_plain_pictures

pytestmark = pytest.mark.usefixtures("nothing_blocks", "nothing_is_started")


def write_zeros(archive, name, num_bytes):
    with archive.open(f"{name}.npy", "w") as file:
        file.write(npy_header((num_bytes // 64, 8, 8)))
        for _ in range(num_bytes // MIB):
            file.write(bytes(MIB))


def write_bomb(path, **zeros):
    """A small archive of 40 images, and arrays of many zeros, which take a thousandth of their size."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        if "x_train" not in zeros:
            archive.writestr("x_train.npy", to_npy(np.zeros((40, 8, 8), np.uint8)))
        archive.writestr("y_train.npy", to_npy(np.arange(40) % 4))
        for name, num_bytes in zeros.items():
            write_zeros(archive, name, num_bytes)
    return path


def test_arrays_that_are_not_used_take_nothing(tmp_path):
    path = write_bomb(tmp_path / "bomb.npz", extra=64 * MIB)
    assert peak_bytes(lambda: load_dataset(str(path), room_bytes=MIB)) < 8 * MIB


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_arrays_beyond_the_room_are_refused_before_they_are_read(suffix, tmp_path):
    path = tmp_path / f"large{suffix}"
    if suffix == ".npz":
        write_bomb(path, x_train=64 * MIB)
    else:
        entries = {
            "x_train": {"dtype": "U8", "shape": [MIB, 8, 8], "data_offsets": [0, 64 * MIB]},
            "y_train": {"dtype": "U8", "shape": [MIB], "data_offsets": [64 * MIB, 65 * MIB]},
        }
        write_safetensors(path, entries, 65 * MIB)
    said = []
    assert peak_bytes(lambda: said.append(refuse(path, BudgetError, room_bytes=60 * MIB))) < 8 * MIB
    for expected in ("needs ", "allowed 60.0 MiB", "--host-budget"):
        assert expected in said[0]


@pytest.mark.parametrize("dtype", ["u1", "f8", "u2"])
@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".fortran.npz"])
def test_no_more_is_taken_than_was_asked_of_the_room_conversions_included(dtype, suffix, tmp_path):
    images = np.arange(20_000 * 64, dtype=dtype).reshape(20_000, 8, 8)
    path, labels = tmp_path / f"data{suffix}", np.arange(20_000, dtype=np.int32) % 4
    if suffix == ".safetensors":
        save_file({"x_train": torch.from_numpy(images), "y_train": torch.from_numpy(labels)}, path)
    else:
        order = "F" if "fortran" in suffix else "C"
        np.savez_compressed(path, x_train=np.asarray(images, order=order), y_train=labels)
    needed = images.size * (1 if dtype == "u1" else 4) + 8 * len(labels)
    refuse(path, BudgetError, room_bytes=needed - 1)
    loaded = []
    assert peak_bytes(lambda: loaded.append(load_dataset(str(path), room_bytes=needed))) < needed + 6 * MIB
    assert loaded[0].num_bytes == needed
    assert np.array_equal(loaded[0].train.images.numpy(), images.astype("u1" if dtype == "u1" else "f4"))


def count_decoded(monkeypatch):
    decoded = []
    decode = ffstream.data.picture_file.OpenPicture.decode
    monkeypatch.setattr(
        ffstream.data.picture_file.OpenPicture, "decode", lambda *given: decoded.append(1) or decode(*given)
    )
    return decoded


def test_pictures_are_counted_before_they_are_decoded(tmp_path, monkeypatch):
    folder = write_plain_pictures(tmp_path / "data", num_images=50, size=(40, 30))
    decoded, num_bytes = count_decoded(monkeypatch), 100 * 40 * 30
    said = refuse(folder, BudgetError, room_bytes=num_bytes - 1)
    assert not decoded
    assert "--host-budget" in said
    enough = num_bytes + 32 * 40 * 30  # and room to decode one
    assert load_dataset(str(folder), room_bytes=enough).num_bytes == num_bytes + 800
    for room_bytes in (num_bytes // 2, num_bytes):
        refuse(folder, BudgetError, room_bytes=room_bytes, skips_bad=True)
    assert len(load_dataset(str(folder), room_bytes=enough, skips_bad=True).train) == 100


def test_a_picture_that_there_is_no_room_to_decode_is_refused(tmp_path):
    folder = write_plain_pictures(tmp_path / "data", num_images=1, size=(2000, 1500))
    assert peak_bytes(lambda: refuse(folder, BudgetError, room_bytes=20 * MIB)) < 8 * MIB


def test_images_to_be_predicted_are_held_against_the_room_all_together(tmp_path, monkeypatch):
    for number in range(4):
        Image.new("L", (8, 8), number).save(tmp_path / f"{number}.png")
    np.save(tmp_path / "some.npy", np.zeros((1000, 8, 8)))
    decoded = count_decoded(monkeypatch)
    paths = [tmp_path, tmp_path / "some.npy"]
    assert len(load_images(paths, (8, 8), 255, room_bytes=MIB)) == 1004
    assert len(decoded) == 4
    with pytest.raises(BudgetError, match="--host-budget"):
        load_images(paths, (8, 8), 255, room_bytes=1004 * 64 * 4)
    assert len(decoded) == 4


def test_sets_of_torchvision_are_held_against_the_room(tmp_path, monkeypatch):
    write_idx_set(tmp_path / "MNIST" / "raw")
    write_cifar(tmp_path / "cifar-10-batches-py", monkeypatch)
    for name in ("mnist", "cifar10"):
        load_dataset(name, str(tmp_path), room_bytes=MIB)
        with pytest.raises(BudgetError, match="--host-budget"):
            load_dataset(name, str(tmp_path), room_bytes=10_000)


def test_a_set_of_the_users_own_is_held_against_the_room(digits, monkeypatch):
    monkeypatch.setitem(SOURCES._parts, "own", lambda _root: digits)
    assert load_dataset("own").digest() == digits.digest()
    with pytest.raises(BudgetError, match="data own: needs"):
        load_dataset("own", room_bytes=1000)


def test_room_is_what_is_free_unless_it_is_told(monkeypatch):
    monkeypatch.setattr(ffstream.data.room, "host_free_bytes", lambda: 1000)
    room = Room()
    room.take("x", 600)
    with pytest.raises(BudgetError, match="x: needs 600 B of memory, allowed 400 B"):
        room.take("x", 600)
    room.give_back(600)
    room.take("x", 1000)
    with pytest.raises(BudgetError, match="allowed 0 B"):
        Room(-5).check("x", 1)
