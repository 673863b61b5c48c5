"""How what a layer hands on is normalised: the same for all kinds, and with what labels and tiles it goes."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import ffstream as ff
from ffstream.device.workspace import Workspace
from ffstream.field.layers import LAYER_KINDS, Activations, LayerShape
from ffstream.field.parts import complete_parts
from ffstream.testing import check_layer
from tests.helpers import check_resumed_on_every_tier, describe

READS = Activations.of_places(9, 8, 4)
NAMES = ("length", "samples", "channels", "groups")
KINDS = {
    "linear": ("linear", 30, {}),
    "local": ("local", 720, {}),
    "fields": ("local", 5, {"field": 3}),
    "conv": ("conv", 10, {"pool": 2}),
}


def make(case, name, num_groups=5, **options):
    kind, width, own = KINDS[case]
    made = LAYER_KINDS.make_settings(kind, own | options | {"normalise": name})
    layer = LAYER_KINDS[kind](LayerShape(READS, width, options=made, num_groups=num_groups))
    layer.initialise(torch.Generator().manual_seed(0))
    return layer


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def hand_on(layer, rows):
    if layer.has_statistics:
        parts = [layer.statistics_of(layer.preactivations(part)).double() for part in rows.split(77)]
        layer.settle(sum(parts))
    return layer.hand_on(layer.preactivations(rows))


@pytest.mark.parametrize("case", KINDS)
def test_units_of_what_is_handed_on_are_normalised_together_as_the_option_says(case):
    rows = draw(300, READS.num_features)
    handed = {name: hand_on(make(case, name), rows) for name in NAMES}
    torch.testing.assert_close(handed["length"].square().mean(dim=1), torch.ones(300), rtol=1e-3, atol=0)
    assert bool((handed["length"] >= 0).all())
    channels = make(case, "channels").handed_on_by(make(case, "channels").shape).num_channels
    together = {
        "samples": handed["samples"].t(),
        "groups": handed["groups"].unflatten(1, (-1, 5)).transpose(0, 1).flatten(1),
        "channels": handed["channels"].view(-1, channels) if case == "conv" else handed["channels"],
    }
    for name, values in together.items():
        torch.testing.assert_close(values.mean(dim=0), torch.zeros(values.shape[1]), rtol=0, atol=2e-3, msg=name)
        spread = values.std(dim=0, correction=0)
        assert bool((spread < 1.001).all()), name
        assert float((spread > 0.999).float().mean()) > 0.9, name  # what is hardly ever active keeps a smaller one


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", KINDS)
def test_it_is_the_same_in_place_and_in_other_types_and_does_not_fail_without_any_activity(case, name):
    layer = make(case, name)
    rows = draw(40, READS.num_features)
    expected = hand_on(layer, rows)
    silent = torch.full((3, layer.num_units), -1.0, requires_grad=True)
    made = layer.hand_on(silent)
    (gradient,) = torch.autograd.grad(made.square().sum(), silent)
    assert bool(made.isfinite().all())
    assert bool((gradient == 0).all())
    with torch.no_grad():
        narrow = layer.hand_on(layer.preactivations(rows).bfloat16())
        torch.testing.assert_close(narrow.float(), expected, rtol=0.02, atol=0.1)
        layer.workspace = Workspace(torch.device("cpu"))
        assert torch.equal(layer.hand_on(layer.preactivations(rows).clone()), expected)
        assert layer.hand_on(layer.preactivations(rows).bfloat16()).shape == expected.shape


@pytest.mark.parametrize("case", KINDS)
def test_groups_have_to_be_there_and_to_be_of_one_size(case):
    kind = KINDS[case][0]
    with pytest.raises(ff.ConfigError, match=f"a {kind} layer has normalise=groups, allowed with labels.method=groups"):
        make(case, "groups", num_groups=1)
    with pytest.raises(ff.ConfigError, match=f"allowed a multiple of 7 in a {kind} layer with normalise=groups"):
        make(case, "groups", num_groups=7)


REFUSED = {
    "no groups": ("mono", "dense40(normalise=groups) dense40", r"normalise=groups, allowed with labels.method=groups"),
    "too few channels": (
        "grouped",
        "conv8(normalise=groups) dense20",
        r"found 8, allowed a multiple of 10 in a conv layer with normalise=groups, such as 10",
    ),
    "no such name": ("mono", "dense40(normalise=batch)", r"normalise: found 'batch', allowed"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_by_name(case, small_config):
    recipe, text, words = REFUSED[case]
    with pytest.raises(ff.ConfigError, match=words) as caught:
        ff.train(small_config(recipe).override({"network.layers": text}), "never")
    assert "\n" not in str(caught.value)


def test_what_was_done_before_there_was_a_choice_is_recorded_as_it_was():
    for kind, width, default in (("linear", 512, "length"), ("local", 144, "auto")):
        plain = complete_parts(ff.Config(layers=2, width=width).override({"network.kind": kind}))
        spelt_out = complete_parts(plain.override({"parts.layer.normalise": default}))
        other = complete_parts(plain.override({"parts.layer.normalise": "samples"}))
        assert spelt_out == plain
        assert spelt_out.fingerprint() == plain.fingerprint() != other.fingerprint()
        assert dict(plain.parts) == {}


def test_rows_that_are_centred_by_sample_are_not_put_together_from_tiles():
    tiled = ff.Config(layers=2, width=30).override({"network.tile_units": 10})
    for name, is_cut in (("length", True), ("samples", False), ("channels", True)):
        blueprint = describe(tiled.override({"parts.layer.normalise": name}))
        if is_cut:
            assert len(blueprint.tiles_of(blueprint.specs[0])) == 3
            continue
        with pytest.raises(ff.ConfigError, match=f"kind 'linear' with normalise={name} cannot be cut into tiles"):
            blueprint.tiles_of(blueprint.specs[0])


# --- in a run

NETS = {
    "inject": "dense40(normalise=samples) dense40(normalise=channels) dense20",
    "grouped": "conv20(normalise=groups,pool=2) local5(field=3,normalise=groups) dense40(normalise=groups) dense20",
    "mono": "conv8(normalise=length) local6(field=3,normalise=samples) local4(field=3) dense20",
}


@pytest.mark.parametrize("recipe", NETS)
def test_an_interrupted_run_resumes_bitwise_on_every_tier(recipe, small_config, tmp_path):
    config = small_config(recipe, network__stack_layers=0, network__layers=NETS[recipe], cache__dtype="int8")
    check_resumed_on_every_tier(config, tmp_path)


@pytest.mark.parametrize("recipe", NETS)
def test_a_loaded_and_an_exported_network_give_what_a_streamed_run_does(recipe, small_config, tmp_path):
    run = ff.train(small_config(recipe, network__stack_layers=0, network__layers=NETS[recipe]), tmp_path / "run")
    network, test = ff.load(run.path), ff.load_dataset(run.config.data).test
    error = (network(test.images).argmax(dim=1) != test.labels).double().mean()
    assert error == pytest.approx(run.evaluate("goodness").error, abs=2e-3)
    run.export(tmp_path / "model.safetensors")
    assert torch.equal(ff.load(tmp_path / "model.safetensors")(test.images), network(test.images))


@pytest.mark.parametrize(("kind", "name"), [("linear", "channels"), ("conv", "groups")])
def test_it_fulfils_what_every_kind_has_to(kind, name):
    settings = {"parts.layer.normalise": name, "width": 20, "epochs": 1}
    check_layer(kind, settings | ({"recipe": "grouped"} if name == "groups" else {}))


def test_layers_of_other_classes_are_not_alike():
    layer = make("conv", "groups")
    assert not layer.shape.is_like(dataclasses.replace(layer.shape, num_groups=2))
