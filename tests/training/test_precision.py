"""Products of 16 bits: how far the gradients of a step are from those in fp32."""

from __future__ import annotations

import pytest
import torch

import ffstream as ff
from ffstream.data import Scaling
from ffstream.field.layers import LAYER_KINDS, Linear
from ffstream.training import layer_trainer
from ffstream.training.layer_trainer import LayerTrainer
from ffstream.training.loss_scale import scale_loss
from ffstream.training.micro_batch import MicroBatch
from tests.helpers import describe

CPU = torch.device("cpu")


class ByAutograd(Linear):
    """A kind that writes no gradients out."""

    gradients, input_gradients = ff.Layer.gradients, ff.Layer.input_gradients

    def preactivations(self, rows):
        products = rows.to(self.compute_dtype) @ self.weight.to(self.compute_dtype).t()
        return products.float() + self.bias


@pytest.fixture
def by_autograd(monkeypatch):
    LAYER_KINDS.register("by_autograd", ByAutograd)
    yield
    LAYER_KINDS._parts.pop("by_autograd")


def weight_gradient(digits, precision, num_samples=512, recipe="inject", **settings):
    settings = {name.replace("__", "."): value for name, value in settings.items()}
    base = {"layers": 1, "width": 160, "batch": num_samples, "precision": precision, "device": "cpu"}
    blueprint = describe(ff.Config(recipe=recipe).override(base | settings), image_shape=(8, 8))
    trainer = LayerTrainer(blueprint.build_layer(blueprint.specs[0]), 0, blueprint, CPU)
    index = torch.arange(num_samples) % len(digits.train)
    images, labels = Scaling(16.0).apply(digits.train.images[index]), digits.train.labels[index]
    generator = torch.Generator().manual_seed(0)
    rows = blueprint.method.rows.training_rows(images, labels, generator)
    candidates = blueprint.method.candidates.draw(labels, generator)
    part = MicroBatch(rows, torch.arange(num_samples), candidates)
    with torch.no_grad():
        _, gradients = trainer._differentiate(part, num_samples, torch.Generator().manual_seed(1))
        return torch.cat([value.clone() for name, _, value in gradients if name == "weight"])


def distance(found, wanted):
    return float((found - wanted).norm() / wanted.norm())


PLAIN = {"objective__perturbation": 0.0, "network__dropout": 0.0}
CASES = {
    "inject": {},
    "mean_squares": {"recipe": "hinton"},
    "sum_squares": {"recipe": "hinton", "objective__goodness": "sum_squares"},
    "small scale": {"objective__scale": 1e-4},
    "large scale": {"objective__scale": 30.0},
    "wide": {"width": 2000, "num_samples": 2048},
    "grouped": {"recipe": "grouped"},
    "mono": {"recipe": "mono"},
    "similarity": {"objective__similarity": "matching"},
    "local": {"network__kind": "local", "width": 144},
    "by autograd": {"network__kind": "by_autograd"},
    "micro-batches": {"num_samples": 8, "width": 1200},
}


@pytest.mark.parametrize("case", CASES)
def test_gradients_in_fp16_are_nearer_to_those_in_fp32_than_those_in_bf16(case, digits, by_autograd):
    settings = PLAIN | CASES[case]
    wanted = weight_gradient(digits, "fp32", **settings)
    found = weight_gradient(digits, "fp16", **settings)
    assert torch.isfinite(found).all()
    assert distance(found, wanted) < max(0.7 * distance(weight_gradient(digits, "bf16", **settings), wanted), 1e-3)


@pytest.mark.parametrize("case", ["wide", "small scale", "local", "by autograd"])
def test_without_a_scale_fp16_loses_small_gradients(case, digits, by_autograd, monkeypatch):
    settings = PLAIN | {"objective__scale": 1e-4} | CASES[case]
    wanted, scaled = (weight_gradient(digits, precision, **settings) for precision in ("fp32", "fp16"))
    monkeypatch.setattr(layer_trainer, "scale_loss", lambda *_: 1.0)
    assert distance(weight_gradient(digits, "fp16", **settings), wanted) > 2 * distance(scaled, wanted)


@pytest.mark.parametrize("num_samples", [1, 7, 64, 10**6])
@pytest.mark.parametrize("steepest", [1e-30, 2e-4, 0.7, 2.0, 1e6])
def test_the_scale_is_a_power_of_two_that_bounds_what_is_scaled(num_samples, steepest):
    scale = scale_loss(num_samples, steepest)
    assert torch.frexp(torch.tensor(scale, dtype=torch.float64))[0] == 0.5
    assert 0.5 * min(num_samples, 16) < scale * steepest <= min(num_samples, 16)


@pytest.mark.parametrize("steepest", [0.0, float("inf"), float("nan")])
def test_a_goodness_without_a_slope_is_not_scaled(steepest):
    assert scale_loss(64, steepest) == 1.0


@pytest.mark.parametrize("recipe", ["inject", "hinton", "mono", "unsupervised"])
def test_a_run_in_fp16_learns_what_one_in_fp32_learns(recipe, small_config, tmp_path):
    settings = {"epochs": 6, "width": 64, "layers": 2}
    by_precision = {}
    for precision in ("fp32", "fp16"):
        run = ff.train(small_config(recipe, precision=precision, **settings), tmp_path / precision)
        by_precision[precision] = run.evaluate("softmax").error
        assert run.config.precision == precision
    assert abs(by_precision["fp16"] - by_precision["fp32"]) <= 0.05
    assert by_precision["fp16"] < 0.5
