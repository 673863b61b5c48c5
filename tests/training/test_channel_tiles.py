"""Convolutions, and dense layers of standardised units, in tiles of channels that hand on by themselves."""

from __future__ import annotations

import pytest
import torch

import ffstream as ff
from benchmarks.footprint import compare
from ffstream.errors import ConfigError
from ffstream.training.propagation import FrozenLayer, hand_on_by_tiles, hand_on_whole
from tests.helpers import check_resumed_equals, cut_layer, describe, layer_digests, train_in_pieces


@pytest.mark.parametrize(
    "layers",
    [
        "conv24 dense9",
        "conv24 pool dense9",
        "conv24(stride=2) pool dense9",
        "dense24(normalise=channels) dense9",
        "conv24 conv9(reads=below+image)",
        "conv24 conv24 conv9(reads=below+1)",
        "conv24 conv24 conv9(reads=1+below,join=sum)",
        "conv9 conv24 dense9 conv9(reads=2+1)",
        "dense24(normalise=channels) dense24(normalise=channels) dense9(reads=below+1,join=sum)",
    ],
)
@pytest.mark.parametrize("method", ["classifier", "injection"])
def test_tiles_of_channels_hand_on_their_own_and_their_goodness_adds_up(layers, method):
    config = ff.Config(recipe="mono", batch=64).override(
        {"network.layers": layers, "labels.method": method, "precision": "fp32", "network.tile_units": 10}
    )
    blueprint = describe(config, image_shape=(8, 8))
    spec = [spec for spec in blueprint.specs if spec.width == 24][-1]
    layer, slices = blueprint.build_layer(spec), blueprint.tiles_of(spec)
    generator = torch.Generator().manual_seed(0)
    layer.handed_mean.normal_(generator=generator)
    layer.handed_spread.uniform_(0.5, 2.0, generator=generator)
    tiles = dict(zip([units.start for units in slices], cut_layer(layer, slices), strict=True))
    rows = torch.randn(20, spec.row.num_features, generator=generator)
    read = spec.row.read(rows)
    whole, parts = (torch.zeros(20, spec.next_row.num_features) for _ in range(2))
    reading, goodness = blueprint.method.reading, blueprint.goodness
    with torch.no_grad():
        hand_on_whole(FrozenLayer(spec, [slice(0, 24)], lambda _: layer), [(rows, whole)])
        hand_on_by_tiles(FrozenLayer(spec, slices, lambda units: tiles[units.start]), [(rows, parts)])
        of_layer, *of_tiles = (
            reading.sweep(part, goodness, part.preactivations(read), len(rows)) * (part.width / 24)
            for part in (layer, *tiles.values())
        )
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(sum(of_tiles), of_layer, rtol=1e-4, atol=1e-5)


CONVOLUTIONS = {"network.layers": "conv24 pool conv20", "labels.head_layers": 1, "network.tile_units": 10, "epochs": 2}


@pytest.mark.parametrize("recipe", ["conv", "conv-ff"])
def test_convolutions_in_tiles_train_the_same_bits_in_pieces_and_on_disk(recipe, tmp_path):
    config = ff.Config(recipe=recipe, device="cpu").override(CONVOLUTIONS)
    whole = ff.train(config, tmp_path / "whole")
    assert train_in_pieces(config, tmp_path / "pieces", "on_epoch") == 2 * (3 + 2)
    check_resumed_equals(whole.path, tmp_path / "pieces")
    on_disk = ff.train(config.override({"cache.tier": "disk"}), tmp_path / "disk")
    assert layer_digests(on_disk.path) == layer_digests(whole.path)
    six = config.override({"epochs": 6})
    wide, narrow = (ff.train(six.override({"network.layers": name}), tmp_path / name) for name in ("conv24", "conv10"))
    assert wide.layers[0].validation_error < narrow.layers[0].validation_error  # as later tiles add to the first


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"labels.head_layers": 3}, "labels.head_layers to 1"),
        ({"network.layers": "conv24(normalise=samples)"}, "cannot be cut"),
        ({"network.layers": "conv24 conv24(groups=2)"}, "cannot be cut"),
        ({"network.layers": "conv20", "labels.method": "groups"}, "another label method"),
    ],
)
def test_convolutions_that_cannot_be_cut_are_refused_in_tiles(changes, words, tmp_path):
    with pytest.raises(ConfigError, match=words):
        ff.train(ff.Config(recipe="conv", device="cpu").override(CONVOLUTIONS | changes), tmp_path / "run")


@pytest.mark.parametrize("recipe", ["mono", "inject"])
def test_planned_memory_of_tiles_of_channels_is_what_a_run_takes(recipe, tmp_path):
    config = ff.Config(recipe=recipe, epochs=2, batch=64, device="cpu", precision="bf16").override(
        {"network.layers": "conv48 pool conv64(kernel=5)", "cache.shard_samples": 192, "network.tile_units": 20}
    )
    planned, measured = compare(config, 400, tmp_path / "sweep")
    assert measured <= planned <= 1.1 * measured
