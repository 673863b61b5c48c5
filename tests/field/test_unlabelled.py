"""Learning without labels: what images are contrasted with, and recipes of convolutions of any depth."""

from __future__ import annotations

import math

import pytest
import torch

import ffstream as ff
from ffstream.data.shape import DataShape
from ffstream.errors import DataError
from ffstream.field.labels import make_label_method
from ffstream.field.normalisation import length_normalise
from ffstream.testing import check_label_method
from tests.helpers import check_resumed_on_every_tier, describe

CONV_RECIPES = ("conv", "conv-ff", "conv-unsupervised")


def unlabelled(images, num_cached=3, shape=(8, 8)):
    config = ff.Config(recipe="unsupervised")
    config = config.override({"negatives.images": images, "negatives.per_sample": num_cached})
    return make_label_method(config, DataShape(math.prod(shape), 10, {}, shape)).rows


def test_an_image_is_contrasted_with_sums_of_it_and_others_all_of_one_length():
    images, labels = torch.rand(5, 4, 64, generator=torch.Generator().manual_seed(0)), torch.arange(5)
    rows = unlabelled("sums").training_rows(images, labels, torch.Generator())
    expected = torch.cat([images[:, :1], images[:, :1] + images[:, 1:]], dim=1)
    assert torch.equal(rows, length_normalise(expected))
    # The positive of SCFF, the sum of an image with itself, is the image once it has that length.
    torch.testing.assert_close(rows[:, 0], length_normalise(2 * images[:, 0]), rtol=1e-4, atol=0)
    torch.testing.assert_close(rows.square().mean(dim=2), torch.ones(5, 4), rtol=1e-3, atol=0)


def test_only_hybrids_need_images_with_height_and_width():
    images = torch.rand(5, 4, 30)
    assert unlabelled("sums", shape=(30,)).training_rows(images, torch.arange(5), torch.Generator()).shape == (5, 4, 30)
    with pytest.raises(DataError, match="hybrid images need a plane"):
        unlabelled("hybrids", shape=(30,))


def test_runs_from_before_there_were_sums_keep_their_identity():
    config = ff.Config(recipe="unsupervised")
    assert "negatives.images" not in config.identity()
    assert config.override({"negatives.images": "sums"}).identity()["negatives.images"] == "sums"
    saved = config.to_mapping()
    del saved["negatives"]["images"]
    assert ff.Config.from_saved(saved) == config


def test_it_fulfils_what_every_label_method_has_to():
    small = {"epochs": 1, "width": 24, "objective.perturbation": 0.0}
    check_label_method("none", small | {"negatives.images": "sums", "negatives.per_sample": 2})


@pytest.mark.parametrize(("size", "shape"), [(784, (28, 28)), (3072, (32, 32, 3)), (3072, (3, 32, 32))])
@pytest.mark.parametrize("num_layers", [1, 2, 3, 4, 5, 9, 17])
@pytest.mark.parametrize("recipe", CONV_RECIPES)
def test_a_recipe_of_convolutions_has_as_many_as_are_asked_for(recipe, num_layers, size, shape):
    specs = describe(ff.Config(recipe=recipe, layers=num_layers), size, image_shape=shape).specs
    assert [spec.kind for spec in specs] == ["conv"] * num_layers
    assert [spec.place for spec in specs] == list(range(num_layers))


@pytest.mark.parametrize("images", ["sums", "hybrids"])
def test_an_interrupted_run_resumes_bitwise_on_every_tier(images, small_config, tmp_path):
    config = small_config("conv-unsupervised", network__layers="conv8 pool conv12 conv16", negatives__images=images)
    check_resumed_on_every_tier(config, tmp_path)


def test_convolutions_tell_images_from_sums_and_a_readout_tells_classes(small_config, tmp_path):
    config = small_config("conv-unsupervised", network__layers="conv16 pool conv16 conv16", epochs=6)
    run = ff.train(config, tmp_path / "run")
    assert run.validation_errors_by_depth[-1] < 0.35  # by chance, half of the sums have more goodness
    evaluation = run.evaluate("softmax")
    assert evaluation.error < 0.4
    network, test = ff.load(run.path), ff.load_dataset(run.config.data).test
    error = (network(test.images).argmax(dim=1) != test.labels).double().mean()
    assert error == pytest.approx(evaluation.error, abs=5e-3)
