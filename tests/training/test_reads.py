"""Layers that name what they read train as they would with every activation at hand, and resume bit for bit."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import ffstream as ff
from benchmarks.footprint import compare
from ffstream.cache import CacheLayout, MemoryCache
from ffstream.cache.transfer import Transfer
from ffstream.device.workspace import Workspace
from ffstream.field.layers import Activations
from ffstream.field.wiring import Part, RowLayout
from ffstream.training.propagation import FrozenLayer, propagate
from tests.helpers import (
    check_resumed_equals,
    check_resumed_on_every_tier,
    cut_layer,
    describe,
    layer_digests,
    train_in_pieces,
)

CPU = torch.device("cpu")
NETS = {
    "dense": "dense24 dense24 dense24(reads=below+1,join=sum) dense20(reads=-2+image)",
    "residual": "conv10 conv10 conv10(reads=below+1,join=sum) pool dense20(reads=below+image)",
    "from the image": "conv10 pool conv10(reads=image) conv10(reads=below+image,groups=1) dense20(reads=1+below)",
    "fields": "local4(field=3) local4(field=3,reads=image+below) conv10(reads=below+1,join=sum)",
}
RECIPES = ["inject", "hinton", "grouped", "mono", "unsupervised"]


def wired(small_config, net, recipe="mono", **settings):
    settings = {"network__dropout": 0.2, "objective__perturbation": 0.02, "epochs": 1} | settings
    return small_config(recipe, network__layers=NETS.get(net, net), network__stack_layers=0, **settings)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("net", NETS)
def test_a_loaded_network_gives_what_a_streamed_run_does(net, recipe, small_config, tmp_path):
    run = ff.train(wired(small_config, net, recipe), tmp_path / "run")
    method = "softmax" if recipe == "unsupervised" else "goodness"
    evaluation, test = run.evaluate(method), ff.load_dataset(run.config.data).test
    network = ff.load(run.path)
    error = (network(test.images).argmax(dim=1) != test.labels).double().mean()
    assert error == pytest.approx(evaluation.error, abs=2e-2)
    handed_on = [spec.handed_on.num_features for spec in describe(run.config, 64, image_shape=(8, 8)).specs]
    assert [features.shape[1] for features in network.features(test.images[:2])] == handed_on


@pytest.mark.parametrize(("net", "dtype"), [*((net, "bf16") for net in NETS), ("residual", "int8")])
def test_an_interrupted_run_resumes_bitwise_on_every_tier(net, dtype, small_config, tmp_path):
    check_resumed_on_every_tier(wired(small_config, net, epochs=2, cache__dtype=dtype), tmp_path)


@pytest.mark.parametrize("augmented", [{}, {"augmentation__restream": True}, {"augmentation__views": 3}])
def test_a_run_that_is_stopped_before_every_step_resumes_bitwise(augmented, small_config, tmp_path):
    config = wired(small_config, "residual", cache__tier="disk", **augmented)
    whole = ff.train(config, tmp_path / "whole").path
    assert train_in_pieces(config, tmp_path / "run", "on_step") >= 7
    check_resumed_equals(whole, tmp_path / "run")


SKIPS = [(recipe, {}) for recipe in RECIPES]
SKIPS += [("inject", {"network__tile_units": 10}), ("mono", {"micro_batch": 8}), ("hinton", {"cache__dtype": "int8"})]


@pytest.mark.parametrize(("recipe", "more"), SKIPS)
def test_an_input_skip_is_the_same_bit_for_bit_when_it_is_spelled_out(recipe, more, small_config, tmp_path):
    spelled = wired(small_config, "dense24 dense24(reads=below+image)x2", recipe, **more)
    skip = wired(small_config, "dense24x3", recipe, network__input_skip=True, **more)
    found = [layer_digests(ff.train(config, tmp_path / config.fingerprint()).path) for config in (spelled, skip)]
    assert found[0] == found[1]
    assert ff.make_plan(spelled).layers == ff.make_plan(skip).layers


@pytest.mark.parametrize("net", ["dense", "residual"])
def test_a_shorter_run_has_the_layers_that_a_longer_one_begins_with(net, small_config, tmp_path):
    """What is carried for later layers changes nothing for those below them, in eight bits too."""
    config = wired(small_config, net, cache__dtype="int8")
    whole = layer_digests(ff.train(config, tmp_path / "whole").path)
    for number in range(1, config.layers):
        short = ff.train(config.shorten(number), tmp_path / str(number))
        assert layer_digests(short.path) == whole[:number]


def test_the_finished_layers_of_a_list_are_loaded_and_exported(small_config, tmp_path):
    config, path = wired(small_config, "residual", epochs=2), tmp_path / "run"

    class StopsInThird(ff.Observer):
        def on_layer(self, figures):
            if figures.layer == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ff.train(config, path, observer=StopsInThird())
    images = ff.load_dataset(config.data).test.images
    network = ff.load(path)
    ff.Run(path).export(tmp_path / "model.safetensors")
    assert [layer.num_units for layer in network.layers] == [640, 640]
    assert torch.equal(network(images), ff.load(tmp_path / "model.safetensors")(images))


@pytest.mark.parametrize(
    ("net", "dtype"),
    [
        ("conv20 conv20 conv20(reads=below+1,join=sum) pool conv20(groups=20) dense30(reads=below+image)", "int8"),
        ("dense300x2 dense300(reads=below+1,join=sum) dense200(reads=below+image+1)", "bf16"),
        ("local4(field=5) local4(field=5,reads=image+below) dense40(reads=1)", "int8"),
    ],
)
def test_planned_memory_is_what_a_run_takes(net, dtype, tmp_path):
    config = ff.Config(recipe="mono", epochs=1, batch=64, device="cpu", precision="fp32")
    settings = {"network.layers": net, "cache.shard_samples": 192, "cache.tier": "disk", "cache.dtype": dtype}
    planned, measured = compare(config.override(settings), 400, tmp_path / "sweep")
    assert measured <= planned <= 1.1 * measured


# --- tiles

IMAGE, OWN = Part(0, Activations(64)), Part(1, Activations(64))
NEXT_ROWS = {
    "below": RowLayout((OWN,)),
    "below+image": RowLayout((OWN, IMAGE)),
    "image+below": RowLayout((IMAGE, OWN)),
    "a sum": RowLayout((IMAGE, OWN), is_sum=True),
    "a sum, both carried": RowLayout((IMAGE, OWN), is_sum=True, carried=(IMAGE, OWN)),
    "the image, below carried": RowLayout((IMAGE,), carried=(OWN,)),
}


@pytest.mark.parametrize("reads", NEXT_ROWS)
@pytest.mark.parametrize("tile_units", [10, 24, 64])
def test_tiles_hand_on_what_the_whole_hands_on(tile_units, reads, small_config):
    config, next_row = small_config(width=64), NEXT_ROWS[reads]
    blueprint = describe(config.override({"network.tile_units": tile_units}), 64)
    spec = dataclasses.replace(blueprint.specs[0], next_row=next_row)
    layer, slices = blueprint.build_layer(spec), blueprint.tiles_of(spec)
    tiles = dict(zip([units.start for units in slices], cut_layer(layer, slices), strict=True))
    for part in (layer, *tiles.values()):
        part.workspace = Workspace(CPU)
    rows = torch.randn(100, 1, 64, generator=torch.Generator().manual_seed(0))
    handed = []
    for frozen in (
        FrozenLayer(spec, [slice(0, 64)], lambda _: layer),
        FrozenLayer(spec, slices, lambda units: tiles[units.start]),
    ):
        source = MemoryCache(CacheLayout(100, 1, 64, "fp32", 40), CPU)
        for shard in range(3):
            source.store(shard, rows[source.layout.shard_range(shard)])
        target = MemoryCache(CacheLayout(100, 1, next_row.num_features, "fp32", 40), CPU)
        with Transfer(CPU) as transfer, torch.no_grad():
            propagate(transfer, frozen, source, target, move=False)
        handed.append(torch.cat([target.resident(shard, CPU) for shard in range(3)])[:, 0])
    torch.testing.assert_close(handed[1], handed[0])
    own = handed[1][:, : next_row.num_read] - rows[:, 0] if reads == "a sum" else next_row.find(handed[1], OWN.source)
    torch.testing.assert_close(own.square().mean(1), torch.ones(100), rtol=1e-3, atol=1e-3)
