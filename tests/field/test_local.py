"""Local receptive fields: what a unit reads, its gradient, and that it streams as a dense layer does."""

from __future__ import annotations

import pytest
import torch

import ffstream as ff
from benchmarks.footprint import compare, draw_config
from ffstream.field.layers import Activations, LayerShape
from ffstream.field.layers.local import Local
from tests.field.test_layers import whole_gradients
from tests.helpers import InterruptAt, describe, layer_digests, make_dense

SHAPES = [(28, 28), (8, 8), (4, 5), (32, 32, 3), (3, 10, 13), (40, 9, 1)]
KIND = {"network__kind": "local", "width": 144}


def build(index, image_shape=(28, 28), width=288):
    settings = {"network.kind": "local", "network.stack_layers": 0, "precision": "fp32"}
    config = ff.Config(layers=6, width=width).override(settings)
    num_features = torch.Size(image_shape).numel()
    blueprint = describe(config, num_features, image_shape=image_shape)
    return blueprint.build_layer(blueprint.specs[index])


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- what a unit reads


@pytest.mark.parametrize("shape", SHAPES)
def test_windows_of_the_first_layer_cover_the_image_and_are_rectangles_of_all_channels(shape):
    layer = build(0, shape)
    assert layer.windows.shape[0] == 16
    assert layer.windows.unique().tolist() == list(range(torch.Size(shape).numel()))
    seen = torch.zeros(shape)
    plane = (1, 2) if len(shape) == 3 and shape[2] > 4 else (0, 1)
    for window in layer.windows:
        assert len(window.unique()) == len(window)
        mask = torch.zeros(torch.Size(shape).numel())
        mask[window] = 1
        mask = mask.view(shape)
        rows, columns = (mask.amax(dim=[axis for axis in range(len(shape)) if axis != kept]) for kept in plane)
        assert mask.sum() == rows.sum() * columns.sum() * (mask.numel() // (shape[plane[0]] * shape[plane[1]]))
        for axis in (rows, columns):
            (where,) = axis.nonzero(as_tuple=True)
            assert where.tolist() == list(range(int(where[0]), int(where[-1]) + 1))
        seen += mask
    assert seen.min() >= 1


def test_windows_of_digits_of_mnist_are_those_of_the_paper_spread_over_the_image():
    windows = build(0).windows
    assert windows.shape == (16, 100)
    assert [int(window[0]) for window in windows[:5]] == [0, 6, 12, 18, 6 * 28]


def test_a_place_of_a_further_layer_reads_the_two_by_two_places_below():
    units_below = 288 // 16
    windows = build(1).windows
    assert windows.shape == (9, 4 * units_below)
    for row in range(3):
        for column in range(3):
            places = sorted((windows[3 * row + column] // units_below).unique().tolist())
            assert places == [4 * row + column, 4 * row + column + 1, 4 * row + column + 4, 4 * row + column + 5]
    assert build(2).windows.shape == (4, 4 * 288 // 9)


@pytest.mark.parametrize("index", [3, 4, 5])
def test_from_the_fourth_on_a_layer_is_dense(index):
    layer, dense = build(index), make_dense(288, 288)
    with torch.no_grad():
        dense.weight.copy_(layer.weight)
    rows = draw(7, 288)
    torch.testing.assert_close(layer.preactivations(rows), dense.preactivations(rows))


@pytest.mark.parametrize("index", range(4))
def test_a_unit_depends_on_its_window_alone(index):
    layer = build(index)
    rows = draw(1, layer.in_features).requires_grad_()
    for unit in (0, 100, 287):
        (gradient,) = torch.autograd.grad(layer.preactivations(rows)[0, unit], rows)
        place = unit // (288 // len(layer.windows))
        assert gradient[0].nonzero().flatten().tolist() == layer.windows[place].sort().values.tolist()


# --- its gradient


@pytest.mark.parametrize("index", range(4))
def test_gradients_equal_autograd(index):
    layer = build(index, (6, 5, 3))
    rows, gradient = draw(9, layer.in_features, seed=1).requires_grad_(), draw(9, 288, seed=2)
    layer.preactivations(rows).backward(gradient)
    with torch.no_grad():
        for name, value in whole_gradients(layer, rows.detach(), gradient).items():
            torch.testing.assert_close(value, layer.get_parameter(name).grad)
        ((_, found),) = layer.input_gradients(rows.detach(), gradient)
        torch.testing.assert_close(found, rows.grad)


def test_weights_start_with_variance_one_over_fan_in():
    weight = build(1, width=1440).weight.detach()
    assert float(weight.std()) == pytest.approx(weight.shape[1] ** -0.5, rel=0.02)


# --- streaming


@pytest.mark.parametrize("recipe", ["inject", "hinton", "unsupervised"])
def test_a_run_resumes_bitwise_from_every_tier_is_evaluated_and_exported(recipe, small_config, tmp_path):
    config = small_config(recipe, layers=5, epochs=2, **KIND)
    whole = ff.train(config, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        ff.train(config.override({"cache.tier": "disk"}), tmp_path / "run", observer=InterruptAt("on_epoch", 4))
    run = ff.resume(tmp_path / "run")
    assert layer_digests(run.path) == layer_digests(whole.path)
    assert run.evaluate("softmax").num_samples == 100
    run.export(tmp_path / "model.safetensors")
    data = ff.SOURCES["digits"]("").test.images[:50]
    assert torch.equal(ff.load(tmp_path / "model.safetensors")(data), run.load()(data))


@pytest.mark.parametrize(("recipe", "precision"), [("inject", "bf16"), ("hinton", "fp32")])
def test_planned_memory_is_what_a_run_takes(recipe, precision, tmp_path):
    config, num_features = draw_config(28)
    local = {"network.kind": "local", "network.tile_units": "auto", "width": 432, "layers": 5, "precision": precision}
    labels = {"labels.method": ff.Config(recipe=recipe).labels.method, "network.input_skip": False}
    planned, measured = compare(config.override(local | labels), num_features, tmp_path / "sweep")
    assert measured <= planned <= 1.1 * measured


# --- what is refused


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"width": 500}, "found 500, allowed a multiple of 144 with network.kind=local, such as 432"),
        (
            {"network.input_skip": True},
            "reads the cells of the layer below it and nothing else.*input_skip",
        ),
        ({"network.tile_units": 36}, "cannot be cut into tiles"),
    ],
)
def test_settings_that_do_not_go_with_it_are_refused_in_one_line(settings, words, small_config, tmp_path):
    with pytest.raises(ff.ConfigError, match=words) as caught:
        ff.train(small_config(**KIND).override(settings), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("shape", [(64,), (3, 3), (8, 8, 8), (2, 8, 8, 3), None])
def test_data_without_a_plane_are_refused(shape):
    with pytest.raises(ff.ConfigError, match="images of"):
        Local(LayerShape(Activations.of_image(64, shape), 144))
