"""Units of images: those of another split, of a feature, or of pictures that a run is asked about."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image

import ffstream as ff
from ffstream.data import SOURCES, Split, load_dataset
from ffstream.data.dataset import check_dataset
from ffstream.data.facts import DataFacts
from ffstream.data.fit import fit_images
from ffstream.data.values import Values, find_other_units
from tests.data.array_files import save
from tests.helpers import write_pictures

# --- a split in other units


UNITS = {
    "bytes": lambda x: x,
    "0 to 1": lambda x: x / 255.0,
    "mean 0, spread 1": lambda x: (x / 255.0 - 0.1307) / 0.3081,
    "-1 to 1": lambda x: (x / 255.0 - 0.5) / 0.5,
}


def photographs(num_images=200, seed=1):
    """Images of four classes by the half that is brighter or darker."""
    generator, labels = np.random.default_rng(seed), np.arange(num_images) % 4
    images = np.full((num_images, 8, 8), 128.0) + generator.normal(0, 25, (num_images, 8, 8))
    for label in range(4):
        images[labels == label, 4 * (label % 2) : 4 * (label % 2) + 4] += 90 if label < 2 else -90
    return images.clip(0, 255).astype(np.uint8), labels


@pytest.mark.parametrize("of_test", UNITS)
@pytest.mark.parametrize("of_train", UNITS)
def test_a_split_in_other_units_is_named_when_it_is_trained_and_evaluated(of_train, of_test, tmp_path):
    images, labels = photographs()
    arrays = {"x_train": UNITS[of_train](images), "y_train": labels}
    others, _ = photographs(seed=2)
    arrays |= {"x_test": UNITS[of_test](others[:100]), "y_test": labels[:100]}
    path, said = save(tmp_path / "d.npz", arrays), []
    observer = ff.Observer()
    observer.on_warning = said.append
    config = ff.Config(data=path, layers=1, width=32, epochs=8, device="cpu")
    run = ff.train(config, tmp_path / "run", observer=observer)
    found, predicted = run.evaluate(), run.predict(arrays["x_test"])
    if of_train == of_test:
        assert (said, found.warning, predicted.warning) == ([], None, None)
    else:
        for text in (*said, found.warning, predicted.warning):
            assert "do not look like those of the training images" in text
        assert len(said) == 1


@pytest.mark.parametrize("name", ["digits"])
def test_nothing_is_said_of_units_that_are_the_same(name):
    assert load_dataset(name).warning is None


@pytest.mark.parametrize("units", UNITS)
def test_pictures_are_read_as_the_arrays_that_they_were(units, tmp_path):
    images, labels = photographs(20)
    images[0, 0, :2] = 0, 255  # black and white are there
    config = ff.Config(data=save(tmp_path / "d.npz", {"x_train": UNITS[units](images), "y_train": labels}))
    config = config.override({"layers": 1, "width": 8, "epochs": 1, "device": "cpu", "validation_fraction": 0.2})
    run = ff.train(config, tmp_path / "run")
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{number:02d}.png")
    read = run.load_images(sorted(tmp_path.glob("*.png")))
    np.testing.assert_allclose(read.images.numpy(), UNITS[units](images), atol=1e-5)
    assert (read.note is not None) == (UNITS[units](images).min() < 0)


def test_values_are_measured_in_parts_and_of_few_images_the_magnitude_alone_counts():
    images = torch.rand(9000, 6, generator=torch.Generator().manual_seed(0)) * 3 - 1
    found = Values.of(images)
    assert (found.low, found.high) == (float(images.min()), float(images.max()))
    assert found.mean == pytest.approx(float(images.mean()), abs=0.02)
    assert found.spread == pytest.approx(float(images.std()), abs=0.02)
    assert Values.from_mapping(found.to_mapping()) == found
    white = Values.of(torch.full((1, 6), 2.0))
    assert find_other_units(white, found) is None
    assert find_other_units(Values.of(torch.full((50, 6), 2.0)), found) is not None
    assert find_other_units(Values.of(torch.full((1, 6), 200.0)), found) is not None
    assert (find_other_units(Values.of(torch.full((1, 6), -0.5)), found) is None) == (found.low < 0)  # negative ones


# --- colours


def colour_images(num_images, share, axis=-1, seed=0):
    """Images of bytes, of which a share shows colours; the others have three equal channels."""
    generator = np.random.default_rng(seed)
    images = np.repeat(generator.integers(0, 256, (num_images, 6, 6, 1)), 3, axis=-1)
    some = slice(round(share * num_images))
    images[some] = generator.integers(0, 256, images[some].shape)
    return np.moveaxis(images, -1, axis).astype(np.uint8), np.arange(num_images) % 2


@pytest.mark.parametrize("axis", [-1, 1])
def test_grey_images_of_a_run_of_colour_images_are_named_and_the_other_way_round(axis, tmp_path):
    coloured, grey = (colour_images(100, share, axis) for share in (1.0, 0.0))
    for name, train, test in (("all are grey", coloured, grey), ("100 % of them are in", grey, coloured)):
        save(tmp_path / "d.npz", {"x_train": train[0], "y_train": train[1], "x_test": test[0], "y_test": test[1]})
        dataset = load_dataset(str(tmp_path / "d.npz"))
        assert f"test images: {name}" in dataset.warning
    for share, num_images, is_named in ((1.0, 1, True), (0.98, 1, False), (0.5, 20, True), (0.0, 5, False)):
        trained = Values.of(torch.from_numpy(colour_images(100, share, axis)[0]))
        found = Values.of(torch.from_numpy(colour_images(num_images, 0.0, axis)[0]))
        assert (find_other_units(found, trained) is not None) == is_named


def test_images_that_alternate_or_rarely_show_colours_are_like_each_other():
    """A sample of every second image would see one kind alone."""
    images = torch.from_numpy(colour_images(8192, 0.5)[0])
    alternating = torch.stack([images[:4096], images[4096:]], dim=1).flatten(0, 1)
    found = [Values.of(part) for part in (alternating[:4000], alternating[:8192], alternating[:500])]
    assert {find_other_units(one, other) for one in found for other in found} == {None}
    rare = [Values.of(torch.from_numpy(colour_images(num, 1.01 / num)[0])) for num in (1000, 20_000)]
    assert {find_other_units(one, other) for one in rare for other in rare} == {None}
    almost_black = torch.zeros(1, 6, 6, 3, dtype=torch.uint8)
    almost_black[0, 0, 0, 0] = 1
    assert Values.of(almost_black).coloured == 0.0


def test_pictures_of_another_kind_than_the_runs_are_said(tmp_path):
    shades = np.random.default_rng(0).integers(0, 200, (2, 30, 6, 6, 1), dtype=np.uint8)
    kinds = {"colour": shades + np.array([0, 20, 50], np.uint8), "grey": shades[..., 0], "rgb": shades.repeat(3, -1)}
    for kind, pixels in kinds.items():
        write_pictures(tmp_path / kind, {"a": pixels[0], "b": pixels[1] // 2})
    runs = {
        kind: ff.train(ff.Config(data=str(tmp_path / kind), layers=1, width=16, epochs=1), tmp_path / f"run-{kind}")
        for kind in kinds
    }

    def said(run, pictures):
        images = runs[run].load_images([tmp_path / pictures])
        return [images.note, runs[run].predict(images.images, first_layer=1).warning]

    assert said("colour", "colour") == said("grey", "grey") == said("rgb", "rgb") == [None, None]
    assert said("grey", "rgb") == said("rgb", "grey") == [None, None]  # three equal channels are grey
    for other in ("grey", "rgb"):
        assert "all are grey, and 100 % of the training images are in colour" in said("colour", other)[1]
    assert "60 of 60 pictures are in colour" in said("grey", "colour")[0]
    assert "100 % of them are in colour, and all training images are grey" in said("rgb", "colour")[1]


@pytest.mark.parametrize("shape", [(8, 8, 3), (3, 8, 8), (192,)])
def test_rows_and_images_with_channels_are_not_taken_for_each_other(shape):
    others = {(8, 8, 3), (3, 8, 8), (192,)} - {shape}
    images = torch.zeros(5, *shape)
    assert torch.equal(fit_images(images, shape, "x"), images)
    for other in others:
        with pytest.raises(ff.DataError, match="axes of each image in that order|channels can come first or last"):
            fit_images(torch.zeros(5, *other), shape, "x")
    assert fit_images(torch.zeros(5, 64), (8, 8), "x").shape == (5, 8, 8)
    assert fit_images(torch.zeros(5, 8, 8), (64,), "x").shape == (5, 64)
    assert fit_images(torch.zeros(5, 8, 8, 1), (64,), "x").shape == (5, 64)


# --- feature by feature


def table_splits(change, shape=(8,)):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(400, *shape, generator=generator)
    labels = torch.arange(400) % 2
    test = images[200:].clone()
    return check_dataset("d", Split(images[:200], labels[:200]), Split(change(test), labels[200:]))


SHIFTED = {
    "one far from the training images": lambda test: test + 5 * torch.eye(8)[3],
    "one in larger units": lambda test: test * (1 + 99 * torch.eye(8)[3]) - 40 * torch.eye(8)[3],
    "one that does not vary": lambda test: test * (1 - torch.eye(8)[3]) + 0.5 * torch.eye(8)[3],
}


def constant_splits(value, change):
    """A feature that has one value in all training images, and others in some test images."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(400, 8, generator=generator)
    images[:, 3] = value
    test = images[200:].clone()
    change(test[:, 3])
    labels = torch.arange(400) % 2
    return check_dataset("d", Split(images[:200], labels[:200]), Split(test, labels[200:])).warning


@pytest.mark.parametrize("value", [0.5, 0.0])
def test_a_feature_that_is_constant_in_training_and_not_in_the_test_is_named(value):
    assert "feature 3" in constant_splits(value, lambda feature: feature.add_(0.4))
    assert "feature 3" in constant_splits(value, lambda feature: feature.uniform_(0.1, 0.9))
    assert constant_splits(value, lambda feature: feature) is None
    assert constant_splits(value, lambda feature: feature.mul_(1 + 2e-7)) is None  # rounded
    assert constant_splits(value, lambda feature: feature[:20].fill_(0.9)) is None  # as a rare pixel of an image


@pytest.mark.parametrize("name", SHIFTED)
def test_a_feature_of_the_test_split_in_other_units_is_named(name):
    assert "feature 3" in table_splits(SHIFTED[name]).warning or "units" in table_splits(SHIFTED[name]).warning


@pytest.mark.parametrize("shape", [(8,), (4, 4), (3, 2, 2)])
def test_of_splits_that_are_alike_nothing_is_said(shape):
    assert table_splits(lambda test: test, shape).warning is None


def test_of_digits_and_few_images_nothing_is_said(digits):
    assert digits.warning is None
    few = dataclasses.replace(digits, test=digits.test.take(torch.arange(20)))
    assert few.warning is None


# --- features that are nearly always the same


@pytest.mark.parametrize("num_images", [60, 500, 1700])
def test_a_feature_that_is_nearly_always_the_same_may_be_so_in_all_of_a_split(num_images, digits):
    parts = (digits.train, digits.test.take(slice(num_images)))
    inverted = [Split(16 - part.images, part.labels) for part in parts]
    assert check_dataset("inverted", *inverted).warning is None


def test_a_binary_feature_that_is_rare_is_no_other_unit():
    generator = torch.Generator().manual_seed(0)
    rows = torch.rand(3000, 6, generator=generator)
    rows[:, 2] = (rows[:, 2] < 0.995).float()
    labels = torch.arange(3000) % 2
    for stop in (2060, 2300, 3000):
        train, test = (Split(rows[part], labels[part]) for part in (slice(2000), slice(2000, stop)))
        assert check_dataset("t", train, test).warning is None


def test_rare_values_that_a_split_lacks_are_no_other_units():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(2000, 12, generator=generator)
    rows[:, 3] = (rows[:, 3] > 2.65).float()
    rows[:, 3] = (rows[:, 3] - rows[:, 3].mean()) / rows[:, 3].std()
    lacking = rows[1000:][rows[1000:, 3] < 1][:60]
    train = Split(rows[:1000], torch.arange(1000) % 2)
    assert check_dataset("t", train, Split(lacking, torch.arange(len(lacking)) % 2)).warning is None


NORMALISED = {
    "-1 to 1": lambda train, images: images / 8 - 1,
    "mean and spread of all": lambda train, images: (images - train.mean()) / train.std(),
    "without the mean image": lambda train, images: images - train.mean(dim=0),
    "inverted": lambda train, images: 16 - images,
    "on a larger ground": lambda train, images: torch.nn.functional.pad(images, (2, 2, 2, 2)) / 8 - 1,
    "each pixel": lambda train, images: (images - train.mean(dim=0)) / train.std(dim=0).clamp(min=0.03),
}


@pytest.mark.parametrize("num_images", [20, 60, 500])
@pytest.mark.parametrize("name", NORMALISED)
def test_a_pixel_that_few_images_set_is_no_other_unit_on_any_ground(name, num_images, digits):
    """A border pixel that one training image sets has so small a spread that any test image is many spreads away."""
    train, change = digits.train.images.float(), NORMALISED[name]
    for start in (0, 1000):
        part, test = train[start : start + 400], digits.test.images.float()[start : start + num_images]
        splits = (
            Split(change(part, part), digits.train.labels[start : start + 400]),
            Split(change(part, test), digits.test.labels[start : start + num_images]),
        )
        assert check_dataset("d", *splits).warning is None
    ground = change(part, part).clone()
    ground[:, 0] += 3 * ground.std()
    assert check_dataset("d", dataclasses.replace(splits[0], images=ground), splits[1]).warning is not None


# --- few images


def few_rows(num_rows, seed, change=lambda rows: rows):
    """A table of positive columns, among them one with a long tail and one that is rarely set."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(130 + num_rows, 8, generator=generator) + 10
    rows[:, 5] = (rows[:, 5] - 10).mul(1.5).exp()
    rows[:, 6] = (rows[:, 6] > 11.5).float()
    labels = torch.randint(0, 2, (len(rows),), generator=generator)
    test = change(rows[130:].clone())
    return check_dataset("t", Split(rows[:130], labels[:130]), Split(test, labels[130:])).warning or ""


FEW = {
    "twice as large": lambda rows: torch.where(torch.arange(8) == 2, 2 * rows, rows),
    "a hundredth": lambda rows: torch.where(torch.arange(8) == 2, rows / 100, rows),
    "one value for all": lambda rows: torch.where(torch.arange(8) == 2, 10.0, rows),
    "two columns exchanged": lambda rows: rows[:, [0, 1, 5, 3, 4, 2, 6, 7]],
}


@pytest.mark.parametrize("num_rows", [12, 30, 49])
@pytest.mark.parametrize("name", FEW)
def test_a_feature_in_other_units_is_named_in_few_rows(name, num_rows):
    assert "feature 2" in few_rows(num_rows, 0, FEW[name])


@pytest.mark.parametrize("num_rows", [1, 2, 3, 5, 8, 12, 20, 30, 49])
def test_of_few_rows_like_those_of_training_nothing_is_said(num_rows):
    assert [few_rows(num_rows, seed) for seed in range(10) if "test images: f" in few_rows(num_rows, seed)] == []


def test_few_pictures_of_inverted_brightness_are_named(digits):
    trained = Values.of(digits.train.images, digits.train.labels)
    assert Values.from_mapping(trained.to_mapping()) == trained
    for number in (1, 3, 10, 49):
        for start in range(0, 1700, 100):
            images = digits.test.images[start : start + number]
            assert find_other_units(Values.of(images), trained) is None
            # A single digit may lie at the edge of what is far.
            assert number < 3 or find_other_units(Values.of(16 - images), trained) is not None


def test_a_feature_that_is_beyond_its_range_in_images_to_be_predicted_is_named(digits):
    """Medians over the features say nothing of one of them."""
    labels = digits.train.labels
    rows = torch.nn.functional.avg_pool2d(digits.train.images.float().unsqueeze(1), 4).flatten(1) + torch.arange(4)
    dataset = check_dataset("t", Split(rows[:2000], labels[:2000]), None)
    facts = DataFacts.of(dataset, dataset.train, "features")
    assert DataFacts(json.loads(json.dumps(facts.content))) == facts
    for number in (1, 5, 20, 100):
        for start in range(2000, 3500, 100):
            assert facts.find_other_units(rows[start : start + number], "images") is None
        for label in range(10):
            assert facts.find_other_units(rows[labels == label][:number], "images") is None
    for change in (lambda row: row * 10, lambda row: row / 100, lambda row: row - 30):
        others = rows[2000:2020].clone()
        others[:, 3] = change(others[:, 3])
        assert "feature 3" in facts.find_other_units(others, "images") or "units" in facts.find_other_units(others, "x")


# --- white, of pictures that a run of arrays is asked about


@pytest.mark.parametrize(("largest", "white"), [(1, 1), (16, 16), (200, 255), (255, 255), (1023, 1023)])
def test_white_is_the_largest_value_unless_values_are_bytes(largest, white, digits, tmp_path):
    images = digits.train.images.numpy() / 16 * largest
    np.savez(tmp_path / "d.npz", x_train=images.astype(np.float32), y_train=digits.train.labels.numpy())
    run = ff.train(ff.Config(data=str(tmp_path / "d.npz"), layers=1, width=8, epochs=1), tmp_path / "run")
    Image.new("L", (8, 8), 255).save(tmp_path / "white.png")
    assert float(run.load_images([tmp_path / "white.png"]).images.max()) == pytest.approx(white)


def test_white_is_known_where_the_source_of_the_data_is_not(digits, tmp_path, monkeypatch):
    def source(_root):
        return dataclasses.replace(digits, train=Split(digits.train.images / 16, digits.train.labels), test=None)

    monkeypatch.setitem(SOURCES._parts, "mine", source)
    run = ff.train(ff.Config(data="mine", layers=1, width=8, epochs=1), tmp_path / "run")
    monkeypatch.delitem(SOURCES._parts, "mine")
    Image.new("L", (8, 8), 255).save(tmp_path / "white.png")
    assert float(run.load_images([tmp_path / "white.png"]).images.max()) == 1.0


# --- some of the images


@pytest.mark.parametrize("standardise", ["none", "features", "channels"])
def test_many_images_of_one_class_are_no_other_units(standardise, tmp_path):
    generator = np.random.default_rng(0)
    labels = np.arange(400) % 2
    images = (20 + 180 * labels[:, None, None] + generator.normal(0, 10, (400, 8, 8))).clip(0, 255).astype(np.uint8)
    data = save(tmp_path / "d.npz", {"x_train": images, "y_train": labels})
    run = ff.train(ff.Config(data=data, layers=1, width=16, epochs=1, standardise=standardise), tmp_path / "run")
    for label in (0, 1):
        night = (20 + 180 * label + generator.normal(0, 10, (60, 8, 8))).clip(0, 255).astype(np.uint8)
        assert run.predict(night).warning is None
        assert run.predict(night / 255.0).warning is not None
