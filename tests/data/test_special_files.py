"""Files that are none, links and folders: nothing blocks, and nothing is read that is not meant."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import pytest
from PIL import Image

from ffstream.data import load_dataset
from ffstream.data.array_formats import SUFFIXES
from ffstream.data.images import load_images
from ffstream.errors import DataError
from tests.data.hostile_files import refuse
from tests.helpers import write_plain_pictures

pytestmark = pytest.mark.usefixtures("nothing_blocks", "nothing_is_started")

SIX = {"num_images": 6, "size": (40, 30)}  # of each class


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
