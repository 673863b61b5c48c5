"""Local layers with square fields: what a unit reads, the gradients, and that they stream as other layers do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import ffstream as ff
from benchmarks.footprint import compare
from ffstream.device.workspace import Workspace
from ffstream.field.layers import Activations, LayerShape, Local, LocalOptions
from ffstream.field.parts import complete_parts
from ffstream.run.preparation import make_plan
from tests.field.test_layers import whole_gradients
from tests.helpers import check_resumed_on_every_tier, describe

CPU = torch.device("cpu")
CASES = {
    "odd": ((9, 8), 3, 1),
    "even, with a stride, channels first": ((3, 10, 9), 4, 2),
    "wider than the plane, channels last": ((6, 5, 3), 11, 3),
    "one place": ((4, 6, 1), 1, 2),
    "a stride beyond the plane": ((4, 6), 3, 9),
}


def make(reads, field, stride=1, width=2, dtype=torch.float32):
    layer = Local(LayerShape(reads, width, options=LocalOptions(field=field, stride=stride)), dtype)
    layer.initialise(torch.Generator().manual_seed(0))
    with torch.no_grad():
        layer.bias.copy_(torch.linspace(-1, 1, layer.num_units))
    return layer


def make_case(case):
    shape, field, stride = CASES[case]
    return make(Activations.of_image(int(np.prod(shape)), shape), field, stride)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def multiply_place_by_place(layer, rows):
    """The preactivations by the definition: each place's square is cut from the padded plane by itself."""
    before, height, width, after = layer.shape.reads.plane
    field, stride = layer.shape.options.field, layer.shape.options.stride
    first, last = (field - 1) // 2, field - 1
    planes = rows.view(-1, before, height, width, after).permute(0, 2, 3, 1, 4).flatten(3)
    padded = F.pad(planes, (0, 0, first, last, first, last))
    grid = [range(0, side, stride) for side in (height, width)]
    squares = [padded[:, y : y + field, x : x + field].transpose(1, 2).flatten(1) for y in grid[0] for x in grid[1]]
    found = [each @ weight.t() for each, weight in zip(squares, layer.weight.split(layer.shape.width), strict=True)]
    return torch.cat(found, dim=1) + layer.bias


@pytest.mark.parametrize("workspace", [None, Workspace(CPU)])
@pytest.mark.parametrize("case", CASES)
def test_each_unit_reads_the_square_around_its_place(case, workspace):
    layer = make_case(case)
    rows = draw(5, layer.in_features)
    expected = multiply_place_by_place(layer, rows)
    layer.workspace = workspace
    with torch.no_grad():
        torch.testing.assert_close(layer.preactivations(rows), expected)
    shape, _, stride = CASES[case]
    height, width = (shape[1:] if shape[0] == 3 else shape)[:2]
    assert layer.units == Activations.of_places(-(-height // stride), -(-width // stride), 2)


@pytest.mark.parametrize("workspace", [None, Workspace(CPU)])
@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_autograd(case, workspace):
    layer = make_case(case)
    rows, gradient = draw(5, layer.in_features, seed=1).requires_grad_(), draw(5, layer.num_units, seed=2)
    layer.preactivations(rows).backward(gradient)
    layer.workspace = workspace
    with torch.no_grad():
        for name, value in whole_gradients(layer, rows.detach(), gradient).items():
            torch.testing.assert_close(value, layer.get_parameter(name).grad)
        ((_, by_row),) = layer.input_gradients(rows.detach(), gradient)
    torch.testing.assert_close(by_row, rows.grad)


def test_products_in_bfloat16_are_close_to_those_in_float32():
    wide, narrow = (make(Activations.of_places(6, 5, 4), 5, dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    narrow.workspace = Workspace(CPU)
    rows, gradient = draw(5, wide.in_features), draw(5, wide.num_units, seed=1)
    with torch.no_grad():
        torch.testing.assert_close(narrow.preactivations(rows), wide.preactivations(rows), atol=0.05, rtol=0.02)
        expected, found = (whole_gradients(layer, rows, gradient)["weight"] for layer in (wide, narrow))
        torch.testing.assert_close(found, expected, atol=0.1, rtol=0.02)
        ((_, expected),), ((_, found),) = (layer.input_gradients(rows, gradient) for layer in (wide, narrow))
        torch.testing.assert_close(found.float(), expected, atol=0.1, rtol=0.02)


def test_a_row_of_places_is_copied_as_a_strip_and_not_as_squares():
    layer = make(Activations.of_places(32, 32, 3), 11, width=3)
    layer.workspace = Workspace(CPU)
    with torch.no_grad():
        layer.preactivations(draw(4, layer.in_features))
    assert layer.workspace.num_bytes("rows") == 4 * 4 * 42 * 11 * 3


def test_weights_of_hidden_features_are_zero_and_no_others():
    layer = make(Activations.of_places(6, 5, 4), 3)
    hidden = torch.arange(layer.in_features) % 7 == 0
    layer.hide(hidden)
    rows = torch.eye(layer.in_features)
    with torch.no_grad():
        reached = (layer.preactivations(rows) - layer.bias).any(dim=1)
    assert torch.equal(reached, ~hidden)


def test_a_label_is_told_to_each_unit_and_a_classifier_reads_each():
    for recipe in ("inject", "mono"):
        config = ff.Config(recipe=recipe, precision="fp32").override({"network.layers": "local3(field=5,stride=2)"})
        blueprint = describe(config, 64, image_shape=(8, 8))
        layer = blueprint.build_layer(blueprint.specs[0])
        assert layer.label_embedding.shape == (10, 48)
        assert layer.mean_activity.shape == (48,)


def test_units_belong_to_classes_in_turn_however_few_are_at_a_place():
    config = ff.Config(recipe="grouped").override({"network.layers": "local3(field=5)"})
    blueprint = describe(config, 64, image_shape=(8, 8))
    layer, activities = blueprint.build_layer(blueprint.specs[0]), draw(2, 192).abs()
    found = blueprint.method.reading.sweep(layer, blueprint.goodness, activities.clone(), 2)
    of_classes = [activities[:, label::10] for label in range(10)]  # 20 units of the first two, 19 of the others
    expected = [blueprint.goodness.value(each) * each.shape[1] / 19.2 for each in of_classes]
    torch.testing.assert_close(found, torch.stack(expected, dim=1))


def test_hidden_layers_of_3000_units_as_in_the_paper_are_planned_for():
    config = ff.Config(recipe="inject", batch=100).override({"network.layers": "local3(field=11)x2"})
    blueprint = describe(config, 3072, image_shape=(32, 32, 3))
    for spec in blueprint.specs:
        assert spec.describe() == "3 x 32 x 32 to 3 x 32 x 32"
        assert blueprint.make_layer(spec).weight.shape == (3072, 363)


REFUSED = {
    "no places": ({"data_shape": (64,)}, "local2(field=3)", r"field=3 reads \(64,\), allowed: what has .*\(layer 1\)"),
    "after a dense layer": ({}, "dense64 local2(field=3)", r"field=3 reads 64 features, allowed.*\(layer 2\)"),
    "wider than the padded plane": ({}, "local2(field=16)", r"field=16 reads 1 x 8 x 8, allowed field=15 at most"),
    "after a stride": ({}, "local2(field=3,stride=4)x2 local2(field=5)", r"field=5 reads 2 x 1 x 1, .*\(layer 3\)"),
    "no stride": ({}, "local2(field=3,stride=0)", r"local 2: stride: found 0, allowed an integer >= 1"),
    "a stride alone": ({}, "local144(stride=2)", r"stride=2 and no field, allowed stride=1 without one.*\(layer 1\)"),
    "unknown option": ({}, "local2(feild=3)", r"local 2: feild: unknown setting .*did you mean 'field'"),
    "tiles": ({"network.tile_units": 1}, "local2(field=3)", r"layers of kind 'local' cannot be cut into tiles"),
    "fewer units than classes": (
        {"labels.method": "groups"}, "local2(field=3,stride=4)", r"found 2, allowed 3 or more with labels.method=groups"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_by_the_number_of_its_layer(case, small_config, tmp_path):
    settings, text, words = REFUSED[case]
    settings = {"network.layers": text, "network.stack_layers": 0} | settings
    shape = settings.pop("data_shape", (8, 8))
    with pytest.raises(ff.ConfigError, match=words) as caught:
        if shape == (8, 8):
            ff.train(small_config("mono").override(settings), tmp_path / "run")
        describe(small_config("mono").override(settings), 64, image_shape=shape)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


# --- options that came later than the kind


def test_a_grid_is_recorded_as_it_was_before_there_were_fields():
    plain = ff.Config(layers=2, width=144).override({"network.kind": "local"})
    spelt_out = plain.override({"parts.layer.field": 0, "parts.layer.stride": 1})
    listed = [plain.override({"network.layers": text}) for text in ("local144", "local144(field=0,stride=1)")]
    assert complete_parts(plain) == plain == complete_parts(spelt_out)
    assert complete_parts(listed[0]).network.layers == ("local 144",) == complete_parts(listed[1]).network.layers


def test_a_field_is_recorded_and_asked_for_again(small_config, tmp_path):
    config = small_config("mono", layers=1, width=2, epochs=1, network__kind="local")
    config = config.override({"parts.layer.field": 3})
    ff.train(config, tmp_path / "run")
    assert ff.train(config, tmp_path / "run", resume=True).config.part("network.kind") == ("local", {"field": 3})
    with pytest.raises(ff.RunMismatchError, match="parts.layer.field: 5, 3"):
        ff.train(config.override({"parts.layer.field": 5}), tmp_path / "run", resume=True)


# --- in a run

NET = "local4(field=5) local6(field=4,stride=2) conv10 dense32"


def fields_config(small_config, recipe="mono", **settings):
    return small_config(recipe, network__stack_layers=0, network__layers=NET, **settings)


@pytest.mark.parametrize("recipe", ["mono", "inject", "grouped", "unsupervised"])
def test_an_interrupted_run_resumes_bitwise_on_every_tier(recipe, small_config, tmp_path):
    settings = {"objective__perturbation": 0.02} if recipe in ("mono", "inject") else {}
    config = fields_config(small_config, recipe, cache__dtype="int8", **settings)
    check_resumed_on_every_tier(config, tmp_path)


def test_a_loaded_and_an_exported_network_give_what_a_streamed_run_does(small_config, tmp_path):
    run = ff.train(fields_config(small_config), tmp_path / "run")
    network, test = ff.load(run.path), ff.load_dataset(run.config.data).test
    error = (network(test.images).argmax(dim=1) != test.labels).double().mean()
    assert error == pytest.approx(run.evaluate("goodness").error, abs=2e-3)
    assert [found.shape[1] for found in network.features(test.images[:2])] == [256, 96, 160, 32]
    run.export(tmp_path / "model.safetensors")
    assert torch.equal(ff.load(tmp_path / "model.safetensors")(test.images), network(test.images))


def test_a_batch_in_parts_gives_the_gradient_of_the_whole(small_config, tmp_path):
    config = fields_config(small_config, epochs=1, batch=64)
    runs = [ff.train(config.override({"micro_batch": n}), tmp_path / str(n)) for n in (64, 16)]
    first, second = (run.validation_errors_by_depth for run in runs)
    assert first == pytest.approx(second, abs=0.02)


def test_a_run_keeps_to_a_budget(tmp_path):
    config = ff.Config(recipe="mono", batch=256, epochs=1, device="cpu").override({"network.layers": "local8(field=3)"})
    planned = make_plan(config).device.num_bytes
    plan = make_plan(config.override({"memory.budget": f"{planned // 2}B"}))
    assert plan.device.num_bytes <= planned // 2
    assert plan.config.micro_batch < 256
    ff.train(plan.config, tmp_path / "run")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("recipe", ["mono", "inject"])
def test_planned_memory_is_what_a_run_takes(recipe, precision, tmp_path):
    config = ff.Config(recipe=recipe, epochs=1, batch=64, device="cpu", precision=precision)
    settings = {"network.layers": "local4(field=7) local8(field=5,stride=2)", "cache.tier": "disk"}
    config = config.override(settings | {"cache.shard_samples": 192})
    planned, measured = compare(config, 400, tmp_path / "sweep")
    assert measured <= planned <= 1.1 * measured
