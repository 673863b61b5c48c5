"""Splits whose features, channels or labels mean something else than in training, with the same values all the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ffstream.data import Split, load_dataset
from ffstream.data.class_means import ClassMeans
from ffstream.data.dataset import check_dataset
from ffstream.data.values import Values, find_other_units
from tests.data.array_files import save


def table(num_rows, seed, num_features=16, gap=1.0, num_classes=2):
    """Rows of standard deviation 1 in all features, of which some tell the classes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, num_classes, (num_rows,), generator=generator)
    centres = torch.randn(num_classes, num_features, generator=torch.Generator().manual_seed(11)) * gap
    rows = torch.randn(num_rows, num_features, generator=generator) + centres[labels]
    return rows / (1 + gap**2) ** 0.5, labels


def colours(num_images, seed):
    """Images of bytes (n, 6, 6, 3), of which one class is reddish and the other bluish."""
    generator = np.random.default_rng(seed)
    labels = np.arange(num_images) % 2
    images = generator.normal(110, 20, (num_images, 6, 6, 3))
    images[labels == 0, ..., 0] += 60
    images[labels == 1, ..., 2] += 60
    return torch.from_numpy(images.clip(0, 255).astype(np.uint8)), torch.from_numpy(labels)


def find_other_classes(images, labels, trained, trained_labels):
    return ClassMeans.of(trained, trained_labels).find_other(images, labels)


def said_of(train, test):
    return check_dataset("mine", Split(*train), Split(*test)).warning


IN_ANOTHER_ORDER = {
    "columns rolled": lambda rows: rows.roll(1, 1),
    "columns sorted by name": lambda rows: rows[:, sorted(range(16), key=str)],
    "negated": lambda rows: -rows,
}


@pytest.mark.parametrize("name", IN_ANOTHER_ORDER)
def test_a_table_in_another_order_is_named(name):
    train, (rows, labels) = table(600, 0), table(200, 1)
    assert said_of(train, (rows, labels)) is None
    assert "test images: their classes differ in other features" in said_of(
        train, (IN_ANOTHER_ORDER[name](rows), labels)
    )


def test_classes_that_are_numbered_in_another_way_are_named():
    train, (rows, labels) = table(600, 0, num_classes=4), table(200, 1, num_classes=4)
    assert said_of(train, (rows, labels)) is None
    assert "their classes differ in other features" in said_of(train, (rows, (labels + 1) % 4))


@pytest.mark.parametrize("size", [50, 100, 797])
def test_digits_of_other_writers_are_like_those_of_training(size, digits):
    for start in range(0, len(digits.test) - size + 1, size):
        split = digits.test.take(torch.arange(start, start + size))
        assert find_other_classes(split.images, split.labels, digits.train.images, digits.train.labels) is None


@pytest.mark.parametrize("axes", [(1,), (2,), (1, 2)])
def test_mirrored_digits_are_named(axes, digits):
    images, labels = digits.test.images.flip(axes), digits.test.labels
    assert find_other_classes(images, labels, digits.train.images, digits.train.labels) is not None


@pytest.mark.parametrize("axis", [-1, 1])
def test_channels_in_another_order_are_named(axis):
    (train, labels), (test, of_test) = (
        (images.movedim(-1, axis), own) for images, own in (colours(200, 0), colours(80, 1))
    )
    assert said_of((train, labels), (test, of_test)) is None
    assert "channels" in said_of((train, labels), (test.flip(axis), of_test))


def test_labels_that_say_nothing_of_the_images_are_no_reason_to_speak():
    for seed in range(20):
        train, test = (table(num, seed + num, gap=0.0) for num in (600, 120))
        assert find_other_classes(*test, *train) is None


@pytest.mark.parametrize("gap", [0.05, 0.2, 0.5, 3.0])
def test_splits_of_one_kind_are_alike_however_clear_their_classes_are(gap):
    for seed in range(20):
        train, test = (table(num, 1000 * seed + num, gap=gap, num_classes=3) for num in (400, 90))
        assert find_other_classes(*test, *train) is None


def test_a_class_with_few_images_is_not_compared():
    rows, labels = table(400, 0)
    few = torch.cat([(labels == 0).nonzero().flatten()[:50], (labels == 1).nonzero().flatten()[:4]])
    assert find_other_classes(-rows[few], labels[few], rows, labels) is None


# --- units of a split whose labels are known


def levels(num_images, seed, shares=(0.5, 0.5)):
    """Images of bytes: one class is dark, the other bright."""
    generator = np.random.default_rng(seed)
    labels = generator.choice(len(shares), num_images, p=shares)
    images = np.linspace(40, 220, len(shares))[labels][:, None, None] + generator.normal(0, 15, (num_images, 8, 8))
    return torch.from_numpy(images.clip(0, 255).astype(np.uint8)), torch.from_numpy(labels)


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.96, 0.04), (0.02, 0.98)])
@pytest.mark.parametrize("of_test", [(0.5, 0.5), (0.96, 0.04), (0.02, 0.98)])
def test_a_split_may_have_other_shares_of_the_classes(shares, of_test):
    assert said_of(levels(1000, 0, shares), levels(200, 1, of_test)) is None


@pytest.mark.parametrize("change", [lambda x: x // 4, lambda x: x // 3, lambda x: 255 - x, lambda x: x.float() / 255])
@pytest.mark.parametrize("num_classes", [2, 10])
def test_of_images_whose_labels_are_known_being_like_some_class_is_not_enough(change, num_classes):
    train, (images, labels) = (levels(n, s, (1 / num_classes,) * num_classes) for n, s in ((1000, 0), (400, 1)))
    assert said_of(train, (images, labels)) is None
    assert "test images: the" in said_of(train, (change(images), labels))


def test_what_is_expected_of_labels_is_kept_in_a_run():
    images, labels = levels(1000, 0, (0.7, 0.2, 0.1))
    values = Values.from_mapping(Values.of(images, labels).to_mapping())
    for label in range(3):
        own = images[labels == label]
        expected = values.expected_of(labels[labels == label])
        assert expected.mean == pytest.approx(float(own.double().mean()), abs=1e-6)
        assert find_other_units(Values.of(own[:60]), expected) is None
    assert values.expected_of(torch.tensor([3, 4, 5])) == values  # of which nothing is known


# --- the order of the images, and classes that differ


def test_images_that_are_sorted_by_class_are_described_as_shuffled_ones_are():
    labels = torch.arange(8000) % 2
    rows = torch.randn(8000, 16, generator=torch.Generator().manual_seed(0)) * 2 + 10 + 6 * labels.unsqueeze(1)
    values = Values.of(rows, labels)
    assert values.class_labels == (0, 1)
    assert [mean for mean, _ in values.classes] == [pytest.approx(10, abs=0.1), pytest.approx(16, abs=0.1)]
    for label in (0, 1):
        assert find_other_units(Values.of(rows[labels == label][:100]), values) is None


def test_a_class_that_is_always_grey_may_be_asked_about(tmp_path):
    images, labels = colours(200, 0)
    images[labels == 1] = images[labels == 1].float().mean(dim=-1, keepdim=True).to(torch.uint8)
    values = Values.of(images, labels)
    assert (values.coloured, values.least_coloured) == (0.5, 0.0)
    assert find_other_units(Values.of(images[labels == 1][:10]), values) is None


def test_of_more_than_a_hundred_classes_each_may_be_asked_about():
    labels = torch.arange(6000) % 150
    rows = labels.unsqueeze(1).float() + torch.rand(6000, 8, generator=torch.Generator().manual_seed(0))
    values = Values.of(rows, labels)
    for label in (0, 100, 120, 149):
        assert find_other_units(Values.of(rows[labels == label].repeat(2, 1)[:60]), values) is None


@pytest.mark.parametrize("of_train", ["as they are", "each channel in its own units"])
def test_grey_images_are_known_in_units_by_channel(of_train, tmp_path):
    mean, spread = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    change = (lambda x: x) if of_train == "as they are" else (lambda x: (x - mean) / spread)
    (train, labels), (test, of_test) = ((images / 255, own) for images, own in (colours(200, 0), colours(80, 1)))
    grey = test.mean(dim=-1, keepdim=True).expand_as(test)
    arrays = {"x_train": change(train).numpy(), "y_train": labels.numpy(), "y_test": of_test.numpy()}
    assert load_dataset(save(tmp_path / "a.npz", arrays | {"x_test": change(test).numpy()})).warning is None
    said = load_dataset(save(tmp_path / "b.npz", arrays | {"x_test": change(grey).numpy()})).warning
    assert ("do not look like" if of_train == "as they are" else "all are grey, and 100 % of") in said


# --- values that are rare and far


def orders(num_rows, generator):
    """Quantities, of which a hundredth are bulk orders, beside other columns."""
    rows = generator.normal(50, 10, (num_rows, 5))
    rows[:, 0] = generator.integers(1, 11, num_rows)
    bulk = generator.random(num_rows) < 0.01
    rows[bulk, 0] = generator.integers(200, 2000, bulk.sum())
    rows[:, 1] = generator.lognormal(0, 2, num_rows)
    return torch.from_numpy(rows).float(), torch.from_numpy((rows[:, 2] > 50).astype(np.int64))


def test_features_with_rare_far_values_differ_between_splits_of_one_kind():
    said = [
        said_of(orders(600, generator), orders(100, generator)) for generator in map(np.random.default_rng, range(40))
    ]
    assert sum(each is not None for each in said) <= 2


@pytest.mark.parametrize("change", [lambda x: 10 * x, lambda x: x / 50, lambda x: x + 100])
def test_such_a_feature_in_other_units_is_named_all_the_same(change):
    train, (rows, labels) = orders(600, np.random.default_rng(3)), orders(100, np.random.default_rng(4))
    rows[:, 0] = change(rows[:, 0])
    assert said_of(train, (rows, labels)) is not None


def test_a_single_row_is_compared_with_rows_and_not_with_the_largest_value_of_all():
    rows, labels = orders(600, np.random.default_rng(3))
    values = Values.of(rows, labels)
    others, _ = orders(300, np.random.default_rng(4))
    assert sum(find_other_units(Values.of(row.unsqueeze(0)), values) is not None for row in others) <= 3
    assert find_other_units(Values.of(others[:1] / 255), values) is not None


def test_pixels_that_are_nearly_always_dark_do_not_outweigh_the_others(digits):
    """In border pixels of handwritten digits, one training image in a hundred has ink."""
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        images = torch.zeros(1200, 12, 12, dtype=torch.uint8)
        images[:, 2:10, 2:10] = digits.train.images[:1200] * 15
        rare = torch.rand(images.shape, generator=generator) < 0.0015
        images[rare] = 255
        order = torch.randperm(1200, generator=generator)
        train, test = order[:1000], order[1000:]
        labels = digits.train.labels[:1200]
        assert find_other_classes(images[test], labels[test], images[train], labels[train]) is None


@pytest.mark.parametrize("share", [0.01, 0.05, 0.3])
@pytest.mark.parametrize("spread", [3.0, 8.0])
def test_a_rare_class_that_differs_by_its_spread_alone_is_no_other_class(share, spread):
    """As frauds among payments: the means of the classes say nothing, and that of few wide rows lies anywhere."""
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        (rows, labels), (others, of_others) = (
            (rows * torch.where(is_rare, spread, 1.0).unsqueeze(1), is_rare.long())
            for rows, is_rare in (
                (torch.randn(n, 10, generator=generator), torch.rand(n, generator=generator) < share)
                for n in (2000, 600)
            )
        )
        assert find_other_classes(others, of_others, rows, labels) is None


@pytest.mark.parametrize("effect", [0.5, 1.0])
def test_other_people_than_those_of_training_are_no_other_classes(effect):
    """The rows of a person follow each other, and people differ about as much as the classes do."""
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        centres = 0.2 * torch.randn(2, 20, generator=generator)
        labels = torch.arange(20).repeat_interleave(50) % 2
        splits = [
            centres[labels]
            + effect * torch.randn(20, 20, generator=generator).repeat_interleave(50, dim=0)
            + torch.randn(1000, 20, generator=generator)
            for _ in range(2)
        ]
        assert find_other_classes(splits[1], labels, splits[0], labels) is None


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


def test_two_classes_that_are_numbered_the_other_way_round_are_named(digits):
    numbers = torch.arange(10)
    numbers[[6, 9]] = torch.tensor([9, 6])
    found = find_other_classes(
        digits.test.images, numbers[digits.test.labels], digits.train.images, digits.train.labels
    )
    assert "class 6 look like training images of class 9, and the other way round" in found


def test_tables_of_few_columns_and_classes_that_are_alike_are_what_they_are():
    """In one column, chance may turn two means around; so it may where two classes have the same mean."""
    for seed in range(100):
        generator = torch.Generator().manual_seed(seed)
        num_classes, num_columns = 2 + seed % 5, (1, 2, 3, 10)[seed % 4]
        centres = torch.randn(num_classes, num_columns, generator=generator)
        centres[1] = centres[0] if num_classes > 2 else centres[1]
        (rows, labels), (others, of_others) = (
            (centres[labels] + torch.randn(n, num_columns, generator=generator), labels)
            for n in (300, 100)
            for labels in (torch.randint(0, num_classes, (n,), generator=generator),)
        )
        assert find_other_classes(others, of_others, rows, labels) is None
