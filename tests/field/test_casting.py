"""Weights that are kept in the type of products: the same bits, and one cast for all products between two updates."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import ffstream as ff
from ffstream.device import parts
from ffstream.device.parts import part_sizes
from ffstream.device.workspace import Workspace
from ffstream.plan.fitting import _Planner
from ffstream.training.layer_trainer import LayerTrainer
from ffstream.training.micro_batch import draw_for
from tests.helpers import describe, layer_digests
from tests.late.accelerator import late_cuda

CPU = torch.device("cpu")
SMALL_PARTS = dataclasses.replace(part_sizes("cpu"), product_units=40, gradient_units=24, gradient_features=20)
WAYS = {
    "dense": {"width": 144},
    "local": {"network__kind": "local", "width": 144},
    "in micro-batches": {"width": 144, "micro_batch": 20},
    "rows that are swept": {"recipe": "hinton", "width": 144},
    "fp16": {"width": 144, "precision": "fp16"},
}


class Casts(TorchDispatchMode):
    """Counts the weights that are cast, by the memory that they are read from."""

    def __init__(self, weight):
        super().__init__()
        self.num_cast, self._read, self._dtype = 0, weight.untyped_storage()._cdata, weight.dtype

    @classmethod
    def _should_skip_dynamo(cls):
        return False  # else torch imports its compiler

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        name = func.overloadpacket
        source = args[1] if name is torch.ops.aten.copy_ else args[0] if name is torch.ops.aten._to_copy else None
        if source is not None and found.dtype != self._dtype and source.untyped_storage()._cdata == self._read:
            self.num_cast += source.numel()
        return found


def take_steps(config, digits, *, keeps_cast, num_steps=3):
    """The weights after some steps, and how often each weight was cast in a step, on average."""
    blueprint = describe(config, image_shape=(8, 8))
    method, layer = blueprint.method, blueprint.build_layer(blueprint.specs[0])
    layer.workspace = Workspace(CPU, SMALL_PARTS, keeps_cast=keeps_cast)
    labels = digits.train.labels[:96]
    images = digits.train.images[:96].flatten(1) / 16
    block = method.rows.training_rows(images, labels, torch.Generator().manual_seed(1))
    trainer = LayerTrainer(layer, 0, blueprint, CPU)
    with Casts(layer.weight) as casts:
        for step in range(num_steps):
            generator = torch.Generator().manual_seed(step)
            drawn = draw_for(labels, method.candidates, None, generator, CPU, informed=True)
            trainer.step([drawn.take(block, torch.arange(32) + 32 * step)], 32, 1.0, generator)
    return layer.state_dict(), casts.num_cast / layer.weight.numel() / num_steps


@pytest.mark.parametrize("settings", WAYS.values(), ids=WAYS)
def test_kept_weights_are_cast_once_a_step_and_change_no_bit(settings, small_config, digits):
    config = small_config(**({"recipe": "inject", "precision": "bf16", "layers": 1} | settings))
    found, num_casts = take_steps(config, digits, keeps_cast=True)
    want, num_casts_without = take_steps(config, digits, keeps_cast=False)
    assert num_casts == 1
    assert num_casts_without >= 2
    assert all(torch.equal(found[name], want[name]) for name in want)


def test_weights_in_the_type_of_products_are_not_kept(small_config, digits):
    config = small_config(width=144, precision="fp32", layers=1)
    assert take_steps(config, digits, keeps_cast=True)[1] == 0


@pytest.mark.parametrize("settings", [{}, {"network__tile_units": 60}, {"batch": 96, "micro_batch": 20}])
def test_a_run_on_a_device_that_keeps_them_has_the_bits_of_one_that_does_not(
    settings, small_config, tmp_path, monkeypatch
):
    for kind in ("_ON_CPU", "_ON_ACCELERATOR"):  # small enough that products need several casts
        monkeypatch.setattr(parts, kind, SMALL_PARTS)
    config = small_config(width=96, layers=2, epochs=2, precision="bf16", **settings)
    found = {}
    with late_cuda("copies first"):
        there = config.override({"device": "cuda"})
        assert ff.make_plan(there).keeps_cast
        found["kept"] = layer_digests(ff.train(there, tmp_path / "kept").path)
        monkeypatch.setattr(_Planner, "keep_cast", lambda _, plan: plan)
        assert not ff.make_plan(there).keeps_cast
        found["not kept"] = layer_digests(ff.train(there, tmp_path / "not").path)
    found["cpu"] = layer_digests(ff.train(config, tmp_path / "cpu").path)
    assert found["kept"] == found["not kept"] == found["cpu"]
