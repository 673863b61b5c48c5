"""The hidden layers of a convolution's local classifier: what they compute, and their gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import ffstream as ff
from ffstream.field.layers import LAYER_KINDS, Activations, LayerShape
from ffstream.field.layers.conv import ConvOptions
from ffstream.testing.layers import check_summary
from tests.helpers import InterruptAt, check_resumed_equals


def make_layer(sides, head_layers, width=6, dtype=torch.float32):
    shape = LayerShape(Activations.of_places(*sides, 4), width, options=ConvOptions(), head_layers=head_layers)
    layer = LAYER_KINDS["conv"](shape, dtype)
    layer.initialise(torch.Generator().manual_seed(0))
    for name in layer.summary_names:
        if "weight" not in name:  # else scale and shift would be 1 and 0, and an error in them would not show
            torch.nn.init.uniform_(layer.get_parameter(name), 0.5, 1.5, generator=torch.Generator().manual_seed(1))
    return layer


@pytest.mark.parametrize(
    ("sides", "hidden"),
    [((16, 32), (8, 8)), ((28, 12), (7, 6)), ((9, 7), (9, 7)), ((31, 4), (31, 4)), ((1, 5), (1, 5))],
)
@pytest.mark.parametrize("head_layers", [2, 3])
def test_it_is_what_torch_computes_on_averages_of_squares(sides, hidden, head_layers):
    layer = make_layer(sides, head_layers)
    activities = torch.relu(torch.randn(3, layer.num_units, generator=torch.Generator().manual_seed(2)))
    current = F.adaptive_avg_pool2d(activities.view(3, *sides, 6).permute(0, 3, 1, 2), hidden)
    for number in range(head_layers - 1):
        weight, scale, shift = (getattr(layer.head, f"{name}_{number}") for name in ("weight", "scale", "shift"))
        spread, mean = torch.std_mean(weight, dim=(1, 2, 3), correction=0, keepdim=True)
        product = F.conv2d(current, (weight - mean) / spread, padding=1)
        current = torch.relu(F.group_norm(product, 1, scale, shift, eps=1e-5))
    parts = [min(side, 2) for side in hidden]
    expected = F.adaptive_avg_pool2d(current, parts).permute(0, 2, 3, 1).flatten(1)
    summary = layer.summarise(activities)[0]
    torch.testing.assert_close(summary, expected, rtol=1e-3, atol=1e-3)  # 1e-6 is added to a variance
    assert summary.shape == (3, layer.num_summarised)


@pytest.mark.parametrize("sides", [(16, 8), (28, 14), (9, 7), (1, 5)])
@pytest.mark.parametrize("head_layers", [2, 3])
def test_its_gradients_are_those_of_autograd(sides, head_layers):
    generator = torch.Generator().manual_seed(3)
    layer = make_layer(sides, head_layers)
    assert len(layer.summary_names) == 3 * (head_layers - 1)
    check_summary(layer, torch.randn(4, layer.num_units, generator=generator), generator)


def test_it_depends_on_no_other_sample():
    layer = make_layer((16, 16), 2)
    activities = torch.relu(torch.randn(6, layer.num_units, generator=torch.Generator().manual_seed(2)))
    with torch.no_grad():
        whole = layer.summarise(activities)[0]
        parts = [layer.summarise(part)[0] for part in activities.split([1, 3, 2])]
    torch.testing.assert_close(torch.cat(parts), whole)


def config_of(head_layers, **settings):
    base = {"network.layers": "conv12 pool conv16", "labels.head_layers": head_layers, "epochs": 3, "seed": 1}
    return ff.Config(recipe="conv", device="cpu").override(base | settings)


def test_layers_learn_more_with_hidden_layers_and_their_parts_of_a_batch_give_the_same_update(tmp_path):
    whole, parts = (
        ff.train(config_of(2, **changes), tmp_path / name)
        for name, changes in (("whole", {}), ("parts", {"micro_batch": 40}))
    )
    linear = ff.train(config_of(1), tmp_path / "linear")
    assert whole.validation_errors_by_depth[0] < linear.validation_errors_by_depth[0]
    assert whole.validation_errors_by_depth == pytest.approx(parts.validation_errors_by_depth, abs=0.03)


def test_a_run_with_hidden_layers_resumes_with_the_same_bits_and_is_loaded(tmp_path, digits):
    whole = ff.train(config_of(3, precision="fp32"), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        ff.train(config_of(3, precision="fp32"), tmp_path / "cut", observer=InterruptAt("on_epoch", 4))
    check_resumed_equals(whole.path, ff.resume(tmp_path / "cut").path)
    network, images = ff.load(whole.path), digits.test.images[:50]
    found = network(images)
    assert torch.equal(found.argmax(dim=1), whole.predict(images.numpy()).labels)
    found.sum().backward()
    of_last = {name: each.grad for name, each in network.named_parameters() if name.startswith("layers.1.head")}
    assert len(of_last) == 6
    assert all(gradient is not None for gradient in of_last.values())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"labels.method": "groups", "network.layers": "conv20"}, "which has no local classifier"),
        ({"network.layers": "dense20"}, "whose local classifier is linear"),
        ({"labels.head_layers": 0}, "allowed an integer >= 1"),
    ],
)
def test_where_there_is_no_such_classifier_it_is_refused(settings, words, tmp_path):
    with pytest.raises(ff.ConfigError, match="labels.head_layers") as refused:
        ff.train(config_of(2).override(settings), tmp_path / "run")
    assert words in str(refused.value)


@pytest.mark.parametrize("head_layers", [1, 2])
@pytest.mark.parametrize(
    "settings",
    [
        {"objective.peer_normalisation": 0.03},
        {"objective.similarity": "matching"},
        {"objective.perturbation": 0.02},
        {"network.dropout": 0.2, "micro_batch": 40},
    ],
)
def test_whatever_is_added_to_the_objective_works_on_activities_of_less_precision(settings, head_layers, tmp_path):
    changes = {"epochs": 2, "precision": "bf16", "network.layers": "conv12 pool"} | settings
    found = ff.train(config_of(head_layers, **changes), tmp_path / "run").validation_errors_by_depth
    exact = ff.train(config_of(head_layers, **changes | {"precision": "fp32"}), tmp_path / "exact")
    assert found == pytest.approx(exact.validation_errors_by_depth, abs=0.06)
