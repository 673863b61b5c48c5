"""Images that are read part by part: the same as in memory, and never more than a part at once."""

from __future__ import annotations

import pytest
import torch

import ffstream as ff
from ffstream.data import Dataset, Split
from ffstream.data.image_access import ChosenImages, ReadImages
from ffstream.data.scan import SCANNED_VALUES
from tests.helpers import SMALL, layer_digests

INDICES = [3, -1, slice(None), slice(5, 9), slice(2, 40, 7), slice(50, 60), torch.tensor([7, 7, 0, 19])]


class CountedImages(ReadImages):
    """Images in memory that note how many values were asked for at once."""

    def __init__(self, images):
        super().__init__(images.shape, images.dtype)
        self.images, self.most = images, 0

    def read(self, numbers):
        found = self.images[numbers]
        self.most = max(self.most, found.numel())
        return found


@pytest.mark.parametrize("index", INDICES, ids=str)
def test_reading_some_is_reading_all_and_taking_some(index):
    images = torch.arange(40 * 6).view(40, 2, 3)
    assert torch.equal(CountedImages(images)[index], images[index])
    numbers = torch.randperm(40)[:30]
    chosen = ChosenImages(ChosenImages(images, numbers), torch.arange(20).flip(0))
    expected = images[numbers][:20].flip(0)
    assert torch.equal(chosen[index] if index != slice(50, 60) else chosen[20:], expected[index])
    assert torch.equal(chosen[expected[:, 0, 0] > 99], expected[expected[:, 0, 0] > 99])
    assert chosen.images is images


@pytest.mark.parametrize("kind", ["bytes", "floats", "table"])
@pytest.mark.parametrize("standardise", ["none", "features"])
def test_a_run_reads_images_part_by_part_and_learns_the_same(kind, standardise, digits, tmp_path):
    """Of 2.2 million values, of which no more than half are asked for at once."""
    images, labels = digits.train.images, digits.train.labels
    images = images.repeat_interleave(3, dim=-1).repeat_interleave(3, dim=1)
    images = {"bytes": images, "floats": images.float() / 3, "table": images.flatten(1).float()}[kind]
    config = ff.Config().override(SMALL | {"standardise": standardise, "layers": 2, "epochs": 1, "width": 10})
    counted = CountedImages(images)
    dataset = Dataset("read", Split(counted, labels), Split(counted, labels), digits.class_names)
    ff.train(config, tmp_path / "read", data=dataset)
    ff.train(config, tmp_path / "held", data=(images, labels))
    assert layer_digests(tmp_path / "read") == layer_digests(tmp_path / "held")
    assert 0 < counted.most <= SCANNED_VALUES < images.numel()
