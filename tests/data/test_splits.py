"""Splits of a data set: validation images are taken from training, and each class has images where it needs them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ffstream as ff
from ffstream.data import Dataset, Split, load_dataset, split_validation
from tests.data.array_files import arrays, save


def test_validation_is_disjoint_covers_all_and_follows_the_seed(digits):
    train, validation = split_validation(digits, 0.1, seed=0)
    assert (len(train), len(validation)) == (3441, 382)
    together = torch.cat([train.images[:], validation.images[:]]).flatten(1)
    rows = sorted(map(bytes, together.numpy()))
    assert rows == sorted(map(bytes, digits.train.images[:].flatten(1).numpy()))
    assert torch.equal(train.labels, split_validation(digits, 0.1, seed=0)[0].labels)
    assert not torch.equal(train.labels, split_validation(digits, 0.1, seed=1)[0].labels)


def test_no_validation_trains_without_one_and_a_part_left_empty_is_refused(tmp_path, small_config):
    run = ff.train(small_config(validation_fraction=0.0), tmp_path / "run")
    assert run.layers[-1].validation_error is None
    assert run.evaluate().num_samples == 100
    tiny = Dataset("tiny", Split(torch.zeros(4, 2), torch.tensor([0, 1, 0, 1])), None, ("a", "b"))
    with pytest.raises(ff.DataError, match="leaves one part empty"):
        split_validation(tiny, 0.01, 0)


@settings(max_examples=50, deadline=None)
@given(num_samples=st.integers(1, 200), fraction=st.floats(0, 0.999), seed=st.integers(0, 99))
def test_any_fraction_covers_all_once_or_is_refused(num_samples, fraction, seed):
    numbers = torch.arange(num_samples)
    dataset = Dataset("d", Split(numbers.float().unsqueeze(1), numbers), None, ("a", "b"))
    try:
        train, validation = split_validation(dataset, fraction, seed)
    except ff.DataError:
        assert fraction > 0
        assert round(num_samples * fraction) in (0, num_samples)
        return
    assert sorted([*train.labels.tolist(), *validation.labels.tolist()]) == numbers.tolist()
    assert len(validation) == round(num_samples * fraction)
    for part in (train, validation):  # each image keeps its label
        assert torch.equal(part.images[:][:, 0], part.labels.float())


def test_a_class_without_a_training_image_is_refused_before_anything_is_written(tmp_path):
    gap = save(tmp_path / "gap.npz", arrays(**{"train.labels": np.arange(30) % 3 * 2}))
    config = ff.Config(data=gap, layers=1, width=8, epochs=1).override({"negatives.per_step": 1})
    with pytest.raises(ff.DataError, match=r"found no training image of class '1' \(label 1\) and 1 more, allowed one"):
        ff.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_class_that_the_validation_split_takes_away_is_refused(tmp_path):
    labels = {"train.labels": np.arange(30) // 29, "test.labels": np.zeros(6, int)}
    rare = save(tmp_path / "rare.npz", arrays(**labels))
    config = ff.Config(data=rare, layers=1, width=8, epochs=1, validation_fraction=0.9)
    config = config.override({"negatives.per_step": 1})
    dataset = load_dataset(rare)
    kept = [1 in split_validation(dataset, 0.9, seed)[0].labels for seed in range(20)]
    seed = kept.index(False)
    with pytest.raises(ff.DataError, match=r"class '1' \(label 1\), allowed one .*lower validation_fraction"):
        ff.make_plan(dataclasses.replace(config, seed=seed), tmp_path / "run")


def test_a_class_without_a_test_image_is_a_row_of_zeros(tmp_path):
    data = save(tmp_path / "data.npz", arrays(**{"test.labels": np.array([0, 0, 0, 2, 2, 2])}))
    config = ff.Config(data=data, layers=1, width=8, epochs=1).override({"negatives.per_step": 1})
    found = ff.train(config, tmp_path / "run").evaluate()
    assert [sum(row) for row in found.confusion] == [3, 0, 3]


def test_a_test_split_that_is_the_training_split_is_said(digits):
    assert "3823 of 3823 are training images" in dataclasses.replace(digits, test=digits.train).warning
