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
from tests.helpers import DenseLayer
from tests.warm import run_python

ROOT = Path(__file__).parents[2]


@pytest.fixture
def without_training(monkeypatch):
    """What needs no training: the rest is tried with one part of each kind."""
    monkeypatch.setattr(testing, "_check_training", lambda *_: None)
    monkeypatch.setattr(testing, "check_coded_run", lambda *_: None)


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


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("local", {"width": 6, "layers": 2, "parts.layer.field": 3, "parts.layer.stride": 2}),
        ("conv", {"width": 8, "parts.layer.pool": 2, "parts.layer.normalise": "samples"}),
        ("conv", {"width": 8, "labels.method": "classifier", "objective.goodness": "mean", "labels.head_layers": 3}),
    ],
)
def test_a_layer_with_options_passes(kind, settings, without_training):
    testing.check_layer(kind, settings)


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


def test_a_black_box_passes_in_a_new_process():
    code = "import add_black_box_layer; from ffstream.testing import check_layer; check_layer('analog', {'layers': 2})"
    done = run_python("-c", code, cwd=ROOT / "examples")
    assert done.returncode == 0, done.stderr


class Plain(DenseLayer):
    """What a user's own kind is at least; faults are added to it."""

    def draw(self, rows):
        return torch.randn(len(rows), self.num_units, generator=self.generator, device=rows.device)


class OwnDice(Plain):
    noisy_modes = frozenset({ff.Mode.TRAINING})

    def preactivations(self, rows):
        found = super().preactivations(rows)
        is_noisy = self.mode in self.noisy_modes
        return found + torch.randn(found.shape, device=found.device) if is_noisy else found  # of the global generator


class SilentNoise(Plain):
    noisy_modes = frozenset(ff.Mode)


class OtherNoise(Plain):
    """Noise that `gradients` does not repeat."""

    noisy_modes = frozenset({ff.Mode.TRAINING})

    def preactivations(self, rows):
        found = super().preactivations(rows)
        return found * (1 + self.draw(rows)) if self.generator is not None else found

    def gradients(self, rows, gradient, total=None):
        scaled = gradient * (1 + self.draw(rows)) if self.generator is not None else gradient
        yield "weight", slice(None), scaled.t() @ rows.float()


class HalfGradient(Plain):
    def gradients(self, rows, gradient, total=None):
        yield "weight", slice(0, 2), gradient[:, :2].t() @ rows.float()


class ByFeedback(Plain):
    """A rule of its own, by the gradient that it is told; which is right."""

    has_gradients, owns_update = False, True

    def observe(self, rows, gradient, loss_of):
        yield "weight", slice(None), gradient.t() @ rows.float()

    def update_(self, name, rows, observed, rate):
        self.get_parameter(name)[rows] -= rate * observed


class KeptOutside(ByFeedback):
    """Momentum that is no buffer, so that it is not saved."""

    def update_(self, name, rows, observed, rate):
        self.momentum = observed + 0.9 * getattr(self, "momentum", 0)
        self.get_parameter(name)[rows] -= rate * self.momentum


class Counting(ByFeedback):
    def __init__(self, shape, compute_dtype=torch.float32):
        super().__init__(shape, compute_dtype)
        self.register_buffer("num_steps", torch.zeros((), dtype=torch.int64))


class Disturbing(ByFeedback):
    def observe(self, rows, gradient, loss_of):
        self.weight.mul_(1.01)
        yield from super().observe(rows, gradient, loss_of)


class Untouched(ByFeedback):
    def update_(self, name, rows, observed, rate):
        pass


class Undeclared(ByFeedback):
    def preactivations(self, rows):
        return torch.from_numpy(rows.float().numpy() @ self.weight.detach().numpy().T)


class TooLittle(Undeclared):
    def declare_bytes(self, num_rows):
        return 0

    def observe(self, rows, gradient, loss_of):
        copies = [gradient.clone() for _ in range(100)]
        yield "weight", slice(None), torch.stack(copies).mean(dim=0).t() @ rows.float()


LAYER_FAULTS = {
    OwnDice: "random while training, by more than the layer's generator",
    SilentNoise: "noisy_modes has Mode.TRAINING, but there is no noise",
    OtherNoise: "gradients of weight are not those of preactivations",
    HalfGradient: "gradients of weight are not those of preactivations",
    KeptOutside: "update_ changes weight by more than is saved",
    Counting: "num_steps is torch.int64, expected torch.float32",
    Disturbing: "observe leaves weight changed",
    Untouched: "update_ changes nothing",
    TooLittle: r"a step of layer 1 takes .*, but .* are planned with what is declared",
    Undeclared: "looks at values of tensors that have none .*; define declare_bytes",
}


@pytest.mark.parametrize("kind", [ByFeedback, *LAYER_FAULTS], ids=lambda kind: kind.__name__)
def test_a_fault_of_a_layer_is_named_and_a_rule_of_its_own_is_none(kind, without_training):
    ff.LAYER_KINDS.register(kind.__name__, kind)
    try:
        if kind is ByFeedback:
            testing.check_layer(kind.__name__)
        else:
            with pytest.raises((AssertionError, ff.ConfigError), match=LAYER_FAULTS[kind]):
                testing.check_layer(kind.__name__)
    finally:
        del ff.LAYER_KINDS._parts[kind.__name__]
