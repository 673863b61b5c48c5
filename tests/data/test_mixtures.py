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
