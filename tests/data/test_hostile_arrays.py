"""Files of arrays that lie about what they hold: all are refused, and take nothing."""

from __future__ import annotations

import json
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ffstream.data.array_file import ArrayFile
from ffstream.data.images import load_images
from ffstream.errors import DataError
from tests.data.hostile_files import MIB, npy_header, peak_bytes, refuse, write_safetensors

pytestmark = pytest.mark.usefixtures("nothing_blocks", "nothing_is_started")

LABELS = {"dtype": "U8", "shape": [4], "data_offsets": [256, 260]}


def with_images(**changes):
    return {"x_train": {"dtype": "U8", "shape": [4, 8, 8], "data_offsets": [0, 256]} | changes, "y_train": LABELS}


BAD_HEADERS = {
    "overlap": with_images(data_offsets=[4, 260]),
    "gap": with_images() | {"y_train": LABELS | {"data_offsets": [258, 262]}},
    "beyond the end": with_images() | {"z": {"dtype": "U8", "shape": [9], "data_offsets": [260, 269]}},
    "not to the end": {"x_train": with_images()["x_train"]},
    "negative offset": with_images(data_offsets=[-4, 256]),
    "backwards": with_images(data_offsets=[256, 0]),
    "one offset": with_images(data_offsets=[0]),
    "offsets in parts": with_images(data_offsets=[0.0, 256.0]),
    "negative axis": with_images(shape=[-4, 8, -8]),
    "axis of truth": with_images(shape=[True, 256]),
    "shape of another size": with_images(shape=[4, 8, 9]),
    "shape beyond numbers": with_images(shape=[10**18, 10**18, 0]),
    "shape of a thousand axes": with_images(shape=[1] * 1000 + [256]),
    "no shape": {"x_train": {"dtype": "U8", "data_offsets": [0, 256]}, "y_train": LABELS},
    "type of another kind": with_images(dtype=["U8"]),
    "type that is unknown": with_images(dtype="F4"),
    "no entry": with_images() | {"x_train": 3},
    "no object": [1, 2],
    "twice": json.dumps(with_images())[:-1].encode() + b', "y_train": ' + json.dumps(LABELS).encode() + b"}",
    "no JSON": b"{" * 300,
    "nested without end": b'{"a":' * 100_000,
    "no text": b"\xff\xfe{}",
    "a number without end": b'{"a": ' + b"9" * 10_000 + b"}",
}


@pytest.mark.parametrize("name", BAD_HEADERS)
def test_a_safetensors_header_that_does_not_fit_its_file_is_refused(name, tmp_path):
    write_safetensors(tmp_path / "data.safetensors", BAD_HEADERS[name], content=bytes(260))
    assert "cannot be read as .safetensors" in refuse(tmp_path / "data.safetensors")


def test_a_header_beyond_all_measure_is_not_read(tmp_path):
    path = tmp_path / "data.safetensors"
    path.write_bytes(struct.pack("<Q", 90 * MIB))
    os.truncate(path, 100 * MIB)
    assert peak_bytes(lambda: refuse(path)) < 8 * MIB


GOOD_NPY = npy_header((4, 8, 8)) + bytes(256)
BAD_NPY = {
    "shorter than it says": GOOD_NPY[:-1],
    "longer than it says": GOOD_NPY + b"\0",
    "negative axis": npy_header((-4, 8, -8)) + bytes(256),
    "axis of truth": npy_header((True, 256)) + bytes(256),
    "beyond numbers": npy_header((10**18, 10**18, 0)),
    "objects": npy_header((4, 8, 8), "|O") + bytes(256),
    "strings": npy_header((4, 8, 8), "|S1") + bytes(256),
    "of another order": npy_header((4, 8, 4), ">u2") + bytes(256),
    "a header without end": b"\x93NUMPY\x02\x00\xff\xff\xff\x7f" + bytes(256),
    "another version": b"\x93NUMPY\x09\x00" + GOOD_NPY[8:],
    "no array": b"hello" * 60,
    "a pickle": pickle.dumps({"a": 1}) * 30,
    "nothing": b"",
}


@pytest.mark.parametrize("name", BAD_NPY)
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_an_array_of_numpy_that_does_not_fit_its_file_is_refused(name, suffix, tmp_path):
    path = tmp_path / f"data{suffix}"
    if suffix == ".npy":
        path.write_bytes(BAD_NPY[name])
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("images.npy", BAD_NPY[name])
    with pytest.raises(DataError, match=f"cannot be read as {suffix}"):
        load_images([path], (8, 8), 255)


def write_members(path, *members, **options):
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, content in members:
            archive.writestr(name, content)


def patch_members(path, offset, value, size):
    """Change a number in the list of members: of each."""
    data = bytearray(path.read_bytes())
    place = data.find(b"PK\x01\x02")
    while place >= 0:
        data[place + offset : place + offset + size] = value.to_bytes(size, "little")
        place = data.find(b"PK\x01\x02", place + 1)
    path.write_bytes(data)


def patch_size(path):
    """Members that declare less than they inflate to; their heads agree with that."""
    write_members(path, ("images.npy", npy_header((4, 8, 8)) + bytes(64 * MIB)), compression=zipfile.ZIP_DEFLATED)
    patch_members(path, 24, len(GOOD_NPY), 4)


def write_folded(path):
    """Two members that are one."""
    write_members(path, ("a.npy", GOOD_NPY), ("images.npy", GOOD_NPY))
    data = path.read_bytes()
    second = data.rfind(b"PK\x03\x04")
    data = bytearray(data[:second] + data[data.find(b"PK\x01\x02") :])  # of the second, the list alone
    start = data.find(b"PK\x01\x02")
    other = data.find(b"PK\x01\x02", start + 1)
    data[other + 42 : other + 46] = bytes(4)
    data[-6:-2] = start.to_bytes(4, "little")
    path.write_bytes(data)


BAD_ARCHIVES = {
    "encrypted": lambda path: [write_members(path, ("images.npy", GOOD_NPY)), patch_members(path, 8, 1, 2)],
    "bzip2": lambda path: write_members(path, ("images.npy", GOOD_NPY), compression=zipfile.ZIP_BZIP2),
    "lzma": lambda path: write_members(path, ("images.npy", GOOD_NPY), compression=zipfile.ZIP_LZMA),
    "unknown compression": lambda path: [write_members(path, ("images.npy", GOOD_NPY)), patch_members(path, 10, 77, 2)],
    "inflates to more than it declares": patch_size,
    "declares more than it has": lambda path: [
        write_members(path, ("images.npy", GOOD_NPY)),
        patch_members(path, 24, 1 << 30, 4),
    ],
    "another checksum": lambda path: [write_members(path, ("images.npy", GOOD_NPY)), patch_members(path, 16, 7, 4)],
    "beyond the end": lambda path: [write_members(path, ("images.npy", GOOD_NPY)), patch_members(path, 20, 1 << 30, 4)],
    "folded": write_folded,
    "twice": lambda path: write_members(path, ("images.npy", GOOD_NPY), ("images", GOOD_NPY)),
    "members without end": lambda path: write_members(path, *((f"{n:0>200}.npy", b"") for n in range(5000))),
}


@pytest.mark.parametrize("name", BAD_ARCHIVES)
def test_an_archive_that_lies_is_refused_and_takes_nothing(name, tmp_path):
    path = tmp_path / "data.npz"
    BAD_ARCHIVES[name](path)

    def work():
        with pytest.raises(DataError, match=r"cannot be read as \.npz"):
            load_images([path], (8, 8), 255)

    assert peak_bytes(work) < 8 * MIB


@pytest.mark.parametrize(
    "name", ["uint16", "uint32", "uint64", "int8", "int64", "float16", "float32", "float64", "bool"]
)
def test_values_and_labels_are_those_of_numpy_in_either_order_of_axes(name, tmp_path):
    images = np.random.default_rng(0).integers(0, 2 if name == "bool" else 100, (500, 7, 3, 13)).astype(name)
    wanted = images.astype(np.float32)
    np.save(tmp_path / "a.npy", images)
    np.save(tmp_path / "b.npy", np.asfortranarray(images))
    np.savez(tmp_path / "c.npz", images=images)
    np.savez_compressed(tmp_path / "d.npz", images=np.asfortranarray(images))
    save_file({"images": torch.from_numpy(images)}, tmp_path / "e.safetensors")
    for path in sorted(tmp_path.iterdir()):
        with ArrayFile(path, path.name) as file:
            target = torch.empty(images.shape)
            file.read("images", target)
        assert np.array_equal(target.numpy(), wanted), path.name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_types_that_numpy_lacks_are_read(dtype, tmp_path):
    images = torch.randn(50, 8, 8).to(dtype)
    save_file({"images": images}, tmp_path / "a.safetensors")
    assert torch.equal(load_images([tmp_path / "a.safetensors"], (8, 8), 255).images, images.float())
