"""One rule for walking a folder: what is read wherever it lies, and what is left out and named."""

from __future__ import annotations

import numpy as np
import pytest

import ffstream as ff
from ffstream.data import load_dataset
from ffstream.data.images import load_images
from tests.helpers import write_plain_pictures


def put(path, content=b"x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def picture_of(root):
    return (root / "cat/0.png").read_bytes()


LEFT_OVERS = {
    ".ipynb_checkpoints beside the classes": lambda root: put(root / ".ipynb_checkpoints/0.png", picture_of(root)),
    ".ipynb_checkpoints in a class": lambda root: put(root / "cat/.ipynb_checkpoints/0.png", picture_of(root)),
    "__MACOSX": lambda root: put(root / "__MACOSX/cat/0.png", picture_of(root)),
    "AppleDouble": lambda root: put(root / "cat/._0.png", b"\0\5\x16\7" + bytes(100)),
    "notes": lambda root: put(root / "dog/notes.txt"),
    "avif": lambda root: put(root / "dog/new.avif", b"\0\0\0 ftypavif" + bytes(50)),
    "a file beside the classes": lambda root: put(root / "labels.csv"),
    "a picture beside the classes": lambda root: put(root / "cover.png", picture_of(root)),
    "a link to the folder above": lambda root: (root / "cat/loop").symlink_to(".."),
    "a link to another class": lambda root: (root / "cat/dogs").symlink_to("../dog"),
    "a link to itself": lambda root: (root / "cat/self").symlink_to("self"),
    "a link to nothing": lambda root: (root / "cat/old").symlink_to("nowhere"),
}
OF_THE_SYSTEM = {
    ".DS_Store": lambda root: put(root / ".DS_Store"),
    "Thumbs.db": lambda root: put(root / "cat/Thumbs.db"),
    "desktop.ini": lambda root: put(root / "dog/desktop.ini"),
}


def load_with(tmp_path, leave):
    """A folder of images as it was, and as it is read when something was left in it."""
    write_plain_pictures(tmp_path / "data")
    whole = load_dataset(str(tmp_path / "data"))
    leave(tmp_path / "data")
    return whole, load_dataset(str(tmp_path / "data"))


@pytest.mark.parametrize("kind", LEFT_OVERS)
def test_what_is_left_out_is_counted_and_named_by_training_and_predicting(kind, tmp_path):
    whole, found = load_with(tmp_path, LEFT_OVERS[kind])
    assert found.digest() == whole.digest()
    assert found.warning.startswith("not read: ")
    if "beside the classes" not in kind and not kind.startswith("a link to a"):  # below one folder they are read once
        images = load_images([tmp_path / "data"], (5, 6), 255)
        assert len(images) == len(whole.train)
        assert images.note == found.warning


@pytest.mark.parametrize("kind", OF_THE_SYSTEM)
def test_what_systems_leave_is_not_worth_a_word(kind, tmp_path):
    whole, found = load_with(tmp_path, OF_THE_SYSTEM[kind])
    assert (found.digest(), found.warning) == (whole.digest(), None)
    assert load_images([tmp_path / "data"], (5, 6), 255).note is None


def test_linked_class_folders_are_read_by_training_and_predicting(tmp_path):
    write_plain_pictures(tmp_path / "data")
    whole = load_dataset(str(tmp_path / "data"))
    (tmp_path / "data/cat").rename(tmp_path / "elsewhere")
    (tmp_path / "data/cat").symlink_to(tmp_path / "elsewhere")
    found = load_dataset(str(tmp_path / "data"))
    assert (found.digest(), found.warning) == (whole.digest(), None)
    assert len(load_images([tmp_path / "data"], (5, 6), 255)) == len(whole.train)


def test_links_that_lead_to_each_other_end(tmp_path):
    write_plain_pictures(tmp_path / "data")
    for number in range(6):
        (tmp_path / f"data/cat/{number}").symlink_to("..")
        (tmp_path / f"data/dog/{number}").symlink_to("../cat")
    assert len(load_dataset(str(tmp_path / "data")).train) == 8
    assert len(load_images([tmp_path / "data"], (5, 6), 255)) == 8


def test_pictures_below_a_class_are_read_and_mentioned(tmp_path):
    write_plain_pictures(tmp_path / "data")
    put(tmp_path / "data/cat/more/9.png", picture_of(tmp_path / "data"))
    found = load_dataset(str(tmp_path / "data"))
    assert len(found.train) == 9
    assert "1 of its 5 images lie in folders below it" in found.warning


def test_suffixes_in_capitals_are_known(tmp_path):
    images = np.arange(90, dtype=np.uint8).reshape(3, 5, 6)
    np.save(tmp_path / "x.npy", images)
    np.savez(tmp_path / "x.npz", images=images)
    for name in ("x.npy", "x.npz"):
        (tmp_path / name).rename(tmp_path / name.upper())
        assert len(load_images([tmp_path / name.upper()], (5, 6), 255)) == 3
    write_plain_pictures(tmp_path / "data")
    for path in list((tmp_path / "data").rglob("*.png")):
        path.rename(path.with_suffix(".PNG"))
    assert len(load_dataset(str(tmp_path / "data")).train) == 8


@pytest.mark.parametrize("place", ["train", "test", "seg_train"])
def test_what_lies_beside_the_classes_of_a_split_is_named(place, tmp_path):
    names = ("seg_train/seg_train", "seg_test") if place == "seg_train" else ("train", "test")
    for name in names:
        write_plain_pictures(tmp_path / name)
    assert load_dataset(str(tmp_path)).warning is None
    put(tmp_path / place / ".hidden/0.png", b"x")
    (tmp_path / place / "labels.csv").write_text("x")
    warning = load_dataset(str(tmp_path)).warning
    assert "labels.csv" in warning
    assert ".hidden" in warning


@pytest.mark.parametrize("content", [b"BMW and others\n", b"P1 is the first of them\n", b"P5: see below", b"GIF", b""])
def test_texts_that_begin_like_a_picture_are_none(content, tmp_path):
    _, found = load_with(tmp_path, lambda root: put(root / "cat/notes", content))
    assert "cat/notes (no picture" in found.warning


@pytest.mark.parametrize("runs", ["runs/one", "mine"])
def test_runs_within_a_folder_of_data_are_no_class(runs, tmp_path, monkeypatch):
    write_plain_pictures(tmp_path, num_images=20)
    monkeypatch.chdir(tmp_path)
    config = ff.Config(data=".", layers=1, width=8, epochs=1).override({"negatives.per_step": 1})
    for again in (False, True):
        assert ff.train(config, runs, resume=again).num_layers_done == 1
    found = load_dataset(".")
    assert found.class_names == ("cat", "dog")
    assert "(runs)" in found.warning
