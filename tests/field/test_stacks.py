"""Stacks: every so many layers, one reads the images again. Each stack is a network of its own; goodness is summed."""

from __future__ import annotations

import pytest
import torch

import ffstream as ff
from ffstream.data import load_dataset
from ffstream.field.layers import Linear
from ffstream.field.network import compute_layer_specs
from tests.helpers import check_resumed_equals, layer_digests, train_in_pieces

KINDS = {
    "inject": {},
    "hinton": {"recipe": "hinton", "negatives__per_sample": 3},
    "unsupervised": {"recipe": "unsupervised"},
    "skip": {"network__input_skip": True},
    "views": {"augmentation__views": 5, "augmentation__max_shift": 1},
    "restream": {"augmentation__restream": True, "augmentation__max_shift": 1},
    "tiles": {"network__tile_units": 10},
    "half of the features": {"network__stack_features": 0.5},
}
SHARES = ["inject", "hinton", "unsupervised", "skip", "views", "restream", "tiles"]


@pytest.fixture
def stacked(small_config):
    """Five layers of 24 units in stacks of two, the last one cut short."""

    def make(name="inject", **settings):
        return small_config(**({"layers": 5, "epochs": 2, "network__stack_layers": 2} | KINDS[name] | settings))

    return make


def test_a_layer_that_would_count_for_nothing_is_named_by_plan_and_train(stacked, tmp_path):
    for num_layers in (4, 5):
        config, said = stacked(layers=num_layers), []
        observer = ff.Observer()
        observer.on_warning = said.append
        ff.train(config, tmp_path / f"{num_layers}", observer=observer)
        is_said = any("layer 5 of 5 would be trained for nothing; ask for 4 layers, or for 6" in text for text in said)
        assert is_said == (num_layers == 5)
        for machine in (None, "device=8GiB,30TFLOP/s;h2d=12GB/s;host=32GiB;disk=1TiB,3GB/s"):
            planned = ff.make_plan(config, tmp_path / "other", machine=machine).warning or ""
            assert ("layer 5 of 5 would be trained for nothing" in planned) == (num_layers == 5)


def test_the_first_layer_of_a_stack_reads_images(stacked):
    specs = compute_layer_specs(stacked(), 64)
    assert [spec.in_features for spec in specs] == [64, 24, 64, 24, 64]
    assert [spec.place for spec in specs] == [0, 1, 0, 1, 0]
    assert [spec.stack_start for spec in specs] == [0, 0, 2, 2, 4]
    assert [spec.hands_on for spec in specs] == [True, False, True, False, False]


@pytest.mark.parametrize("name", KINDS)
def test_the_first_stack_is_the_network_of_so_many_layers_and_no_other_is_like_it(name, stacked, tmp_path):
    run = ff.train(stacked(name), tmp_path / "run")
    alone = ff.train(stacked(name, layers=2), tmp_path / "alone")
    assert layer_digests(run.path)[:2] == layer_digests(alone.path)
    layers = run.load().layers
    for first, second in ((0, 2), (0, 4), (2, 4), (1, 3)):
        assert layers[first].linear.weight.shape == layers[second].linear.weight.shape
        assert not torch.equal(layers[first].linear.weight, layers[second].linear.weight)


@pytest.mark.parametrize(("method", "least"), [("on_step", 5 + 5), ("on_epoch", 5 * 2)])
@pytest.mark.parametrize("name", KINDS)
def test_a_run_of_stacks_that_is_interrupted_again_and_again_ends_bitwise_alike(name, method, least, stacked, tmp_path):
    """Before every step, or after every epoch; each time it goes on for one more."""
    config = stacked(name, cache__tier="disk")
    whole = ff.train(config, tmp_path / "whole").path
    assert train_in_pieces(config, tmp_path / "run", method) >= least
    check_resumed_equals(whole, tmp_path / "run")


@pytest.mark.parametrize("name", ["inject", "views", "restream"])
def test_every_tier_trains_the_same_stacks_and_a_grown_run_is_the_same_too(name, stacked, tmp_path):
    found = [
        layer_digests(ff.train(stacked(name, cache__tier=tier), tmp_path / tier).path)
        for tier in ("device", "host", "disk")
    ]
    assert found[0] == found[1] == found[2]
    grown = ff.train(stacked(name, layers=2, cache__tier="disk"), tmp_path / "grown")
    assert layer_digests(ff.resume(grown.path, layers=5).path) == found[0]


@pytest.mark.parametrize("name", KINDS)
def test_a_loaded_network_has_the_goodness_that_is_streamed(name, stacked, tmp_path):
    run = ff.train(stacked(name), tmp_path / "run")
    network, dataset = run.load(), load_dataset(stacked().data)
    if name == "unsupervised":
        error = run.evaluate("softmax").error
        network = run.load()  # with the readout that was fitted
    else:
        error = run.evaluate().error
        by_layer = network.goodness_by_layer(dataset.test.images)
        assert all(not torch.equal(by_layer[first], by_layer[second]) for first, second in ((0, 2), (1, 3), (2, 4)))
    predicted = network.predict(dataset.test.images)
    assert float((predicted != dataset.test.labels).double().mean()) == pytest.approx(error, abs=0.011)


@pytest.mark.parametrize(("first_layer", "counted"), [(1, [0, 1, 2, 3, 4]), (2, [1, 3]), (3, [1, 3])])
def test_goodness_is_summed_over_all_but_the_first_layers_of_a_stack(first_layer, counted, stacked, tmp_path):
    run, test = ff.train(stacked(), tmp_path / "run"), load_dataset(stacked().data).test
    by_layer = run.load().goodness_by_layer(test.images)
    found = run.evaluate(first_layer=first_layer)
    wrong = sum(by_layer[index] for index in counted).argmax(dim=1) != test.labels
    assert found.error == pytest.approx(float(wrong.double().mean()), abs=0.011)
    fitted = run.evaluate("fitted", first_layer=first_layer)
    assert [index for index, weight in enumerate(fitted.combination.weights) if weight] == counted
    assert run.layers[-1].validation_error_to_here == run.evaluate(split="validation").error
    softmax = run.evaluate("softmax", first_layer=first_layer)
    assert softmax.first_depth == counted[0] + 1
    assert len(softmax.errors_by_depth) == 5 - counted[0]


@pytest.mark.parametrize("name", SHARES)
def test_a_stack_reads_its_own_share_of_the_features_and_nothing_else_changes_what_it_says(name, stacked, tmp_path):
    run = ff.train(stacked(name, network__stack_features=0.75), tmp_path / "run")
    layers = run.load().layers
    hidden = [(layers[index].linear.weight == 0).all(dim=0) for index in range(5)]
    num_shown = 10 if name == "hinton" else 0  # the label
    for index in (2, 4) if name != "skip" else (2, 3, 4):
        assert hidden[index].sum() == 64 - num_shown - round(0.75 * (64 - num_shown))
        assert not hidden[index][:num_shown].any()
        assert not (layers[index].linear.weight[:, ~hidden[index]] == 0).any()
    assert not hidden[0].any()
    assert not hidden[1].any()
    assert not torch.equal(hidden[2], hidden[4])
    if name == "skip":
        assert torch.equal(hidden[2], hidden[3][-64:])
    if name == "inject":
        whole = ff.train(stacked(name), tmp_path / "whole")
        assert layer_digests(whole.path)[:2] == layer_digests(run.path)[:2]


def test_places_of_windows_leave_features_out_too(stacked, tmp_path):
    run = ff.train(
        stacked(width=144, layers=2, network__kind="local", network__stack_layers=1, network__stack_features=0.5),
        tmp_path / "run",
    )
    first, second = run.load().layers
    assert not any((part == 0).any() for part, _ in places(first))
    hidden = [set(window[(part == 0).all(dim=0)].tolist()) for part, window in places(second)]
    assert len(set().union(*hidden)) == 32
    for found, window in zip(hidden, second.windows, strict=True):
        assert found == set().union(*hidden) & set(window.tolist())


def test_a_kind_that_cannot_leave_features_out_says_so(stacked, tmp_path, monkeypatch):
    monkeypatch.delattr(Linear, "hide")
    with pytest.raises(ff.ConfigError, match="network.stack_features: found less than 1, but layers of kind Linear"):
        ff.train(stacked(network__stack_features=0.5), tmp_path / "run")


def places(layer):
    """The weights of each place, and the features it reads."""
    return [(cell.weight, window) for cell, window in zip(layer.cells, layer.windows, strict=True)]


def test_a_disk_holds_the_caches_of_one_stack_alone(stacked, tmp_path):
    found = []

    class Folders(ff.Observer):
        def on_layer(self, figures):
            found.append({path.name[:3] for path in (tmp_path / "run").glob("cache/*/*")})

    ff.train(stacked(cache__tier="disk"), tmp_path / "run", observer=Folders())
    assert found == [{"000"}, {"001"}, {"002"}, {"003"}, {"004"}]


def test_a_plan_has_a_column_for_first_layers_and_one_for_the_others(stacked):
    plan = ff.make_plan(stacked(layers=9, network__stack_layers=4))
    assert [layer.name for layer in plan.layers] == ["layers 1, 5, ...", "layers 2, 6", "layers 3-4, 7-8"]
    assert [layer.numbers for layer in plan.layers] == [[1, 5, 9], [2, 6], [3, 4, 7, 8]]
    whole = ff.make_plan(stacked(layers=9, network__stack_layers=0))
    assert plan.device.num_bytes == whole.device.num_bytes
    assert plan.disk.terms["layers"] == pytest.approx(
        whole.disk.terms["layers"] + 2 * 4 * 24 * (64 - 24), rel=1e-6
    )  # two more first layers


def test_a_plan_of_restreamed_images_passes_them_through_one_stack_alone(stacked):
    found = []
    for num_in_stack in (0, 2):
        plan = ff.make_plan(stacked("restream", layers=40, network__stack_layers=num_in_stack))
        found.append(sum(len(layer.numbers) * layer.written_bytes for layer in plan.layers))
    row, num_rows, num_epochs = 2 * 24, 275, 2  # bytes; samples to train on
    passes = [num_epochs * sum(range(40)), num_epochs * 20]
    assert found[0] - found[1] == pytest.approx((passes[0] - passes[1]) * row * num_rows, rel=0.01)
