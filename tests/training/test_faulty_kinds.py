"""A mistake in a user's layer kind is said, and trains nothing: where torch works on paper, before a run is there."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import ffstream as ff
from tests.helpers import DenseLayer


class Boxed(DenseLayer):
    """Works outside of torch, so that its first mistake shows in the first step."""

    has_gradients = False

    def declare_bytes(self, num_rows):
        return 8 * num_rows * (self.in_features + self.num_units)

    def preactivations(self, rows):
        return torch.from_numpy(rows.float().numpy() @ self.weight.detach().numpy().T)

    def observe(self, rows, gradient, loss_of):
        yield "weight", slice(None), gradient.t() @ rows.float()


def computed(change, kind=DenseLayer):
    """A kind whose preactivations are those of another, changed."""
    return type("Mine", (kind,), {"preactivations": lambda self, rows: change(kind.preactivations(self, rows))})


def learnt(change):
    """A kind that observes what another does, changed."""

    def observe(self, rows, gradient, loss_of):
        yield change(self, gradient.t() @ rows.float(), loss_of)

    return type("Mine", (Boxed,), {"observe": observe})


def with_methods(kind=DenseLayer, **methods):
    return type("Mine", (kind,), methods)


class Extended(DenseLayer):
    """Has one parameter more."""

    extra = torch.ones(1)

    def __init__(self, shape, compute_dtype=torch.float32):
        super().__init__(shape, compute_dtype)
        self.extra_parameter = nn.Parameter(self.extra.clone())


def raise_of_driver(self, rows):
    if rows.device.type == "meta":
        return DenseLayer.preactivations(self, rows)
    raise OSError(5, "the chip is gone")


ON_PAPER = {
    "one number a row": (computed(lambda z: z.sum(1, keepdim=True)), r"preactivations gave .* \(\d+, 1\), allowed"),
    "one row": (computed(lambda z: z.mean(0, keepdim=True)), r"preactivations gave .* \(1, 24\), allowed .*, 24\)$"),
    "64 bits": (computed(torch.Tensor.double), "preactivations gave torch.float64 .*, allowed torch.float32"),
    "nothing": (computed(lambda _: None), "preactivations gave <class 'NoneType'>, allowed"),
    "few handed on": (with_methods(hand_on=lambda _, z: z.mean(1, keepdim=True)), r"hand_on leads to rows of .* 1\)"),
    "a row moved": (
        with_methods(input_gradients=lambda self, rows, g: iter([(slice(None), (g @ self.weight).mean(0))])),
        r"input_gradients yields .* \(64,\), allowed",
    ),
    "a column of gradients": (
        with_methods(gradients=lambda self, *_: iter([("weight", slice(None), self.weight[:, :1])])),
        r"gradients yields for weight .* \(24, 1\), allowed .* \(24, 64\)",
    ),
    "twice": (
        with_methods(gradients=lambda self, *_: iter([("weight", slice(None), self.weight)] * 2)),
        "gradients yields some rows of weight twice",
    ),
    "a parameter that is not used": (Extended, "do not depend on the parameter extra_parameter"),
    "a single number": (with_methods(Extended, extra=torch.tensor(1.0)), "extra_parameter is a single number"),
    "a parameter of 64 bits": (with_methods(Extended, extra=torch.ones(1).double()), "is of torch.float64, allowed"),
    "units": (with_methods(units_of=classmethod(lambda *_: ff.Activations(25))), "gives 25 units, allowed a multiple"),
    "modes": (with_methods(noisy_modes={"training"}), "noisy_modes is {'training'}, allowed a frozenset"),
    "no rule": (with_methods(has_gradients=False), "has no gradients, but does not define observe"),
    "no update": (with_methods(owns_update=True), "owns its update, but does not define update_"),
    "bytes": (with_methods(Boxed, declare_bytes=lambda *_: 1.5), "declare_bytes gave 1.5, allowed an integer"),
    "no bytes of rows": (
        with_methods(Boxed, declare_bytes=lambda _, num_rows: None if num_rows else 8),
        "declare_bytes gave None, allowed an integer",
    ),
}
IN_THE_FIRST_STEP = {
    "one number a row": (computed(lambda z: z.sum(1, keepdim=True), Boxed), r"preactivations gave .* \(\d+, 1\)"),
    "an array": (computed(torch.Tensor.numpy, Boxed), "preactivations gave <class 'numpy.ndarray'>"),
    "another device": (computed(lambda z: z.to("meta"), Boxed), "on meta, allowed .* on cpu"),
    "a column": (learnt(lambda _, found, __: ("weight", slice(None), found[:, :1])), r"yields for weight .* \(24, 1\)"),
    "a name": (learnt(lambda _, found, __: ("weights", slice(None), found)), "yields 'weights', allowed .* weight"),
    "no slice": (learnt(lambda _, found, __: ("weight", found)), r"yields \(str, Tensor\), allowed \(name, slice"),
    "no iterator": (with_methods(Boxed, observe=lambda *_: None), "observe gave <class 'NoneType'>, allowed an iter"),
    "a trial": (learnt(lambda self, _, loss_of: loss_of(self.weight[:1])), r"loss_of was given .*, allowed .*, 24\)"),
}
IN_THE_RUN = {
    "a driver": (with_methods(preactivations=raise_of_driver), ff.DeviceError, "preactivations failed .*the chip is"),
    "no number": (computed(lambda z: z * torch.nan), ff.DivergedError, "see that layer kind Mine gives finite numbers"),
}


@pytest.fixture
def train(small_config, monkeypatch, tmp_path):
    monkeypatch.setattr(ff.LAYER_KINDS, "_parts", dict(ff.LAYER_KINDS._parts))

    def train_with(kind, **settings):
        ff.LAYER_KINDS.register("mine", kind)
        moves = 0.05 if kind.has_gradients else 0.0
        ff.train(small_config(network__kind="mine", objective__perturbation=moves, **settings), tmp_path / "run")

    return train_with


@pytest.mark.parametrize("case", ON_PAPER)
def test_a_mistake_that_shows_on_paper_is_said_before_a_run_is_there(case, train, tmp_path):
    kind, words = ON_PAPER[case]
    with pytest.raises(ff.ConfigError, match=f"^layer kind (Mine|Extended): .*{words}") as error:
        train(kind)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("settings", [{}, {"micro_batch": 9}], ids=["whole", "parts"])
@pytest.mark.parametrize("case", IN_THE_FIRST_STEP)
def test_a_mistake_outside_of_torch_is_said_in_the_first_step(case, settings, train):
    kind, words = IN_THE_FIRST_STEP[case]
    with pytest.raises(ff.ConfigError, match=f"^layer kind Mine: .*{words}"):
        train(kind, **settings)


@pytest.mark.parametrize("case", IN_THE_RUN)
def test_what_goes_wrong_in_a_kind_is_not_taken_for_something_else(case, train):
    kind, error, words = IN_THE_RUN[case]
    with pytest.raises(error, match=words):
        train(kind)


@pytest.mark.parametrize("settings", [{}, {"micro_batch": 9}], ids=["whole", "parts"])
def test_a_parameter_of_which_nothing_is_observed_stays_as_it_was(settings, small_config, train, tmp_path):
    train(with_methods(Boxed, observe=lambda *_: iter(())), optimiser__weight_decay=0.1, **settings)
    run = ff.Run(tmp_path / "run")
    before = ff.train(small_config(network__kind="mine", objective__perturbation=0.0, epochs=1), tmp_path / "other")
    weights = [each.load().layers[0].weight for each in (run, before)]
    assert torch.equal(*weights)
