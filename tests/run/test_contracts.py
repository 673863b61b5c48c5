"""The checks for authors of parts: what comes along passes them, and a part with a fault does not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import ffstream as ff
from ffstream import testing
from ffstream.field.labels import LABEL_METHODS
from ffstream.field.optimisers import OPTIMISERS
from ffstream.field.similarity import SIMILARITIES
from tests.warm import run_python

ROOT = Path(__file__).parents[2]


@pytest.fixture
def without_training(monkeypatch):
    """What needs no training: the rest is tried with one part of each kind."""
    monkeypatch.setattr(testing, "_check_training", lambda *_: None)


# Settings that a part needs.
NEEDED = {
    "classifier": {"objective.goodness": "mean"},
    "none": {"negatives.per_sample": 3},
}


@pytest.mark.parametrize(
    ("check", "registry"),
    [
        (testing.check_goodness, ff.GOODNESSES),
        (testing.check_objective, ff.OBJECTIVES),
        (testing.check_negative_sampler, ff.NEGATIVE_SAMPLERS),
        (testing.check_similarity, SIMILARITIES),
        (testing.check_layer, ff.LAYER_KINDS),
        (testing.check_optimiser, OPTIMISERS),
        (testing.check_label_method, LABEL_METHODS),
    ],
)
def test_all_parts_that_come_along_pass(check, registry, without_training):
    for name in registry:
        if registry.is_built_in(name):
            check(name, {"width": 144} | NEEDED.get(name, {}))


def test_a_local_layer_with_a_field_passes(without_training):
    testing.check_layer("local", {"width": 6, "parts.layer.field": 4, "parts.layer.stride": 2})


def test_a_part_of_an_example_passes_in_a_new_process():
    code = "import add_goodness; from ffstream.testing import check_goodness; check_goodness('mean_powers')"
    done = run_python("-c", code, cwd=ROOT / "examples")
    assert done.returncode == 0, done.stderr


class Fault(ff.Goodness):
    is_flat_at_zero = True

    def value(self, activities):
        return (activities + 1).pow(2).mean(dim=1)


class WrongGradient(ff.Goodness):
    def value(self, activities):
        return activities.pow(2).sum(dim=1)

    def gradient(self, activities, upstream, out=None):
        return activities * upstream.unsqueeze(1)


class Centred(ff.Goodness):
    def value(self, activities):
        return (activities - activities.mean(dim=0)).pow(2).sum(dim=1)


class WrongLoss(ff.Objective):
    def loss(self, logits):
        return logits[:, 0].neg().exp()

    def loss_and_gradient(self, logits):
        return self.loss(logits), torch.ones_like(logits)


class Frozen(ff.Layer):
    tileable = True

    def __init__(self, shape, compute_dtype=torch.float32):
        super().__init__(shape, compute_dtype)
        self.weight = torch.nn.Parameter(torch.zeros(self.num_units, self.in_features))

    def initialise(self, generator):
        with torch.no_grad():
            self.weight.normal_(generator=generator)

    def preactivations(self, rows):
        return rows.float() @ self.weight.t() / self.num_units  # which a tile has fewer of


FAULTS = {
    "a gradient at zero": (testing.check_goodness, ff.GOODNESSES, Fault(), "the gradient at 0 is not 0"),
    "half a gradient": (testing.check_goodness, ff.GOODNESSES, WrongGradient(), "gradient is not that of value"),
    "rows that see others": (testing.check_goodness, ff.GOODNESSES, Centred(), "depends on the rows beside"),
    "another gradient": (testing.check_objective, ff.OBJECTIVES, WrongLoss(), "another gradient than that of loss"),
    "tiles that are none": (testing.check_layer, ff.LAYER_KINDS, Frozen, "some units by themselves compute otherwise"),
    "the true label": (
        testing.check_negative_sampler,
        ff.NEGATIVE_SAMPLERS,
        lambda labels, _, num, __: labels.unsqueeze(1).expand(-1, num),
        "draws the true label",
    ),
    "its own dice": (
        testing.check_negative_sampler,
        ff.NEGATIVE_SAMPLERS,
        lambda labels, num_classes, num, _: torch.rand(len(labels), num_classes).topk(num, dim=1).indices,
        "other labels from the same generator",
    ),
}


@pytest.mark.parametrize("noun", FAULTS)
def test_a_fault_is_named(noun, without_training):
    check, registry, part, words = FAULTS[noun]
    registry.register(noun, part)
    try:
        with pytest.raises(AssertionError, match=words):
            check(noun)
    finally:
        del registry._parts[noun]
