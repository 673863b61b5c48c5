"""Splits whose columns, channels, axes or classes are in an order that is known: it is named."""

from __future__ import annotations

import math

import pytest
import torch

from ffstream.data import Split
from ffstream.data.arrangements import list_arrangements, thin_out
from ffstream.data.plane import find_plane
from tests.data.small_splits import colours, find_other_classes, said_of, table

IN_ANOTHER_ORDER = {
    "with their columns moved to the right by one": lambda rows: rows.roll(1, 1),
    "with their columns moved to the left by one": lambda rows: rows.roll(-1, 1),
    "with their columns, numbered from 0, sorted as words": lambda rows: rows[:, sorted(range(16), key=str)],
    "with their columns in the opposite order": lambda rows: rows.flip(1),
    "negated": lambda rows: -rows,
}


@pytest.mark.parametrize("name", IN_ANOTHER_ORDER)
def test_a_table_in_another_order_is_named(name):
    train, (rows, labels) = table(600, 0), table(200, 1)
    assert said_of(train, (rows, labels)) is None
    assert f"test images: they look like training images that are {name}" in said_of(
        train, (IN_ANOTHER_ORDER[name](rows), labels)
    )


def test_a_table_in_an_order_that_has_no_name_is_unlike():
    for seed in range(20):
        train, (rows, labels) = table(600, seed, num_classes=4), table(200, seed + 100, num_classes=4)
        order = torch.randperm(16, generator=torch.Generator().manual_seed(seed))
        assert "their classes differ in other features" in find_other_classes(rows[:, order], labels, *train)


def test_classes_that_are_numbered_in_another_way_are_named():
    train, (rows, labels) = table(600, 0, num_classes=4), table(200, 1, num_classes=4)
    assert said_of(train, (rows, labels)) is None
    for moved in (1, 3):
        assert "numbered with class 0 for " in said_of(train, (rows, (labels + moved) % 4))
    order = torch.tensor([1, 2, 0, 3])
    assert "numbered with class 0 for 2, 1 for 0, 2 for 1 (" in said_of(train, (rows, order[labels]))


ARRANGED = {
    "mirrored": lambda images: images.flip(2),
    "upside down": lambda images: images.flip(1),
    "turned by 180 degrees": lambda images: images.flip(1, 2),
    "with their rows as columns": lambda images: images.transpose(1, 2),
}


@pytest.mark.parametrize("name", ARRANGED)
def test_pictures_in_another_arrangement_are_named_with_it(name, digits):
    found = find_other_classes(
        ARRANGED[name](digits.test.images), digits.test.labels, digits.train.images, digits.train.labels
    )
    assert f"they look like training images that are {name} (" in found


@pytest.mark.parametrize("axis", [-1, 1])
def test_pictures_whose_colours_are_the_other_way_round_are_named_so(axis):
    (train, labels), (test, of_test) = (
        (images.movedim(-1, axis), labels) for images, labels in (colours(400, 0), colours(100, 1))
    )
    assert find_other_classes(test, of_test, train, labels) is None
    assert "with their channels in the opposite order" in find_other_classes(test.flip(axis), of_test, train, labels)


ORDERS = {
    "in the opposite order": [2, 1, 0],
    "in the order 0, 2, 1": [0, 2, 1],
    "in the order 1, 0, 2": [1, 0, 2],
    "in the order 1, 2, 0": [1, 2, 0],
    "in the order 2, 0, 1": [2, 0, 1],
}


def tinted(split):
    """Handwritten digits (n, 8, 8, 3), each in the colour of its class, which is hardly one."""
    tints = 1 + 0.2 * torch.rand(10, 3, generator=torch.Generator().manual_seed(0))
    return split.images.unsqueeze(-1) * tints[split.labels][:, None, None]


@pytest.mark.parametrize("said", ORDERS)
@pytest.mark.parametrize("axis", [-1, 1])
def test_each_order_of_the_channels_has_its_name(said, axis, digits):
    train, test = (tinted(split) for split in (digits.train, digits.test.take(torch.arange(300))))
    labels = digits.test.labels[:300]
    images, trained = (each.movedim(-1, axis) for each in (test[..., ORDERS[said]], train))
    assert find_other_classes(test.movedim(-1, axis), labels, trained, digits.train.labels) is None
    found = find_other_classes(images, labels, trained, digits.train.labels)
    assert f"with their channels {said} (" in found


def test_any_two_classes_that_are_numbered_the_other_way_round_are_named(digits):
    for one in range(10):
        for other in range(one):
            numbers = torch.arange(10)
            numbers[[one, other]] = torch.tensor([other, one])
            found = find_other_classes(
                digits.test.images, numbers[digits.test.labels], digits.train.images, digits.train.labels
            )
            assert f"numbered with classes {other} and {one} the other way round (" in found


@pytest.mark.parametrize("shape", [(90, 90), (80, 120), (3, 70, 71), (71, 71, 3), (1, 99, 99), (3, 5000), (5000,)])
def test_of_large_pictures_the_same_features_are_looked_at_in_any_order(shape):
    features, thinned = thin_out(shape, 4096)
    assert len(features) == math.prod(thinned) <= 4300
    assert len(features.unique()) == len(features)
    assert find_plane(thinned) is not None if find_plane(shape) else len(thinned) == 1
    in_order = dict(list_arrangements(shape))
    for name, order in list_arrangements(thinned):
        if "moved" not in name and "sorted" not in name:
            assert torch.equal(features[order], in_order[name][features])


@pytest.mark.parametrize("name", ARRANGED)
def test_large_pictures_in_another_arrangement_are_named_too(name, digits):
    train, test = (
        Split(split.images[:600].repeat_interleave(9, 1).repeat_interleave(9, 2), split.labels[:600])
        for split in (digits.train, digits.test)
    )
    assert find_other_classes(test.images, test.labels, train.images, train.labels) is None
    found = find_other_classes(ARRANGED[name](test.images), test.labels, train.images, train.labels)
    assert f"they look like training images that are {name} (" in found
