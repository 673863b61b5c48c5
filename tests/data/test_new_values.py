"""Numbers that stand for missing values in held-out rows alone."""

from __future__ import annotations

import pytest
import torch

import ffstream as ff
from ffstream.data import Split
from ffstream.data.dataset import check_dataset
from ffstream.data.new_values import TrainedValues, find_new
from tests.data.array_files import save

CODES = (-1.0, 0.0, 99.0, -9999.0)


def pixels(digits):
    """Rows of the digits' pixels that vary, from 1 to 17 as whole numbers, and their labels."""
    rows = digits.train.images[:900].flatten(1).float()
    return rows[:, rows.std(dim=0) > 4] + 1, digits.train.labels[:900]


def with_code(rows, code, share=0.15, features=slice(None)):
    rows = rows.clone()
    own = rows[:, features]
    is_missing = torch.rand(own.shape, generator=torch.Generator().manual_seed(0)) < share
    rows[:, features] = torch.where(is_missing, torch.tensor(code), own)
    return rows


@pytest.mark.parametrize("code", CODES)
def test_a_code_in_held_out_rows_alone_is_named_and_one_in_training_too_is_not(code, digits):
    rows, _ = pixels(digits)
    train, test = rows[:600], rows[600:]
    facts = TrainedValues.from_mapping(TrainedValues.of(train).to_mapping(), rows.shape[1])
    assert find_new(test, train) is None
    assert facts.find_new(test) is None
    missing = with_code(test, code)
    for said in (find_new(missing, train), facts.find_new(missing)):
        assert f"the value {code:g} occurs {int((missing == code).sum()):,} times, in {rows.shape[1]} features" in said
    both = with_code(train, code, 0.02)
    assert find_new(missing, both) is None
    assert TrainedValues.of(both).find_new(missing) is None


def test_a_code_that_is_far_or_the_only_negative_number_is_named_in_a_single_feature(digits):
    rows, _ = pixels(digits)
    for code, is_named in ((-1.0, True), (99.0, True), (0.0, False), (18.0, False)):
        said = find_new(with_code(rows[600:], code, features=[3]), rows[:600])
        assert (said is not None and "in feature 3," in said) == is_named


def test_other_people_a_later_time_and_other_rounding_bring_no_codes():
    generator = torch.Generator().manual_seed(0)
    answers = torch.randint(0, 11, (30, 12), generator=generator).float()
    rows = torch.cat([answers, torch.randn(30, 4, generator=generator)], dim=1).repeat_interleave(40, dim=0)
    train, test = rows[:960], rows[960:]
    for some in (test, test[torch.randperm(len(test), generator=generator)]):
        assert find_new(some, train) is None
        assert TrainedValues.of(train).find_new(some) is None
    days = torch.arange(1200.0)
    times = torch.stack([days // 30, days // 100, 2000 + days // 365, (days // 30) % 12], dim=1)
    assert find_new(times[900:], times[:900]) is None
    assert find_new(times[900:][torch.randperm(300, generator=generator)], times[:900]) is None
    prices = (torch.randn(900, 6, generator=generator).exp() * 100).round() / 100
    assert find_new(prices[600:].bfloat16().float(), prices[:600]) is None
    standardised = torch.randn(900, 6, generator=generator)
    assert find_new(with_code(standardised[600:], 0.0), standardised[:600]) is None  # the mean of the others


def test_train_evaluate_and_predict_name_a_code_of_held_out_rows(digits, tmp_path):
    rows, labels = pixels(digits)
    train, test = Split(rows[:600], labels[:600]), Split(rows[600:], labels[600:])
    assert check_dataset("t", train, test).warning is None
    missing = with_code(test.images, 0.0)
    arrays = {"train.images": train.images, "train.labels": train.labels, "test.labels": test.labels}
    data = save(tmp_path / "d.npz", {name: each.numpy() for name, each in (arrays | {"test.images": missing}).items()})
    said, observer = [], ff.Observer()
    observer.on_warning = said.append
    run = ff.train(ff.Config(data=data, layers=1, width=16, epochs=1), tmp_path / "run", observer=observer)
    for warning in (said[0], run.evaluate().warning, run.predict(missing).warning):
        assert "the value 0 occurs" in warning
    assert run.predict(test.images).warning is None
