"""The optimiser of a layer: torch's own arithmetic, a part at a time, and state that can be saved at any step."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import ffstream as ff
from benchmarks.footprint import compare, draw_config
from ffstream.device.parts import part_sizes
from ffstream.device.workspace import Workspace
from ffstream.field.optimisers import OPTIMISERS
from ffstream.settings.sections import OptimiserConfig
from ffstream.training.optimiser import LayerOptimiser
from tests.helpers import InterruptAt, layer_digests, make_dense

FACTORS = (1.0, 1.0, 0.5, 0.25)  # of the learning rate, one a step
SETTINGS = [
    OptimiserConfig(name="adam"),
    OptimiserConfig(name="adam", weight_decay=0.1),
    OptimiserConfig(name="adamw", weight_decay=0.1),
    OptimiserConfig(name="sgd", weight_decay=0.1),
    OptimiserConfig(name="sgd", momentum=0.0),
]
WHOLE = (slice(None),)
PARTS = (slice(0, 3), slice(3, 4), slice(4, 9))


def make_layer():
    layer = make_dense(5, 9)
    layer.initialise(torch.Generator().manual_seed(0))
    return layer


def optimise(layer, settings):
    return LayerOptimiser(layer, OPTIMISERS[settings.name], settings)


def draw_gradients(step):
    generator = torch.Generator().manual_seed(step + 1)
    return {name: torch.randn(p.shape, generator=generator) for name, p in make_layer().named_parameters()}


def take_steps(optimiser, steps, parts=WHOLE):
    for step in steps:
        optimiser.begin_step(FACTORS[step])
        for name, gradient in draw_gradients(step).items():
            for part in parts:
                optimiser.update(name, part, gradient[part])


STRIDED = {
    "transposed": lambda gradient: gradient.t().contiguous().t() if gradient.ndim == 2 else gradient,
    "every second": lambda gradient: torch.stack([gradient, gradient], dim=-1).flatten(-2)[..., ::2],
    "expanded": lambda gradient: gradient[:1].expand_as(gradient),
}


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda each: each.name)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("order", STRIDED)
def test_the_order_of_a_gradient_in_memory_decides_nothing(order, dtype, settings):
    """Autograd may give it in any, and fused updates take the memory of all tensors to be in the same."""
    settings = dataclasses.replace(settings, state_dtype=dtype)
    found = []
    for is_strided in (False, True):
        layer = make_layer()
        optimiser = optimise(layer, settings)
        for step in range(3):
            optimiser.begin_step(1.0, torch.Generator().manual_seed(step))
            for name, gradient in draw_gradients(step).items():
                strided = STRIDED[order](gradient)
                optimiser.update(name, slice(None), strided if is_strided else strided.clone().contiguous())
        found.append(layer)
    assert same_bits(*found)


def same_bits(layer, other):
    return all(torch.equal(a, b) for a, b in zip(layer.parameters(), other.parameters(), strict=True))


def torchs_own(layer, settings):
    shared = {"lr": settings.learning_rate, "weight_decay": settings.weight_decay}
    if settings.name == "sgd":
        return torch.optim.SGD(layer.parameters(), momentum=settings.momentum, **shared)
    return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[settings.name](layer.parameters(), **shared)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_steps_equal_those_of_torchs_optimiser(settings):
    layer, reference = make_layer(), make_layer()
    take_steps(optimise(layer, settings), range(4))
    optimiser = torchs_own(reference, settings)
    for step, factor in enumerate(FACTORS):
        for name, gradient in draw_gradients(step).items():
            reference.get_parameter(name).grad = gradient
        optimiser.param_groups[0]["lr"] = settings.learning_rate * factor
        optimiser.step()
    for ours, theirs in zip(layer.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_updates_by_parts_equal_an_update_of_the_whole(settings):
    whole, cut = make_layer(), make_layer()
    take_steps(optimise(whole, settings), range(4))
    take_steps(optimise(cut, settings), range(4), PARTS)
    for ours, theirs in zip(cut.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("num_before", [0, 1, 2, 4])
def test_going_on_from_saved_state_equals_never_having_stopped(settings, num_before):
    unbroken, broken = make_layer(), make_layer()
    take_steps(optimise(unbroken, settings), range(4))
    first = optimise(broken, settings)
    take_steps(first, range(num_before))
    saved = {name: tensor.clone() for name, tensor in first.state().items()}
    second = optimise(broken, settings)
    second.load_state(saved)
    take_steps(second, range(num_before, 4))
    assert same_bits(unbroken, broken)
    assert int(second.state()["num_steps"]) == 4


def test_the_state_of_another_layer_is_refused():
    optimiser = optimise(make_layer(), OptimiserConfig())
    with pytest.raises((KeyError, RuntimeError)):
        optimise(make_dense(4, 9), OptimiserConfig()).load_state(optimiser.state())
    with pytest.raises(KeyError):
        optimiser.load_state(optimise(make_layer(), OptimiserConfig(name="sgd")).state())


def test_every_optimiser_has_state():
    for name in OPTIMISERS:
        settings = ff.Config().override({"optimiser.name": name}).optimiser
        assert optimise(make_layer(), settings).state()


# --- state in half the memory

NARROW = [OptimiserConfig(name=name, state_dtype="bf16") for name in ("adam", "adamw", "sgd")]


def take_many_steps(settings, num_steps=1200):
    """The state and the weights of a layer whose gradients become small after a quarter of the steps."""
    layer = make_layer()
    optimiser = optimise(layer, settings)
    generator, noise = torch.Generator().manual_seed(0), torch.Generator().manual_seed(1)
    for step in range(num_steps):
        optimiser.begin_step(1.0, generator)
        for name, parameter in layer.named_parameters():
            for part in PARTS:
                gradient = 0.1 + torch.randn(parameter[part].shape, generator=noise)
                optimiser.update(name, part, gradient if step < num_steps // 4 else gradient / 10)
    return optimiser.state(), torch.cat([parameter.detach().flatten() for parameter in layer.parameters()])


@pytest.mark.parametrize("settings", NARROW, ids=str)
def test_state_in_bfloat16_takes_half_and_follows_the_gradients(settings, monkeypatch):
    narrow, weights = take_many_steps(settings)
    wide, same_weights = take_many_steps(dataclasses.replace(settings, state_dtype="fp32"))
    for name, tensor in wide.items():
        if name != "num_steps":
            assert narrow[name].nbytes == tensor.nbytes // 2
            assert narrow[name].float().sum() / tensor.sum() == pytest.approx(1.0, abs=0.05), name
    moved = same_weights - take_many_steps(settings, 0)[1]
    assert (weights - same_weights).norm() < 0.1 * moved.norm()
    if settings.name != "sgd":  # what the noise is for
        monkeypatch.setattr(OPTIMISERS[settings.name], "slow_names", ())
        nearest, _ = take_many_steps(settings)
        assert nearest["weight.exp_avg_sq"].float().sum() > 1.5 * wide["weight.exp_avg_sq"].sum()


def test_state_in_bfloat16_is_a_function_of_the_generator():
    (first, weights), (second, same_weights) = take_many_steps(NARROW[0]), take_many_steps(NARROW[0])
    assert torch.equal(weights, same_weights)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("most", [256, part_sizes("cuda").wide_rows, 2048])
@pytest.mark.parametrize("settings", NARROW, ids=str)
def test_how_many_rows_of_a_state_are_in_float32_at_once_changes_no_bit(settings, most):
    def take_steps(wide_rows):
        layer = make_dense(5, 1300)
        room = Workspace(torch.device("cpu"), dataclasses.replace(part_sizes("cpu"), wide_rows=wide_rows))
        optimiser = LayerOptimiser(layer, OPTIMISERS[settings.name], settings, room)
        generator, noise = torch.Generator().manual_seed(0), torch.Generator().manual_seed(1)
        for _ in range(3):
            optimiser.begin_step(1.0, generator)
            for name, parameter in layer.named_parameters():
                optimiser.update(name, slice(None), torch.randn(parameter.shape, generator=noise))
        return optimiser.state()

    few, many = take_steps(part_sizes("cpu").wide_rows), take_steps(most)
    assert all(torch.equal(few[name], many[name]) for name in few)


@pytest.mark.parametrize("micro_batch", ["auto", 10])
@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_a_run_with_state_in_bfloat16_resumes_bitwise(name, micro_batch, small_config, tmp_path):
    settings = {"optimiser__name": name, "optimiser__state_dtype": "bf16", "network__dropout": 0.0}
    config = small_config(micro_batch=micro_batch, **settings)
    unbroken = ff.train(config, tmp_path / "unbroken")
    with pytest.raises(KeyboardInterrupt):
        ff.train(config, tmp_path / "run", observer=InterruptAt("on_epoch", 4))
    assert layer_digests(ff.resume(tmp_path / "run").path) == layer_digests(unbroken.path)


@pytest.mark.parametrize(("number", "optimiser"), [(3, "adam"), (28, "sgd"), (49, "adamw")])
def test_planned_memory_with_state_in_bfloat16_is_what_a_run_takes(number, optimiser, tmp_path):
    config, num_features = draw_config(number)
    config = config.override({"optimiser.name": optimiser, "optimiser.state_dtype": "bf16"})
    planned, measured = compare(config, num_features, tmp_path / "sweep")
    assert measured <= planned <= 1.1 * measured
