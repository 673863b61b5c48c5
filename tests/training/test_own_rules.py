"""Layers that learn in a way of their own: what they are told, what is refused, and noise that is the same again."""

from __future__ import annotations

import pytest
import torch

import ffstream as ff
from tests.helpers import DenseLayer, layer_digests


class Told(DenseLayer):
    """The same by the gradient that it is told."""

    has_gradients = False

    def observe(self, rows, gradient, loss_of):
        yield "weight", slice(None), gradient.t() @ rows.float()


class Stepping(Told):
    """The same with steps of its own."""

    owns_update = True

    def update_(self, name, rows, observed, rate):
        self.get_parameter(name)[rows] -= rate * observed


class Trying(Told):
    """Compares what it is told with the loss of preactivations that it tries."""

    def observe(self, rows, gradient, loss_of):
        found, direction = self.preactivations(rows), gradient.sign()
        kept = found.clone()
        rise = loss_of(found + 1e-3 * direction) - loss_of(found - 1e-3 * direction)
        assert rise.shape == (len(rows),)
        if rows.device.type != "meta":
            assert torch.equal(found, kept)
            slope = rise.sum() / Trying.num_told / 2e-3
            Trying.slopes.append((float(slope), float(gradient.abs().sum())))
        yield from super().observe(rows, gradient, loss_of)


class Fixed(DenseLayer):
    has_input_gradient = False


class Noisy(DenseLayer):
    noisy_modes = frozenset(ff.Mode)

    def preactivations(self, rows):
        found = super().preactivations(rows)
        if self.generator is None:
            return found
        return found + 0.5 * torch.randn(found.shape, generator=self.generator, device=rows.device)


class Boxed(Told):
    def declare_bytes(self, num_rows):
        return 8 * num_rows * (self.in_features + self.num_units)

    def preactivations(self, rows):
        return torch.from_numpy(rows.float().numpy() @ self.weight.detach().numpy().T)


KINDS = (DenseLayer, Told, Stepping, Trying, Fixed, Noisy, Boxed)


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    for name in ("_parts", "_descriptions"):
        monkeypatch.setattr(ff.LAYER_KINDS, name, dict(getattr(ff.LAYER_KINDS, name)))
    for kind in KINDS:
        ff.LAYER_KINDS.register(kind.__name__.lower(), kind)


def config_of(small_config, kind, recipe="inject", **settings):
    return small_config(recipe, **{"network__kind": kind, "objective__perturbation": 0.0, "layers": 2} | settings)


@pytest.mark.parametrize("settings", [{}, {"micro_batch": 10}], ids=["whole", "parts"])
def test_who_is_told_the_gradient_learns_as_who_has_it(settings, small_config, tmp_path):
    by_autograd, by_rule, boxed = (
        layer_digests(ff.train(config_of(small_config, kind, **settings), tmp_path / kind).path)
        for kind in ("denselayer", "told", "boxed")
    )
    assert by_rule == by_autograd
    assert len(boxed) == len(by_rule)


def test_steps_of_its_own_are_those_of_the_optimiser_where_it_does_the_same(small_config, tmp_path):
    plain = {
        "optimiser__name": "sgd",
        "optimiser__momentum": 0.0,
        "optimiser__weight_decay": 0.0,
    }
    found = [
        ff.load(ff.train(config_of(small_config, kind, "grouped", **plain), tmp_path / kind).path)
        for kind in ("told", "stepping")
    ]
    for first, second in zip(*(network.state_dict().values() for network in found), strict=True):
        assert torch.allclose(first, second, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("recipe", "num_told"), [("inject", 1), ("hinton", 2), ("grouped", 1), ("mono", 1), ("unsupervised", 2)]
)
def test_a_trial_shows_the_loss_whose_gradient_is_told(recipe, num_told, small_config, tmp_path):
    """With a row for each candidate, the loss of a sample is told to each of them."""
    Trying.slopes, Trying.num_told = [], num_told
    settings = {"objective__peer_normalisation": 0.0, "objective__similarity": "none", "layers": 1, "epochs": 1}
    ff.train(config_of(small_config, "trying", recipe, **settings), tmp_path / "run")
    assert Trying.slopes
    for slope, wanted in Trying.slopes:
        assert slope == pytest.approx(wanted, rel=0.1, abs=1e-3)


@pytest.mark.parametrize("kind", ["fixed", "told", "boxed"])
def test_moving_rows_is_refused_by_name_where_there_is_no_gradient_by_them(kind, small_config, tmp_path):
    config = config_of(small_config, kind, objective__perturbation=0.05)
    with pytest.raises(ff.ConfigError, match=f"perturbation: found 0.05, allowed 0 with layers of kind '{kind}'"):
        ff.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["noisy", "boxed"])
def test_a_loaded_network_gives_the_same_again_and_is_not_traced(kind, small_config, tmp_path):
    network = ff.load(ff.train(config_of(small_config, kind), tmp_path / "run").path)
    images = torch.rand(3, 8, 8) * 16
    assert torch.equal(network(images), network(images))
    with pytest.raises(ff.RunError, match=f"layer 1: is of kind '{kind}', which .* cannot be traced"):
        torch.jit.trace(network, images)


def test_noise_differs_between_epochs_layers_seeds_modes_and_places():
    layer = Noisy(ff.LayerShape(ff.Activations(4), 3))
    found = []
    for origin in ((0, 0), (0, 1), (1, 0)):
        layer.origin = origin
        for mode in ff.Mode:
            for epoch in (0, 1):
                for place in ("0", "1"):
                    layer.begin(mode, epoch, place)
                    found.append(layer.generator.initial_seed())
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("tile_units", [24, 10])
def test_noise_does_not_depend_on_when_a_shard_is_handed_on(tile_units, small_config, tmp_path, monkeypatch):
    """A run that is stopped while a noisy layer hands on ends with the same bits."""
    monkeypatch.setattr(Noisy, "tileable", True)
    config = config_of(small_config, "noisy", cache__tier="disk", network__tile_units=tile_units)
    whole = ff.train(config, tmp_path / "whole")

    class Stop(ff.Observer):
        def on_step(self, description):
            if "2" in description and description.startswith("training"):
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ff.train(config, tmp_path / "stopped", observer=Stop())
    for file in sorted((tmp_path / "stopped").rglob("*.shard*"))[:1]:
        file.unlink()
    assert layer_digests(ff.resume(tmp_path / "stopped").path) == layer_digests(whole.path)
