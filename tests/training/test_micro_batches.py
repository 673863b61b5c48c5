"""A batch in parts, of one shard or of several: the same step up to rounding, in less room."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import ffstream as ff
from benchmarks.footprint import compare, draw_config
from ffstream.cache import CacheLayout, MemoryCache
from ffstream.cache.transfer import Transfer
from ffstream.data import Scaling
from ffstream.data.shape import DataShape
from ffstream.device.ledger import Work
from ffstream.field.blueprint import Blueprint
from ffstream.plan.dry_run import do_on_paper
from ffstream.training.layer_trainer import LayerTrainer
from ffstream.training.micro_batch import draw_for
from tests.helpers import InterruptAt, describe, layer_digests

CPU = torch.device("cpu")


def take_steps(config, digits, dtype):
    """Five steps of one layer of 60 units, with dropout; its state and the figures of each."""
    blueprint = describe(config)
    method, layer = blueprint.method, blueprint.build_layer(blueprint.specs[0]).to(dtype)
    layer.compute_dtype = dtype
    labels = digits.train.labels[:96]
    images = Scaling(16.0).apply(digits.train.images[:96])
    block = method.rows.training_rows(images, labels, torch.Generator().manual_seed(1)).to(dtype)
    trainer = LayerTrainer(layer, 0, blueprint, CPU)
    figures = []
    for step in range(5):
        generator = torch.Generator().manual_seed(step)
        others = torch.rand(len(labels), method.candidates.num_values, generator=generator)
        drawn = draw_for(labels, method.candidates, others, generator, CPU, informed=step > 1)
        index = torch.randperm(len(labels), generator=generator)[:32]
        figures.append(trainer.step([drawn.take(block, index)], 32, 1.0, generator))
    return layer.state_dict(), torch.stack(figures)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("micro_batch", [1, 8, 31])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"objective__name": "logistic", "objective__goodness": "sum_squares", "objective__scale": 0.1},
        {"recipe": "hinton", "optimiser__name": "sgd"},
        {"recipe": "grouped"},
        {"recipe": "mono"},
    ],
)
def test_a_step_in_parts_equals_the_step_at_once(settings, micro_batch, dtype, small_config, digits):
    config = small_config(width=60, **settings)
    whole, figures = take_steps(config, digits, dtype)
    parts, same_figures = take_steps(config.override({"micro_batch": micro_batch}), digits, dtype)
    tolerance = {"rtol": 1e-3, "atol": 2e-5} if dtype == torch.float32 else {"rtol": 1e-9, "atol": 1e-11}
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, **tolerance, msg=name)
    torch.testing.assert_close(same_figures.double(), figures.double(), rtol=1e-3, atol=1e-3)


def test_the_running_mean_of_peers_moves_as_far_in_parts(small_config, digits):
    config = small_config("hinton", width=60, network__dropout=0.0, objective__peer_normalisation=0.03)
    whole, _ = take_steps(config, digits, torch.float32)
    parts, _ = take_steps(config.override({"micro_batch": 8}), digits, torch.float32)
    moved = (whole["mean_activity"] - 0.5).norm()
    assert (parts["mean_activity"] - whole["mean_activity"]).norm() < 0.05 * moved


def test_micro_batches_as_large_as_the_batch_change_nothing(small_config, tmp_path):
    plain = ff.train(small_config(), tmp_path / "plain")
    same = ff.train(small_config(micro_batch=32), tmp_path / "same")
    assert layer_digests(plain.path) == layer_digests(same.path)


@pytest.mark.parametrize("recipe", ["inject", "hinton", "grouped", "mono", "unsupervised"])
def test_a_run_in_parts_resumes_bitwise(recipe, small_config, tmp_path):
    config = small_config(recipe, micro_batch=10, network__tile_units=16)
    unbroken = ff.train(config, tmp_path / "unbroken")
    with pytest.raises(KeyboardInterrupt):
        ff.train(config, tmp_path / "run", observer=InterruptAt("on_epoch", 4))
    assert layer_digests(ff.resume(tmp_path / "run").path) == layer_digests(unbroken.path)


PARTS = [(29, 11, None), (30, 43, None), (44, 20, None), (16, 4, 8), (42, "auto", 21), (62, 21, 64), (28, "auto", 88)]


@pytest.mark.parametrize(("number", "micro_batch", "shard_samples"), PARTS)
def test_planned_memory_of_parts_is_what_a_run_takes(number, micro_batch, shard_samples, tmp_path):
    config, num_features = draw_config(number)
    config = config.override({"micro_batch": micro_batch})
    if shard_samples is not None:
        config = config.override({"cache.shard_samples": shard_samples})
    planned, measured = compare(config, num_features, tmp_path / "sweep")
    assert measured <= planned <= 1.1 * measured


def test_a_budget_too_small_for_a_batch_cuts_it_before_it_cuts_the_layer(small_config):
    config = small_config(width=100, batch=256, cache__shard_samples=256)
    whole = ff.make_plan(config)
    tight = ff.make_plan(config.override({"memory.budget": str(int(0.7 * whole.device.num_bytes))}))
    assert whole.sizes.num_in_micro_batch == 256
    assert tight.sizes.num_in_micro_batch < 256
    assert tight.sizes.num_tiles == 1
    assert tight.config.batch == 256


# --- a batch of several shards


def train_an_epoch(config, digits, dtype, num_samples=96):
    """A layer of 60 units after an epoch, and how many samples each update was made from."""
    blueprint = describe(config)
    method, layer = blueprint.method, blueprint.build_layer(blueprint.specs[0]).to(dtype)
    layer.compute_dtype = dtype
    labels = digits.train.labels[:num_samples]
    images = Scaling(16.0).apply(digits.train.images[:num_samples])
    rows = method.rows.training_rows(images, labels, torch.Generator().manual_seed(1)).to(dtype)
    layout = CacheLayout(num_samples, method.rows.num_training_rows, 64, "fp32", config.cache.shard_samples)
    cache = MemoryCache(layout, CPU)
    for shard in range(layout.num_shards):
        cache.store(shard, rows[layout.shard_range(shard)])
    trainer = LayerTrainer(layer, 0, blueprint, CPU)
    counts, step = [], trainer.step

    def counting_step(parts, num_in_batch, *others):
        counts.append(num_in_batch)
        return step(parts, num_in_batch, *others)

    trainer.step = counting_step
    with Transfer(CPU) as transfer:
        figures = trainer.train_epoch(transfer, cache, labels, 0)
    return layer.state_dict(), counts, figures


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("recipe", ["inject", "hinton"])
def test_a_batch_of_several_shards_makes_the_step_of_one(recipe, dtype, small_config, digits):
    settings = {"width": 60, "batch": 96, "network__dropout": 0.0, "objective__peer_normalisation": 0.0}
    config = small_config(recipe, negatives__per_step=9, optimiser__name="sgd", **settings)  # all labels: no draw
    at_once, _, figures = train_an_epoch(config.override({"cache.shard_samples": 96}), digits, dtype)
    tolerance = {"rtol": 1e-3, "atol": 2e-5} if dtype == torch.float32 else {"rtol": 1e-9, "atol": 1e-11}
    for micro_batch in ("auto", 10):
        parts = config.override({"cache.shard_samples": 24, "micro_batch": micro_batch})
        found, counts, same_figures = train_an_epoch(parts, digits, dtype)
        assert counts == [96]
        for name, value in at_once.items():
            torch.testing.assert_close(found[name], value, **tolerance, msg=name)
        assert same_figures.loss == pytest.approx(figures.loss, rel=1e-5)


@pytest.mark.parametrize(
    ("shard_samples", "batch", "counts"),
    [
        (96, 40, [32, 32, 32]),  # parts of one shard, of at most 40 that differ by at most one
        (40, 60, [16, 40, 40]),  # a shard each: two would be more than a batch
        (20, 60, [36, 60]),  # three shards, and what is left
        (8, 20, [16, 16, 16, 16, 16, 16]),
        (200, 300, [96]),
    ],
)
def test_batches_are_parts_of_a_shard_or_whole_shards(shard_samples, batch, counts, small_config, digits):
    config = small_config(width=60, batch=batch, cache__shard_samples=shard_samples)
    _, found, figures = train_an_epoch(config, digits, torch.float32)
    assert sorted(found) == counts
    assert figures.num_samples == 96


@pytest.mark.parametrize("tile_units", [10, 24])
@pytest.mark.parametrize("recipe", ["inject", "hinton"])
def test_batches_of_several_shards_resume_bitwise_from_every_tier(recipe, tile_units, small_config, tmp_path):
    config = small_config(recipe, batch=96, micro_batch=20, cache__shard_samples=32, network__tile_units=tile_units)
    unbroken = ff.train(config.override({"cache.tier": "host"}), tmp_path / "unbroken")
    for tier in ("host", "disk"):
        path = tmp_path / tier
        with pytest.raises(KeyboardInterrupt):
            ff.train(config.override({"cache.tier": tier}), path, observer=InterruptAt("on_epoch", 4))
        assert layer_digests(ff.resume(path).path) == layer_digests(unbroken.path)


def test_a_budget_too_small_for_two_shards_of_a_batch_makes_them_smaller_before_it_cuts_the_layer(small_config):
    config = small_config(width=100, batch=1024, cache__tier="disk", cache__shard_samples="auto")
    data = DataShape.of(20000, 64, 10, 0.1)
    whole = ff.make_plan(config, data=data)
    budget = whole.device.num_bytes // 3
    tight = ff.make_plan(config.override({"memory.budget": str(budget)}), data=data)
    assert tight.sizes.num_shards_in_batch > 1
    assert tight.sizes.num_tiles == 1
    assert tight.config.batch == 1024
    assert tight.device.num_bytes <= budget


@pytest.mark.parametrize(("micro_batch", "shard_samples"), [(100, 1024), (64, 128)])
def test_the_work_of_many_parts_is_counted_from_few(micro_batch, shard_samples, small_config, monkeypatch):
    config = small_config(batch=1024, micro_batch=micro_batch, cache__shard_samples=shard_samples)
    blueprint = Blueprint.of(config, DataShape.of(4096, 64, 10, 0.1))
    counted = do_on_paper(blueprint, draws_on_device=True)
    monkeypatch.setattr("ffstream.plan.dry_run._NUM_PARTS", 1000)
    assert do_on_paper(blueprint, draws_on_device=True) == [
        dataclasses.replace(layer, footprint=approx_bytes(layer.footprint), step=approx_work(layer.step))
        for layer in counted
    ]


def approx_bytes(footprint):
    """A part that is a sample smaller has a sample's noise less."""
    return dataclasses.replace(footprint, others=pytest.approx(footprint.others, rel=1e-3))


def approx_work(work):
    """Parts that are a sample smaller make a part of a percent."""
    return Work(*(pytest.approx(value, rel=0.02) for value in dataclasses.astuple(work)))
