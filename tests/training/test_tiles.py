"""Layers wider than the device: a tile of units at a time, as one would expect of the whole."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

import ffstream as ff
from benchmarks.footprint import compare, draw_config
from benchmarks.tiles import make_exact_trainers, take_exact_step, time_exact_steps
from ffstream.data import Scaling
from ffstream.errors import ConfigError, CorruptFileError
from ffstream.field.goodness import GOODNESSES, Goodness
from ffstream.field.layers import LAYER_KINDS, Layer, UnitAxis
from ffstream.ground.files import sha256_file
from ffstream.ground.folder import Folder
from ffstream.plan.probe import _measure_step
from ffstream.storage.tensor_file import load_tensors
from ffstream.storage.tensor_tiles import digest_tiles, join_tensors, load_slices
from ffstream.training.layer_trainer import LayerTrainer
from ffstream.training.micro_batch import MicroBatch
from tests.helpers import (
    InterruptAt,
    check_resumed_equals,
    cut_layer,
    describe,
    layer_digests,
    take_units,
    train_in_pieces,
)

CPU = torch.device("cpu")
TILES = {"network__tile_units": 10}  # of 24 units: 10, 10 and 4


@pytest.fixture(scope="module")
def rows(digits):
    return Scaling(16.0).apply(digits.train.images[:96]), digits.train.labels[:96]


# --- the exact way: each step's goodness is summed over tiles, then each tile is updated


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"objective__name": "logistic", "objective__goodness": "sum_squares", "objective__scale": 0.1},
        {"objective__threshold": 2.5, "objective__name": "logistic"},
        {"objective__goodness": "mean", "objective__name": "logistic", "objective__scale": 3.0},
        {"recipe": "hinton", "optimiser__name": "sgd"},
        {"recipe": "grouped"},
        {"recipe": "grouped", "objective__name": "logistic", "objective__goodness": "sum_squares"},
        {"recipe": "mono"},
    ],
)
def test_steps_by_tiles_equal_steps_of_the_whole(settings, dtype, small_config, rows):
    whole = small_config(width=60, objective__perturbation=0.0, **settings)
    config = whole.override({"network.tile_units": 25})
    blueprint = describe(whole)
    method, layer = blueprint.method, blueprint.build_layer(blueprint.specs[0]).to(dtype)
    layer.compute_dtype = dtype
    tiles = cut_layer(layer, describe(config).tiles_of(blueprint.specs[0]))
    images, labels = rows
    block = method.rows.training_rows(images, labels, torch.Generator().manual_seed(1)).to(dtype)
    trainer = LayerTrainer(layer, 0, blueprint, CPU)
    trainers = make_exact_trainers(tiles, 0, blueprint, CPU)
    before = layer.weight.detach().clone()
    for step in range(5):
        generator = torch.Generator().manual_seed(step)
        candidates = method.candidates.draw(labels, generator)
        index = torch.randperm(len(labels), generator=generator)[:32]
        state = generator.get_state()
        trainer.step([MicroBatch(block, index, candidates[index])], 32, 1.0, generator)
        take_exact_step(trainers, block, index, candidates[index], 1.0, generator.set_state(state))
    assert (layer.weight - before).abs().max() > 1e-3
    tolerance = {"rtol": 1e-3, "atol": 2e-5} if dtype == torch.float32 else {"rtol": 1e-9, "atol": 1e-11}
    for name, value in layer.state_dict().items():
        joined = torch.cat([tile.state_dict()[name] for tile in tiles], dim=layer.unit_axis(name))
        torch.testing.assert_close(joined, value, **tolerance, msg=name)


# --- the way that is used: tiles are trained one after another, each on top of those before


def test_only_the_first_tile_is_trained_adversarially(digits):
    """On top of others a step is that without perturbation; the first tile's is not."""
    config = ff.Config(layers=1, width=40, batch=64).override({"precision": "fp32", "cache.shard_samples": 64})
    block = describe(config).method.rows.sweep_rows(Scaling(16.0).apply(digits.train.images[:64]))
    index, candidates = torch.arange(64), torch.stack([torch.arange(64) % 10, (torch.arange(64) + 3) % 10], dim=1)

    def step(perturbation, others):
        changed = describe(config.override({"objective.perturbation": perturbation}))
        trainer = LayerTrainer(changed.build_layer(changed.specs[0]), 0, changed, CPU)
        trainer.step([MicroBatch(block, index, candidates, others)], 64, 1.0, torch.Generator())
        return trainer.layer.weight

    others = torch.zeros(64, 2)
    assert torch.equal(step(0.1, others), step(0.0, others))
    assert torch.equal(step(0.0, others), step(0.0, None))
    assert not torch.equal(step(0.1, None), step(0.0, None))


def test_steps_of_the_exact_way_are_timed():
    found = time_exact_steps(8, 16, "cpu", width=64)
    assert found["ratio"] == found["seconds"]["exact"] / found["seconds"]["whole"] > 0


@pytest.mark.parametrize("recipe", ["inject", "hinton", "grouped", "mono", "unsupervised"])
def test_a_tile_of_all_units_is_the_layer(recipe, small_config, tmp_path):
    plain = ff.train(small_config(recipe), tmp_path / "plain")
    tiled = ff.train(small_config(recipe, network__tile_units=24), tmp_path / "tiled")
    assert layer_digests(plain.path) == layer_digests(tiled.path)
    assert plain.config.network.tile_units == 24  # decided when it started, as a smaller budget must not change it


@pytest.mark.parametrize("recipe", ["inject", "hinton", "grouped", "mono", "unsupervised"])
def test_the_first_tile_is_a_narrow_layer_and_stays_as_it_was(recipe, small_config, tmp_path):
    narrow = ff.train(small_config(recipe, layers=1, width=10), tmp_path / "narrow")
    wide = ff.train(small_config(recipe, layers=1, **TILES), tmp_path / "wide")
    mine, theirs = (load_file(run.path / "layers/000/weights.safetensors") for run in (wide, narrow))
    for name, value in theirs.items():
        assert torch.equal(mine[name].narrow(Layer.unit_axis(name), 0, 10), value), name


@pytest.mark.parametrize("recipe", ["inject", "hinton", "grouped", "mono"])
def test_a_later_tile_sees_the_goodness_of_those_before(recipe, small_config, rows):
    config = small_config(recipe, network__dropout=0.0, objective__perturbation=0.0, **TILES)
    blueprint = describe(config)
    method, second = blueprint.method, blueprint.tiles_of(blueprint.specs[0])[1]
    images, labels = rows
    block = method.rows.training_rows(images, labels, torch.Generator())
    candidates = method.candidates.draw(labels, torch.Generator())
    index = torch.arange(len(labels))
    of_first = torch.rand(candidates.shape, generator=torch.Generator().manual_seed(0))
    sums = []
    for others in (None, of_first):
        layer = blueprint.build_layer(blueprint.specs[0], second)
        trainer = LayerTrainer(layer, 0, blueprint, CPU, second)
        part = MicroBatch(block, index, candidates, others)
        sums.append(trainer.step([part], len(index), 1.0, torch.Generator()))
    torch.testing.assert_close(sums[1][1] - sums[0][1], of_first[:, 0].sum(), rtol=1e-3, atol=1e-2)
    assert sums[0][0] != sums[1][0]


@pytest.mark.parametrize("recipe", ["inject", "hinton", "grouped", "mono", "unsupervised"])
def test_tiers_train_the_same_bits(recipe, small_config, tmp_path):
    on_device, in_host, on_disk = (
        layer_digests(ff.train(small_config(recipe, cache__tier=tier, **TILES), tmp_path / tier).path)
        for tier in ("device", "host", "disk")
    )
    assert on_device == in_host == on_disk


@pytest.mark.parametrize(("tier", "num_layers"), [("host", 2), ("disk", 3)])
def test_interrupted_after_every_epoch_of_every_tile_resumes_bitwise(tier, num_layers, small_config, tmp_path):
    config = small_config(cache__tier=tier, layers=num_layers, **TILES)
    unbroken = ff.train(config, tmp_path / "unbroken")
    assert train_in_pieces(config, tmp_path / "run", "on_epoch") == num_layers * 3 * 3
    check_resumed_equals(unbroken.path, tmp_path / "run")
    assert ff.Run(tmp_path / "run").evaluate() == unbroken.evaluate()


def test_a_finished_tile_is_not_trained_again(small_config, tmp_path):
    config = small_config(**TILES)
    with pytest.raises(KeyboardInterrupt):
        ff.train(config, tmp_path / "run", observer=InterruptAt("on_epoch", 4))
    epochs = []

    class Count(ff.Observer):
        def on_epoch(self, layer, epoch, num_epochs, figures, validation_error):
            epochs.append((layer, epoch, num_epochs))

    ff.resume(tmp_path / "run", observer=Count())
    assert epochs == [(layer, epoch, 9) for layer in (1, 2, 3) for epoch in range(1, 10)][5:]


@pytest.mark.parametrize("recipe", ["inject", "hinton", "grouped", "mono"])
@pytest.mark.parametrize("skip", [False, True])
def test_streamed_and_resident_evaluation_agree(recipe, skip, small_config, digits, tmp_path):
    run = ff.train(small_config(recipe, network__input_skip=skip, **TILES), tmp_path / "run")
    network = run.load()
    predicted = network.predict(digits.test.images[:100])
    streamed = run.evaluate().error
    assert float((predicted != digits.test.labels[:100]).double().mean()) == pytest.approx(streamed, abs=0.021)
    assert 0 <= run.evaluate("softmax").error <= 1
    assert run.verify() == 3
    figures = run.layers[-1]
    assert figures.validation_error_to_here is not None


def test_an_altered_tile_is_found_before_it_is_used(small_config, tmp_path):
    config = small_config(**TILES)
    with pytest.raises(KeyboardInterrupt):
        ff.train(config, tmp_path / "run", observer=InterruptAt("on_epoch", 4))
    (path,) = (tmp_path / "run/progress").glob("*-tile-000-*.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CorruptFileError, match=r"tile-000-\w+\.safetensors: altered"):
        ff.resume(tmp_path / "run")


def test_a_tile_that_is_altered_before_it_is_joined_is_never_committed(small_config, tmp_path):
    class Flip(ff.Observer):
        def on_epoch(self, layer, epoch, num_epochs, figures, validation_error):
            if epoch == num_epochs - 1:
                (path,) = (tmp_path / "run/progress").glob("*-tile-000-*.safetensors")
                content = bytearray(path.read_bytes())
                content[-1] ^= 1
                path.write_bytes(content)

    with pytest.raises(CorruptFileError, match=r"tile-000-\w+\.safetensors: altered"):
        ff.train(small_config(**TILES), tmp_path / "run", observer=Flip())
    assert ff.Run(tmp_path / "run").num_layers_done == 0


def test_progress_that_lacks_a_tile_is_refused(small_config, tmp_path):
    config = small_config(**TILES)
    with pytest.raises(KeyboardInterrupt):
        ff.train(config, tmp_path / "run", observer=InterruptAt("on_epoch", 4))
    (path,) = (tmp_path / "run/progress").glob("*-tile-000-*.safetensors")
    path.unlink()
    with pytest.raises(CorruptFileError, match=r"tile-000-\w+\.safetensors: is missing"):
        ff.resume(tmp_path / "run")


# --- what is handed on


# --- files


def test_joined_files_hold_what_the_parts_held_and_slices_give_it_back(tmp_path):
    axes = {"weight": UnitAxis(0), "bias": UnitAxis(0), "embedding": UnitAxis(1), "classifier": UnitAxis(1, num_runs=4)}
    whole = {
        "weight": torch.randn(9, 5),
        "bias": torch.randn(9),
        "embedding": torch.randn(3, 9),
        "classifier": torch.randn(3, 36),
    }
    cuts = [slice(0, 4), slice(4, 8), slice(8, 9)]
    for number, units in enumerate(cuts):
        save_file({name: take_units(t, axes[name], units) for name, t in whole.items()}, tmp_path / f"{number}")
    folder = Folder(tmp_path)
    digest = join_tensors(folder, "joined", {str(n): sha256_file(tmp_path / str(n)) for n in range(3)}, axes)
    assert digest == sha256_file(tmp_path / "joined")
    found = load_tensors(folder, "joined", digest)
    assert found.keys() == whole.keys()
    assert all(torch.equal(found[name], whole[name]) for name in whole)
    of_tiles = digest_tiles(folder, "joined", digest, axes, cuts)
    for units, of_tile in zip(cuts, of_tiles, strict=True):
        for name, part in load_slices(folder, "joined", axes, units, of_tile).items():
            assert torch.equal(part, take_units(whole[name], axes[name], units))


@pytest.mark.parametrize("at", [0, 8, 40, -170, -1])
@pytest.mark.parametrize("cut", [True, False])
def test_slices_of_a_file_that_changes_after_its_check_are_an_error(at, cut, tmp_path):
    save_file({"weight": torch.randn(9, 5)}, tmp_path / "file")
    folder, axes, cuts = Folder(tmp_path), {"weight": UnitAxis(0)}, [slice(0, 9)]
    (of_tile,) = digest_tiles(folder, "file", sha256_file(tmp_path / "file"), axes, cuts)
    data = bytearray((tmp_path / "file").read_bytes())
    data[at] ^= 1
    (tmp_path / "file").write_bytes(data[:at] if cut else data)
    with pytest.raises(CorruptFileError, match="since it was checked"):
        load_slices(folder, "file", axes, slice(0, 9), of_tile)


# --- plans


@pytest.mark.parametrize("number", [3, 10, 28, 49])
def test_planned_memory_of_tiles_is_what_a_run_takes(number, tmp_path):
    config, num_features = draw_config(number)
    config = config.override({"network.tile_units": -(-config.width // 5)})
    planned, measured = compare(config, num_features, tmp_path / "sweep")
    assert measured <= planned <= 1.1 * measured


def test_a_budget_below_one_layer_makes_tiles_and_the_fewest_that_fit(tmp_path, small_config):
    config = small_config(width=600, epochs=1, layers=2, batch=8)
    whole = ff.make_plan(config)
    assert [layer.num_tiles for layer in whole.layers] == [1, 1]
    layer = whole.layers[1].footprint
    budget = (layer.weights + layer.optimiser) // 3
    tight = ff.make_plan(config.override({"memory.budget": str(budget)}))
    assert tight.device.num_bytes <= budget
    assert 3 < tight.layers[1].num_tiles < 10
    larger = tight.sizes.tile_units + 32
    with pytest.raises(ff.BudgetError):
        ff.make_plan(config.override({"memory.budget": str(budget), "network.tile_units": larger}))
    run = ff.train(config.override({"memory.budget": str(budget)}), tmp_path / "run")
    assert run.config.network.tile_units == tight.sizes.tile_units


def test_rates_are_those_of_whole_layers_and_batches():
    config = ff.Config(precision="fp32")
    cut_up = config.override({"network.tile_units": 10, "micro_batch": 16})
    works = [_measure_step(given, 64, 64, CPU)[1] for given in (config, cut_up)]
    assert works[0] == works[1]


def test_a_resumed_run_keeps_its_tiles(small_config, tmp_path):
    run = ff.train(small_config(layers=1, **TILES), tmp_path / "run")
    grown = ff.resume(run.path, layers=2, budget="1GiB")
    assert grown.config.network.tile_units == 10


class Cubes(Goodness):
    def value(self, activities):
        return activities.pow(3).sum(dim=1)


class Dense(Layer):
    def __init__(self, shape, compute_dtype=torch.float32):
        super().__init__(shape, compute_dtype)
        self.weight = torch.nn.Parameter(torch.zeros(self.in_features, self.num_units))

    def initialise(self, generator):
        with torch.no_grad():
            self.weight.normal_(generator=generator)

    def preactivations(self, rows):
        return rows.float() @ self.weight


@pytest.mark.parametrize(
    ("registry", "part", "key", "words"),
    [
        (GOODNESSES, Cubes(), "objective.goodness", "does not say by over_units"),
        (LAYER_KINDS, Dense, "network.kind", "cannot be cut into tiles"),
    ],
)
def test_what_cannot_be_cut_is_trained_whole_and_refused_in_tiles(
    registry, part, key, words, small_config, tmp_path, monkeypatch
):
    monkeypatch.setattr(registry, "_parts", dict(registry._parts))
    registry.register("mine", part)
    config = small_config().override({key: "mine", "objective.scale": 0.01})
    assert ff.train(config, tmp_path / "whole").num_layers_done == 3
    with pytest.raises(ConfigError, match=words):
        ff.train(config.override({"network.tile_units": 10}), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    needed = ff.make_plan(config).device.num_bytes
    with pytest.raises(ff.BudgetError):
        ff.make_plan(config.override({"memory.budget": str(needed // 2)}))
