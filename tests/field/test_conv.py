"""Convolutions: what a unit reads, the gradients, what is handed on, and that they stream as dense layers do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import ffstream as ff
from benchmarks.footprint import compare
from ffstream.device.workspace import Workspace
from ffstream.field.layers import Activations, Conv, ConvOptions, LayerShape
from tests.helpers import check_resumed_on_every_tier, describe

CPU = torch.device("cpu")
SHAPES = {(9, 8): 1, (8, 8, 3): 3, (3, 10, 9): 3, (4, 6, 1): 1}  # of images, with their channels
OPTIONS = [
    ConvOptions(),
    ConvOptions(kernel=5, stride=2),
    ConvOptions(kernel=1, pool=2),
    ConvOptions(kernel=1, stride=3),  # of which oneDNN's gradient writes beyond its memory
    ConvOptions(kernel=2, pool=3, pooling="average", normalise="samples"),
]


def make(reads, width=6, options=None, dtype=torch.float32):
    layer = Conv(LayerShape(reads, width, options=options), dtype)
    layer.initialise(torch.Generator().manual_seed(0))
    with torch.no_grad():
        layer.bias.copy_(torch.linspace(-1, 1, width))
    return layer


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def channels_first(images, shape):
    """Images (n, *shape) as torch has them: (n, channels, height, width)."""
    images = images.view(-1, *shape)
    if len(shape) == 2:
        return images.unsqueeze(1)
    return images if shape[0] == 3 else images.permute(0, 3, 1, 2)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_an_image_is_read_as_torch_reads_it_wherever_its_channels_lie(shape, options):
    layer = make(Activations.of_image(int(np.prod(shape)), shape), options=options)
    rows = draw(5, layer.in_features)
    expected = F.conv2d(channels_first(rows, shape), layer.weight, layer.bias, options.stride, options.kernel // 2)
    assert (layer.units.num_channels, *layer.units.plane[1:3]) == expected.shape[1:]
    found = layer.preactivations(rows).view(5, *layer.units.plane[1:]).permute(0, 3, 1, 2)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("options", [*OPTIONS, ConvOptions(groups=2)])
@pytest.mark.parametrize("workspace", [None, Workspace(CPU)])
def test_gradients_are_those_of_autograd(options, workspace):
    layer = make(Activations.of_places(8, 6, 4), options=options)
    rows, gradient = draw(5, layer.in_features, seed=1).requires_grad_(), draw(5, layer.num_units, seed=2)
    layer.preactivations(rows).backward(gradient)
    layer.workspace = workspace
    with torch.no_grad():
        found = {name: value for name, _, value in layer.gradients(rows.detach(), gradient)}
        ((_, by_row),) = layer.input_gradients(rows.detach(), gradient)
    torch.testing.assert_close(found["weight"], layer.weight.grad)
    torch.testing.assert_close(found["bias"], layer.bias.grad)
    torch.testing.assert_close(by_row, rows.grad)


@pytest.mark.parametrize("shape", [(8, 6, 4), (7, 6, 4), (1, 5, 3)])
def test_a_classifier_reads_averages_of_parts_and_their_gradient_is_spread_over_places(shape):
    layer = make(Activations.of_places(*shape), options=ConvOptions())
    activities = layer.activate(draw(5, layer.num_units)).requires_grad_()
    parts = [1 if side % 2 else 2 for side in shape[:2]]
    planes = activities.view(5, *shape[:2], 6).permute(0, 3, 1, 2)
    expected = F.adaptive_avg_pool2d(planes, parts).permute(0, 2, 3, 1).flatten(1)
    (summary,) = layer.summarise(activities)
    torch.testing.assert_close(summary, expected)
    upstream = draw(*expected.shape, seed=3)
    expected.backward(upstream)
    found, _ = layer.through_summary_(activities.detach().clone(), upstream, [])
    torch.testing.assert_close(found, activities.grad * (activities > 0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("pool", "pooling"), [(1, "max"), (2, "max"), (3, "average")])
def test_each_channel_that_is_handed_on_has_a_mean_of_0_and_a_spread_of_1(pool, pooling, dtype):
    layer = make(Activations.of_places(9, 7, 4), options=ConvOptions(pool=pool, pooling=pooling), dtype=dtype)
    rows = draw(300, layer.in_features)
    with torch.no_grad():
        parts = [layer.statistics_of(layer.preactivations(part)).double() for part in rows.split(77)]
        layer.settle(sum(parts))
        handed = layer.hand_on(layer.preactivations(rows))
    assert handed.shape == (300, layer.handed_on_by(layer.shape).num_features)
    by_channel = handed.view(-1, 6)
    torch.testing.assert_close(by_channel.mean(dim=0), torch.zeros(6), rtol=0, atol=2e-3)
    torch.testing.assert_close(by_channel.std(dim=0), torch.ones(6), rtol=2e-3, atol=0)


def test_a_sample_that_is_normalised_by_itself_has_a_mean_of_0_and_a_spread_of_1():
    layer = make(Activations.of_places(8, 8, 4), options=ConvOptions(normalise="samples"))
    assert not layer.has_statistics
    handed = layer.hand_on(layer.preactivations(draw(9, layer.in_features)))
    torch.testing.assert_close(handed.mean(dim=1), torch.zeros(9), rtol=0, atol=1e-5)
    torch.testing.assert_close(handed.std(dim=1, correction=0), torch.ones(9), rtol=1e-3, atol=0)


def test_a_label_is_told_to_every_place_of_a_channel():
    config = ff.Config(layers=1, width=6, precision="fp32").override({"network.kind": "conv"})
    blueprint = describe(config, 64, image_shape=(8, 8))
    layer = blueprint.build_layer(blueprint.specs[0])
    assert layer.label_embedding.shape == (10, 6)
    rows = draw(3, 64)
    swept = blueprint.method.reading.sweep(layer, blueprint.goodness, layer.preactivations(rows), 3)
    planes = F.conv2d(rows.view(3, 1, 8, 8), layer.weight, layer.bias, padding=1)
    for label, told in enumerate(layer.label_embedding):
        expected = (planes + told.view(1, 6, 1, 1)).relu().square().mean(dim=(1, 2, 3))
        torch.testing.assert_close(swept[:, label], expected)


REFUSED = {
    "no places": ({"data_shape": (64,)}, "conv64", r"layer of kind conv reads \(64,\).*\(layer 1\)"),
    "after a dense layer": ({}, "dense64 conv8", r"reads 64 features, allowed: what has places.*\(layer 2\)"),
    "pooled away": ({}, "conv8 pool conv8 pool conv8 pool conv8 pool", r"pool=2 .* leaves no place.*\(layer 4\)"),
    "groups": ({}, "conv8 conv6(groups=4)", r"reads 8 channels and has 6, found groups=4.*\(layer 2\)"),
    "unknown option": ({}, "conv8(kernl=5)", r"conv 8: kernl: unknown setting .*did you mean 'kernel'"),
    "option out of range": ({}, "conv8(kernel=0)", r"conv 8: kernel: found 0, allowed an integer >= 1"),
    "fewer channels than classes": (
        {"labels.method": "groups"}, "conv8", r"found 8, allowed 10 or more with labels.method=groups"
    ),
    "channels that classes do not divide": (
        {"labels.method": "groups"}, "conv64", r"found 64, allowed a multiple of 10 .*such as 60"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_by_the_number_of_its_layer(case, small_config, tmp_path):
    settings, text, words = REFUSED[case]
    settings = {"network.layers": text} | settings
    shape = settings.pop("data_shape", (8, 8))
    with pytest.raises(ff.ConfigError, match=words) as caught:
        if shape == (8, 8):
            ff.train(small_config("mono").override(settings), tmp_path / "run")
        describe(small_config("mono").override(settings), 64, image_shape=shape)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


# --- in a run

NET = "conv12 pool conv16(kernel=5) conv20 pool dense32"


def conv_config(small_config, **settings):
    settings = {"network__stack_layers": 0, "network__dropout": 0.0, "objective__perturbation": 0.0} | settings
    return small_config(settings.pop("recipe", "mono"), network__layers=NET, **settings)


@pytest.mark.parametrize("recipe", ["mono", "inject", "unsupervised"])
def test_an_interrupted_run_resumes_bitwise_on_every_tier(recipe, small_config, tmp_path):
    config = conv_config(small_config, recipe=recipe, objective__perturbation=0.02)
    check_resumed_on_every_tier(config, tmp_path)


def test_a_loaded_network_gives_what_a_streamed_run_does(small_config, tmp_path):
    run = ff.train(conv_config(small_config, precision="fp32"), tmp_path / "run")
    network, test = ff.load(run.path), ff.load_dataset(run.config.data).test
    error = (network(test.images).argmax(dim=1) != test.labels).double().mean()
    assert error == pytest.approx(run.evaluate("goodness").error, abs=2e-3)
    assert [found.shape[1] for found in network.features(test.images[:2])] == [192, 256, 80, 32]
    assert len(run.evaluate("softmax").errors_by_depth) == 3


def test_a_batch_in_parts_gives_the_gradient_of_the_whole(small_config, tmp_path):
    config = conv_config(small_config, precision="fp32", epochs=1, batch=64)
    runs = [ff.train(config.override({"micro_batch": n}), tmp_path / str(n)) for n in (64, 16)]
    first, second = (run.validation_errors_by_depth for run in runs)
    assert first == pytest.approx(second, abs=0.02)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("recipe", ["mono", "inject"])
def test_planned_memory_is_what_a_run_takes(recipe, precision, tmp_path):
    config = ff.Config(recipe=recipe, epochs=2, batch=64, device="cpu", precision=precision)
    config = config.override({"network.layers": "conv32 pool conv64 conv48(kernel=5) pool", "cache.shard_samples": 192})
    planned, measured = compare(config, 400, tmp_path / "sweep")
    assert measured <= planned <= 1.1 * measured
