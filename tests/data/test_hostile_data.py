"""Data from anywhere: no file takes more than it may, blocks, runs anything, or changes what was read."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import pickle
import signal
import socket
import struct
import subprocess
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

import ffstream.data.array_file
import ffstream.data.folder_source
from ffstream.data import load_dataset
from ffstream.data.array_file import SUFFIXES, ArrayFile
from ffstream.data.images import load_images
from ffstream.data.pickled import Call, parse_pickle
from ffstream.data.picture_file import read_picture
from ffstream.data.room import Room
from ffstream.errors import BudgetError, DataError
from tests.data.test_data import CIFAR_META, write_cifar, write_idx, write_idx_set
from tests.helpers import write_plain_pictures

_MIB = 1 << 20
SIX = {"num_images": 6, "size": (40, 30)}  # of each class


@pytest.fixture(autouse=True)
def _nothing_blocks():
    """What waits for a FIFO or runs after links without end is an error in seconds."""

    def stop(*_args):
        raise AssertionError("blocked")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(autouse=True)
def _nothing_is_started(monkeypatch):
    def refuse(*_args, **_options):
        raise AssertionError("another program was started")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    monkeypatch.setattr(os, "system", refuse)
    monkeypatch.setattr(os, "posix_spawn", refuse)


def refuse(source, error=DataError, **options):
    """What is said of data that are refused, in one line that names them."""
    with pytest.raises(error) as caught:
        load_dataset(str(source), **options)
    assert "\n" not in str(caught.value)
    assert str(source) in str(caught.value)
    return str(caught.value)


def peak_bytes(work):
    """The most memory that this process took while it did some work, beside what it had."""

    def read(name):
        text = Path("/proc/self/status").read_text()
        return 1024 * int(next(line.split()[1] for line in text.splitlines() if line.startswith(name)))

    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pytest.skip("this system does not measure the peak anew")
    before = read("VmRSS")
    work()
    return read("VmHWM") - before


# --- the room


def npy_header(shape, descr="|u1", is_fortran=False):
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": descr, "fortran_order": is_fortran, "shape": shape})
    return head.getvalue()


def to_npy(array):
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


def write_zeros(archive, name, num_bytes):
    with archive.open(f"{name}.npy", "w") as file:
        file.write(npy_header((num_bytes // 64, 8, 8)))
        for _ in range(num_bytes // _MIB):
            file.write(bytes(_MIB))


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
    path = write_bomb(tmp_path / "bomb.npz", extra=64 * _MIB)
    assert peak_bytes(lambda: load_dataset(str(path), room_bytes=_MIB)) < 8 * _MIB


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_arrays_beyond_the_room_are_refused_before_they_are_read(suffix, tmp_path):
    path = tmp_path / f"large{suffix}"
    if suffix == ".npz":
        write_bomb(path, x_train=64 * _MIB)
    else:
        entries = {
            "x_train": {"dtype": "U8", "shape": [_MIB, 8, 8], "data_offsets": [0, 64 * _MIB]},
            "y_train": {"dtype": "U8", "shape": [_MIB], "data_offsets": [64 * _MIB, 65 * _MIB]},
        }
        write_safetensors(path, entries, 65 * _MIB)
    said = []
    assert peak_bytes(lambda: said.append(refuse(path, BudgetError, room_bytes=60 * _MIB))) < 8 * _MIB
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
    assert peak_bytes(lambda: loaded.append(load_dataset(str(path), room_bytes=needed))) < needed + 6 * _MIB
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
    assert peak_bytes(lambda: refuse(folder, BudgetError, room_bytes=20 * _MIB)) < 8 * _MIB


def test_images_to_be_predicted_are_held_against_the_room_all_together(tmp_path, monkeypatch):
    for number in range(4):
        Image.new("L", (8, 8), number).save(tmp_path / f"{number}.png")
    np.save(tmp_path / "some.npy", np.zeros((1000, 8, 8)))
    decoded = count_decoded(monkeypatch)
    paths = [tmp_path, tmp_path / "some.npy"]
    assert len(load_images(paths, (8, 8), 255, room_bytes=_MIB)) == 1004
    assert len(decoded) == 4
    with pytest.raises(BudgetError, match="--host-budget"):
        load_images(paths, (8, 8), 255, room_bytes=1004 * 64 * 4)
    assert len(decoded) == 4


def test_sets_of_torchvision_are_held_against_the_room(tmp_path, monkeypatch):
    write_idx_set(tmp_path / "MNIST" / "raw")
    write_cifar(tmp_path / "cifar-10-batches-py", monkeypatch)
    for name in ("mnist", "cifar10"):
        load_dataset(name, str(tmp_path), room_bytes=_MIB)
        with pytest.raises(BudgetError, match="--host-budget"):
            load_dataset(name, str(tmp_path), room_bytes=10_000)


# --- files that are none


def make_fifo(path):
    os.mkfifo(path)


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def make_looping_link(path):
    path.symlink_to(path)


SPECIAL = {
    "a FIFO": make_fifo,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a socket": make_socket,
    "a folder": lambda path: path.mkdir(),
    "link that leads to itself": make_looping_link,
}


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_is_no_regular_file_is_never_opened_as_arrays(kind, suffix, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the path of a socket is short
    SPECIAL[kind](Path(f"a{suffix}"))
    said = []
    if suffix != ".npy":
        said.append(refuse(f"a{suffix}"))
    with pytest.raises(DataError) as caught:
        load_images([Path(f"a{suffix}")], (8, 8), 255)
    said.append(str(caught.value))
    if kind in ("a FIFO", "a device", "a socket"):
        assert all(f"is {kind}, allowed a regular file" in text for text in said)


@pytest.mark.parametrize("kind", [kind for kind in SPECIAL if kind != "a folder"])
def test_what_is_no_regular_file_is_never_opened_as_a_picture(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = write_plain_pictures(Path("data"), **SIX)
    whole = load_dataset("data")
    SPECIAL[kind](folder / "cat" / "x.png")
    assert "data/cat/x.png" in (said := refuse("data"))
    assert "--bad-images skip" in said
    if kind.startswith("a "):
        assert f"is {kind}, allowed a regular file" in said
    dataset = load_dataset("data", skips_bad=True)
    assert dataset.digest() == whole.digest()
    assert len(dataset.left_out) == 1
    for place in (folder, folder / "cat" / "x.png"):
        with pytest.raises(DataError, match=r"x\.png"):
            load_images([place], (30, 40), 255)


def test_a_folder_that_is_called_like_a_picture_is_a_folder(tmp_path):
    folder = write_plain_pictures(tmp_path / "data", **SIX)
    (folder / "cat" / "5.png").unlink()
    (folder / "cat" / "5.png").mkdir()
    Image.new("L", (40, 30), 5).save(folder / "cat" / "5.png" / "0.png")
    same = write_plain_pictures(tmp_path / "same", **SIX)
    assert load_dataset(str(folder)).digest() == load_dataset(str(same)).digest()


def test_links_between_folders_end_and_each_folder_is_read_once(tmp_path):
    folder = write_plain_pictures(tmp_path / "data", **SIX)
    whole = load_dataset(str(folder))
    for number in range(6):  # followed to the end, they would lead to 6 to the power of 40 folders
        (folder / "cat" / f"back{number}").symlink_to(folder / "cat")
        (folder / "dog" / f"a{number}").symlink_to(folder / "dog")
    assert load_dataset(str(folder)).digest() == whole.digest()
    assert len(load_images([folder], (30, 40), 255)) == 12
    outside = write_plain_pictures(tmp_path / "more", **SIX)
    (folder / "cat" / "linked").symlink_to(outside / "cat")
    assert len(load_dataset(str(folder)).train) == 18


def test_a_folder_that_cannot_be_read_is_not_taken_for_an_empty_one(tmp_path, monkeypatch):
    folder, scandir = write_plain_pictures(tmp_path / "data", **SIX), os.scandir
    (folder / "cat" / "more").mkdir()

    def scan(place):
        if Path(place).name == "more":
            raise PermissionError(errno.EACCES, "Permission denied", str(place))
        return scandir(place)

    monkeypatch.setattr(os, "scandir", scan)
    assert f"{folder}/cat/more: cannot be read (Permission denied); mend its permissions" in refuse(folder)
    with pytest.raises(DataError, match="cat/more: cannot be read: Permission denied"):
        load_images([folder], (30, 40), 255)


# --- headers


def write_safetensors(path, entries, num_bytes=0, content=None):
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + (content or b""))
    os.truncate(path, 8 + len(text) + max(num_bytes, len(content or b"")))


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
    path.write_bytes(struct.pack("<Q", 90 * _MIB))
    os.truncate(path, 100 * _MIB)
    assert peak_bytes(lambda: refuse(path)) < 8 * _MIB


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
    write_members(path, ("images.npy", npy_header((4, 8, 8)) + bytes(64 * _MIB)), compression=zipfile.ZIP_DEFLATED)
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

    assert peak_bytes(work) < 8 * _MIB


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


# --- files that change


@contextlib.contextmanager
def altering(monkeypatch, path, alter):
    """A file that is altered when a part of its data has been read."""
    read = ffstream.data.array_file._read_exactly
    count = []

    def read_then_alter(stream, num_bytes):
        data = read(stream, num_bytes)
        if num_bytes == 1 << 18:
            count.append(1)
            if len(count) == 1:
                alter(path)
        return data

    with monkeypatch.context() as patched:
        patched.setattr(ffstream.data.array_file, "_read_exactly", read_then_alter)
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


# --- pictures


DISGUISES = {
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n",
    "pdf": b"%PDF-1.4\n1 0 obj\n",
    "fits": b"".join(line.ljust(80) for line in (b"SIMPLE  = T", b"BITPIX  = 8", b"END")).ljust(2880),
    "psd": b"8BPS\0\1" + bytes(8) + b"\0\3\0\0\0\10\0\0\0\10\0\10\0\3" + bytes(300),
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "wmf": b"\xd7\xcd\xc6\x9a\x00\x00" + bytes(60),
    "ico": "ICO",
    "icns": "ICNS",
    "tga": "TGA",
    "pcx": "PCX",
    "sgi": "SGI",
    "dds": "DDS",
    "msp": "MSP",
    "spider": "SPIDER",
    "jpeg2000": "JPEG2000",
    "written eps": "EPS",
    "written pdf": "PDF",
}


@pytest.mark.parametrize("name", DISGUISES)
@pytest.mark.parametrize("ending", ["png", "jpg", "tif"])
def test_no_other_format_is_decoded_whatever_the_file_is_called(name, ending, tmp_path):
    path, content = tmp_path / f"a.{ending}", DISGUISES[name]
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        mode = {"MSP": "1", "SPIDER": "F"}.get(content, "RGB")
        try:
            Image.new(mode, (16, 16)).save(tmp_path / "written", format=content)
        except (OSError, KeyError, ValueError):
            pytest.skip(f"this Pillow writes no {content}")
        (tmp_path / "written").rename(path)
    for read in (lambda: read_picture(path), lambda: load_images([path], (16, 16), 255)):
        with pytest.raises(DataError, match="cannot be read as an image .*none of PNG, JPEG") as caught:
            read()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ending", ["png", "jpg", "bmp", "ppm", "tiff", "webp", "gif"])
def test_the_formats_that_are_allowed_are_told_by_their_content(ending, tmp_path):
    path = tmp_path / "a.jpg"
    Image.new("RGB", (16, 12), (200, 10, 10)).save(tmp_path / f"b.{ending}")
    (tmp_path / f"b.{ending}").rename(path)
    assert read_picture(path, "RGB")[1].shape == (12, 16, 3)


def test_the_two_pictures_of_a_camera_are_the_first_of_them(tmp_path):
    Image.new("RGB", (16, 12), (200, 10, 10)).save(
        tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[Image.new("RGB", (8, 6))]
    )
    assert read_picture(tmp_path / "a.jpg")[1].shape == (12, 16, 3)


def png_chunk(name, content):
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def test_text_that_inflates_is_not_inflated(tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    bomb = zlib.compress(bytes(64 * _MIB))
    for chunk in (png_chunk(b"zTXt", b"a\0\0" + bomb), png_chunk(b"iTXt", b"a\0\1\0\0\0" + bomb)):
        (tmp_path / "a.png").write_bytes(data[:33] + chunk * 4 + data[33:])

        def work():
            with contextlib.suppress(DataError):
                read_picture(tmp_path / "a.png")

        assert peak_bytes(work) < 16 * _MIB


def test_parts_of_a_picture_that_lie_over_each_other_do_not_add_up(tmp_path):
    """65 thousand tags of 2 MiB each, all the same bytes."""
    count = 65_000
    tags = b"".join(struct.pack("<HHII", 1 + number, 7, 2 * _MIB, 8 + 2 + 12 * count + 4) for number in range(count))
    path = tmp_path / "a.tif"
    path.write_bytes(b"II*\0" + struct.pack("<IH", 8, count) + tags + bytes(4) + bytes(2 * _MIB))

    def work():
        with pytest.raises(DataError, match="cannot be read as an image"):
            read_picture(path)

    assert peak_bytes(work) < 100 * _MIB


def test_what_is_read_of_a_picture_is_bounded_by_its_file():
    content = ffstream.data.picture_file._Content(bytes(_MIB))
    with pytest.raises(ValueError, match="overlap"):
        for _ in range(20):
            content.seek(0)
            content.read(_MIB)


def test_a_picture_of_implausible_size_is_not_read(tmp_path):
    path = tmp_path / "a.png"
    Image.new("L", (8, 8)).save(path)
    os.truncate(path, 6 << 30)
    with pytest.raises(DataError, match=r"has 6,442,450,944 bytes, allowed 536,870,912"):
        read_picture(path)


# --- sets of torchvision


@pytest.mark.parametrize("change", ["cut", "appended", "wide", "axes", "type", "fifo", "device"])
@pytest.mark.parametrize("which", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
def test_an_idx_file_that_does_not_fit_its_head_is_refused_before_it_is_read(change, which, tmp_path):
    write_idx_set(tmp_path / "MNIST" / "raw")
    path = tmp_path / "MNIST" / "raw" / which
    data = path.read_bytes()
    altered = {
        "cut": data[:-1],
        "appended": data + b"\0",
        "wide": data[:4] + b"\x7f" + data[5:],
        "axes": data[:3] + b"\2" + data[4:],
        "type": data[:2] + b"\x0d" + data[3:],
    }
    if change in altered:
        path.write_bytes(altered[change])
    else:
        path.unlink()
        os.mkfifo(path) if change == "fifo" else path.symlink_to("/dev/zero")
    said = []

    def work():
        with pytest.raises(DataError) as caught:
            load_dataset("mnist", str(tmp_path))
        said.append(str(caught.value))

    assert peak_bytes(work) < 8 * _MIB
    assert which in said[0]
    assert "--download" in said[0]
    assert "\n" not in said[0]


@pytest.mark.parametrize("name", ["data_batch_1", "data_batch_5", "test_batch", "batches.meta"])
def test_only_published_bytes_are_read(name, tmp_path, monkeypatch):
    folder = tmp_path / "cifar-10-batches-py"
    write_cifar(folder, monkeypatch)
    load_dataset("cifar10", str(tmp_path))
    (folder / name).write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    with pytest.raises(DataError, match=f"{name} is not the file that was published"):
        load_dataset("cifar10", str(tmp_path))
    assert not (tmp_path / "sprung").exists()


@settings(max_examples=50, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text() | st.integers(), inner),
        max_leaves=50,
    )
)
def test_plain_data_are_parsed_as_they_would_be_unpickled(value):
    assert parse_pickle(pickle.dumps(value, protocol=2)) == value
    assert repr(parse_pickle(pickle.dumps([value, value, value], protocol=2))) == repr([value] * 3)


class Trap:
    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return Path.touch, (self.place,)


def test_nothing_that_a_pickle_names_is_called(tmp_path):
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with contextlib.suppress(ValueError):
            parse_pickle(pickle.dumps({"data": Trap(str(tmp_path / "sprung"))}, protocol))
    assert isinstance(parse_pickle(pickle.dumps([Trap("sprung")], protocol=2))[0], Call)
    assert not (tmp_path / "sprung").exists()


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10_000), st.binary(min_size=1, max_size=3))
def test_a_damaged_pickle_is_parsed_or_refused(place, content):
    whole = CIFAR_META[: place % len(CIFAR_META)]
    with contextlib.suppress(ValueError):
        parse_pickle(whole + content + CIFAR_META[len(whole) + len(content) :])


def test_what_older_versions_of_torchvision_left_is_not_unpickled(tmp_path):
    write_idx_set(tmp_path / "MNIST" / "raw")
    wanted = load_dataset("mnist", str(tmp_path)).digest()
    (tmp_path / "MNIST" / "processed").mkdir()
    for name in ("training.pt", "test.pt"):
        torch.save((torch.zeros(3, 28, 28), torch.arange(3)), tmp_path / "MNIST" / "processed" / name)
    assert load_dataset("mnist", str(tmp_path)).digest() == wanted


def test_a_set_of_the_users_own_is_held_against_the_room(digits, monkeypatch):
    monkeypatch.setitem(ffstream.data.SOURCES._parts, "own", lambda _root: digits)
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


def test_idx_files_of_no_image_are_refused(tmp_path):
    write_idx_set(tmp_path / "MNIST" / "raw")
    write_idx(tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte", np.zeros((0, 28, 28)))
    with pytest.raises(DataError, match="data mnist: train images have shape"):
        load_dataset("mnist", str(tmp_path))
