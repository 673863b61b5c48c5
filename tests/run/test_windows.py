"""Windows: parts of the training samples pass through all layers one by one, and no cache holds more than one."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil

import pytest
import torch

import ffstream as ff
from ffstream.cache import CacheLayout, MemoryCache
from ffstream.cache.transfer import Transfer
from ffstream.data.augmentation import Augmentation
from ffstream.data.shape import DataShape
from ffstream.field.blueprint import Blueprint
from ffstream.field.layers import Mode
from ffstream.field.network import hand_on
from ffstream.plan import fitting
from ffstream.plan.footprint import cache_layouts
from ffstream.run.cache_set import TRAIN, CacheSet
from ffstream.run.layer_store import LayerStore
from ffstream.run.preparation import make_plan, prepare
from ffstream.storage.run_directory import RunDirectory
from ffstream.training.input_rows import InputRows
from ffstream.training.layer_trainer import LayerTrainer
from ffstream.training.propagation import settle
from ffstream.training.window import Window
from tests.helpers import DenseLayer, InterruptAt, check_resumed_equals, layer_digests, make_dense, train_in_pieces

WINDOWS = {"schedule__order": "rounds", "schedule__window_samples": 96}
FRESH = {"augmentation__restream": True, "augmentation__max_shift": 1}
NETWORKS = {
    "inject, fresh shifts": FRESH,
    "hinton, dropout": {"recipe": "hinton", "objective__perturbation": 0.0},
    "mono": {"recipe": "mono"},
    "unsupervised": {"recipe": "unsupervised"},
    "stacks": {"network__stack_layers": 2, "layers": 3, **FRESH},
    "coded, bf16 state": {"cache__dtype": "int8", "optimiser__state_dtype": "bf16"},
    "local heads": {"recipe": "conv", "network__layers": "conv4 pool conv6", "labels__head_layers": 2},
}


@pytest.fixture(params=["host", "disk"])
def layer_tier(request, monkeypatch):
    """Where layers are between windows, as a plan decides by the memory that there is."""
    if request.param == "disk":
        host = fitting._Planner._host

        def without_room(planner, *arguments):
            found = host(planner, *arguments)
            return dataclasses.replace(found, allowed_bytes=1) if any(arguments[4:]) else found

        monkeypatch.setattr(fitting._Planner, "_host", without_room)
    return request.param


def test_windows_hold_every_sample_once_and_differ_in_size_by_at_most_one():
    for num_samples, num in ((10, 3), (96, 96), (97, 8), (5, 1)):
        windows = [Window(number, num) for number in range(num)]
        sizes = [window.size(num_samples) for window in windows]
        assert max(sizes) - min(sizes) <= 1
        assert sizes[0] == max(sizes) == -(-num_samples // num)
        parts = [window.select(num_samples, seed=3, epoch=2) for window in windows]
        if num == 1:
            assert parts == [None]
            continue
        assert [len(part) for part in parts] == sizes
        assert torch.equal(torch.cat(parts).sort().values, torch.arange(num_samples))
        again = [window.select(num_samples, seed=3, epoch=2) for window in windows]
        assert all(map(torch.equal, parts, again))
        others = [window.select(num_samples, seed=3, epoch=1) for window in windows]
        assert num == num_samples or not all(map(torch.equal, parts, others))


@pytest.mark.parametrize("more", [{}, FRESH, {"recipe": "mono"}, {"network__layers": "conv4 pool conv6"}])
def test_windows_of_one_batch_are_simultaneous_training(more, small_config, tmp_path):
    """A twin that keeps all layers on the device, and takes a step of each with every batch, gets the same bits."""
    config = small_config(**{**WINDOWS, "schedule__window_samples": 32, **more}, epochs=2)
    run = ff.train(config, tmp_path / "run")
    twin = train_all_at_once(config, run.directory.read_data().scaling, tmp_path / "twin")
    for index, layer in enumerate(twin):
        own = {name: value.clone() for name, value in layer.state_dict().items()}
        run.directory.load_layer(index, layer)
        assert [name for name, value in layer.state_dict().items() if not torch.equal(own[name], value)] == []


@torch.no_grad()
def train_all_at_once(config, scaling, place):
    prepared = prepare(RunDirectory(place), config, measure=False)
    config, split, device = prepared.plan.config, prepared.splits[TRAIN], torch.device("cpu")
    blueprint, augmentation = Blueprint.of(config, prepared.plan.data), Augmentation(config.augmentation)
    transfer = Transfer(device, None, lambda: None)
    layers = [blueprint.build_layer(spec) for spec in blueprint.specs]
    trainers = [LayerTrainer(layer, index, blueprint, device) for index, layer in enumerate(layers)]
    for epoch in range(config.epochs):
        statistics = {}
        num = config.schedule.count_windows(len(split))
        for window in (Window(number, num) for number in range(num)):
            own, place = split.take(window.select(len(split), config.seed, epoch)), window.count_before(epoch)
            draws = augmentation.draw_fresh(len(own), config.seed, 0, place) if augmentation.is_there else None
            rows = InputRows(blueprint.method.rows, own, scaling, config.seed, epoch=place).make(augmentation, draws)
            activations = rows(slice(0, len(own)))
            for spec, trainer in zip(blueprint.specs, trainers, strict=True):
                layout = dataclasses.replace(cache_layouts(blueprint, spec.row)[TRAIN], num_samples=len(own))
                assert layout.num_shards == 1, "a window is a batch"
                cache = MemoryCache(layout, device)
                cache.allocate(0, device).copy_(activations)
                trainer.train_epoch(transfer, cache, own.labels, epoch, window=window)
                if trainer.layer.has_statistics:
                    before = statistics.get(spec.index)
                    statistics[spec.index] = settle(transfer, trainer.layer, spec, cache, before)
                if spec.hands_on:
                    read, layer = cache.resident(0, device).flatten(0, 1), trainer.layer
                    layer.begin(Mode.HANDING_ON)
                    made = hand_on(layer, spec, read, layer.preactivations(spec.row.read(read)))
                    activations = made.unflatten(0, (len(own), -1))
    return layers


@pytest.mark.parametrize(
    ("name", "layer_tier"),
    [(name, ("host", "disk")[number % 2]) for number, name in enumerate(NETWORKS)],
    indirect=["layer_tier"],
)
def test_every_tier_trains_the_same_network_and_resumes_it_from_every_window(name, layer_tier, small_config, tmp_path):
    config = small_config(**{"layers": 2, **NETWORKS[name]}, **WINDOWS, epochs=2, save_every="0.0001s")
    whole = ff.train(config.override({"cache.tier": "host", "save_every": "1h"}), tmp_path / "whole")
    config = config.override({"cache.tier": "disk"})
    assert train_in_pieces(config, tmp_path / "pieces", "on_epoch") >= 2 * 3 * config.layers
    check_resumed_equals(whole.path, tmp_path / "pieces")
    whole.verify()


def test_interrupted_before_every_step_resumes_bitwise(layer_tier, small_config, tmp_path):
    config = small_config(
        **WINDOWS, **FRESH, save_every="1h", layers=2, epochs=2
    )  # saved before the last window of every round alone
    whole = ff.train(config, tmp_path / "whole")
    assert train_in_pieces(config, tmp_path / "run", "on_step") >= 2 * 3 * 4
    check_resumed_equals(whole.path, tmp_path / "run")


def test_no_cache_holds_more_than_a_window_of_the_training_samples(small_config, tmp_path, monkeypatch):
    layouts, make = [], CacheSet.make

    def note(caches, index, name):
        found = make(caches, index, name)
        layouts.append((name, found.layout))
        return found

    monkeypatch.setattr(CacheSet, "make", note)
    config = small_config(**WINDOWS, epochs=2)
    ff.train(config, tmp_path / "run")
    sizes = {layout.num_samples for name, layout in layouts if name == TRAIN}
    assert max(sizes) <= 96
    assert len([name for name, _ in layouts if name != TRAIN]) == 2 * config.layers, "once a round"


def test_a_round_reports_the_means_of_all_its_windows(small_config, tmp_path):
    class Epochs(ff.Observer):
        def __init__(self):
            self.found = []

        def on_epoch(self, layer, epoch, num_epochs, figures, validation_error):
            self.found.append((layer, epoch, num_epochs, figures, validation_error))

    config = small_config(**WINDOWS, epochs=2)
    epochs = Epochs()
    run = ff.train(config, tmp_path / "run", observer=epochs)
    num_samples = sum(figures.num_samples for layer, *_, figures, _ in epochs.found if layer == 1) // 2
    num = config.schedule.count_windows(num_samples)
    assert num == 3
    assert [epoch for layer, epoch, *_ in epochs.found if layer == 1] == list(range(1, 2 * num + 1))
    assert all((error is None) == bool(epoch % num) for _, epoch, *_, error in epochs.found), "measured once a round"
    records = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    for record in records:
        own = [
            figures
            for layer, epoch, _, figures, _ in epochs.found
            if layer == record["layer"] and (epoch - 1) // num + 1 == record["epoch"]
        ]
        assert record["num_samples"] == num_samples
        mean = sum(figures.loss * figures.num_samples for figures in own) / num_samples
        assert record["loss"] == pytest.approx(mean)


def test_readers_see_the_last_whole_round_between_windows(small_config, tmp_path):
    config, path = small_config(**WINDOWS, epochs=3, save_every="0.0001s"), tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        ff.train(config, path, observer=InterruptAt("on_epoch", 3 * 3 + 4))
    run = ff.Run(path)
    run.verify()
    assert run.directory.round == 1
    assert run.directory.read_windows().num_done >= 1
    alone = tmp_path / "alone"
    with pytest.raises(KeyboardInterrupt):
        ff.train(config, alone, observer=InterruptAt("on_round", 0))
    assert layer_digests(path) == layer_digests(alone)


def test_lost_windows_are_named(small_config, tmp_path):
    """Without what was saved between windows, the layers of the round that is under way have nothing to go on from."""
    config, path = small_config(**WINDOWS, epochs=2, save_every="0.0001s"), tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        ff.train(config, path, observer=InterruptAt("on_epoch", 5))
    for damage in ("cut", "removed"):
        own = tmp_path / damage
        shutil.copytree(path, own)
        file = next((own / "progress").glob("layer-001-*"))
        if damage == "cut":
            file.write_bytes(file.read_bytes()[:-8])
        else:
            file.unlink()
        with pytest.raises(ff.FFStreamError, match="layer-001"):
            ff.Run(own).verify()
        with pytest.raises(ff.FFStreamError, match="layer-001"):
            ff.resume(own)


def test_the_layers_of_a_round_whose_windows_are_gone_are_put_aside(small_config, tmp_path):
    config, path = small_config(**WINDOWS, epochs=2), tmp_path / "run"
    whole = ff.train(config, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):  # in the last window of the second round, after its first layer
        ff.train(config, path, observer=InterruptAt("on_epoch", 3 * 3 + 2 * 3 + 2))
    assert RunDirectory(path).under_way().count_layers() >= 1
    shutil.rmtree(path / "progress")
    ff.resume(path)
    assert layer_digests(path) == layer_digests(whole.path)
    assert any(path.glob("damaged-*"))


def test_another_window_is_another_run(small_config, tmp_path):
    run = ff.train(small_config(**WINDOWS, epochs=1), tmp_path / "run")
    config = run.config.override({"schedule.window_samples": 50, "epochs": 2})
    with pytest.raises(ff.RunMismatchError, match=r"schedule\.window_samples"):
        ff.train(config, run.path, resume=True)


def test_windows_need_rounds(small_config, tmp_path):
    with pytest.raises(ff.ConfigError, match="--order rounds"):
        ff.train(small_config(schedule__window_samples=50), tmp_path / "run")


def test_a_plan_counts_a_window_and_the_layers_between_two(small_config, layer_tier):
    whole, windows = (
        make_plan(small_config(**{**WINDOWS, "schedule__window_samples": most}, cache__shard_samples=32))
        for most in ("all", 32)
    )
    assert windows.layers[0].cache_bytes < whole.layers[0].cache_bytes
    state = sum(len(layer.numbers) * (layer.footprint.weights + layer.footprint.optimiser) for layer in windows.layers)
    assert windows.layer_tier == layer_tier
    assert windows.host.terms.get("layers between windows", 0) == (state if layer_tier == "host" else 0)
    assert windows.disk.terms["progress"] - whole.disk.terms["progress"] == 2 * state


def test_layers_lie_in_memory_without_a_copy_for_each_window(small_config, tmp_path, monkeypatch):
    """A state is written into the memory of the last one."""
    stores, put = {}, LayerStore.put

    def note(store, index, window, trainer):
        put(store, index, window, trainer)
        stores.setdefault(index, set()).add(tuple(tensor.data_ptr() for tensor in store._states[index].values()))

    monkeypatch.setattr(LayerStore, "put", note)
    config = small_config(**WINDOWS, epochs=2)
    ff.train(config, tmp_path / "run")
    assert len(stores) == config.layers
    assert all(len(places) == 1 for places in stores.values())


def test_statistics_of_a_window_remember_those_before(small_config):
    """The older a sample is, the less it counts; after 8,192 samples, about 1 / e."""
    blueprint = Blueprint.of(small_config(), DataShape(64, 10, {"train": 64}))
    spec = blueprint.specs[0]
    layer = make_dense(spec.in_features, spec.num_units, kind=Counting)
    torch.nn.init.zeros_(layer.weight)
    cache = MemoryCache(CacheLayout(64, 1, spec.row.num_features, "fp32", 64), torch.device("cpu"))
    cache.allocate(0, torch.device("cpu")).zero_()
    total, transfer = None, Transfer(torch.device("cpu"), None, lambda: None)
    for number in range(8192 // 64 + 1):
        total = settle(transfer, layer, spec, cache, total)
        if number == 0:
            first = float(total)
            assert first == 64
    left = (1 - 64 / 8192) ** (8192 // 64)
    assert left == pytest.approx(math.exp(-1), abs=0.01)
    assert float(total) == pytest.approx(8192 * (1 - left) + 64 * left)
    assert layer.settled == total


class Counting(DenseLayer):
    """Its statistics are the number of rows that it has seen."""

    def statistics_of(self, preactivations):
        return torch.tensor(float(len(preactivations)))

    def settle(self, statistics):
        self.settled = statistics
