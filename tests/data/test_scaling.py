"""Standardised features and channels: by the training images, the same wherever a run meets images."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import ffstream as ff
from ffstream.data import Scaling
from ffstream.errors import RunMismatchError


def images_of(*shape, dtype=torch.float32):
    return (torch.randn(200, *shape, generator=torch.Generator().manual_seed(0)) * 3 + 300).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int32])
@pytest.mark.parametrize("shape", [(6,), (4, 4), (3, 4, 4)])
def test_each_feature_is_brought_to_a_mean_of_zero_and_a_spread_of_one(shape, dtype):
    images = images_of(*shape, dtype=dtype)
    rows = Scaling.of(images, 1.0, "features").apply(images).double()
    assert torch.allclose(rows.mean(0), torch.zeros(1).double(), atol=1e-4)
    assert torch.allclose(rows.var(0, correction=0), torch.ones(1).double(), atol=1e-4)


def test_each_channel_is_brought_to_a_mean_of_zero_and_a_spread_of_one():
    images = images_of(3, 4, 4) * torch.tensor([1.0, 10.0, 0.1]).view(3, 1, 1)
    rows = Scaling.of(images, 1.0, "channels").apply(images).double().unflatten(1, (3, 16)).transpose(0, 1).flatten(1)
    assert torch.allclose(rows.mean(1), torch.zeros(1).double(), atol=1e-4)
    assert torch.allclose(rows.var(1, correction=0), torch.ones(1).double(), atol=1e-4)


@pytest.mark.parametrize("value", [0.0, 1e-30, 0.1, 1e9])
def test_a_feature_that_never_varies_becomes_zero(value):
    images = images_of(6)
    images[:, 2] = value
    for scaling in (
        Scaling.of(images, 1.0, "features"),
        rebuilt(Scaling.of(images, 1.0, "features"), "features", (6,)),
    ):
        rows = scaling.apply(torch.cat([images, images + 1]))
        assert not rows[:, 2].any()
        assert torch.isfinite(rows).all()


def rebuilt(scaling, standardise, shape):
    data = json.loads(json.dumps(scaling.to_mapping(standardise, shape)))
    return Scaling.from_mapping(data | {"num_features": int(np.prod(shape))})


@pytest.mark.parametrize("shape", [(6,), (4, 4), (3, 4, 4)])
@pytest.mark.parametrize("standardise", ["none", "features", "channels"])
def test_what_a_run_keeps_gives_the_same_rows(standardise, shape):
    images = images_of(*shape)
    scaling = Scaling.of(images, 7.0, standardise)
    assert torch.equal(rebuilt(scaling, standardise, shape).apply(images), scaling.apply(images))
    kept = scaling.to_mapping(standardise, shape).get("standardised", {"mean": []})["mean"]
    assert len(kept) == {"none": 0, "features": np.prod(shape), "channels": 3 if len(shape) == 3 else 1}[standardise]


def test_parts_of_the_images_change_nothing(monkeypatch):
    images = images_of(3, 4, 4)
    whole = Scaling.of(images, 1.0, "features").to_mapping("features", (3, 4, 4))
    monkeypatch.setattr("ffstream.data.scaling._PART_VALUES", 100)
    parts = Scaling.of(images, 1.0, "features").to_mapping("features", (3, 4, 4))
    assert np.allclose(whole["standardised"]["spread"], parts["standardised"]["spread"])


@pytest.mark.parametrize("standardise", ["features", "channels"])
@pytest.mark.parametrize("recipe", ["inject", "hinton", "unsupervised"])
def test_a_run_reads_all_images_in_its_own_scaling(small_config, tmp_path, recipe, standardise):
    config = small_config(recipe, standardise=standardise)
    run = ff.train(config, tmp_path / "run")
    split = ff.data.load_dataset(config.data).test
    evaluation = run.evaluate()
    exported = tmp_path / "network.safetensors"
    run.export(exported)
    for network in (run.load(), ff.load(exported)):
        assert (network.predict(split.images) != split.labels).float().mean() == pytest.approx(
            evaluation.error, abs=0.02
        )
    moved = run.path / "config.toml"
    assert f'standardise = "{standardise}"' in moved.read_text()
    with pytest.raises(RunMismatchError, match="standardise: 'none', "):
        ff.train(small_config(recipe), run.path, resume=True)


def test_standardising_decides_what_a_layer_learns_and_is_left_out_where_it_is_not_asked_for(small_config):
    plain, standardised = small_config(), small_config(standardise="features")
    assert plain.fingerprint() != standardised.fingerprint()
    assert (
        "standardise" not in plain.identity()
    )  # which is that of runs that were started before there was such a setting
    assert plain.differences(standardised) == ["standardise: 'none', 'features'"]
    assert standardised.differences(plain) == ["standardise: 'features', 'none'"]


@pytest.mark.parametrize("standardise", ["features", "channels"])
def test_images_of_a_standardised_run_in_other_units_are_named(small_config, tmp_path, standardise):
    run = ff.train(small_config(standardise=standardise), tmp_path / "run")
    images = ff.data.load_dataset(run.config.data).test.images.float()
    assert run.evaluate().warning is None
    assert run.predict(images).warning is None
    for changed in (images * 0.3, images * 3, images + 8):
        assert "units" in run.predict(changed).warning
