"""A batch in parts: the same step up to rounding, in less room."""

from __future__ import annotations

import pytest
import torch

import ffstream as ff
from benchmarks.footprint import compare, draw_config
from ffstream.data import scale_images
from ffstream.labels import make_label_method
from ffstream.layer_trainer import LayerTrainer
from ffstream.network import build_layer, compute_layer_specs
from tests.helpers import InterruptAt, layer_digests

CPU = torch.device("cpu")


def take_steps(config, digits, dtype):
    """Five steps of one layer of 60 units, with dropout; its state and the figures of each."""
    method = make_label_method(config, 10, 64)
    layer = build_layer(config, compute_layer_specs(config, 64)[0], 10).to(dtype)
    layer.compute_dtype = dtype
    labels = digits.train.labels[:96]
    images = scale_images(digits.train.images[:96], 16.0)
    block = method.training_rows(images, labels, torch.Generator().manual_seed(1)).to(dtype)
    trainer = LayerTrainer(layer, 0, config, method, CPU)
    figures = []
    for step in range(5):
        generator = torch.Generator().manual_seed(step)
        candidates = method.draw_candidates(labels, generator)
        index = torch.randperm(len(labels), generator=generator)[:32]
        others = torch.rand(32, candidates.shape[1], generator=generator)
        figures.append(trainer.step(block, index, candidates[index], 1.0, generator, others))
    return layer.state_dict(), torch.stack(figures)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("micro_batch", [1, 8, 31])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"objective__name": "logistic", "objective__goodness": "sum_squares", "objective__scale": 0.1},
        {"recipe": "hinton", "objective__peer_normalisation": 0.0, "optimiser__name": "sgd"},
    ],
)
def test_a_step_in_parts_equals_the_step_at_once(settings, micro_batch, dtype, small_config, digits):
    config = small_config(width=60, **settings)
    whole, figures = take_steps(config, digits, dtype)
    parts, same_figures = take_steps(config.override({"micro_batch": micro_batch}), digits, dtype)
    tolerance = {"rtol": 1e-3, "atol": 2e-5} if dtype == torch.float32 else {"rtol": 1e-9, "atol": 1e-11}
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, **tolerance, msg=name)
    torch.testing.assert_close(same_figures.double(), figures.double(), rtol=1e-3, atol=1e-3)


def test_the_running_mean_of_peers_moves_as_far_in_parts(small_config, digits):
    config = small_config("hinton", width=60, network__dropout=0.0)
    whole, _ = take_steps(config, digits, torch.float32)
    parts, _ = take_steps(config.override({"micro_batch": 8}), digits, torch.float32)
    moved = (whole["mean_activity"] - 0.5).norm()
    assert (parts["mean_activity"] - whole["mean_activity"]).norm() < 0.05 * moved


def test_micro_batches_as_large_as_the_batch_change_nothing(small_config, tmp_path):
    plain = ff.train(small_config(), tmp_path / "plain")
    same = ff.train(small_config(micro_batch=32), tmp_path / "same")
    assert layer_digests(plain.path) == layer_digests(same.path)


@pytest.mark.parametrize("recipe", ["inject", "hinton"])
def test_a_run_in_parts_resumes_bitwise(recipe, small_config, tmp_path):
    config = small_config(recipe, micro_batch=10, network__tile_units=16)
    unbroken = ff.train(config, tmp_path / "unbroken")
    with pytest.raises(KeyboardInterrupt):
        ff.train(config, tmp_path / "run", observer=InterruptAt("on_epoch", 4))
    assert layer_digests(ff.resume(tmp_path / "run").path) == layer_digests(unbroken.path)


@pytest.mark.parametrize(("number", "micro_batch"), [(29, 11), (30, 43), (44, 20)])
def test_planned_memory_of_parts_is_what_a_run_takes(number, micro_batch, tmp_path):
    config, num_features = draw_config(number)
    planned, measured = compare(config.override({"micro_batch": micro_batch}), num_features, tmp_path / "sweep")
    assert measured <= planned <= 1.1 * measured


def test_a_budget_too_small_for_a_batch_cuts_it_before_it_cuts_the_layer(small_config):
    config = small_config(width=100, batch=256, cache__shard_samples=256)
    whole = ff.make_plan(config)
    tight = ff.make_plan(config.override({"memory.budget": str(int(0.7 * whole.device.num_bytes))}))
    assert whole.config.num_in_micro_batch == 256
    assert tight.config.num_in_micro_batch < 256
    assert tight.config.num_tiles == 1
    assert tight.config.batch == 256
