"""A run on a device that works late ends with the bits of a run on the CPU."""

from __future__ import annotations

import shutil

import pytest
import torch

import ffstream as ff
from ffstream.device import parts
from ffstream.device.parts import PartSizes, part_sizes
from ffstream.ground.units import parse_bytes
from ffstream.settings.recipes import RECIPES
from tests.helpers import InterruptAt, layer_digests
from tests.late.accelerator import CONTEXT_BYTES, late_cuda

_on_cpu = {}  # runs by what they depend on


@pytest.fixture
def check_on_late(small_config, tmp_path, tmp_path_factory):
    """Train on the CPU and on the late device, and compare."""

    def check(recipe="inject", policy="lazy", tier="host", **settings):
        settings = {"epochs": 2} | settings
        key = recipe, str(settings)
        if key not in _on_cpu:
            path = tmp_path_factory.mktemp("cpu") / "run"
            _on_cpu[key] = layer_digests(ff.train(small_config(recipe, **settings), path).path)
        with late_cuda(policy) as late:
            config = small_config(recipe, **settings, device="cuda", cache__tier=tier)
            run = ff.train(config, tmp_path / "run")
        assert layer_digests(run.path) == _on_cpu[key]
        return late

    return check


@pytest.mark.parametrize("tier", ["device", "host", "disk"])
@pytest.mark.parametrize("policy", ["lazy", "copies first"])
def test_every_tier_in_whatever_order(policy, tier, check_on_late):
    check_on_late("inject", policy, tier)


# The policy under which a wait for a copy is missed, as the computing stream is ahead.
@pytest.mark.parametrize("recipe", sorted(set(RECIPES) - {"inject"}))
def test_every_recipe(recipe, check_on_late):
    views = {"augmentation__views": 3, "augmentation__max_shift": 1} if recipe == "deep" else {}
    check_on_late(recipe, "computing first", batch=32, **views)


SETTINGS = {
    "rows in 8 bits": {"cache__dtype": "int8", "precision": "bf16"},
    "batches of several shards, cut": {
        "batch": 96,
        "micro_batch": 20,
        "cache__shard_samples": 32,
        "optimiser__state_dtype": "bf16",
    },
    "tiles in 8 bits": {"network__tile_units": 10, "cache__dtype": "int8"},
    "the same without stacks": {"network__stack_layers": 0, "layers": 4},
    "restreamed": {"augmentation__restream": True, "augmentation__max_shift": 1},
    "local": {"network__kind": "local", "width": 144},
    "local with fields": {
        "network__stack_layers": 0,
        "network__layers": "local3(field=5) local4(field=4,stride=2)",
        "precision": "bf16",
    },
    "skips": {"optimiser__name": "adamw", "network__input_skip": True},
    "similarity and peers": {"objective__similarity": "contrastive", "objective__peer_normalisation": 0.03},
    "in fp16": {"precision": "fp16", "cache__dtype": "fp16"},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_other_ways(settings, check_on_late):
    check_on_late("inject", "copies first", "disk", **({"layers": 2} | settings))


@pytest.mark.parametrize(("tier", "save_every"), [("host", "auto"), ("disk", "auto"), ("disk", "0.000001s")])
def test_an_interrupted_run_goes_on_bitwise(tier, save_every, small_config, tmp_path):
    whole = ff.train(small_config(epochs=2), tmp_path / "whole")
    config = small_config(epochs=2, device="cuda", cache__tier=tier, save_every=save_every)
    with late_cuda("copies first"):
        with pytest.raises(KeyboardInterrupt):
            ff.train(config, tmp_path / "run", observer=InterruptAt("on_epoch", 2))
        run = ff.resume(tmp_path / "run")
    assert layer_digests(run.path) == layer_digests(whole.path)


@pytest.fixture(scope="module")
def trained(small_data, tmp_path_factory):
    config = ff.Config(layers=3, width=24, epochs=2, batch=32, data=str(small_data), device="cpu", precision="fp32")
    return ff.train(config, tmp_path_factory.mktemp("trained") / "run")


@pytest.mark.parametrize("method", ["goodness", "fitted", "softmax"])
def test_networks_are_evaluated_and_predict_alike(method, trained, digits, tmp_path):
    found = []
    for device in ("cpu", "cuda"):
        run = ff.Run(shutil.copytree(trained.path, tmp_path / device))  # each fits a readout of its own
        with late_cuda("copies first"):
            error = run.evaluate(method, device=device).error
            found.append((error, run.predict(digits.test.images[:40], method, device=device).probabilities))
    assert found[0][0] == found[1][0]
    assert torch.equal(found[0][1], found[1][1])


class FromTheStart(ff.Observer):
    """Counts memory from the start of a run, when the environment has been tried."""

    def __init__(self, late):
        self._late = late

    def on_start(self, outline):
        self._late.arena.reset_peak()


def test_a_tight_budget_is_kept(small_config, tmp_path):
    config = small_config(layers=2, epochs=1, cache__tier="disk", width=240, cache__shard_samples=64)
    with late_cuda("computing first") as late:
        on_device = config.override({"device": "cuda", "memory.budget": "1KiB"})
        with pytest.raises(ff.BudgetError, match="--budget") as caught:
            ff.train(on_device, tmp_path / "refused")
        named = str(caught.value).split("--budget ")[1].split()[0]
        run = ff.train(on_device.override({"memory.budget": named}), tmp_path / "run", observer=FromTheStart(late))
        taken = late.arena.peak_reserved_bytes + CONTEXT_BYTES  # what a driver would show
        assert parse_bytes(named) - (2 << 20) <= taken <= parse_bytes(named)
    chosen = {"network.tile_units": run.config.network.tile_units}
    assert layer_digests(run.path) == layer_digests(ff.train(config.override(chosen), tmp_path / "cpu").path)


def test_the_parts_of_a_device_give_the_bits_of_those_of_a_cpu(check_on_late, monkeypatch):
    """On an accelerator, each operator has to be launched, and parts are larger.

    Only the gradient by the rows is a sum over groups of units, which is rounded in another way.
    """
    small = PartSizes(
        dropped_rows=8,
        product_units=16,
        gradient_units=8,
        gradient_features=16,
        chunk_rows=16,
        coded_rows=8,
        wide_rows=128,
        square_values=1000,
    )
    monkeypatch.setattr(parts, "_ON_CPU", small)
    settings = {"precision": "bf16", "cache__dtype": "int8", "network__dropout": 0.4, "objective__perturbation": 0.0}
    check_on_late("inject", "copies first", "disk", layers=2, **settings)


def test_every_kind_of_accelerator_has_the_same_parts_whatever_the_machine():
    sizes = {part_sizes(kind) for kind in ("cuda", "xpu", "mps", "anything")}
    assert len(sizes) == 1
    assert sizes != {part_sizes("cpu")}
