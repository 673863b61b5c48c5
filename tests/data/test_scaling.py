"""Standardised features and channels: by the training images, the same wherever a run meets images."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import ffstream as ff
from ffstream.data import Scaling
from ffstream.errors import RunMismatchError
from tests.helpers import write_pictures


def images_of(*shape, dtype=torch.float32):
    return (torch.randn(200, *shape, generator=torch.Generator().manual_seed(0)) * 3 + 300).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int32])
@pytest.mark.parametrize("shape", [(6,), (4, 4), (3, 5, 6)])
def test_each_feature_is_brought_to_a_mean_of_zero_and_a_spread_of_one(shape, dtype):
    images = images_of(*shape, dtype=dtype)
    rows = Scaling.of(images, 1.0, "features").apply(images).double()
    assert torch.allclose(rows.mean(0), torch.zeros(1).double(), atol=1e-4)
    assert torch.allclose(rows.var(0, correction=0), torch.ones(1).double(), atol=1e-4)


def test_each_channel_is_brought_to_a_mean_of_zero_and_a_spread_of_one():
    images = images_of(3, 5, 6) * torch.tensor([1.0, 10.0, 0.1]).view(3, 1, 1)
    rows = Scaling.of(images, 1.0, "channels").apply(images).double().unflatten(1, (3, 30)).transpose(0, 1).flatten(1)
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
    return Scaling.from_mapping(data | {"num_features": int(np.prod(shape)), "image_shape": list(shape)})


@pytest.mark.parametrize("shape", [(6,), (4, 4), (3, 5, 6)])
@pytest.mark.parametrize("standardise", ["none", "features", "channels"])
def test_what_a_run_keeps_gives_the_same_rows(standardise, shape):
    images = images_of(*shape)
    scaling = Scaling.of(images, 7.0, standardise)
    assert torch.equal(rebuilt(scaling, standardise, shape).apply(images), scaling.apply(images))
    kept = scaling.to_mapping(standardise, shape).get("standardised", {"mean": []})["mean"]
    assert len(kept) == {"none": 0, "features": np.prod(shape), "channels": 3 if len(shape) == 3 else 1}[standardise]


def test_parts_of_the_images_change_nothing(monkeypatch):
    images = images_of(3, 5, 6)
    whole = Scaling.of(images, 1.0, "features").to_mapping("features", (3, 5, 6))
    monkeypatch.setattr("ffstream.data.scaling._PART_VALUES", 100)
    parts = Scaling.of(images, 1.0, "features").to_mapping("features", (3, 5, 6))
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
    run = ff.train(small_config(standardise=standardise, width=32, epochs=8), tmp_path / "run")
    images = ff.data.load_dataset(run.config.data).test.images.float()
    assert run.evaluate().warning is None
    assert run.predict(images).warning is None
    for changed in (images * 0.3, images * 3, images + 8):
        assert "units" in run.predict(changed).warning


# --- channels lie before the plane of an image, or behind it


def colours(num_images=60):
    generator = torch.Generator().manual_seed(0)
    tones = torch.tensor([200.0, 100.0, 20.0]).view(3, 1, 1)
    return tones + torch.randn(num_images, 3, 12, 10, generator=generator) * torch.tensor([9.0, 5.0, 2.0]).view(3, 1, 1)


def test_channels_are_those_of_the_plane_wherever_they_lie():
    first, last = colours(), colours().permute(0, 2, 3, 1)
    scalings = [Scaling.of(images, 255.0, "channels") for images in (first, last)]
    for scaling, images in zip(scalings, (first, last), strict=True):
        found = scaling.to_mapping("channels", tuple(images.shape[1:]))["standardised"]
        assert [round(mean) for mean in found["mean"]] == [200, 100, 20]
        assert [round(spread) for spread in found["spread"]] == [9, 5, 2]
    rows = [scaling.apply(images) for scaling, images in zip(scalings, (first, last), strict=True)]
    torch.testing.assert_close(rows[0].view(-1, 3, 12, 10), rows[1].view(-1, 12, 10, 3).permute(0, 3, 1, 2))


@pytest.mark.parametrize("shape", [(3, 12, 10), (12, 10, 3), (12, 10), (120,), (7, 4, 5), (12, 10, 1)])
@pytest.mark.parametrize("standardise", ["features", "channels"])
def test_what_a_run_keeps_of_its_scaling_scales_alike(standardise, shape):
    images = torch.rand(50, *shape, generator=torch.Generator().manual_seed(0)) * 9 + 3
    scaling = Scaling.of(images, 12.0, standardise)
    data = {"num_features": images[0].numel(), "image_shape": list(shape), **scaling.to_mapping(standardise, shape)}
    assert torch.equal(Scaling.from_mapping(data).apply(images), scaling.apply(images))


def test_runs_of_before_keep_their_own_channels():
    data = {"num_features": 24, "image_shape": [4, 2, 3], "scale": 1.0}
    data["standardised"] = {"mean": [0.0, 1.0, 2.0, 3.0], "spread": [1.0, 1.0, 1.0, 1.0]}  # rows, as they were taken
    rows = Scaling.from_mapping(data).apply(torch.zeros(1, 4, 2, 3))
    assert torch.equal(rows.view(4, 6), -torch.arange(4.0).unsqueeze(1).expand(4, 6))


def test_pictures_in_colour_of_a_folder_are_standardised_by_colour(tmp_path):
    for name, tone in (("a", 60), ("b", 120)):
        noise = [np.random.default_rng(number + tone).integers(0, 9, (5, 6, 3)) for number in range(6)]
        pixels = np.stack(noise) + np.array([tone, 2 * tone, 5])
        write_pictures(tmp_path / "data", {name: pixels.astype(np.uint8)})
    config = ff.Config(data=str(tmp_path / "data"), layers=1, width=8, epochs=1, validation_fraction=0.0)
    config = config.override({"standardise": "channels"})
    run = ff.train(config, tmp_path / "run")
    assert len(run.directory.read_data().content["standardised"]["mean"]) == 3
