"""A network that tells nothing apart is named, by train and by evaluate; one that has learnt something never is."""

from __future__ import annotations

import re
import warnings

import numpy as np
import pytest
import torch

import ffstream as ff
from ffstream.infer.chance import count_confusion, find_chance, find_chance_of, ranks_classes
from tests.helpers import InterruptAt

NAMES = tuple(f"class {number}" for number in range(200))
SAID = r"error of .* is no better than chance: .*; see whether the labels belong"


def guess(shares, num, share_right, seed):
    """What is said of labels drawn by `shares`, and of predictions that know so many of them and guess the others."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda: torch.multinomial(torch.tensor(shares), num, replacement=True, generator=generator)  # noqa: E731
    labels, guesses = draw(), draw()
    predicted = torch.where(torch.rand(num, generator=generator) < share_right, labels, guesses)
    return find_chance(count_confusion(predicted, labels, len(shares)), NAMES, "test")


@pytest.mark.parametrize("shares", [[0.1] * 10, [0.5, 0.5], [0.6, 0.3, 0.1]])
def test_guessing_is_named_where_there_are_images_enough_and_knowing_half_never(shares):
    assert sum(guess(shares, 600, 0.0, seed) is not None for seed in range(50)) >= 46  # a guess in 100 looks better
    assert not any(guess(shares, num, 0.5, seed) for seed in range(50) for num in (10, 50, 600))
    assert not any(guess(shares, 19, 0.0, seed) for seed in range(50))  # which so few images cannot show


def test_a_class_that_is_guessed_for_all_images_or_all_but_a_few_is_named_if_there_are_others():
    for num_others, is_said in ((0, False), (5, False), (40, True)):
        said = find_chance([[4000, 0], [num_others, 0]], NAMES, "test")
        assert (said is not None) == is_said
    assert "all 4,040 images are taken for class 'class 0', to which 4,000 of them belong;" in said
    assert find_chance([[949, 1], [50, 0]], NAMES, "test") is not None
    assert find_chance([[949, 1], [49, 1]], NAMES, "test") is None  # which may have learnt a little


LEARNT = {
    "good, and 2 % of a class": [[1860, 100], [4, 36]],
    "good, and 5 % of a class": [[900, 50], [5, 45]],
    "hard, and 20 % of a class": [[780, 20], [160, 40]],
    "hard, and three classes": [[590, 10, 0], [180, 20, 0], [170, 0, 30]],
    "hard, and two that are confused": [[840, 30, 30], [210, 48, 42], [210, 42, 48]],
}


@pytest.mark.parametrize("name", LEARNT)
def test_a_network_that_tells_classes_apart_is_not_named_even_if_guessing_one_class_errs_less(name):
    assert find_chance(LEARNT[name], NAMES, "test") is None
    counts = torch.tensor(LEARNT[name])
    by_chance = counts.sum(dim=1, keepdim=True) * counts.sum(dim=0) / counts.sum()  # with the same margins
    assert find_chance(by_chance.round().long().tolist(), NAMES, "test") is not None


@pytest.mark.parametrize("num_classes", [50, 100, 200])
def test_of_many_classes_a_network_that_is_right_in_ten_of_a_hundred_is_never_named(num_classes):
    shares = [1 / num_classes] * num_classes
    assert not any(guess(shares, num, 0.1, seed) for seed in range(50) for num in (30, 60, 100, 300, 1000))
    assert sum(guess(shares, 1000, 0.0, seed) is not None for seed in range(50)) >= 46


def test_predictions_that_are_always_wrong_are_named():
    assert "up to" in find_chance([[0, 300], [300, 0]], NAMES, "test")
    assert find_chance(torch.eye(10).mul(40).roll(1, 1).long().tolist(), NAMES, "test") is not None


def score(share, num, shift, seed, num_rare=1):
    """Labels of which a share are rare, and scores by which all are taken for class 0, shifted for the rare ones."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.zeros(num, dtype=torch.int64)
    is_rare = torch.rand(num, generator=generator) < share
    labels[is_rare] = torch.randint(1, num_rare + 1, (int(is_rare.sum()),), generator=generator)
    scores = torch.randn(num, num_rare + 1, generator=generator)
    scores[is_rare, labels[is_rare]] += shift
    scores[:, 0] += 20
    return scores, labels


@pytest.mark.parametrize("num_rare", [1, 4])
@pytest.mark.parametrize("share", [0.05, 0.1, 0.3])
def test_scores_that_rank_a_rare_class_have_learnt_though_all_are_taken_for_the_frequent_one(num_rare, share):
    names, said = NAMES[: num_rare + 1], 0
    for seed in range(20):
        assert find_chance_of(*score(share, 2000, 2.0, seed, num_rare), names, "test") is None
        scores, labels = score(share, 2000, 0.0, seed, num_rare)
        said += find_chance_of(scores, labels, names, "test") is not None
    assert said >= 18  # one in a hundred ranks as well by accident


def test_where_classes_are_balanced_predictions_decide():
    scores, labels = score(0.5, 600, 1.0, 0)
    assert ranks_classes(scores, labels)
    assert find_chance_of(scores, labels, NAMES[:2], "test") is not None


@pytest.mark.parametrize("change", [lambda scores: scores * 3, lambda scores: scores + 7, torch.exp])
def test_units_of_scores_do_not_matter_to_ranks(change):
    for seed in range(10):
        scores, labels = score(0.1, 300, 0.4, seed)
        scores[:, 0] = 0.0
        assert ranks_classes(scores, labels) == ranks_classes(change(scores), labels)


def is_said_of(split, text):
    return text is not None and re.search(f"the {split} {SAID}", text) is not None


def train(arrays, folder, **settings):
    """The run on arrays of digits, and what was said."""
    np.savez(folder / "d.npz", **arrays)
    small = {"layers": 2, "width": 64, "epochs": 6, "device": "cpu"}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        run = ff.train(ff.Config(data=str(folder / "d.npz"), **small | settings), folder / "run")
    return run, [str(warning.message) for warning in said]


@pytest.fixture
def arrays(digits):
    train, test = digits.train.take(slice(1000)), digits.test.take(slice(400))
    return {"x_train": train.images, "y_train": train.labels, "x_test": test.images, "y_test": test.labels}


@pytest.mark.parametrize("recipe", ["inject", "hinton", "grouped"])
def test_labels_in_another_order_than_the_images_are_named(recipe, arrays, tmp_path):
    shuffled = arrays | {"y_train": np.random.default_rng(0).permutation(arrays["y_train"])}
    run, (said,) = train(shuffled, tmp_path, recipe=recipe)
    assert is_said_of("validation", said)
    assert is_said_of("test", run.evaluate().warning)
    (tmp_path / "clean").mkdir()
    run, said = train(arrays, tmp_path / "clean", recipe=recipe, epochs=15)
    assert said == []
    assert run.evaluate().warning is None


def test_test_labels_in_another_order_are_named_by_evaluate(arrays, tmp_path):
    run, said = train(arrays | {"y_test": np.roll(arrays["y_test"], 1)}, tmp_path)
    assert not any("chance" in each for each in said)
    assert is_said_of("test", run.evaluate().warning)
    assert run.evaluate(split="validation").warning is None


def test_without_labels_in_training_only_evaluate_can_say_it(arrays, tmp_path):
    shuffled = arrays | {"y_train": np.random.default_rng(0).permutation(arrays["y_train"])}
    run, said = train(shuffled, tmp_path, recipe="unsupervised")
    assert said == []
    assert is_said_of("test", run.evaluate().warning)


def test_of_a_run_that_was_interrupted_nothing_is_said(arrays, tmp_path):
    shuffled = arrays | {"y_train": np.random.default_rng(0).permutation(arrays["y_train"])}
    np.savez(tmp_path / "d.npz", **shuffled)
    config = ff.Config(data=str(tmp_path / "d.npz"), layers=2, width=64, epochs=2, device="cpu")
    with pytest.raises(KeyboardInterrupt):
        ff.train(config, tmp_path / "run", observer=InterruptAt("on_epoch", 3))
    assert ff.Run(tmp_path / "run").evaluate().warning is None
