"""Folders of pictures by class: which folders are classes, and which are splits."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

import ffstream as ff
from ffstream.data import load_dataset
from ffstream.run.run import make_splits
from tests.helpers import write_pictures, write_plain_pictures


@pytest.mark.parametrize(("mode", "shape"), [("L", (5, 6)), ("RGB", (5, 6, 3))])
def test_a_folder_of_images_by_class(mode, shape, tmp_path):
    write_plain_pictures(tmp_path / "train", mode=mode)
    write_plain_pictures(tmp_path / "test", mode=mode, num_images=2)
    dataset = load_dataset(str(tmp_path))
    assert dataset.image_shape == shape
    assert dataset.class_names == ("cat", "dog")
    assert (len(dataset.train), len(dataset.test)) == (8, 4)
    assert dataset.train.labels.tolist() == [0] * 4 + [1] * 4


def test_a_folder_without_a_train_folder_has_no_test_split(tmp_path):
    write_plain_pictures(tmp_path / "data", num_images=20)
    config = ff.Config(data=str(tmp_path / "data"), layers=1, width=8, epochs=1).override({"negatives.per_step": 1})
    run = ff.train(config, tmp_path / "run")
    assert run.evaluate(split="validation").num_samples == 3
    with pytest.raises(ff.DataError, match="has no test split; found train, validation"):
        run.evaluate()


def test_bad_image_folders_are_refused_naming_the_file(tmp_path):
    write_plain_pictures(tmp_path / "sizes")
    Image.new("L", (3, 3)).save(tmp_path / "sizes" / "dog" / "small.png")
    write_plain_pictures(tmp_path / "corrupt")
    (tmp_path / "corrupt" / "dog" / "1.png").write_bytes(b"\x89PNG\r\n\x1a\n????")
    write_plain_pictures(tmp_path / "hollow")
    (tmp_path / "hollow" / "empty").mkdir()
    (tmp_path / "none").mkdir()
    for name, message in (
        ("sizes", r"small\.png.*resize all"),
        ("corrupt", r"1\.png.*cannot be read as an image"),
        ("hollow", "empty"),
        ("none", "needs one folder of images a class"),
    ):
        with pytest.raises(ff.DataError, match=message) as caught:
            load_dataset(str(tmp_path / name))
        assert "\n" not in str(caught.value)


def test_one_class_of_images_and_classes_that_differ_are_refused(tmp_path):
    write_plain_pictures(tmp_path / "one", classes=("cat",))
    with pytest.raises(ff.DataError, match="one class only"):
        load_dataset(str(tmp_path / "one"))
    write_plain_pictures(tmp_path / "two" / "train")
    write_plain_pictures(tmp_path / "two" / "test", classes=("cat", "fish"))
    with pytest.raises(ff.DataError, match="differ"):
        load_dataset(str(tmp_path / "two"))


# --- layouts


TWINS = [
    ("Training", "Testing"),
    ("training", "testing"),
    ("Train", "Test"),
    ("TRAIN", "TEST"),
    ("seg_train", "seg_test"),
    ("seg_train/seg_train", "seg_test/seg_test"),
    ("training_set/training_set", "test_set/test_set"),
    ("train2017", "test2017"),
    ("TrainImages", "TestImages"),
    ("dogs-train", "dogs-test"),
]


def write_splits(root, *places):
    for number, place in enumerate(places):
        write_plain_pictures(root / place, classes=("cat", "dog", "owl"), num_images=3 + number, first=10 * number)


@pytest.fixture
def twin(tmp_path):
    write_splits(tmp_path / "twin", "train", "test")
    return load_dataset(str(tmp_path / "twin"))


@pytest.mark.parametrize("names", TWINS)
def test_splits_are_known_by_the_names_that_people_give_them(names, twin, tmp_path):
    write_splits(tmp_path / "data", *names)
    found = load_dataset(str(tmp_path / "data"))
    assert (found.digest(), found.test_digest(), found.class_names) == (
        twin.digest(),
        twin.test_digest(),
        ("cat", "dog", "owl"),
    )
    assert found.warning is None


@pytest.mark.parametrize("name", ["val", "valid", "Validation", "dev", "seg_val/seg_val", "validation_set"])
def test_a_validation_split_of_the_data_is_used_as_one(name, twin, tmp_path):
    write_splits(tmp_path / "data", "train", "test", name)
    dataset = load_dataset(str(tmp_path / "data"))
    assert dataset.warning is None
    config = ff.Config(data=str(tmp_path / "data"), layers=1, width=8, epochs=1, device="cpu")
    run = ff.train(config, tmp_path / "run")
    assert run.evaluate(split="validation").num_samples == len(dataset.validation) == 15
    assert run.evaluate().num_samples == len(twin.test)
    splits = make_splits(dataset, config.override({"validation_fraction": 0.0}))
    assert sorted(splits) == ["test", "train"]
    assert len(splits["train"]) == len(make_splits(dataset, config)["train"]) == len(dataset.train)
    write_plain_pictures(tmp_path / "data" / name, ["cat"], num_images=1, first=99)  # another one
    with pytest.raises(ff.RunMismatchError, match="other training data"):
        ff.resume(run.path, layers=2)


@pytest.mark.parametrize("name", ["val", "validation"])
def test_what_is_held_out_alone_is_the_test_split_and_that_is_said(name, twin, tmp_path):
    write_splits(tmp_path / "data", "train", name)
    found = load_dataset(str(tmp_path / "data"))
    assert (found.digest(), found.test_digest(), found.validation) == (twin.digest(), twin.test_digest(), None)
    assert f"{name} is taken as the test split" in found.warning


@pytest.mark.parametrize(
    ("places", "message"),
    [
        (["archive/train", "archive/test"], "archive holds no image itself, but folders that do"),
        (["a/train", "b/train"], "a holds no image itself"),
        (["pets/tame", "pets/wild"], "pets holds no image itself"),
        (["train", "Training"], "both Training and train read like its train split"),
        (["test"], "test reads like a split, but there is no train"),
        (["val", "test"], "reads like a split, but there is no train"),
    ],
)
def test_a_layout_that_cannot_be_told_is_refused(places, message, tmp_path):
    write_splits(tmp_path, *places)
    for skips_bad in (False, True):
        with pytest.raises(ff.DataError, match=message) as caught:
            load_dataset(str(tmp_path), skips_bad=skips_bad)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("names", [("train", "test"), ("cat", "dog", "Testing"), ("cat", "dog", "val")])
def test_folders_of_pictures_that_read_like_splits_are_no_classes(names, tmp_path):
    write_plain_pictures(tmp_path, classes=names)
    with pytest.raises(ff.DataError):
        load_dataset(str(tmp_path))


@pytest.mark.parametrize("names", [("test_tube", "flask"), ("contest", "detrain"), ("valley", "trainer")])
def test_classes_whose_names_hold_the_word_are_classes(names, tmp_path):
    write_plain_pictures(tmp_path, classes=names)
    assert load_dataset(str(tmp_path)).class_names == tuple(sorted(names))


@pytest.mark.parametrize(
    ("names", "is_refused"),
    [
        (["trainA", "trainB", "testA"], True),
        (["train_cats", "train_dogs", "test_cats"], True),
        (["Train Cats", "val cats"], True),
        (["trainer", "testicle", "valley"], False),
        (["train", "truck"], True),  # which holds pictures, and no classes
        (["testA", "testB"], False),
        (["trainA", "other"], False),
    ],
)
def test_names_that_are_splits_and_classes_in_one_are_no_classes(names, is_refused, tmp_path):
    shades = np.random.default_rng(0).integers(0, 256, (len(names), 6, 5, 5), dtype=np.uint8)
    write_pictures(tmp_path, dict(zip(names, shades, strict=True)))
    if is_refused:
        with pytest.raises(ff.DataError, match="read like splits and classes in one name|reads like a split"):
            load_dataset(str(tmp_path))
    else:
        assert load_dataset(str(tmp_path)).class_names == tuple(sorted(names))


def test_a_folder_called_like_a_known_data_set_is_said_not_to_be_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_dataset("digits").warning is None
    (tmp_path / "digits").mkdir()
    assert "the folder or file digits here is not read" in load_dataset("digits").warning


def test_one_name_in_two_forms_of_unicode_is_said(tmp_path):
    for split, name in (("train", "caf\u00e9"), ("test", "cafe\u0301")):
        write_plain_pictures(tmp_path / split, (name, "tea"), num_images=1)
    with pytest.raises(ff.DataError, match=r"'caf\\xe9' of train and 'cafe\\u0301' of test are one name"):
        load_dataset(str(tmp_path))
