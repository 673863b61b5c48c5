"""Learning without labels: hybrid images, the rows that are made of them, and what can be asked of such a run."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

import ffstream as ff
from ffstream.data import Scaling
from ffstream.data.hybrids import check_plane, draw_masks, draw_with_others, make_hybrids
from ffstream.data.shape import DataShape
from ffstream.field.labels import make_label_method
from ffstream.field.normalisation import length_normalise
from ffstream.infer.evaluation import error_rate
from ffstream.run.run import make_splits
from ffstream.training.input_rows import InputRows
from tests.helpers import run_cli

PLANES = [(28, 28), (8, 8), (5, 17), (1, 8, 8), (3, 12, 9), (12, 9, 3), (6, 6, 4)]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def blur(image):
    """[1/4, 1/2, 1/4] in both directions, written out; an edge goes on beyond the image."""
    for axis in (0, 1):
        before, after = image.narrow(axis, 0, 1), image.narrow(axis, image.shape[axis] - 1, 1)
        longer = torch.cat([before, image, after], dim=axis)
        size = image.shape[axis]
        image = sum(w * longer.narrow(axis, start, size) for start, w in enumerate((0.25, 0.5, 0.25)))
    return image


def test_a_mask_is_random_bits_blurred_and_cut_at_a_half():
    plane, num_blurs = (1, 10, 13, 1), 6
    masks = draw_masks(20, plane, num_blurs, generator()).view(-1, 10, 13)
    words = torch.empty(20, 3, dtype=torch.int64).random_(torch.iinfo(torch.int64).min, None, generator=generator())
    for mask, row in zip(masks, words.tolist(), strict=True):
        bits = [(word >> place) & 1 for word in row for place in range(64)][:130]
        image = torch.tensor(bits, dtype=torch.float64).view(10, 13)
        for _ in range(num_blurs):
            image = blur(image)
        assert torch.equal(mask, image > 0.5)


@pytest.mark.parametrize("shape", PLANES)
@pytest.mark.parametrize("num_blurs", [2, 6, 20])  # one blur often gives 0.5 itself
def test_every_mask_has_both_values_and_about_half_of_each(shape, num_blurs):
    masks = draw_masks(3000, check_plane(shape), num_blurs, generator())
    assert not masks.all(dim=1).any()
    assert masks.any(dim=1).all()
    assert float(masks.float().mean()) == pytest.approx(0.5, abs=0.03)


def test_more_blurs_make_larger_regions():
    def share_of_borders(num_blurs):
        masks = draw_masks(500, (1, 28, 28, 1), num_blurs, generator()).view(-1, 28, 28)
        return float((masks[:, :, 1:] != masks[:, :, :-1]).float().mean())

    shares = [share_of_borders(num_blurs) for num_blurs in (1, 3, 6, 10)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 2 * shares[-1]


@pytest.mark.parametrize("shape", PLANES)
def test_each_pixel_of_a_hybrid_is_that_of_one_of_the_two_in_all_channels(shape):
    plane, num_features = check_plane(shape), torch.Size(shape).numel()
    images = torch.rand(40, num_features, generator=generator(1))
    others = torch.rand(40, 3, num_features, generator=generator(2))
    kept = images.clone(), others.clone()
    hybrids = make_hybrids(images, others, plane, 2, generator())
    of_image, of_other = hybrids == images.unsqueeze(1), hybrids == others
    assert (of_image ^ of_other).all()
    assert of_image.any(dim=2).all()
    assert of_other.any(dim=2).all()
    by_channel = of_image.view(40, 3, *plane)
    assert torch.equal(by_channel, by_channel[:, :, :1, :, :, :1].expand_as(by_channel))
    assert torch.equal(images, kept[0])
    assert torch.equal(others, kept[1])


@pytest.mark.parametrize("shape", [(64,), (1, 64), (64, 1), (9, 9, 9), (2, 3, 8, 8), ()])
def test_data_without_an_image_plane_are_refused(shape):
    with pytest.raises(ff.DataError, match=r"hybrid images need a plane, .*--recipe inject"):
        check_plane(shape)


def test_a_run_on_vectors_is_refused_before_anything_is_written(small_data, tmp_path):
    arrays = load_file(small_data)
    save_file(
        {name: value.flatten(1) if value.dim() > 1 else value for name, value in arrays.items()},
        tmp_path / "vectors.safetensors",
    )
    with pytest.raises(ff.DataError, match=r"data of shape \(64,\)"):
        ff.train(ff.Config(recipe="unsupervised", data=str(tmp_path / "vectors.safetensors")), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_other_image_is_any_but_the_samples_own():
    drawn = draw_with_others(slice(0, 6), 6, 500, generator())
    own, others = drawn[:, :1], drawn[:, 1:]
    assert torch.equal(own[:, 0], torch.arange(6))
    assert (others != own).all()
    counts = others.flatten().bincount(minlength=6).double()
    assert float(((counts - 500) ** 2 / 500).sum()) < 20.5  # chi-square, 5 degrees, p = 0.001
    with pytest.raises(ff.DataError, match="a hybrid is made of two"):
        draw_with_others(slice(0, 1), 1, 3, generator())


@pytest.fixture
def first_rows(small_config, digits):
    def make(part_size, *, held_out=False, seed=0):
        config = small_config("unsupervised", seed=seed)
        train = make_splits(digits, config)["train"]
        method = make_label_method(config, DataShape(64, 10, image_shape=digits.image_shape))
        rows_of = InputRows(method.rows, train, Scaling(16.0), seed, held_out=held_out).make()
        return torch.cat([rows_of(slice(start, min(start + part_size, 100))) for start in range(0, 100, part_size)])

    return make


@pytest.mark.parametrize("held_out", [False, True])
def test_first_rows_do_not_depend_on_how_many_are_asked_for_at_a_time(held_out, first_rows):
    whole = first_rows(100, held_out=held_out)
    for part_size in (1, 7, 64):
        assert torch.equal(first_rows(part_size, held_out=held_out), whole)
    assert not torch.equal(first_rows(100, held_out=held_out, seed=1), whole)


def test_row_zero_is_the_image_and_the_others_are_not(first_rows, small_config, digits):
    config = small_config("unsupervised")
    images = make_splits(digits, config)["train"].images[:100].flatten(1).float() / 16
    rows = first_rows(100)
    assert rows.shape == (100, 1 + config.negatives.per_sample, 64)
    torch.testing.assert_close(rows[:, 0], length_normalise(images))
    assert (rows[:, 1:] != rows[:, :1]).any(dim=2).float().mean() > 0.95  # two images may agree where a mask is open
    torch.testing.assert_close(rows.square().mean(-1), torch.ones(rows.shape[:2]), rtol=1e-3, atol=1e-3)


def test_a_step_shows_the_image_and_distinct_hybrids(small_config):
    config = small_config("unsupervised", negatives__per_sample=4, negatives__per_step=3)
    method = make_label_method(config, DataShape(64, 10, image_shape=(8, 8)))
    candidates = method.candidates.draw(torch.zeros(200, dtype=torch.int64), generator())
    assert not candidates[:, 0].any()
    assert candidates[:, 1:].unique().tolist() == [1, 2, 3, 4]
    assert all(len(set(row)) == 4 for row in candidates.tolist())


@pytest.mark.parametrize("per_sample", ["all", 2])
def test_too_few_hybrids_are_refused(per_sample, small_config):
    config = small_config("unsupervised", negatives__per_step=3, negatives__per_sample=per_sample)
    with pytest.raises(ff.ConfigError, match=r"per_sample: found .*allowed 3 \(negatives.per_step\) or more hybrids"):
        make_label_method(config, DataShape(64, 10, image_shape=(8, 8)))


def test_labels_change_nothing_but_the_readout(small_config, small_data, tmp_path):
    arrays = load_file(small_data)
    shuffled = {n: v.roll(1) if n.endswith("labels") else v for n, v in arrays.items()}
    save_file(shuffled, tmp_path / "shuffled.safetensors")
    first = ff.train(small_config("unsupervised"), tmp_path / "first").load()
    second = ff.train(small_config("unsupervised", data=str(tmp_path / "shuffled.safetensors")), tmp_path / "second")
    for (key, mine), theirs in zip(first.state_dict().items(), second.load().state_dict().values(), strict=True):
        assert torch.equal(mine, theirs), key


@pytest.fixture(scope="module")
def run(tmp_path_factory, small_data):
    config = ff.Config(recipe="unsupervised", data=str(small_data), layers=3, width=96, epochs=30, batch=32)
    config = config.override({"device": "cpu", "precision": "fp32"})
    return ff.train(config, tmp_path_factory.mktemp("unsupervised") / "run")


def test_the_validation_error_is_that_of_telling_images_from_hybrids(run):
    for index, figures in enumerate(run.layers):
        goodness = run.directory.load_validation_goodness(index)
        assert goodness.shape == (25, 2)
        assert figures.validation_error == pytest.approx(float((goodness[:, 0] < goodness[:, 1]).float().mean()))


def test_images_have_more_goodness_than_hybrids(run):
    assert all(figures.separation > 0.7 for figures in run.layers)
    assert all(figures.goodness_positive > figures.goodness_negative for figures in run.layers)


def test_evaluation_takes_the_readout_and_its_error_is_far_below_chance(run):
    found = run.evaluate()
    assert (found.method, found.first_depth) == ("softmax", 2)
    assert found.error < 0.3
    code, output, _ = run_cli("evaluate", run.path)
    assert code == 0
    assert "by softmax" in output


def test_goodness_of_labels_is_refused(run):
    with pytest.raises(ff.ConfigError, match=r"trained without labels .*allowed softmax, or auto"):
        run.evaluate("goodness")


def test_a_network_classifies_by_the_readout_of_its_run_and_says_when_there_is_none(small_config, small_data, tmp_path):
    arrays = load_file(small_data)
    images, labels = arrays["test.images"], arrays["test.labels"]
    run = ff.train(small_config("unsupervised"), tmp_path / "run")
    bare = run.load()
    with pytest.raises(ff.RunError, match=r"no softmax readout; .*features\(images\)"):
        bare(images)
    features = bare.features(images)
    assert [tuple(layer.shape) for layer in features] == 3 * [(100, 24)]
    torch.testing.assert_close(features[0].square().mean(1), torch.ones(100), rtol=2e-2, atol=2e-2)
    assert [tuple(goodness.shape) for goodness in bare.goodness_by_layer(images)] == 3 * [(100, 1)]

    error = run.evaluate().error
    network = run.load()
    with torch.no_grad():
        assert error_rate(network(images), labels) == pytest.approx(error, abs=0.01)
    run.export(tmp_path / "network.safetensors")
    with torch.no_grad():
        assert torch.equal(ff.load(tmp_path / "network.safetensors")(images), network(images))

    grown = ff.resume(run.path, layers=4)  # the readout was fitted on three layers
    with pytest.raises(ff.RunError, match="no softmax readout"):
        grown.load()(images)


@pytest.mark.parametrize("objective", ["pairwise", "cross_entropy"])
def test_other_objectives_and_several_negatives_learn_too(objective, small_config, tmp_path):
    settings = {"objective__name": objective, "objective__scale": 0.1, "negatives__per_step": 3, "epochs": 6}
    settings |= {"optimiser__name": "adam"}
    run = ff.train(small_config("unsupervised", width=64, **settings), tmp_path / "run")
    assert run.layers[0].separation > 0.55
    assert run.evaluate().error < 0.6
