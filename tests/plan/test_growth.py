"""What a run computes grows as it should: not at all with depth, with samples as they do, with width as its square."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import ffstream as ff

KINDS = {
    "inject": {},
    "hinton": {"recipe": "hinton"},
    "mono": {"recipe": "mono"},
    "disk": {"cache__tier": "disk"},
    "bf16": {"precision": "bf16"},
}


class Count(TorchDispatchMode):
    """Operators that the computing thread calls, and the arithmetic of their products."""

    def __init__(self):
        super().__init__()
        self.num_operators = self.flops = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        self.num_operators += 1
        in_new_memory = getattr(torch.ops.aten, func._schema.name.removeprefix("aten::").rstrip("_"), None)
        if in_new_memory in flop_registry:
            self.flops += flop_registry[in_new_memory](*args, **(kwargs or {}), out_val=found)
        return found


class ByLayer(ff.Observer):
    """What is counted from one layer's commit to the next one's: what hands on to it, training, measuring.

    From the third on they are alike: the one below the second is of another shape, and its own buffers are new.
    """

    def __init__(self, count):
        self.count, self.operators, self.flops = count, [], []

    def on_start(self, *_):
        self.before = (self.count.num_operators, self.count.flops)

    def on_layer(self, _):
        now = (self.count.num_operators, self.count.flops)
        self.operators.append(now[0] - self.before[0])
        self.flops.append(now[1] - self.before[1])
        self.before = now


@pytest.fixture
def count_layers(small_config, digits, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "ffstream.training.layer_trainer._TICK_S", float("inf")
    )  # reports within an epoch go by the clock

    def count(num_samples=160, **settings):
        path = tmp_path / f"{num_samples}.safetensors"
        images, labels = digits.train.images[:num_samples].clone(), digits.train.labels[:num_samples].clone()
        save_file({"train.images": images, "train.labels": labels}, path)
        fixed = {"data": str(path), "validation_fraction": 0.0, "network__stack_layers": 0, "epochs": 2}
        with Count() as counted:
            found = ByLayer(counted)
            ff.train(small_config(**fixed | settings), tmp_path / f"{num_samples}-{settings}", observer=found)
        return found

    return count


@pytest.mark.parametrize("name", KINDS)
def test_a_deep_layer_computes_what_the_third_one_does(name, count_layers):
    found = count_layers(layers=12, **KINDS[name])
    assert len(set(found.operators[2:])) == 1
    assert len(set(found.flops[2:])) == 1
    assert found.flops[2] > 0


@pytest.mark.parametrize("name", KINDS)
def test_computing_grows_with_samples_as_they_do(name, count_layers):
    runs = [count_layers(160 * factor, **KINDS[name]) for factor in (1, 2, 4)]  # whole shards
    for counted in ("operators", "flops"):
        once, twice, fourfold = (getattr(run, counted)[2] for run in runs)
        assert fourfold - twice == 2 * (twice - once)
        assert fourfold <= 4 * once


@pytest.mark.parametrize("name", KINDS)
def test_arithmetic_grows_with_width_as_its_square_and_operators_do_not(name, count_layers):
    runs = [count_layers(width=width, **KINDS[name]) for width in (32, 64, 96, 128)]
    assert len({run.operators[2] for run in runs}) == 1
    first, second, third, fourth = (run.flops[2] for run in runs)
    assert (fourth - third) - (third - second) == (third - second) - (second - first)  # a polynomial of degree two
    assert third - second > second - first
