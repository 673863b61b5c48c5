"""Blocks: convolutions that are trained together compute what modules of torch would, and stream as one layer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ffstream as ff
from benchmarks.footprint import compare
from ffstream.field.layers import Activations, Block, BlockOptions, LayerShape
from ffstream.testing import check_layer
from tests.helpers import check_resumed_on_every_tier, describe

OPTIONS = {
    "two": BlockOptions(),
    "three, with a stride": BlockOptions(layers=3, kernel=5, stride=2),
    "places that nothing reads": BlockOptions(kernel=1, stride=2),
    "an even kernel": BlockOptions(kernel=2, pool=2),
    "groups": BlockOptions(layers=3, groups=2, normalise="samples"),
}


def make(options, reads=None, dtype=torch.float32):
    layer = Block(LayerShape(reads or Activations.of_places(9, 8, 4), 6, options=options), dtype)
    generator = torch.Generator().manual_seed(0)
    layer.initialise(generator)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if not name.startswith("weight"):
                parameter.add_(torch.rand(6, generator=generator))
    return layer


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def standardise(values):
    axes = tuple(range(1, values.dim()))
    return (values - values.mean(axes, keepdim=True)) / values.std(axes, correction=0, keepdim=True)


def compute(layer, planes):
    """The preactivations by the definition, (n, channels, height, width)."""
    options, parameters = layer.options, dict(layer.named_parameters())
    for number in range(options.layers):
        weight = parameters["weight" if number == 0 else f"weight_{number}"]
        if number:
            weight = standardise(weight) * (2 / weight[0].numel()) ** 0.5
        stride = options.stride if number == 0 else 1
        planes = F.conv2d(planes, weight, None, stride, options.kernel // 2, 1, options.groups)
        if number + 1 < options.layers:
            scale, shift = (parameters[f"{name}_{number}"].view(-1, 1, 1) for name in ("scale", "shift"))
            planes = torch.relu(standardise(planes) * scale + shift)
    return planes + parameters["bias"].view(-1, 1, 1)


@pytest.mark.parametrize("case", OPTIONS)
def test_it_computes_its_definition_and_so_do_its_modules_once_it_is_loaded(case):
    layer, rows = make(OPTIONS[case]), draw(5, 288)
    with torch.no_grad():
        expected = compute(layer, rows.view(5, 9, 8, 4).permute(0, 3, 1, 2))
        assert (layer.units.num_channels, *layer.units.plane[1:3]) == expected.shape[1:]
        expected = expected.permute(0, 2, 3, 1).flatten(1)
        torch.testing.assert_close(layer.preactivations(rows), expected, rtol=1e-3, atol=1e-3)
        num_parameters = sum(parameter.numel() for parameter in layer.parameters())
        handed_on = layer.hand_on(expected)
        layer.make_plain()
        torch.testing.assert_close(layer(rows), expected, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(layer.hand_on(expected), handed_on)
    assert sum(parameter.numel() for parameter in layer.parameters()) == num_parameters
    assert sum(isinstance(module, nn.Conv2d) for module in layer.modules()) == OPTIONS[case].layers


@pytest.mark.parametrize("shape", [(9, 8), (3, 10, 9)])
def test_it_reads_images_as_a_convolution_does(shape):
    layer = make(BlockOptions(layers=3), Activations.of_image(int(np.prod(shape)), shape))
    rows = draw(4, layer.in_features)
    planes = rows.view(4, *shape) if len(shape) == 3 else rows.view(4, 1, *shape)
    with torch.no_grad():
        expected = compute(layer, planes).permute(0, 2, 3, 1).flatten(1)
        torch.testing.assert_close(layer.preactivations(rows), expected, rtol=1e-3, atol=1e-3)


def test_products_in_bfloat16_are_close_to_those_in_float32():
    wide, narrow = (make(BlockOptions(layers=3), dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    rows = draw(5, 288)
    with torch.no_grad():
        torch.testing.assert_close(narrow.preactivations(rows), wide.preactivations(rows), rtol=0.05, atol=0.1)


def test_it_fulfils_what_every_kind_has_to():
    check_layer("block", {"width": 6, "epochs": 1, "parts.layer.pool": 2})


@pytest.mark.parametrize("case", OPTIONS)
def test_samples_in_parts_have_the_gradients_of_all_together(case):
    layer, rows = make(OPTIONS[case]), draw(6, 288)
    gradient = draw(6, layer.num_units, seed=1)
    with torch.no_grad():
        whole = {name: value for name, _, value in layer.gradients(rows, gradient)}
        parts = [list(layer.gradients(rows[part], gradient[part])) for part in (slice(0, 2), slice(2, 6))]
    for (name, _, first), (_, _, second) in zip(*parts, strict=True):
        torch.testing.assert_close(first + second, whole[name], rtol=1e-4, atol=1e-4)


REFUSED = {
    "one layer": ("block8(layers=1)", r"block 8: layers: found 1, allowed an integer >= 2"),
    "unknown option": ("block8(layer=3)", r"block 8: layer: unknown setting .*did you mean 'layers'"),
    "no places": ("dense16 block8", r"layer of kind block reads 16 features, allowed: what has places.*\(layer 2\)"),
    "pooled away": ("block8 pool pool pool block8 pool", r"pool=2 of a block layer .* leaves no place.*\(layer 2\)"),
    "groups": ("conv8 block6(groups=4)", r"a block layer reads 8 channels and has 6, found groups=4.*\(layer 2\)"),
    "tiles": ("block8", r"layers of kind 'block' cannot be cut into tiles"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused(case, small_config, tmp_path):
    text, words = REFUSED[case]
    settings = {"network.layers": text} | ({"network.tile_units": 4} if case == "tiles" else {})
    with pytest.raises(ff.ConfigError, match=words) as caught:
        ff.train(small_config("mono").override(settings), tmp_path / "run")
    assert "\n" not in str(caught.value)


# --- in a run

NET = "block8(layers=3) pool block12(normalise=samples) conv10 dense32"


def block_config(small_config, recipe="mono", **settings):
    return small_config(recipe, network__stack_layers=0, network__layers=NET, network__dropout=0.0, **settings)


@pytest.mark.parametrize("recipe", ["mono", "inject", "unsupervised"])
def test_an_interrupted_run_resumes_bitwise_on_every_tier(recipe, small_config, tmp_path):
    check_resumed_on_every_tier(block_config(small_config, recipe, cache__dtype="int8"), tmp_path)


def test_a_loaded_and_an_exported_network_give_what_a_streamed_run_does(small_config, tmp_path):
    config = block_config(small_config, labels__head_layers=2)
    run = ff.train(config, tmp_path / "run")
    network, test = ff.load(run.path), ff.load_dataset(run.config.data).test
    error = (network(test.images).argmax(dim=1) != test.labels).double().mean()
    assert error == pytest.approx(run.evaluate("goodness").error, abs=2e-3)
    run.export(tmp_path / "model.safetensors")
    assert torch.equal(ff.load(tmp_path / "model.safetensors")(test.images), network(test.images))


def test_the_same_text_may_pool_and_repeat_blocks():
    config = ff.Config(recipe="mono").override({"network.layers": "block6(layers=3)x2 pool block8"})
    blueprint = describe(config, 64, image_shape=(8, 8))
    assert [str(spec.handed_on) for spec in blueprint.specs] == ["6 x 8 x 8", "6 x 4 x 4", "8 x 4 x 4"]
    assert [spec.shape.options.layers for spec in blueprint.specs] == [3, 3, 2]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_planned_memory_is_what_a_run_takes(precision, tmp_path):
    config = ff.Config(recipe="mono", epochs=1, batch=64, device="cpu", precision=precision)
    settings = {"network.layers": "block24(layers=3) pool block32", "cache.shard_samples": 192}
    planned, measured = compare(config.override(settings), 400, tmp_path / "sweep")
    assert measured <= planned <= 1.1 * measured
