"""Errors that gather in a stretch of a file are named with it; those of sorted files, of persons and of drift never."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

import ffstream as ff
from ffstream.infer.stretch import find_stretch, measure_runs


def draw(shares, labels, seed):
    """Which predictions are wrong, for a probability each."""
    return torch.rand(len(labels), generator=torch.Generator().manual_seed(seed)) < shares


def label(num, num_classes, seed=0):
    return torch.randint(num_classes, (num,), generator=torch.Generator().manual_seed(seed))


def said_of(shares, labels, seed=0, places=None):
    places = torch.arange(len(labels)) if places is None else places
    return find_stretch(draw(shares, labels, seed), labels, places, "test images")


def ends(text):
    return [int(number.replace(",", "")) for number in re.search(r"images ([\d,]+) to ([\d,]+),", text).groups()]


@pytest.mark.parametrize(("num", "num_classes"), [(30, 2), (83, 10), (600, 10), (2000, 100)])
@pytest.mark.parametrize("error", [0.0, 0.02, 0.15, 0.5, 1.0])
def test_errors_in_no_order_are_never_named(num, num_classes, error):
    for seed in range(10):
        assert said_of(torch.full((num,), error), label(num, num_classes, seed), seed) is None


@pytest.mark.parametrize(("start", "stop"), [(300, 600), (0, 240), (420, 600), (200, 320)])
def test_a_stretch_is_named_with_its_ends(start, stop):
    shares = torch.full((600,), 0.12)
    shares[start:stop] = 0.9
    for seed in range(10):
        found = ends(said_of(shares, label(600, 10, seed), seed))
        assert abs(found[0] - start) <= 12
        assert abs(found[1] + 1 - stop) <= 12


def test_the_order_in_which_images_are_given_does_not_matter():
    shares, labels = torch.where(torch.arange(400) < 150, 0.9, 0.1), label(400, 4)
    order = torch.randperm(400, generator=torch.Generator().manual_seed(1))
    wrong = draw(shares, labels, 0)
    whole = find_stretch(wrong, labels, torch.arange(400), "test images")
    assert whole is not None
    assert find_stretch(wrong[order], labels[order], order, "test images") == whole


@pytest.mark.parametrize("num", [200, 1000, 5000])
def test_a_file_sorted_by_class_has_none_where_some_classes_are_harder(num):
    labels = torch.arange(num) * 10 // num
    shares = torch.linspace(0.0, 0.9, 10)[label(10, 10, 3)][labels]
    assert not any(said_of(shares, labels, seed) for seed in range(10))


def test_errors_that_grow_in_a_line_or_come_in_runs_are_no_stretch():
    line = torch.linspace(0.05, 0.5, 3000)
    assert not any(said_of(line, label(3000, 5, seed), seed) for seed in range(10))
    for seed in range(20):  # forty persons, of whom some are recognised badly
        persons = torch.rand(40, generator=torch.Generator().manual_seed(seed)).square() * 0.6
        shares = persons.repeat_interleave(45)
        assert said_of(shares, label(1800, 10, seed), seed) is None
        assert measure_runs(draw(shares, shares, seed).double()) > 1.5
    assert measure_runs(draw(torch.full((1800,), 0.1), line[:1800], 0).double()) < 2.5


def test_of_few_images_nothing_is_said():
    shares = torch.where(torch.arange(39) < 20, 1.0, 0.0)
    assert said_of(shares, label(39, 2)) is None


@pytest.fixture
def arrays(digits):
    train, test = digits.train.take(slice(1000)), digits.test.take(slice(400))
    found = {"x_train": train.images, "y_train": train.labels, "x_test": test.images, "y_test": test.labels}
    return {name: values.numpy() for name, values in found.items()}


def slip(labels, start):
    """Labels of which one is missing, so that those after it are one off."""
    return np.concatenate([labels[:start], labels[start - 1 : -1]])


def train(arrays, folder):
    np.savez(folder / "d.npz", **arrays)
    config = ff.Config(data=str(folder / "d.npz"), layers=2, width=64, epochs=10, device="cpu")
    with pytest.warns(UserWarning, match="counted from 0") as said:
        run = ff.train(config, folder / "run")
    return run, [str(each.message) for each in said]


def test_labels_that_are_one_off_behind_a_missing_row_are_named_in_training_and_test(arrays, tmp_path):
    slipped = arrays | {"y_train": slip(arrays["y_train"], 700), "y_test": slip(arrays["y_test"], 250)}
    run, said = train(slipped, tmp_path)
    (start, stop) = ends(next(text for text in said if "training images" in text))
    assert (abs(start - 700) < 25, stop > 940) == (True, True)
    (start, stop) = ends(run.evaluate().warning)
    assert (abs(start - 250) < 15, stop > 380) == (True, True)
