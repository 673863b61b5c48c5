"""Streaming changes nothing: not the tier, not an interruption, not whether the network is resident."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time

import pytest
import torch

import ffstream as ff
from ffstream.cache import CacheLayout, DiskCache, as_cached
from ffstream.data import Scaling, load_dataset
from ffstream.field.network import hand_on
from ffstream.run.cache_set import CacheSet
from ffstream.run.run import make_splits
from ffstream.training.input_rows import InputRows
from ffstream.training.layer_trainer import LayerTrainer
from tests.helpers import InterruptAt, check_resumed_equals, describe, layer_digests, train_in_pieces

RECIPES = {
    "inject": {},
    "inject skip": {"network__input_skip": True},
    "hinton": {"recipe": "hinton"},
    "hinton uniform, peers": {
        "recipe": "hinton",
        "negatives__sampler": "uniform",
        "objective__perturbation": 0.0,
        "objective__peer_normalisation": 0.03,
    },
    "grouped": {"recipe": "grouped"},
    "grouped, mean of activities": {"recipe": "grouped", "objective__goodness": "mean"},
    "mono": {"recipe": "mono"},
    "hinton two negatives": {"recipe": "hinton", "negatives__per_sample": 3, "negatives__per_step": 2},
    "unsupervised": {"recipe": "unsupervised"},
    "inject in 8 bits": {"cache__dtype": "int8"},
}


class ResidentRows:
    """Stands where cache and transfer do and hands out slices of one tensor that holds the whole cache."""

    def __init__(self, rows, layout):
        self._rows, self.layout = rows, layout

    def blocks(self, _cache, order):
        for shard in order:
            yield shard, self._rows[self.layout.shard_range(shard)]


def train_resident(config):
    """Every layer and every activation in memory at once: no cache, no stream, no checkpoint."""
    dataset = load_dataset(config.data)
    train = make_splits(dataset, config)["train"]
    blueprint = describe(config, dataset.num_features, dataset.num_classes, dataset.image_shape)
    specs = blueprint.specs
    layers = [blueprint.build_layer(spec) for spec in specs]
    rows = InputRows(blueprint.method.rows, train, Scaling(dataset.scale()), config.seed).make()(slice(0, len(train)))
    rows = as_cached(rows, config.cache.dtype)
    for spec, layer in zip(specs, layers, strict=True):
        layout = CacheLayout(len(rows), rows.shape[1], rows.shape[2], config.cache.dtype, config.cache.shard_samples)
        resident = ResidentRows(rows, layout)
        trainer = LayerTrainer(layer, spec.index, blueprint, torch.device("cpu"))
        for epoch in range(config.epochs):
            trainer.train_epoch(resident, resident, train.labels, epoch)
        with torch.no_grad():
            # In products of as many rows as the stream's, or the last bit could differ.
            parts = [rows[layout.shard_range(shard)] for shard in range(layout.num_shards)]
            flat = [hand_on(layer, spec, p.flatten(0, 1), layer.preactivations(p.flatten(0, 1))).clone() for p in parts]
            rows = as_cached(torch.cat(flat), config.cache.dtype).view(len(rows), -1, spec.next_row.num_features)
        layer.make_plain()  # as loaded layers are
        blueprint.method.reading.make_plain(layer)
    return layers


@pytest.mark.parametrize("name", RECIPES)
def test_streamed_equals_resident_bitwise(name, small_config, tmp_path):
    config = small_config(**RECIPES[name], cache__tier="disk")
    run = ff.train(config, tmp_path / "run")
    for streamed, resident in zip(run.load().layers, train_resident(config), strict=True):
        for (key, mine), theirs in zip(streamed.state_dict().items(), resident.state_dict().values(), strict=True):
            assert torch.equal(mine, theirs), key


@pytest.mark.parametrize("recipe", ["inject", "hinton", "grouped", "mono", "unsupervised"])
@pytest.mark.parametrize(("precision", "dtype"), [("fp32", "bf16"), ("bf16", "bf16"), ("bf16", "int8")])
def test_every_tier_trains_the_same_network(recipe, precision, dtype, small_config, tmp_path):
    found = {}
    for tier in ("device", "host", "disk"):
        config = small_config(recipe, cache__tier=tier, cache__dtype=dtype, precision=precision)
        found[tier] = layer_digests(ff.train(config, tmp_path / tier).path)
    assert len(found["disk"]) == 3
    assert found["device"] == found["host"] == found["disk"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, small_data):
    runs = {}

    def get(config):
        key = config.to_toml()  # of as many layers
        if key not in runs:
            runs[key] = ff.train(config, tmp_path_factory.mktemp("whole") / "run").path
        return runs[key]

    return get


class Steps(ff.Observer):
    def __init__(self):
        self.seen = []

    def on_step(self, description):
        self.seen.append(description)


@pytest.mark.parametrize("tiles", [{}, {"network__tile_units": 10}])
def test_a_disk_slower_than_the_epochs_holds_no_more_progress_than_planned(tiles, small_config, tmp_path, monkeypatch):
    config, seen = small_config(epochs=6, layers=1, width=64, **tiles), []

    class Weigh(ff.Observer):
        def on_epoch(self, *_):
            seen.append(0)
            for path in (tmp_path / "run/progress").iterdir():
                with contextlib.suppress(FileNotFoundError):  # renamed or removed beside this
                    seen[-1] += path.stat().st_size

    fsync = os.fsync
    monkeypatch.setattr("os.fsync", lambda file: (time.sleep(0.02), fsync(file)))
    ff.train(config, tmp_path / "run", observer=Weigh())
    assert max(seen) <= ff.make_plan(config).disk.terms["progress"] + 8192, "of headers and the manifest"


HARD = {
    "injection": {},
    "overlay": {"recipe": "hinton"},
    "some overlays": {"recipe": "hinton", "negatives__per_sample": 3, "negatives__per_step": 2},
    "tiles": {"network__tile_units": 10},
}


@pytest.mark.parametrize("name", HARD)
def test_hard_negatives_are_drawn_and_resume_bitwise(name, small_config, uninterrupted, tmp_path):
    config = small_config(**HARD[name], negatives__sampler="hard", cache__tier="disk", layers=2)
    whole = uninterrupted(config)
    plain = uninterrupted(config.override({"negatives.sampler": "uniform"}))
    assert all(a != b for a, b in zip(layer_digests(whole), layer_digests(plain), strict=True))
    for epoch in (0, 1, 4):
        with pytest.raises(KeyboardInterrupt):
            ff.train(config, tmp_path / str(epoch), observer=InterruptAt("on_epoch", epoch))
        check_resumed_equals(whole, ff.resume(tmp_path / str(epoch)).path)
    host = ff.train(config.override({"cache.tier": "host"}), tmp_path / "host")
    assert layer_digests(host.path) == layer_digests(whole)


def test_hard_negatives_are_chosen_by_what_the_layer_makes_of_labels_now(small_config, monkeypatch, tmp_path):
    """In every step but those of the first epoch."""
    seen = []

    def spy(trainer, part, goodness):
        if goodness.device.type != "meta":  # not on paper
            seen.append((part.candidates[:, 0], goodness.clone()))
        return choose(trainer, part, goodness)

    choose = LayerTrainer._choose
    monkeypatch.setattr(LayerTrainer, "_choose", spy)
    config = small_config(negatives__sampler="hard", layers=1, epochs=30, batch=50, network__dropout=0.0)
    ff.train(config, tmp_path / "run")
    num_batches = len(seen) // 29
    right = torch.cat([goodness.argmax(dim=1) == positives for positives, goodness in seen[-num_batches:]])
    assert len(right) == 275
    assert right.float().mean() > 0.9


@pytest.mark.parametrize("tier", ["host", "disk"])
def test_interrupted_before_every_step_resumes_bitwise(tier, small_config, uninterrupted, tmp_path):
    config = small_config(cache__tier=tier)
    least = 6  # write input, train 1, propagate, train 2, propagate, train 3; and what is written again
    assert train_in_pieces(config, tmp_path / "run", "on_step") >= least
    check_resumed_equals(uninterrupted(config), tmp_path / "run")


@pytest.mark.parametrize("recipe", ["inject", "hinton", "unsupervised"])
@pytest.mark.parametrize("num_moved", range(6))  # of five training shards and one of the validation split
def test_interrupted_while_shards_move_through_a_layer_resumes_bitwise(
    recipe, num_moved, small_config, uninterrupted, tmp_path, monkeypatch
):
    config = small_config(recipe, cache__tier="disk", cache__shard_samples=64)
    whole, store, stored = uninterrupted(config), DiskCache.store, []

    def failing_store(cache, shard, rows):
        if cache.layout.num_features == config.width:
            stored.append(shard)
        if len(stored) > num_moved:
            raise ff.StorageError("disk full")
        store(cache, shard, rows)

    with monkeypatch.context() as patch, pytest.raises(ff.StorageError, match="disk full"):
        patch.setattr(DiskCache, "store", failing_store)
        ff.train(config, tmp_path / "run")
    (own,) = (tmp_path / "run/cache").iterdir()
    places = [str(path.relative_to(own)) for path in own.rglob("shard-*")]
    assert len(places) == len({place[3:] for place in places}) == 6  # each shard is in one place
    assert sum(place.startswith("001") for place in places) == num_moved
    steps = Steps()
    run = ff.resume(tmp_path / "run", observer=steps)
    assert steps.seen[0] == "propagating through layer 1"  # and not from the data set again
    check_resumed_equals(whole, run.path)


def test_where_the_disk_is_tight_two_caches_take_no_more_than_one_and_a_shard(small_config, tmp_path, monkeypatch):
    config = small_config(cache__tier="disk", cache__shard_samples=64, cache__dtype="fp32", width=64, layers=4)
    cache_bytes, shard_bytes = 300 * 64 * 4, 64 * 64 * 4
    enough = ff.make_plan(config).disk
    assert enough.terms["cache"] == 2 * (cache_bytes + shard_bytes)
    config = config.override({"memory.disk_budget": str(enough.num_bytes - 1)})
    sync, found = DiskCache.sync, []

    def measuring_sync(cache, shard):
        files = [path for path in (tmp_path / "run/cache").rglob("*") if path.is_file()]
        headers = [8 + int.from_bytes(path.read_bytes()[:8], "little") for path in files]
        found.append(sum(path.stat().st_size for path in files) - sum(headers))
        sync(cache, shard)

    monkeypatch.setattr(DiskCache, "sync", measuring_sync)
    ff.train(config, tmp_path / "run")
    assert len(found) == 4 * 6
    assert max(found) <= cache_bytes + shard_bytes


@pytest.mark.parametrize("recipe", ["inject", "hinton", "grouped", "mono", "unsupervised"])
def test_interrupted_after_every_epoch_resumes_bitwise(recipe, small_config, uninterrupted, tmp_path):
    config = small_config(recipe, cache__tier="disk")
    assert train_in_pieces(config, tmp_path / "run", "on_epoch") == 3 * 3
    check_resumed_equals(uninterrupted(config), tmp_path / "run")


def test_a_run_that_was_interrupted_is_gone_on_with_by_the_command_that_started_it(
    small_config, uninterrupted, tmp_path
):
    config = small_config(cache__tier="disk")
    with pytest.raises(KeyboardInterrupt):
        ff.train(config, tmp_path / "run", observer=InterruptAt("on_epoch", 4))
    run = ff.train(config, tmp_path / "run", resume=True)
    check_resumed_equals(uninterrupted(config), run.path)


def test_interrupted_twice_within_one_layer_and_once_in_resume(small_config, uninterrupted, tmp_path):
    config = small_config(cache__tier="disk")
    for method, nth in (("on_epoch", 3), ("on_epoch", 0), ("on_step", 0), ("on_layer", 0)):
        with pytest.raises(KeyboardInterrupt):
            ff.train(config, tmp_path / "run", resume=True, observer=InterruptAt(method, nth))
    check_resumed_equals(uninterrupted(config), ff.resume(tmp_path / "run").path)


def test_interrupted_between_the_last_commit_and_the_end_resumes(small_config, uninterrupted, tmp_path, monkeypatch):
    def interrupt(_caches):
        raise KeyboardInterrupt

    config = small_config(cache__tier="disk")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(CacheSet, "drop_all", interrupt)
        ff.train(config, tmp_path / "run")
    assert (tmp_path / "run/cache").exists()
    check_resumed_equals(uninterrupted(config), ff.resume(tmp_path / "run").path)


def test_an_interruption_loses_no_finished_epoch(small_config, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        ff.train(small_config(), tmp_path / "run", observer=InterruptAt("on_epoch", 1))
    assert ff.Run(tmp_path / "run").directory.read_progress() == (0, 2)


def test_growing_a_finished_run_equals_training_it_deep_at_once(small_config, uninterrupted, tmp_path):
    run = ff.train(small_config(layers=1), tmp_path / "run")
    grown = ff.resume(run.path, layers=3)
    check_resumed_equals(uninterrupted(small_config()), grown.path)


def test_training_a_layer_leaves_every_earlier_layer_untouched(small_config, tmp_path):
    run = ff.train(small_config(layers=2), tmp_path / "run")
    before = {path: path.read_bytes() for path in run.path.glob("layers/*/*")}
    ff.resume(run.path, layers=4)
    assert before == {path: path.read_bytes() for path in before}


def test_cached_rows_carry_no_graph_and_no_gradient_reaches_them(small_config, digits):
    config = dataclasses.replace(small_config(), batch=8)
    blueprint = describe(config)
    trainer = LayerTrainer(blueprint.build_layer(blueprint.specs[0]), 0, blueprint, torch.device("cpu"))
    rows = blueprint.method.rows.sweep_rows(Scaling(16.0).apply(digits.train.images[:80])).requires_grad_()
    resident = ResidentRows(rows, CacheLayout(80, 1, 64, "fp32", 80))
    trainer.train_epoch(resident, resident, digits.train.labels[:80], 0)
    assert rows.grad is None


def test_the_seed_decides_everything(small_config, tmp_path):
    first, second, other = (
        layer_digests(ff.train(small_config(seed=seed), tmp_path / name).path)
        for name, seed in (("first", 5), ("second", 5), ("other", 6))
    )
    assert first == second
    assert all(mine != theirs for mine, theirs in zip(first, other, strict=True))


def test_global_generators_are_neither_read_nor_written(small_config, uninterrupted, tmp_path):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    run = ff.train(small_config(), tmp_path / "run")
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(2)
    assert layer_digests(run.path) == layer_digests(uninterrupted(small_config()))
