"""Values that are rare and far in clean data, such as amounts that are mostly zero: no sign of other units."""

from __future__ import annotations

import pytest
import torch

from ffstream.data import Split
from ffstream.data.dataset import check_dataset
from ffstream.data.facts import DataFacts


def amounts(share, width, shape, generator):
    gains = (8 + width * torch.randn(shape, generator=generator)).exp().round()
    return torch.where(torch.rand(shape, generator=generator) < share, gains, 0.0)


COLUMNS = {
    **{
        f"amounts in {share:.1%}": lambda shape, generator, share=share: amounts(share, 0.5, shape, generator)
        for share in (0.005, 0.02, 0.05, 0.08, 0.12, 0.3)
    },
    "amounts of all sizes": lambda shape, generator: amounts(0.05, 1.5, shape, generator),
    "the same amount": lambda shape, generator: 3000.0 * (torch.rand(shape, generator=generator) < 0.05),
    "rare refunds": lambda shape, generator: 1 - 500.0 * (torch.rand(shape, generator=generator) < 0.002),
    "Pareto": lambda shape, generator: torch.rand(shape, generator=generator).pow(-1.0),
    "Cauchy": lambda shape, generator: torch.empty(shape).cauchy_(generator=generator),
    "lognormal": lambda shape, generator: (3 * torch.randn(shape, generator=generator)).exp(),
}


def table(name, seed, num_rows=3000, num_test=1000):
    """Columns of about one size, of which one is of the kind that is named, and two others of heavy tails."""
    generator = torch.Generator().manual_seed(seed)
    shape, labels = (num_rows + num_test,), torch.randint(0, 3, (num_rows + num_test,), generator=generator)
    rows = torch.randn(*shape, 13, generator=generator) + torch.randn(3, 13, generator=generator)[labels]
    rows[:, 3] = COLUMNS[name](shape, generator)
    return Split(rows[:num_rows], labels[:num_rows]), Split(rows[num_rows:], labels[num_rows:])


@pytest.mark.parametrize("name", COLUMNS)
def test_of_columns_with_rare_far_values_nothing_is_said_in_any_split(name):
    for seed in range(5):
        train, test = table(name, seed)
        dataset = check_dataset("t", train, test)
        assert dataset.warning is None
        for standardise in ("none", "features"):
            facts = DataFacts.of(dataset, train, standardise)
            assert facts.find_other_units(test.images, "test images", test.labels) is None
            for images in (train.images, test.images, test.images[:60], test.images[test.labels == 1]):
                assert facts.find_other_units(images, "images") is None


@pytest.mark.parametrize("name", COLUMNS)
def test_the_same_columns_in_other_units_are_named(name):
    train, test = table(name, 0)
    for images in (test.images / 100, test.images * 1000, test.images + 1e6):
        assert check_dataset("t", train, Split(images, test.labels)).warning is not None


def test_a_split_that_is_the_training_split_is_never_in_other_units(digits):
    """Whatever the images look like: each check compares like with like."""
    generator = torch.Generator().manual_seed(0)
    images = digits.train.images[:600].float()
    sets = [table(name, 1, 600, 1)[0] for name in COLUMNS]
    sets += [Split(images * scale + shift, digits.train.labels[:600]) for scale, shift in ((1, 0), (-1, 16), (1, -100))]
    for split in sets:
        for number in (20, 60, 600):
            index = torch.randperm(600, generator=generator)[:number]
            part = Split(split.images[index], torch.arange(number) % 2)
            dataset = check_dataset("t", part, Split(part.images.clone(), part.labels))
            assert "units" not in dataset.warning  # that all images are in training is said
            assert "do not look" not in dataset.warning
            for standardise in ("none", "features"):
                facts = DataFacts.of(dataset, part, standardise)
                assert facts.find_other_units(part.images, "images", part.labels) is None
                assert facts.find_other_units(part.images, "images") is None
