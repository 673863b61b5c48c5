"""What a layer cannot see of its training data is said when a run starts; of data that are well scaled, nothing is."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

import ffstream as ff
from ffstream.data import Scaling
from ffstream.training.visibility import find_hidden, find_overlaid

NUM_IMAGES, NUM_FEATURES = 500, 8
LABELS = torch.arange(NUM_IMAGES) % 2


def table():
    """Two classes that the first of eight features of one size tells apart."""
    found = torch.randn(NUM_IMAGES, NUM_FEATURES, generator=torch.Generator().manual_seed(0))
    found[:, 0] += 6 * LABELS
    return found


def digits_as_table(digits):
    return digits.train.images.flatten(1).float()[:NUM_IMAGES]


def set_at(images, features, value, share, seed=1):
    """Put a value at a share of the places in some features."""
    chosen = torch.rand(images[:, features].shape, generator=torch.Generator().manual_seed(seed)) < share
    images[:, features] = images[:, features].masked_fill(chosen, value)
    return images


def with_feature(number, values):
    found = table()
    found[:, number] = values(found[:, number])
    return found


def with_outliers(every, value):
    found = table()
    for row in range(0, NUM_IMAGES, every):
        found[row, row % NUM_FEATURES] = value * (1 + row % 7)
    return found


def shades():
    """Grey images of one brightness each, dark for one class and bright for the other."""
    generator = torch.Generator().manual_seed(0)
    shade = 40 + 150 * LABELS + torch.randint(0, 30, (NUM_IMAGES,), generator=generator)
    return shade.view(-1, 1, 1).expand(-1, 8, 8).to(torch.uint8)


def said_of(images, labels=LABELS, standardise="none"):
    scale = float(images.double().abs().max()) or 1.0
    return find_hidden(images, labels, Scaling.of(images, scale, standardise), standardise)


HIDDEN = {
    "a feature near 1000": (lambda: with_feature(5, lambda v: 1000 + 300 * v), "feature 5 .* times larger"),
    "a feature of 1000 about zero": (lambda: with_feature(5, lambda v: 1000 * v), "feature 5 .* times larger"),
    "a feature of a thousandth": (lambda: with_feature(2, lambda v: v / 1000), "feature 2 .* smaller"),
    "two features near 1e5": (
        lambda: with_feature(5, lambda v: 1e5 * v) + with_feature(6, lambda v: 1e5 * v),
        "2 features \\(5, 6\\)",
    ),
    "an offset": (lambda: table() + 300, "in common"),
    "one outlier": (lambda: with_outliers(1000, 1e9), "1e\\+09, in image 0"),
    "many outliers": (
        lambda: with_outliers(25, 100.0),
        "one value is so large that it hides all others: in image 0 it is 100, in feature",
    ),
    "-9999 for missing": (lambda: set_at(table(), slice(1, None), -9999.0, 0.2), "-9999 occurs .* 7 features"),
    "-999 for missing in one": (lambda: set_at(table(), slice(3, 4), -999.0, 0.05), "-999 occurs .* feature 3"),
    "1e20 for missing": (lambda: set_at(table(), slice(3, 4), 1e20, 0.05), "1e\\+20 occurs"),
    "-1 for missing among none": (
        lambda: set_at(table().abs(), slice(3, 4), -1.0, 0.1),
        "-1 occurs .* feature 3, and no",
    ),
    "one number for missing": (lambda: set_at(table(), slice(None), 88.0, 0.1), "the value 88 occurs .* 8 features"),
    "two numbers for missing": (
        lambda: set_at(set_at(table(), slice(3, 5), 97.0, 0.1), slice(5, 6), -98.0, 0.1, seed=2),
        "the values -98, 97 occur .* 3 features",
    ),
    "255 for missing in bytes": (
        lambda: set_at(torch.randint(0, 17, (NUM_IMAGES, 6, 6)).float(), slice(None), 255.0, 0.02).byte(),
        "255 occurs",
    ),
    "a channel in other units": (
        lambda: torch.rand(NUM_IMAGES, 3, 5, 6) * torch.tensor([1.0, 1000.0, 1.0]).view(3, 1, 1),
        "30 features .* larger",
    ),
    "one small channel of two": (
        lambda: torch.rand(NUM_IMAGES, 2, 5, 6) * torch.tensor([1000.0, 1.0]).view(2, 1, 1),
        "channel 0 .* larger than those of channel 1",
    ),
    "a table with an axis of one": (lambda: with_feature(2, lambda v: v / 1000).unsqueeze(1), "feature 2 .* smaller"),
    "a rare feature in larger units": (
        lambda: with_feature(2, lambda v: 1e4 * v * (torch.arange(NUM_IMAGES) % 10 == 3)),
        "feature 2",
    ),
    "circles": (
        lambda: torch.stack([t(torch.arange(NUM_IMAGES) * 2.39) * (1 + LABELS) for t in (torch.sin, torch.cos)], dim=1),
        "another class in 0% of them, and in",
    ),
    "zeros": (lambda: torch.zeros(NUM_IMAGES, 4, 4), "all 500 training images are equal"),
    "one image throughout": (lambda: torch.rand(1, 6).expand(NUM_IMAGES, 6), "equal"),
    "half of the images empty": (lambda: table() * (torch.arange(NUM_IMAGES) % 4 > 1).view(-1, 1), "50% .*are zero"),
    "one pixel": (lambda: torch.rand(NUM_IMAGES, 1, 1) + LABELS.view(-1, 1, 1), "brightness"),
    "brightness is the class": (shades, "brightness"),
    "bright images of little contrast": (lambda: 200 + (table() * 2).round().clamp(-50, 50), "in common"),
}


@pytest.mark.parametrize("name", HIDDEN)
def test_what_hides_the_data_is_named(name):
    make, words = HIDDEN[name]
    images = make()
    said = said_of(images)
    assert said is not None
    assert "\n" not in said
    assert re.search(words, said), said


CLEAN = {
    "a table": table,
    "one of other size": lambda: with_feature(5, lambda v: 4 * v),
    "a small offset": lambda: table() + 2,
    "heavy tails": lambda: torch.randn(NUM_IMAGES, NUM_FEATURES, generator=torch.Generator().manual_seed(0)).exp(),
    "counts": lambda: torch.poisson(table().abs() / 2, torch.Generator().manual_seed(0)),
    "one of several": lambda: torch.nn.functional.one_hot(torch.arange(NUM_IMAGES) % 12).float(),
    "nines that are in reach of the others": lambda: set_at(table() * 60, slice(3, 4), 99.0, 0.05),
    "a feature that never varies": lambda: with_feature(5, torch.zeros_like),
    "other loudness": lambda: table() * 10 ** torch.linspace(-1, 1, NUM_IMAGES).view(-1, 1),
}


@pytest.mark.parametrize("standardise", ["none", "features"])
@pytest.mark.parametrize("name", CLEAN)
def test_of_data_that_are_well_scaled_nothing_is_said(name, standardise):
    assert said_of(CLEAN[name](), standardise=standardise) is None


@pytest.mark.parametrize("standardise", ["none", "features", "channels"])
def test_of_digits_nothing_is_said(digits, standardise):
    labels = digits.train.labels[:NUM_IMAGES]
    for images in (digits.train.images[:NUM_IMAGES], digits_as_table(digits), digits_as_table(digits) / 16 - 0.3):
        assert said_of(images, labels, standardise) is None


@pytest.mark.parametrize("name", ["one outlier", "many outliers", "-9999 for missing"])
def test_what_standardising_does_not_mend_is_said_of_standardised_data(name):
    """The spread of a feature with one value far from all is its own."""
    make, _ = HIDDEN[name]
    assert said_of(make(), standardise="features") is not None
    if name == "one outlier":
        assert said_of(with_outliers(1000, 3000.0), standardise="features") is not None
        assert said_of(with_outliers(1000, 3000.0)) is None


@pytest.mark.parametrize("name", ["a feature near 1000", "an offset", "a feature of a thousandth"])
def test_what_standardising_mends_is_not_said_of_standardised_data(name):
    make, _ = HIDDEN[name]
    assert said_of(make(), standardise="features") is None


def write(path, images):
    np.savez(path, x_train=images[:400], y_train=LABELS[:400], x_test=images[400:], y_test=LABELS[400:])
    return str(path)


class Listener(ff.Observer):
    def __init__(self):
        self.said = []

    def on_warning(self, text):
        self.said.append(text)


def train(data, run_dir, **settings):
    listener = Listener()
    config = ff.Config(data=data, layers=2, width=64, epochs=12, device="cpu", **settings)
    return ff.train(config, run_dir, observer=listener), listener.said


@pytest.mark.parametrize("name", ["a feature near 1000", "an offset"])
def test_a_run_says_what_is_hidden_and_learns_it_once_it_is_standardised(tmp_path, name):
    data = write(tmp_path / "data.npz", HIDDEN[name][0]().numpy())
    plain, said = train(data, tmp_path / "plain")
    assert any("--standardise features" in line for line in said)
    assert plain.evaluate().error > 0.3
    mended, said = train(data, tmp_path / "mended", standardise="features")
    assert said == []
    assert mended.evaluate().error < 0.1


@pytest.mark.parametrize("choices", [(-1.0, 1.0), (-1.0, 0.0, 1.0), (-1.0, 0.0, 0.0, 0.0, 1.0)])
def test_answers_of_no_and_yes_are_no_missing_values(choices):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(NUM_IMAGES, NUM_FEATURES, generator=generator)
    chosen = torch.randint(len(choices), (NUM_IMAGES, 3), generator=generator)
    images[:, 5:] = torch.tensor(choices)[chosen]
    assert said_of(images) is None
    assert re.search("-1 occurs .* in feature 2, and no other", said_of(set_at(images, slice(2, 3), -1.0, 0.1)))


@pytest.mark.parametrize("seed", range(3))
def test_amounts_that_are_mostly_zero_are_not_to_be_left_out(seed):
    """One person in twelve has a gain; standardised, it hides nothing, though one gain is far larger than most."""
    generator = torch.Generator().manual_seed(seed)
    gains = (8.3 + torch.randn(NUM_IMAGES, generator=generator)).exp().round()
    some = torch.rand(NUM_IMAGES, generator=generator) < 1 / 12
    images = with_feature(5, lambda _: torch.where(some, gains, 0.0)) * 10
    said = said_of(images)
    assert said.endswith("add --standardise features, or take the logarithm of such features")
    assert said_of(images, standardise="features") is None
    assert said_of(with_outliers(25, 100.0)).endswith("leave out such images")


def raise_pictures(images, size, offset):
    """Pictures on a ground that is not black, each pixel as a square of equal pixels."""
    images = images.float() + offset
    return images.repeat_interleave(size, dim=1).repeat_interleave(size, dim=2)


def test_what_images_have_in_common_weighs_more_in_more_features(digits, tmp_path):
    """The same pictures in six times as many pixels a side, as photographs have, silence all units of a layer."""
    chosen, test = digits.train.take(slice(NUM_IMAGES)), digits.test.take(slice(100))
    for size, is_hidden in ((1, False), (6, True)):
        images, others = (raise_pictures(split.images, size, 5) for split in (chosen, test))
        assert (said_of(images, chosen.labels) is not None) == is_hidden
        np.savez(tmp_path / "d.npz", x_train=images, y_train=chosen.labels, x_test=others, y_test=test.labels)
        run, said = train(str(tmp_path / "d.npz"), tmp_path / f"run-{size}")
        assert (run.evaluate().error > 0.8) == is_hidden
        assert len(said) == (2 if is_hidden else 0)
        assert not is_hidden or (re.search("in common", said[0]) and re.match("layer 1: .* silent", said[1]))
    for offset, standardise in ((0, "none"), (5, "features")):
        assert said_of(raise_pictures(chosen.images, 6, offset), chosen.labels, standardise) is None


# --- what clean data have that looks like something else


def standardised(columns):
    return (columns - columns.mean(dim=0)) / columns.std(dim=0)


def test_rare_categories_that_are_standardised_stand_for_nothing_missing():
    generator = torch.Generator().manual_seed(0)
    shares = torch.tensor([0.5] * 8 + [0.02, 0.02, 0.004])
    rows = standardised((torch.rand(900, 11, generator=generator) < shares).float())
    labels = torch.arange(900) % 2
    assert find_hidden(rows, labels, Scaling(float(rows.abs().max())), "none") is None


def test_a_channel_in_other_units_is_named_wherever_channels_lie():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(200, 3, 10, 10, generator=generator) * torch.tensor([1.0, 1.0, 1 / 52]).view(3, 1, 1)
    labels = torch.arange(200) % 2
    for each in (images, images.permute(0, 2, 3, 1).contiguous()):
        assert "larger than those of channel 2" in find_hidden(each, labels, Scaling(1.0), "none")


def test_what_is_standardised_already_is_not_told_to_be():
    angles = torch.arange(400) * 0.1
    radius = 1.0 + (torch.arange(400) % 2)
    rows = torch.stack([angles.cos() * radius, angles.sin() * radius], dim=1)
    scaling = Scaling.of(rows, 2.0, "features")
    found = find_hidden(rows, torch.arange(400) % 2, scaling, "features")
    assert "brought to unit length" in found
    assert "--standardise" not in found


def test_labels_that_hide_most_of_an_image_are_said(digits):
    generator = torch.Generator().manual_seed(0)
    table = torch.rand(300, 4, generator=generator)
    said = find_overlaid(table, 3, Scaling(1.0))
    assert "over the first 3 of 4 features" in said
    assert said.endswith("or put 3 features of zero in front")
    assert find_overlaid(digits.train.images, 10, Scaling(16.0)) is None
    assert find_overlaid(torch.rand(300, 40, generator=generator), 3, Scaling(1.0)) is None


@pytest.mark.parametrize("factor", [1e3, 1e6, 1e-5])
def test_a_column_in_other_units_hides_the_rest_of_a_table_that_is_one_channel(factor):
    """Standardised as one channel, all other columns lie at the same distance from a mean that is not theirs."""
    images = with_feature(3, lambda values: values.abs() * factor)
    assert "feature 3" in said_of(images, standardise="channels")
    assert said_of(table(), standardise="channels") is None


@pytest.mark.parametrize("shape", [(5, 5), (3, 6, 6), (6, 6, 3), (30, 4, 4)])
@pytest.mark.parametrize("factor", [1e2, 1e7])
def test_a_place_in_other_units_hides_the_rest_of_its_channel(shape, factor):
    """The mean and the spread of a channel that is standardised are those of its largest place alone."""
    generator = torch.Generator().manual_seed(0)
    images = 0.1 + 0.8 * torch.rand(NUM_IMAGES, *shape, generator=generator)
    assert said_of(images, standardise="channels") is None
    images.flatten(1)[:, 7] *= factor
    assert "feature 7" in said_of(images, standardise="channels")


def test_channels_may_have_units_of_their_own_once_each_is_standardised():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(NUM_IMAGES, 3, 6, 6, generator=generator) * torch.tensor([1.0, 1e4, 1.0]).view(3, 1, 1)
    assert said_of(images, standardise="channels") is None


def test_images_that_are_small_beside_one_feature_are_not_blamed_for_it():
    generator = torch.Generator().manual_seed(0)
    images = 0.1 + 0.8 * torch.rand(NUM_IMAGES, 6, 6, generator=generator)
    images[:40, 2, 1] = 0.0  # there the feature is dark, so that all of the image is small
    images[:, 2, 1] *= 1e8
    assert "feature 13" in said_of(images)
    blank = images.clone()
    blank[:40] = 0.0
    blank[:, 2, 1] /= 1e8
    assert "zero throughout" in said_of(blank)
