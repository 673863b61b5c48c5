"""Images to be predicted that are unlike any mixture of the training classes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import ffstream as ff
from ffstream.data import Split
from ffstream.data.dataset import check_dataset
from ffstream.data.facts import DataFacts
from ffstream.data.mixtures import Mixtures
from tests.data.array_files import save


def shuffle(images):
    order = torch.randperm(images[0].numel(), generator=torch.Generator().manual_seed(0))
    return images.flatten(1)[:, order].reshape(images.shape)


OTHERS = {
    "cast to bytes": lambda images: images.to(torch.uint8),
    "noise": lambda images: torch.rand(images.shape, generator=torch.Generator().manual_seed(0)) * 0.6,
    "pixels in another order": shuffle,
    "transposed": lambda images: images.transpose(1, 2),
}


@pytest.fixture(scope="module")
def facts(digits):
    dataset = check_dataset("d", Split(digits.train.images / 16, digits.train.labels), None)
    found = DataFacts.of(dataset, dataset.train, "none")
    assert DataFacts(json.loads(json.dumps(found.content))) == found
    return found


@pytest.mark.parametrize("num_images", [100, 600])
@pytest.mark.parametrize("name", OTHERS)
def test_images_of_another_kind_are_named(name, num_images, facts, digits):
    images, labels = digits.test.images[:num_images] / 16, digits.test.labels[:num_images]
    assert facts.find_other_units(OTHERS[name](images), "images") is not None
    assert facts.find_other_units(OTHERS[name](images), "images", labels) is not None


def test_of_few_images_and_of_any_mixture_of_classes_nothing_is_said(facts, digits):
    images, labels = digits.test.images / 16, digits.test.labels
    for number in (1, 5, 20, 50, 100, 500):
        for start in range(0, 1200, 300):
            assert facts.find_other_units(images[start : start + number], "images") is None
        for label in range(10):
            for other in range(label, 10):
                some = images[(labels == label) | (labels == other)][:number]
                assert facts.find_other_units(some, "images") is None
    assert facts.find_other_units(images, "images", labels) is None
    assert facts.find_other_units(images[:1].expand(600, 8, 8), "images") is None  # many of one image are few


def choose_rows(columns):
    """Names and choices of rows by a column or by the mean of all: the least, the largest, and those that are not 0."""
    for number, column in enumerate([*columns.T, columns.mean(dim=1)]):
        order = column.argsort()
        yield from (
            (number, order[:60]),
            (number, order[-60:]),
            (number, order[-300:]),
            (number, column.nonzero()[:, 0]),
        )


def draw_table(kind):
    """A table and labels; its columns are of all kinds, or many that have a common cause, or many single ones."""
    generator = torch.Generator().manual_seed(0)
    rows, labels = torch.randn(3000, 6, generator=generator), torch.randint(0, 2, (3000,), generator=generator)
    rows[:, 0] += labels
    if kind == "few":
        rows[:, 1], rows[:, 2], rows[:, 3] = (38 + 13 * rows[:, 1]).round(), rows[:, 2].exp(), (rows[:, 3] > 0).float()
        rows[:, 4] = rows[:, 4].mul(2).exp() * (rows[:, 5] > 1.4)  # an amount, which most have not
    if kind == "common cause":
        rows = rows[:, :1] + 0.3 * torch.randn(3000, 100, generator=generator)
    if kind == "single":
        rows = torch.cat([rows, torch.randn(3000, 94, generator=generator)], dim=1)
    return rows, labels


@pytest.mark.parametrize("kind", ["few", "common cause", "single", "pictures"])
def test_of_images_that_were_chosen_by_what_they_hold_nothing_is_said(kind, digits):
    rows, labels = (digits.train.images / 16, digits.train.labels) if kind == "pictures" else draw_table(kind)
    half = len(rows) // 2
    dataset = check_dataset("d", Split(rows[:half], labels[:half]), None)
    facts = DataFacts.of(dataset, dataset.train, "none")
    mixtures = Mixtures.from_mapping(facts.content["mixtures"], dataset.num_features)
    images, own = rows[half:], labels[half:]
    for number, chosen in choose_rows(images.flatten(1)[:, 2::8] if kind == "pictures" else images[:, :6]):
        assert mixtures.find_other(images[chosen], None) is None, number
        assert mixtures.find_other(images[chosen], own[chosen]) is None, number
    assert kind == "few" or mixtures.find_other(-images - 20, None) is not None


def draw_kinds(num_kinds, num_classes, generator):
    """Rows of 256 features and of so many kinds, of which each class has several; the kinds and the labels."""
    kinds = torch.randint(0, num_kinds, (1600,), generator=generator)
    rows = torch.randn(num_kinds, 256, generator=generator)[kinds] + 0.7 * torch.randn(1600, 256, generator=generator)
    return rows, kinds, kinds % num_classes


@pytest.mark.parametrize(("num_kinds", "num_classes"), [(20, 2), (40, 2), (25, 5)])
def test_of_rows_of_one_kind_within_a_class_nothing_is_said_unless_they_are_changed(num_kinds, num_classes):
    rows, kinds, labels = draw_kinds(num_kinds, num_classes, torch.Generator().manual_seed(0))
    trained = Mixtures.of(rows[:1000], labels[:1000])
    mixtures = Mixtures.from_mapping(json.loads(json.dumps(trained.to_mapping())), 256)
    for kind in range(0, num_kinds, 5):
        some, own = rows[kinds == kind].repeat(2, 1), labels[kinds == kind].repeat(2)
        some = some + 0.1 * torch.randn(some.shape, generator=torch.Generator().manual_seed(1))
        for given in (None, own):
            assert mixtures.find_other(some, given) is None
            for change in (shuffle, lambda images: images.flip(1), lambda images: -images):
                assert mixtures.find_other(change(some), given) is not None


def test_of_rows_that_are_whole_as_some_in_training_are_nothing_is_said():
    generator = torch.Generator().manual_seed(0)
    ratings = (torch.rand(900, 120, generator=generator) * 9 + 1).round() / 2
    is_rated = torch.rand(900, 120, generator=generator) < 0.3
    gives_whole = torch.rand(900, generator=generator) < 0.3
    ratings = torch.where(gives_whole[:, None], ratings.ceil(), ratings) * is_rated
    labels = torch.arange(900) % 2
    mixtures = Mixtures.of(ratings[:600], labels[:600])
    assert mixtures.find_other(ratings[600:][gives_whole[600:]]) is None
    mixtures = Mixtures.of(ratings[~gives_whole][:400], labels[:400])
    assert "whole numbers" in mixtures.find_other(ratings[600:][gives_whole[600:]])


def test_a_run_says_so_and_one_without_class_means_still_predicts(digits, tmp_path, facts):
    arrays = {"x_train": (digits.train.images / 16).numpy(), "y_train": digits.train.labels.numpy()}
    data = save(tmp_path / "d.npz", arrays)
    run = ff.train(ff.Config(data=data, layers=1, width=16, epochs=1), tmp_path / "run")
    test = (digits.test.images / 16).numpy()
    assert run.predict(test, first_layer=1).warning is None
    assert "whole numbers" in run.predict(test.astype(np.uint8), first_layer=1).warning
    assert "mixture" in run.predict(shuffle(torch.from_numpy(test)), first_layer=1).warning
    with pytest.warns(UserWarning, match="mixture"):
        ff.load(run.path).predict(shuffle(torch.from_numpy(test)))
    earlier = DataFacts({name: value for name, value in facts.content.items() if name != "mixtures"})
    assert earlier.find_other_units(shuffle(torch.from_numpy(test)), "images") is None
    for name, value in (("features", [64]), ("mean", [0.0]), ("class_labels", []), ("spread", [0.0] * 64)):
        content = facts.content | {"mixtures": facts.content["mixtures"] | {name: value}}
        assert DataFacts(content).find_other_units(torch.from_numpy(test), "images") is None
