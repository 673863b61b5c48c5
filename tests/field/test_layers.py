"""Layers: shapes, start, gradient, and what they hand on."""

from __future__ import annotations

import itertools

import pytest
import torch

import ffstream as ff
from ffstream.device.workspace import Workspace
from ffstream.field.layers import Layer, Linear, cut_units
from ffstream.field.network import compute_layer_specs, hand_on
from ffstream.field.normalisation import length_normalise
from ffstream.field.optimisers import OPTIMISERS
from ffstream.training.optimiser import LayerOptimiser
from tests.helpers import describe, make_dense


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Squared(Layer):
    """A layer kind that leaves its gradient to the base class."""

    def __init__(self, shape, compute_dtype=torch.float32):
        super().__init__(shape, compute_dtype)
        self.weight = torch.nn.Parameter(draw(self.num_units, self.in_features))

    def initialise(self, generator):
        with torch.no_grad():
            self.weight.normal_(generator=generator)

    def preactivations(self, rows):
        return rows @ self.weight.square().t()


def whole_gradients(layer, rows, gradient):
    """The parts that a layer yields, put together; every element must have come exactly once."""
    found = {name: torch.full_like(p, torch.nan) for name, p in layer.named_parameters() if name != "label_embedding"}
    for name, part, value in layer.gradients(rows, gradient):
        assert found[name][part].shape == value.shape
        assert found[name][part].isnan().all()
        found[name][part] = value
    return found


@pytest.mark.parametrize(
    ("kind", "in_features", "num_units"), [(Linear, 6, 4), (Squared, 6, 4), (Linear, 7, 1500), (Linear, 3000, 3)]
)
def test_gradients_equal_autograd_over_the_whole_layer(kind, in_features, num_units):
    layer = make_dense(in_features, num_units, kind=kind)
    rows, gradient = draw(9, in_features, seed=1), draw(9, num_units, seed=2)
    layer.initialise(torch.Generator().manual_seed(3))
    layer.preactivations(rows).backward(gradient)
    with torch.no_grad():
        for name, value in whole_gradients(layer, rows, gradient).items():
            torch.testing.assert_close(value, layer.get_parameter(name).grad)


@pytest.mark.parametrize("workspace", [None, Workspace(torch.device("cpu"))])
@pytest.mark.parametrize(
    ("kind", "in_features", "num_units"), [(Linear, 6, 4), (Linear, 6, 1030), (Linear, 2500, 5), (Squared, 6, 4)]
)
def test_the_gradient_of_the_rows_equals_autograd(kind, in_features, num_units, workspace):
    layer = make_dense(in_features, num_units, kind=kind)
    layer.initialise(torch.Generator().manual_seed(3))
    rows, gradient = draw(9, in_features, seed=1).requires_grad_(), draw(9, num_units, seed=2)
    layer.preactivations(rows).backward(gradient)
    layer.workspace = workspace
    with torch.no_grad():
        found = torch.full_like(rows, torch.nan)
        for features, value in layer.input_gradients(rows.detach(), gradient):
            assert found[:, features].isnan().all()
            found[:, features] = value
        torch.testing.assert_close(found, rows.grad)


@pytest.mark.parametrize(("num_units", "most"), [(1, 1), (1, 512), (512, 512), (513, 512), (2000, 512), (7, 2)])
def test_groups_cover_the_units_once_in_order(num_units, most):
    groups = cut_units(num_units, most)
    assert [unit for group in groups for unit in range(num_units)[group]] == list(range(num_units))
    assert all(0 < group.stop - group.start <= most for group in groups)


def test_bf16_products_stay_close_to_fp32():
    exact, rounded = make_dense(256, 64), make_dense(256, 64, torch.bfloat16)
    for layer in (exact, rounded):
        layer.initialise(torch.Generator().manual_seed(0))
    rows = length_normalise(draw(100, 256))
    difference = (exact.preactivations(rows) - rounded.preactivations(rows)).norm()
    assert difference / exact.preactivations(rows).norm() < 1e-2
    assert rounded.weight.dtype == torch.float32
    assert rounded.preactivations(rows).dtype == torch.float32


def test_weights_start_with_variance_one_over_fan_in_and_biases_at_zero():
    layer = make_dense(400, 300)
    layer.initialise(torch.Generator().manual_seed(0))
    weight = layer.weight.detach()
    assert float(weight.std()) == pytest.approx(400**-0.5, rel=0.02)
    assert abs(float(weight.mean())) < 1e-3
    assert not layer.bias.any()


def build_first(config, num_features):
    blueprint = describe(config, num_features)
    return blueprint.build_layer(blueprint.specs[0])


def test_a_built_layer_is_a_function_of_seed_and_index():
    config = ff.Config(layers=3, width=8)

    def weight(config, index):
        blueprint = describe(config, 8)
        return blueprint.build_layer(blueprint.specs[index]).weight

    assert torch.equal(weight(config, 1), weight(config, 1))
    assert not torch.equal(weight(config, 1), weight(config, 2))
    assert not torch.equal(weight(config, 1), weight(ff.Config(layers=3, width=8, seed=1), 1))


def test_specs_chain_with_and_without_an_input_skip():
    for skip, width_in in ((False, 30), (True, 94)):
        specs = compute_layer_specs(ff.Config(layers=4, width=30).override({"network.input_skip": skip}), 64)
        assert [spec.in_features for spec in specs] == [64, width_in, width_in, width_in]
        assert all(spec.next_row == after.row for spec, after in itertools.pairwise(specs))


def test_what_is_handed_on_is_normalised_and_keeps_the_image():
    config = ff.Config(layers=2, width=30).override({"network.input_skip": True})
    specs = compute_layer_specs(config, 64)
    image = length_normalise(draw(5, 64))
    first = hand_on(make_dense(1, 30), specs[0], image, draw(5, 30))
    second = hand_on(make_dense(1, 30), specs[1], first, draw(5, 30, seed=9))
    for rows in (first, second):
        torch.testing.assert_close(rows[:, 30:], image)
        torch.testing.assert_close(rows[:, :30].square().mean(1), torch.ones(5), rtol=1e-3, atol=1e-3)


def test_length_normalisation_ignores_length_and_keeps_zero():
    rows = draw(4, 50)
    torch.testing.assert_close(length_normalise(1000 * rows), length_normalise(rows), rtol=1e-3, atol=1e-4)
    assert not length_normalise(torch.zeros(2, 3)).any()


def test_bf16_gradients_stay_close_to_fp32():
    rows, gradient = length_normalise(draw(100, 256)), draw(100, 64, seed=4)
    exact, rounded = make_dense(256, 64), make_dense(256, 64, torch.bfloat16)
    ours, theirs = whole_gradients(rounded, rows, gradient), whole_gradients(exact, rows, gradient)
    for name, value in ours.items():
        assert value.dtype == torch.float32
        assert (value - theirs[name]).norm() / theirs[name].norm() < 1e-2


@pytest.mark.parametrize("kind", [Linear, Squared])
def test_gradients_leave_the_embedding_the_rows_and_the_gradient_alone(kind):
    layer, rows, gradient = make_dense(6, 4, kind=kind), draw(9, 6, seed=1), draw(9, 4, seed=2)
    layer.label_embedding = torch.nn.Parameter(draw(3, 4))
    kept_rows, kept_gradient = rows.clone(), gradient.clone()
    assert "label_embedding" not in [name for name, _, _ in layer.gradients(rows, gradient)]
    assert torch.equal(rows, kept_rows)
    assert torch.equal(gradient, kept_gradient)
    assert rows.grad is None


@pytest.mark.parametrize("num_units", [4, 600, 1024, 1500, 2049])
def test_products_in_bfloat16_leave_every_unit_its_own_gradient(num_units):
    layer = make_dense(7, num_units, torch.bfloat16)
    layer.initialise(torch.Generator().manual_seed(3))
    layer.workspace = Workspace(torch.device("cpu"))
    rows, gradient = draw(9, 7, seed=1).bfloat16(), draw(9, num_units, seed=2)
    with torch.no_grad():
        before = layer.preactivations(rows).clone()
        found = whole_gradients(layer, rows, gradient)["weight"]
        again = layer.preactivations(rows)  # of weights whose cast the gradient has overwritten
    expected = (gradient.bfloat16().double().t() @ rows.double()).float()
    torch.testing.assert_close(found, expected.bfloat16().float(), rtol=2**-7, atol=2**-7)
    assert torch.equal(before, again)


def test_a_sum_that_is_known_is_not_summed_again():
    layer, total = make_dense(6, 4), draw(4)
    layer.initialise(torch.Generator().manual_seed(3))
    found = {name: value for name, _, value in layer.gradients(draw(9, 6), draw(9, 4), total)}
    assert torch.equal(found["bias"], total)


def test_a_short_last_batch_leaves_no_trace_of_the_one_before():
    layer = make_dense(6, 4)
    layer.initialise(torch.Generator().manual_seed(3))
    layer.workspace = Workspace(torch.device("cpu"))
    whole_gradients(layer, draw(9, 6), draw(9, 4, seed=2))
    rows, gradient = draw(2, 6, seed=5), draw(2, 4, seed=6)
    found = whole_gradients(layer, rows, gradient)
    torch.testing.assert_close(found["weight"], gradient.t() @ rows)
    torch.testing.assert_close(found["bias"], gradient.sum(0))


def change_by_an_update(layer):
    settings = ff.Config().optimiser
    optimiser = LayerOptimiser(layer, OPTIMISERS[settings.name], settings)
    optimiser.begin_step(1.0)
    optimiser.update("weight", slice(0, 2), torch.ones(2, 6))


@pytest.mark.parametrize(
    "change",
    [
        change_by_an_update,
        lambda layer: layer.initialise(torch.Generator().manual_seed(7)),
        lambda layer: layer.load_state_dict({"weight": draw(4, 6, seed=8), "bias": torch.zeros(4)}, strict=False),
        lambda layer: layer.hide(torch.tensor([0, 3])),
        lambda layer: layer.workspace.clear(),
    ],
)
def test_products_are_always_those_of_the_weights_as_they_are(change):
    layer, rows = make_dense(6, 4, torch.bfloat16), draw(9, 6)
    layer.initialise(torch.Generator().manual_seed(3))
    layer.workspace = Workspace(torch.device("cpu"))
    with torch.no_grad():
        before = layer.preactivations(rows).clone()
        assert torch.equal(before, layer.preactivations(rows))  # of weights that are cast already
        change(layer)
        found = layer.preactivations(rows).clone()
        layer.workspace = None
        assert torch.equal(found, layer.preactivations(rows))


def test_layers_that_share_a_workspace_multiply_by_their_own_weights():
    rows, room = draw(9, 6), Workspace(torch.device("cpu"))
    for seed in range(5):  # each in the memory of the one before
        layer = make_dense(6, 4, torch.bfloat16)
        layer.initialise(torch.Generator().manual_seed(seed))
        layer.workspace = room
        with torch.no_grad():
            found = layer.preactivations(rows).clone()
            layer.workspace = None
            assert torch.equal(found, layer.preactivations(rows))
        del layer


def test_label_embeddings_start_with_the_given_deviation():
    config = ff.Config(layers=1, width=3000).override({"labels.embedding_std": 0.3})
    layer = build_first(config, 8)
    assert layer.label_embedding.shape == (10, 3000)
    assert float(layer.label_embedding.detach().std()) == pytest.approx(0.3, rel=0.02)
    overlay = config.override({"labels.method": "overlay"})
    assert build_first(overlay, 16).label_embedding is None


def test_building_a_layer_reads_no_global_generator():
    config = ff.Config(layers=1, width=8)
    before = torch.get_rng_state()
    layer = build_first(config, 8)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    again = build_first(config, 8)
    assert all(torch.equal(a, b) for a, b in zip(layer.parameters(), again.parameters(), strict=True))


def test_forward_gives_preactivations():
    config = ff.Config(layers=1, width=8)
    layer, rows = build_first(config, 6), draw(5, 6)
    with torch.no_grad():
        z = rows @ layer.weight.t() + layer.bias
        torch.testing.assert_close(layer(rows), z)


def test_without_an_input_skip_only_activities_are_handed_on():
    spec = compute_layer_specs(ff.Config(layers=2, width=30), 64)[0]
    handed = hand_on(make_dense(1, 30), spec, draw(5, 64), draw(5, 30, seed=9))
    assert handed.shape == (5, 30)
    torch.testing.assert_close(handed, length_normalise(draw(5, 30, seed=9).clamp(min=0)))
