"""Steps that are tried before a run: what was planned, or a refusal before anything is written."""

from __future__ import annotations

import pytest
import torch

import ffstream as ff
from ffstream.device.memory import measure_peak_bytes
from ffstream.errors import BudgetError
from ffstream.field.layers import LAYER_KINDS, Linear
from ffstream.plan.footprint import Kernels
from tests.helpers import InterruptAt

MIB = 1 << 20


@pytest.mark.parametrize("settings", [{}, {"network.tile_units": 200}, {"micro_batch": 8, "cache.shard_samples": 20}])
@pytest.mark.parametrize(("recipe", "tier"), [("inject", "disk"), ("hinton", "disk"), ("inject", "host")])
def test_what_is_tried_takes_what_is_planned(recipe, tier, settings, tmp_path, small_data, monkeypatch):
    tried = []

    def measure(work, device):
        tried.append(measure_peak_bytes(work, device))
        return tried[-1]

    monkeypatch.setattr("ffstream.plan.trial.measure_peak_bytes", measure)
    config = ff.Config(recipe=recipe, data=str(small_data), layers=2, width=500, batch=64, epochs=1, device="cpu")
    config = config.override({"cache.tier": tier, "memory.budget": "64MiB", "precision": "fp32"} | settings)
    with pytest.raises(KeyboardInterrupt):
        ff.train(config, tmp_path / "a", observer=InterruptAt("on_step", 0))
    planned = [layer.footprint for layer in ff.make_plan(config).layers]
    assert len(tried) == len(planned) == 2
    for found, foreseen in zip(tried, planned, strict=True):
        assert foreseen.weights + foreseen.optimiser < found <= foreseen.training


class Hiding(Linear):
    """Takes on a device what it does not take on paper."""

    def preactivations(self, rows):
        if rows.device.type != "meta":
            torch.empty(48 * MIB, dtype=torch.uint8)
        return super().preactivations(rows)


class Failing(Linear):
    """Finds no memory on the device."""

    def preactivations(self, rows):
        if rows.device.type != "meta":
            raise torch.OutOfMemoryError("out of memory")
        return super().preactivations(rows)


@pytest.mark.parametrize(("kind", "taken"), [(Hiding, "48."), (Failing, "more than 16.0 MiB")])
def test_a_step_that_takes_more_than_was_planned_is_refused_before_anything_is_written(
    kind, taken, tmp_path, small_data, monkeypatch
):
    monkeypatch.setattr(LAYER_KINDS, "_parts", dict(LAYER_KINDS._parts))
    LAYER_KINDS.register("mine", kind)
    monkeypatch.setattr("ffstream.run.preparation.measure_kernels", lambda *_: Kernels())
    config = ff.Config(data=str(small_data), layers=2, width=100, batch=64, epochs=1, device="cpu")
    config = config.override({"network.kind": "mine", "precision": "fp32", "memory.budget": "16MiB"})
    with pytest.raises(BudgetError, match=f"a step of layer 1 that was tried took {taken}") as caught:
        ff.train(config, tmp_path / "a")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "a").exists()
