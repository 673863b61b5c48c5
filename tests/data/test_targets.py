"""Labels of all kinds: those that say the same classes are the same, and other targets are refused."""

from __future__ import annotations

import numpy as np
import pytest

import ffstream as ff
from ffstream.data import SOURCES, Dataset, Split, load_dataset
from tests.data.array_files import CLASSES, labelled

SAME = {
    "(n, 1)": CLASSES[:, None],
    "one-hot": np.eye(3)[CLASSES],
    "one-hot of integers": np.eye(3, dtype=np.uint8)[CLASSES],
    "one-hot of booleans": np.eye(3, dtype=bool)[CLASSES],
    "floats": CLASSES.astype(np.float32),
    "unsigned": CLASSES.astype(np.uint64),
}
OTHERS = {
    "several labels": (np.arange(90).reshape(30, 3) % 2, "several labels a sample, or none"),
    "no label": (np.zeros((30, 3)), "several labels a sample, or none"),
    "real targets": (np.linspace(0, 1, 30), "targets such as .* allowed classes"),
    "vectors": (np.ones((30, 2)) * 0.5, "values that are not 0 or 1"),
    "not finite": (np.full(30, np.inf), "targets such as inf"),
    "missing": (np.where(CLASSES == 1, np.nan, 0.0), "targets such as nan"),
    "strings": (np.array(["a", "b", "c"])[CLASSES], "y_train"),
    "objects": (np.array(["a", "b", "c"], dtype=object)[CLASSES], "y_train"),
    "dates": (np.full(30, "2020-01-01", dtype="datetime64[D]"), "y_train"),
    "few": (CLASSES[:20], r"labels have shape \(20,\)"),
    "below 0": (CLASSES - 1, "label of sample \\d+ is -1"),
    "too large for int64": (CLASSES.astype(np.uint64) + np.uint64(2**63 + 5), "targets such as 9.22337e.18, allowed"),
}


@pytest.mark.parametrize("kind", SAME)
@pytest.mark.parametrize("own", [False, True])
def test_labels_that_say_the_same_are_the_same(kind, own, tmp_path, monkeypatch):
    expected = load_dataset(labelled(tmp_path, CLASSES))
    found = load_own(monkeypatch, SAME[kind]) if own else load_dataset(labelled(tmp_path, SAME[kind]))
    assert (found.digest(), found.warning, found.class_names) == (expected.digest(), None, ("0", "1", "2"))


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("own", [False, True])
def test_targets_that_are_no_classes_are_refused_naming_the_array(kind, own, tmp_path, monkeypatch):
    labels, message = OTHERS[kind]
    with pytest.raises(ff.DataError, match=message.replace("y_train", "labels") if own else message) as caught:
        load_own(monkeypatch, labels) if own else load_dataset(labelled(tmp_path, labels))
    assert "\n" not in str(caught.value)


def load_own(monkeypatch, labels, images=None, names=("0", "1", "2")):
    """A source of the user's own, which gives arrays of numpy."""
    if images is None:
        images = np.random.default_rng(0).integers(0, 256, (30, 4, 4), dtype=np.uint8)
    monkeypatch.setitem(SOURCES._parts, "own", lambda _: Dataset("own", Split(images, labels), None, names))
    return load_dataset("own")


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.full((30, 4), np.nan), CLASSES, "not finite"),
        (np.zeros((30, 4), dtype=complex), CLASSES, "allowed real numbers"),
        (np.array([["a"]] * 30), CLASSES, "found .*, allowed numbers"),
        (np.zeros((0, 4)), CLASSES[:0], "have shape"),
        (np.zeros(30), CLASSES, "have shape"),
        (np.zeros((2000, 4)), np.arange(100), "one an image"),
        (np.zeros((30, 4)), CLASSES + 1, "label of sample"),
    ],
)
def test_a_data_set_of_the_users_own_is_held_to_the_same_as_a_file(images, labels, message, monkeypatch):
    with pytest.raises(ff.DataError, match=message) as caught:
        load_own(monkeypatch, labels, images)
    assert str(caught.value).startswith("data own")


def test_labels_of_complex_numbers_are_refused_by_name(tmp_path):
    images = np.zeros((4, 4), np.uint8)
    np.savez(tmp_path / "d.npz", x_train=images, y_train=np.array([0, 1, 0, 1], complex))
    with pytest.raises(ff.DataError, match="array y_train: found torch.complex128"):
        load_dataset(str(tmp_path / "d.npz"))
