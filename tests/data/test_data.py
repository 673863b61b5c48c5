"""Data sets by name: what they hold, their digests, and names of which there is nothing."""

from __future__ import annotations

import dataclasses

import pytest

import ffstream as ff
from ffstream.data import Dataset, Split, load_dataset


def test_embedded_digits_are_the_official_split(digits):
    assert digits.train.images.shape == (3823, 8, 8)
    assert digits.test.images.shape == (1797, 8, 8)
    assert digits.num_classes == 10
    assert digits.scale() == 16
    assert int(digits.train.images.min()) == 0
    assert digits.train.labels.bincount().tolist() == [376, 389, 380, 389, 387, 376, 377, 387, 380, 382]


def test_the_digest_knows_images_labels_and_shape(digits):
    altered = digits.train.labels.clone()
    altered[0] += 1
    others = [
        Dataset("d", Split(digits.train.images, altered), None, digits.class_names),
        Dataset("d", Split(digits.train.images.flatten(1), digits.train.labels), None, digits.class_names),
    ]
    assert len({digits.digest(), *(other.digest() for other in others)}) == 3


def test_the_test_data_have_a_digest_of_their_own(digits):
    other = Split(digits.test.images, digits.test.labels.roll(1))
    assert digits.digest() == "8510cb3366da1f9d788b3b7d0f632445c07d29418e1c78863311ff45aff7787d"
    assert digits.test_digest() == Dataset("d", digits.test, None, digits.class_names).digest()
    assert dataclasses.replace(digits, test=other).test_digest() != digits.test_digest()
    assert dataclasses.replace(digits, test=other).digest() == digits.digest()
    assert dataclasses.replace(digits, test=None).test_digest() is None


def test_what_is_not_there_is_refused_naming_it(tmp_path):
    for name in ("absent.npz", "absent.safetensors"):
        with pytest.raises(ff.DataError, match=f"{name}: no such file"):
            load_dataset(str(tmp_path / name))
    with pytest.raises(ff.DataError, match="neither a known data set.*did you mean 'digits'"):
        load_dataset("digit")


@pytest.mark.parametrize(
    "name", ["x" * 300, "é" * 200, "x" * 300 + "/a.npz", "x/" * 3000 + "a", "a\0b", "é" * 200 + ".npz"]
)
def test_a_name_that_no_file_can_have_is_refused(name):
    with pytest.raises(ff.DataError, match="neither a known data set, nor a file to read: "):
        load_dataset(name)


def test_an_empty_name_of_data_is_refused():
    with pytest.raises(ff.DataError, match="found an empty name"):
        load_dataset("")
