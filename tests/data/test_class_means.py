"""Splits whose features, channels or labels mean something else than in training, with the same values all the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ffstream.data import load_dataset
from ffstream.data.class_means import ClassMeans
from ffstream.data.mean_images import MeanImages
from ffstream.data.values import Values, find_other_units
from tests.data.array_files import save
from tests.data.small_splits import colours, find_other_classes, said_of, table


@pytest.mark.parametrize("size", [50, 60, 100, 797])
def test_digits_of_other_writers_are_like_those_of_training(size, digits):
    for start in range(0, len(digits.test) - size + 1, size):
        split = digits.test.take(torch.arange(start, start + size))
        assert find_other_classes(split.images, split.labels, digits.train.images, digits.train.labels) is None


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


@pytest.mark.parametrize("effect", [0.5, 1.0])
@pytest.mark.parametrize("num_people", [6, 20])
def test_other_people_whose_rows_are_in_no_order_are_hardly_ever_other_classes(effect, num_people):
    """All people have rows of all classes, and how the classes differ is a matter of the person too."""
    num_named = 0
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        centres = 0.2 * torch.randn(2, 20, generator=generator)
        splits = []
        for num in (20, num_people):
            labels = torch.arange(50 * num) % 2
            who = torch.arange(num).repeat_interleave(50)[torch.randperm(50 * num, generator=generator)]
            own = effect * torch.randn(num, 1, 20, generator=generator)
            own = own + effect / 2 * torch.randn(num, 2, 20, generator=generator)
            splits.append((centres[labels] + own[who, labels] + torch.randn(50 * num, 20, generator=generator), labels))
        num_named += find_other_classes(*splits[1], *splits[0]) is not None
    assert num_named <= 2  # by chance, as so few people may differ by as much as the classes do


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64, torch.int16, torch.bool])
def test_what_is_found_does_not_depend_on_the_type_of_the_values(dtype, digits):
    train, test = ((split.images > 7).to(dtype) for split in (digits.train, digits.test))
    for images in (test, test.flip(2)):
        found = find_other_classes(images, digits.test.labels, train, digits.train.labels)
        assert found == find_other_classes(images.float(), digits.test.labels, train.float(), digits.train.labels)
        assert (found is None) == (images is test)


@pytest.mark.parametrize("num_features", [1, 3])
def test_splits_with_next_to_nothing_in_them_are_compared_without_a_word(num_features):
    rows = torch.rand(40, num_features, generator=torch.Generator().manual_seed(0))
    constant = torch.ones(40, num_features)
    many, two = torch.arange(40), torch.arange(40) % 2
    gap = torch.where(two == 1, 7, 2)  # of which the classes 0, 1, 3 to 6 are empty
    for images, labels in ((rows, many), (constant, two), (constant, many), (rows, gap), (rows, 250 + two)):
        means = ClassMeans.of(images, labels)
        for of_test in (images, images[:1], images.flip(0)[:12]):
            assert means.find_other(of_test, labels[: len(of_test)]) is None


def test_means_and_errors_are_those_of_all_images_at_once(digits):
    """They are summed part by part; the errors of a class are as large as the means of its parts differ."""
    some = torch.randperm(len(digits.test), generator=torch.Generator().manual_seed(0))[:1000]
    images, labels = digits.test.images[some], digits.test.labels[some]
    features, mean, spread = torch.arange(64), torch.full((64,), 5.0), torch.full((64,), 6.0)
    found = MeanImages.of(images, labels, features, mean, spread)
    for label in range(10):
        own = ((images[labels == label].flatten(1).double() - 5) / 6).clamp(-3, 3)
        torch.testing.assert_close(found.means[label], own.mean(dim=0))
        squared_error = float(found.errors[label].square().sum())
        assert 0.5 < squared_error / float(own.var(dim=0).sum() / len(own)) < 2
    together = MeanImages.of(images.repeat_interleave(8, 0), labels.repeat_interleave(8), features, mean, spread)
    ratio = together.errors.square().sum() / found.errors.square().sum()
    assert 0.8 < float(ratio) < 1.25  # though there are eight times as many images


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
