"""Images of which some are in other units than the rest, and few images that are not."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import ffstream as ff
from ffstream.data import Split
from ffstream.data.dataset import check_dataset
from ffstream.data.facts import DataFacts
from ffstream.data.features import find_mixed
from tests.data.array_files import save

SPARSE = {
    "with a border": lambda images: torch.nn.functional.pad(images, (10, 10, 10, 10)),
    "thin": lambda images: torch.where(images > 10, images, 0.0),
    "of any size": lambda images: torch.where(images > 4, images, 0.0),
    "dense": lambda images: images + 4,
}


@pytest.mark.parametrize("name", SPARSE)
def test_pictures_in_two_units_are_named_however_few_of_their_pixels_are_set(name, digits):
    images = SPARSE[name](digits.train.images[:600].float())
    assert find_mixed(images) is None
    for share in (0.05, 0.3, 0.5, 0.7, 0.95):
        is_other = torch.rand(600, generator=torch.Generator().manual_seed(0)) < share
        mixed = torch.where(is_other[:, None, None], images / 255, images)
        assert f"{min(int(is_other.sum()), int((~is_other).sum()))} of 600" in find_mixed(mixed)


def test_rows_with_few_amounts_that_are_not_zero_are_in_one_unit():
    generator = torch.Generator().manual_seed(0)
    for share in (0.02, 0.1, 0.3):
        for num_rows in (60, 200, 900):
            amounts = (2.5 * torch.randn(num_rows, 12, generator=generator)).exp()
            assert find_mixed(torch.where(torch.rand(num_rows, 12, generator=generator) < share, amounts, 0.0)) is None


@pytest.mark.parametrize("standardise", ["features", "none"])
def test_a_part_of_the_images_in_other_units_is_named_where_it_matters(standardise, digits, tmp_path):
    images, labels = digits.train.images.float().numpy() * 10, digits.train.labels.numpy()
    mixed, test = images.copy(), digits.test.images.float().numpy() * 10
    mixed[::3] /= 255
    test[5::3] /= 255
    said, observer = [], ff.Observer()
    observer.on_warning = said.append
    config = ff.Config(layers=1, width=16, epochs=1, standardise=standardise)
    for name, each in (("clean", images), ("mixed", mixed)):
        data = save(tmp_path / f"{name}.npz", {"x_train": each, "y_train": labels})
        run = ff.train(dataclasses.replace(config, data=data), tmp_path / name, observer=observer)
        if name == "clean":
            assert said == []
            assert (run.predict(test).warning is None) == (standardise == "none")
            assert standardise == "none" or "image 5, all values are" in run.predict(test).warning
    assert (said == []) == (standardise == "none")
    assert standardise == "none" or "1275 of 3823, such as image 0, all values are" in said[0]


def test_a_few_pictures_of_any_brightness_and_contrast_are_in_the_units_of_training(digits):
    """With one mean and spread for all pixels, those of a picture are many, and alike."""
    generator = torch.Generator().manual_seed(0)
    contrast = 0.1 + 0.9 * torch.rand(1200, 1, 1, generator=generator)
    pictures = digits.train.images[:1200].float() * 16 * contrast
    pictures = (pictures + (255 - 256 * contrast) * torch.rand(1200, 1, 1, generator=generator)).clamp(min=0).round()
    train = Split(pictures[:800], digits.train.labels[:800])
    facts = DataFacts.of(check_dataset("t", train, None), train, "channels")
    new = pictures[800:]
    in_order = new[new.flatten(1).mean(dim=1).argsort()]
    parts = [*new[:200].split(1), *new.split(12), new, in_order[:60], in_order[-60:], in_order[:20], in_order[-20:]]
    for some in parts:
        assert facts.find_other_units(some, "images") is None
    for some in (new[:1], new[:12], new[:60]):
        for other in (some / 255, some * 100, -some, some + 1000):
            assert facts.find_other_units(other, "images") is not None
    earlier = {name: value for name, value in facts.content.items() if name != "standardised_images"}
    assert DataFacts(earlier).find_other_units(new[:1], "images") is None
    assert DataFacts(earlier).find_other_units(new[:1] / 255, "images") is not None
