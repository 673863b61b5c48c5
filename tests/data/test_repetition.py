"""Images that occur again: in a split that is held out, under another class, as copies; clean data do none of it."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import shutil

import numpy as np
import pytest
import torch

import ffstream as ff
from ffstream.data import Split, load_dataset
from ffstream.data.facts import DataFacts
from ffstream.data.repetition import Repetition, digest_images, find_repeats
from tests.helpers import write_pictures

RNG = np.random.default_rng(0)
REPEATS = "one and the same|hold a single value|are copies|are training images too|are validation images too"


def write_arrays(path, digits, **splits):
    arrays = {f"{what}_{name}": value for name, pair in splits.items() for what, value in zip("xy", pair, strict=True)}
    np.savez(path, **arrays)
    return load_dataset(str(path)).warning


@pytest.fixture
def arrays(digits):
    return digits.train.images.numpy(), digits.train.labels.numpy()


@pytest.mark.parametrize("name", ["a part", "another order", "a tenth and others"])
@pytest.mark.parametrize("part", ["test", "val"])
def test_a_split_of_training_images_is_named(name, part, arrays, digits, tmp_path):
    x, y = arrays
    order = {"a part": np.arange(200), "another order": RNG.permutation(len(x)), "a tenth and others": np.arange(200)}
    seen = order[name]
    num_others = 1000 if name.endswith("others") else 0
    others = digits.test.images.numpy()[:num_others], digits.test.labels.numpy()[:num_others]
    pair = [np.concatenate(each) for each in zip((x[seen], y[seen]), others, strict=True)]
    rest = {} if part == "test" else {"test": (digits.test.images.numpy(), digits.test.labels.numpy())}
    warning = write_arrays(tmp_path / "d.npz", digits, train=(x, y), **{part: pair}, **rest)
    assert f"{len(seen)} of {len(pair[0])} are training images too, such as image 0" in warning


def test_of_tables_whose_rows_repeat_anyway_nothing_is_said(tmp_path, digits):
    rows = RNG.integers(0, 3, (2000, 3)).astype(np.float32)  # 27 different ones
    labels = (rows.sum(axis=1) > 3).astype(int)
    train, test = ((rows[part], labels[part]) for part in (slice(1500), slice(1500, None)))
    assert write_arrays(tmp_path / "d.npz", digits, train=train, test=test) is None


def test_answers_that_people_of_both_classes_give_are_no_contradictions(tmp_path, digits):
    labels = np.arange(900) % 2
    answers = (RNG.normal(3 + 0.6 * labels[:, None], 1.0, (900, 5)).round().clip(1, 5)).astype(np.float32)
    assert write_arrays(tmp_path / "d.npz", digits, train=(answers, labels)) is None


def write_ages(num, seed):
    """Whole numbers of 18 to 90, and the labels of which they tell a little."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(num) % 2
    return rng.normal(40 + 8 * labels, 12).clip(18, 90).round().astype(np.float32)[:, None], labels


OF_AN_AGE = {
    "alone": lambda age: age,
    "with a mean of 0": lambda age: (age - age.mean()) / 12.3,
    "and a constant": lambda age: np.concatenate([age, 0 * age + 1], axis=1),
    "and its square": lambda age: np.concatenate([age, age**2], axis=1),
    "and what four tables say of it": lambda age: np.concatenate([age, np.sin(age * [[1.1, 1.7, 2.3, 2.9]])], axis=1),
}


@pytest.mark.parametrize("name", OF_AN_AGE)
@pytest.mark.parametrize("num", [80, 2000])
def test_rows_that_one_whole_number_tells_apart_are_no_copies(name, num, digits, tmp_path):
    train, test = ((OF_AN_AGE[name](x).astype(np.float32), y) for x, y in (write_ages(num, 1), write_ages(500, 2)))
    assert write_arrays(tmp_path / "d.npz", digits, train=train, test=test) is None


@pytest.mark.parametrize("num_features", [1, 3, 12])
def test_copies_in_a_table_of_measured_numbers_are_named(num_features, digits, tmp_path):
    x, y = RNG.normal(size=(500, num_features)).astype(np.float32), np.arange(500) % 2
    x = np.concatenate([x, np.arange(500)[:, None] % 7], axis=1) if num_features == 3 else x  # and a rounded one
    twice = np.concatenate([x, x]), np.concatenate([y, 1 - y])
    warning = write_arrays(tmp_path / "d.npz", digits, train=twice)
    assert "1000 of 1000 training images occur under several classes" in warning
    assert "500 of 1000 training images are copies of others" in warning


def test_many_rows_under_several_classes_are_named(arrays, digits, tmp_path):
    x, y = (np.concatenate([each, each[:300]]) for each in arrays)
    y[-300:] = (y[-300:] + 1) % 10
    warning = write_arrays(tmp_path / "d.npz", digits, train=(x, y))
    assert "600 of 4123 training images occur under several classes, such as images 0 and 3823" in warning


ROWS = {
    "floats of bytes": RNG.integers(0, 256, (5000, 64)).astype(np.float32),
    "bits": RNG.integers(0, 2, (3000, 100)).astype(np.float32),
    "-1 and 1": 2.0 * RNG.integers(0, 2, (3000, 60)) - 1,
    "one of many": np.eye(60, dtype=np.float32)[RNG.permutation(60)],
    "large powers of two": RNG.integers(0, 2**5, (3000, 60)) << 58,
    "bytes that fill no words": RNG.integers(0, 256, (3000, 13)).astype(np.uint8),
    "bits that fill no words": RNG.integers(0, 2, (3000, 21)).astype(bool),
    "halves": RNG.integers(0, 8, (3000, 40)) / 2,
}


@pytest.mark.parametrize("name", ROWS)
def test_rows_of_few_values_that_differ_have_digests_that_differ(name):
    rows = torch.from_numpy(np.unique(ROWS[name], axis=0))
    before = rows.clone()
    assert len(digest_images(rows).unique()) == len(digest_images(rows, as_floats=True).unique()) == len(rows)
    assert torch.equal(rows, before)


def test_the_same_is_said_of_images_as_bytes_and_as_floats(arrays, digits, tmp_path):
    """Of digits, no two of which are equal; and of a test split of which a third are training images."""
    x, y = arrays
    others = digits.test.images.numpy()[:210], digits.test.labels.numpy()[:210]
    leaking = tuple(np.concatenate([mine[:90], other]) for mine, other in zip((x, y), others, strict=True))
    for number, test in enumerate((others, leaking)):
        said = [
            write_arrays(
                tmp_path / f"{number}-{dtype}-{of_test}.npz",
                digits,
                train=(x.astype(dtype), y),
                test=(test[0].astype(of_test), test[1]),
            )
            for dtype, of_test in itertools.product(("uint8", "float32", "int64"), ("uint8", "int16", "float64"))
        ]
        assert len(set(said)) == 1
        assert (said[0] is None) == (number == 0)


def test_a_validation_split_that_is_the_test_split_is_named(arrays, digits, tmp_path):
    x, y = arrays
    held_out = digits.test.images.numpy(), digits.test.labels.numpy()
    warning = write_arrays(tmp_path / "d.npz", digits, train=(x, y), val=held_out, test=held_out)
    assert f"test images: {len(held_out[1])} of {len(held_out[1])} are validation images too" in warning


def test_repeats_hide_no_leak_where_images_are_not_equal_by_chance(arrays, digits, tmp_path):
    x, y = arrays
    twice = np.concatenate([x, x]), np.concatenate([y, y])
    warning = write_arrays(tmp_path / "d.npz", digits, train=twice, test=(x[:300], y[:300]))
    assert f"{len(x)} of {2 * len(x)} training images are copies of others" in warning
    assert "test images: 300 of 300 are training images too" in warning


def test_digests_are_of_values_and_of_their_places():
    images = torch.from_numpy(RNG.integers(0, 255, (3000, 8, 8), dtype=np.uint8))
    found = digest_images(images)
    assert len(found.unique()) == 3000
    assert torch.equal(found, digest_images(images.flatten(1)))
    assert not torch.isin(digest_images(images.transpose(1, 2)), found).any()
    assert torch.equal(digest_images(images.float()), digest_images(images.double()))


# --- folders of pictures


@pytest.fixture
def folder(tmp_path):
    shades = {name: RNG.integers(0, 255, (8, 6, 6), dtype=np.uint8) for name in ("oak", "elm")}
    return write_pictures(tmp_path / "trees", shades)


def test_of_pictures_that_are_all_different_nothing_is_said(folder):
    assert load_dataset(str(folder)).warning is None


def test_a_picture_under_two_classes_is_named(folder):
    shutil.copy(folder / "oak" / "3.png", folder / "elm" / "zz.png")
    warning = load_dataset(str(folder)).warning
    assert "2 of 17 training images occur under several classes" in warning
    assert str(folder / "oak" / "3.png") in warning
    assert str(folder / "elm" / "zz.png") in warning


def test_copies_of_pictures_are_named(folder):
    for number in range(4):
        shutil.copy(folder / "oak" / f"{number}.png", folder / "oak" / f"{number} (1).png")
    warning = load_dataset(str(folder)).warning
    assert "4 of 20 training images are copies of others" in warning
    assert "oak" in warning


def test_masks_beside_their_pictures_are_named(folder):
    write_pictures(folder, {"oak": 255 * RNG.integers(0, 2, (8, 6, 6), dtype=np.uint8)}, "{}_mask.png")
    warning = load_dataset(str(folder)).warning
    assert "class oak" in warning
    assert "8 of its 16 images are named like masks of others, such as 0_mask.png" in warning


def test_a_class_that_is_called_train_is_said_to_read_like_a_split(folder):
    (folder / "elm").rename(folder / "train")
    words = "train reads like a split, but holds pictures.*if it is a class, as oak"
    with pytest.raises(ff.DataError, match=words):
        load_dataset(str(folder))


def test_training_images_are_known_in_another_type(small_data):
    found = load_dataset(str(small_data))
    again = Split(found.train.images[:200].float(), found.train.labels[:200])
    warning = dataclasses.replace(found, test=again).warning
    assert "200 of 200 are training images too" in warning


# --- a held-out split, or images to be predicted, of which a part was not read

FAILED = {"black": lambda x: 0 * x[:1], "one grey": lambda x: 0 * x[:1] + 7, "the first image": lambda x: x[:1]}


@pytest.mark.parametrize("part", ["test", "val"])
@pytest.mark.parametrize("name", FAILED)
def test_a_part_of_a_split_that_is_one_image_is_named(name, part, arrays, digits, tmp_path):
    others, labels = digits.test.images.numpy()[:600], digits.test.labels.numpy()[:600]
    last = digits.test.images.numpy()[600:1200], digits.test.labels.numpy()[600:1200]
    rest = {} if part == "test" else {"test": last}
    for share in (0.0, 0.03, 0.3):
        is_failed = np.random.default_rng(1).random((600, 1, 1)) < share
        images = np.where(is_failed, FAILED[name](others), others)
        warning = write_arrays(tmp_path / "d.npz", digits, train=arrays, **{part: (images, labels)}, **rest)
        num = int((images == FAILED[name](others)).all(axis=(1, 2)).sum())
        assert (warning is None) == (share == 0)
        assert share == 0 or f"images: {num} of 600 are one and the same image, number" in warning
        assert share == 0 or ("alone" in warning) == (name != "the first image")


def test_a_part_of_a_split_that_is_copies_of_others_is_named(arrays, digits, tmp_path):
    images, labels = digits.test.images.numpy()[:600], digits.test.labels.numpy()[:600]
    repeated = np.concatenate([images[:540], images[:60]])
    warning = write_arrays(tmp_path / "d.npz", digits, train=arrays, test=(repeated, labels))
    assert "test images: 60 of 600 are copies of others, and 0 of 3,823 training images are" in warning


def test_a_part_of_a_split_that_holds_a_single_value_in_each_image_is_named(arrays, digits, tmp_path):
    images, labels = digits.test.images.numpy()[:600] / 16, digits.test.labels.numpy()[:600]
    train = arrays[0] / 16, arrays[1]
    greys = np.where(np.arange(600)[:, None, None] % 10 == 3, RNG.random((600, 1, 1)), images)
    warning = write_arrays(tmp_path / "d.npz", digits, train=train, test=(greys, labels))
    assert "test images: 60 of 600 hold a single value each, such as image 3 (" in warning
    mixed = np.where(np.arange(len(train[0]))[:, None, None] % 10 == 3, RNG.random((len(train[0]), 1, 1)), train[0])
    warning = write_arrays(tmp_path / "e.npz", digits, train=(mixed, train[1]), test=(greys, labels))
    assert "a single value" not in (warning or "")


def test_what_repeats_in_training_as_often_may_repeat(arrays, digits, tmp_path):
    """Black images that are real, and the rows of tables of few values, however many rows there are of either split."""
    (x, y), (tx, ty) = arrays, (digits.test.images.numpy(), digits.test.labels.numpy())
    splits = {"train": (np.where(np.arange(len(x))[:, None, None] % 30, x, 0), y)}
    splits["test"] = np.where(np.arange(len(tx))[:, None, None] % 25, tx, 0), ty
    assert "the same image" not in (write_arrays(tmp_path / "d.npz", digits, **splits) or "")
    for num_features, num_values, num, num_held_out in itertools.product(
        (1, 4, 9), (2, 5), (30, 1000), (20, 300, 3000)
    ):
        rows = RNG.integers(0, num_values, (num + num_held_out, num_features)).astype(np.float32)
        trained, held_out = (torch.from_numpy(part) for part in (rows[:num], rows[num:]))
        assert find_repeats(held_out, digest_images(held_out), Repetition.of(trained, digest_images(trained))) is None


OF_A_CLASS = {
    "empty": lambda rng, num: np.zeros((num, 8, 8)),
    "one of five pictures": lambda rng, num: np.random.default_rng(9).integers(0, 17, (5, 8, 8))[
        rng.integers(0, 5, num)
    ],
    "a grey": lambda rng, num: rng.uniform(0, 16, (num, 1, 1)) * np.ones((1, 8, 8)),
}


def with_another_class(name, split, share, seed):
    """Digits, of which a share is replaced by images of an eleventh class, and the labels."""
    rng = np.random.default_rng(seed)
    images, labels = split.images.numpy().astype(np.float32), split.labels.numpy().copy()
    is_other = rng.random(len(images)) < share
    images[is_other] = OF_A_CLASS[name](rng, int(is_other.sum()))
    labels[is_other] = 10
    return images, labels


@pytest.mark.parametrize("share", [0.25, 0.9])
@pytest.mark.parametrize("part", ["test", "val"])
@pytest.mark.parametrize("name", OF_A_CLASS)
def test_a_class_of_equal_images_may_be_more_frequent_than_in_training(name, part, share, digits, tmp_path):
    """In a split that is held out, whose labels are known, and among images to be predicted, of which none are."""
    train = with_another_class(name, digits.train, 0.04, 1)
    images, labels = with_another_class(name, digits.test.take(slice(900)), share, 2)
    rest = {} if part == "test" else {"test": with_another_class(name, digits.test.take(slice(900, None)), 0.04, 3)}
    warning = write_arrays(tmp_path / "d.npz", digits, train=train, **{part: (images, labels)}, **rest)
    assert warning is None or not re.search(REPEATS, warning)
    loaded = load_dataset(str(tmp_path / "d.npz"))
    facts = DataFacts.of(loaded, loaded.train, "none")
    kept = DataFacts(json.loads(json.dumps(facts.content)))
    images, labels = torch.from_numpy(images), torch.from_numpy(labels)
    for given in (facts, kept):
        assert given.find_repeats(images, "images", labels) is None
        assert given.find_repeats(images, "images") is None
        assert given.find_repeats(images[labels == 10], "images") is None
    # Under other labels, the same images were not read as they should be.
    others = torch.where(labels == 10, torch.arange(len(labels)) % 10, labels)
    assert re.search(REPEATS, facts.find_repeats(images, "images", others))
    assert re.search(REPEATS, write_arrays(tmp_path / "e.npz", digits, train=train, **{part: (images, others)}, **rest))


def test_training_images_of_a_class_that_holds_copies_are_named_in_a_test_split(arrays, digits, tmp_path):
    """Unless they are the images that are common in this class."""
    train = with_another_class("empty", digits.train, 0.04, 1)
    is_other = train[1] == 10
    test = np.concatenate([train[0][is_other][:50], train[0][~is_other][:50]]), np.repeat([10, 0], 50)
    assert "test images: 50 of 100 are training images too, such as image 50" in write_arrays(
        tmp_path / "d.npz", digits, train=train, test=test
    )


def test_images_to_be_predicted_that_are_one_image_are_named(digits, tmp_path):
    train, test = digits.train.take(slice(500)), digits.test.take(slice(100))
    np.savez(tmp_path / "d.npz", x_train=train.images, y_train=train.labels, x_test=test.images, y_test=test.labels)
    run = ff.train(
        ff.Config(data=str(tmp_path / "d.npz"), layers=2, width=48, epochs=8, device="cpu"), tmp_path / "run"
    )
    assert run.predict(test.images).warning is None
    black = torch.where(torch.arange(100)[:, None, None] < 20, 0, test.images)
    assert (
        "images: 20 of 100 are one and the same image, number 0, which holds the value 0" in run.predict(black).warning
    )
    assert run.predict(test.images[[0, 0, 0, 1]]).warning is None  # which are given so
