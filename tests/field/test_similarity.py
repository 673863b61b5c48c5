"""Similarity terms against their definitions, and where they are taken."""

from __future__ import annotations

import pytest
import torch

import ffstream as ff
from benchmarks.footprint import compare as compare_memory
from ffstream.data.shape import DataShape
from ffstream.device.workspace import Workspace
from ffstream.field import similarity
from ffstream.field.layers import Activations, Block, Conv, LayerShape
from ffstream.field.similarity import SIMILARITIES, compare
from tests.helpers import check_resumed_on_every_tier, make_dense, similarity_written_out

CPU = torch.device("cpu")
# 67 MiB beside the context of a process, which is assumed to take 512 MiB.
MACHINE = "device=597MiB,30TFLOP/s;h2d=12GB/s;host=32GiB;disk=1TiB,3GB/s"


def layer_of(compute_dtype):
    return make_dense(1, 1, compute_dtype)


def draw(*shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=dtype)


@pytest.mark.parametrize("name", list(SIMILARITIES))
@pytest.mark.parametrize("labels", ["0011222345", "0000000000", "0123456789", "01", "0"])
@pytest.mark.parametrize("num_in_group", [3, 5, 64])
def test_term_and_gradient_are_those_of_the_definition(name, labels, num_in_group, monkeypatch):
    monkeypatch.setattr(similarity, "GROUP_SAMPLES", num_in_group)
    classes = torch.tensor([int(label) for label in labels])
    preactivations = draw(len(labels), 7, dtype=torch.float64)
    leaf = preactivations.clone().requires_grad_()
    expected = similarity_written_out(name, torch.relu(leaf), classes, num_in_group)
    (gradient,) = torch.autograd.grad(expected, leaf)
    before = preactivations.clone()
    term, found = compare(layer_of(torch.float64), SIMILARITIES[name], preactivations, classes, Workspace(CPU))
    torch.testing.assert_close(term, expected.detach())
    torch.testing.assert_close(found, gradient)
    assert torch.equal(preactivations, before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("kind", [Conv, Block])
@pytest.mark.parametrize("name", list(SIMILARITIES))
def test_shared_weights_are_compared_by_the_spread_of_each_channel_over_places(name, kind, dtype):
    layer = kind(LayerShape(Activations.of_places(6, 5, 3), 7), dtype)
    layer.to(torch.float64 if dtype == torch.float64 else torch.float32)
    classes, preactivations = torch.arange(10) % 3, draw(10, layer.num_units, dtype=layer.bias.dtype)
    leaf = preactivations.clone().requires_grad_()
    spreads = (torch.relu(leaf).view(10, 30, 7).var(dim=1, correction=0) + 1e-6).sqrt()
    expected = similarity_written_out(name, spreads - spreads.mean(dim=1, keepdim=True), classes, 64)
    (gradient,) = torch.autograd.grad(expected, leaf)
    given = preactivations if dtype == torch.float64 else preactivations.to(dtype)
    term, found = compare(layer, SIMILARITIES[name], given, classes, Workspace(CPU))
    assert (term.dtype, found.dtype) == (preactivations.dtype, dtype)  # terms of all samples add up
    if dtype == torch.float64:
        torch.testing.assert_close((term, found), (expected.detach(), gradient))
    else:
        torch.testing.assert_close(term, expected.detach(), rtol=0.05, atol=0.0)
        assert (found - gradient).norm() < 0.1 * gradient.norm()


@pytest.mark.parametrize("name", list(SIMILARITIES))
def test_a_sample_without_activity_has_no_direction_and_no_gradient(name):
    preactivations = draw(6, 5)
    preactivations[2] = -1.0
    term, gradient = compare(
        layer_of(torch.float32), SIMILARITIES[name], preactivations, torch.arange(6) // 3, Workspace(CPU)
    )
    assert torch.isfinite(term)
    assert torch.isfinite(gradient).all()
    assert not gradient[2].any()
    assert gradient[3].any()


@pytest.mark.parametrize("name", list(SIMILARITIES))
def test_half_precision_agrees_as_far_as_it_goes(name):
    labels, preactivations = torch.arange(200) % 7, draw(200, 40)
    term, gradient = compare(layer_of(torch.float32), SIMILARITIES[name], preactivations, labels, Workspace(CPU))
    half_term, half = compare(layer_of(torch.bfloat16), SIMILARITIES[name], preactivations, labels, Workspace(CPU))
    assert half.dtype == gradient.dtype
    torch.testing.assert_close(half_term, term, rtol=0.01, atol=0.0)
    assert (half - gradient).norm() < 0.02 * gradient.norm()


@pytest.mark.parametrize("name", list(SIMILARITIES))
def test_a_step_against_the_gradient_lowers_the_term(name):
    labels, preactivations = torch.arange(200) % 7, draw(200, 40)
    before, gradient = compare(layer_of(torch.float32), SIMILARITIES[name], preactivations, labels, Workspace(CPU))
    moved = preactivations - gradient / gradient.norm(dim=1).max()
    after, _ = compare(layer_of(torch.float32), SIMILARITIES[name], moved, labels, Workspace(CPU))
    assert after < before


@pytest.mark.parametrize("recipe", ["inject", "mono", "grouped"])
def test_samples_of_a_class_point_one_way_in_a_network_that_is_trained_with_it(recipe, tmp_path, small_config, digits):
    images, labels = digits.test.images[:200].float(), digits.test.labels[:200]
    alike = labels.unsqueeze(1) == labels

    def separation(**settings):
        """How much more alike samples of a class are than others, at the last layer."""
        name = settings.get("objective__similarity", "none")
        run = ff.train(small_config(recipe, epochs=6, network__dropout=0.0, **settings), tmp_path / name)
        outputs = ff.load(run.path).requires_grad_(False).features(images)[-1]
        directions = torch.nn.functional.normalize(outputs, dim=1)
        cosines = directions @ directions.t()
        return float(cosines[alike].mean() - cosines[~alike].mean())

    assert separation(objective__similarity="matching", objective__similarity_weight=1.0) > separation() + 0.05


@pytest.mark.parametrize("recipe", ["hinton", "unsupervised"])
def test_rows_that_show_a_label_or_have_none_are_refused(recipe, tmp_path, small_config):
    with pytest.raises(
        ff.ConfigError, match=r"objective.similarity: found 'matching', allowed none with labels.method="
    ):
        ff.train(small_config(recipe, objective__similarity="matching"), tmp_path / "run")


def test_an_unknown_term_is_refused_by_the_nearest(tmp_path, small_config):
    with pytest.raises(ff.ConfigError, match="unknown similarity 'match'; did you mean 'matching'"):
        ff.train(small_config(objective__similarity="match"), tmp_path / "run")


def test_a_batch_is_not_cut(tmp_path, small_config):
    config = small_config(objective__similarity="matching")
    with pytest.raises(ff.ConfigError, match=r"micro_batch: found 16, allowed 32 \(batch\) or more"):
        ff.train(config.override({"micro_batch": 16}), tmp_path / "run")


@pytest.mark.parametrize(("name", "batch"), [("none", 8192), ("matching", 4096)])
def test_a_plan_cuts_what_may_be_cut(name, batch):
    config = ff.Config(width=500, layers=4, batch=batch).override({"objective.similarity": name})
    plan = ff.make_plan(config, machine=MACHINE, data=DataShape.of(50_000, 784, 10, 0.1))
    assert plan.fits
    assert (plan.sizes.num_micro_batches > 1, plan.sizes.num_tiles > 1) == (name == "none", name != "none")


NET = "conv16 pool block12(layers=2) dense24"


def test_convolutions_that_are_compared_have_a_lower_term_on_other_images(tmp_path, small_config, digits):
    labels, found = digits.test.labels[:192], []

    def measure(layer, _, made):
        found.append(compare(layer, SIMILARITIES["matching"], made, labels, Workspace(CPU))[0] / len(labels))

    for name in ("matching", "none"):
        own = {"objective__similarity": name, "objective__similarity_weight": 10.0, "network__layers": "conv16"}
        network = ff.load(ff.train(small_config("mono", **own), tmp_path / name).path).requires_grad_(False)
        network.layers[0].register_forward_hook(measure)
        network(digits.test.images[:192])
    assert found[0] < 0.9 * found[1]


def test_an_interrupted_run_of_convolutions_resumes_bitwise_on_every_tier(small_config, tmp_path):
    config = small_config("mono", objective__similarity="matching", network__layers=NET, labels__head_layers=2)
    check_resumed_on_every_tier(config, tmp_path)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_planned_memory_of_convolutions_that_are_compared_is_what_a_run_takes(precision, tmp_path):
    config = ff.Config(recipe="conv", epochs=1, batch=64, device="cpu", precision=precision)
    settings = {"network.layers": "conv32 pool conv48", "objective.similarity": "matching", "cache.shard_samples": 192}
    planned, measured = compare_memory(config.override(settings), 400, tmp_path / "sweep")
    assert measured <= planned <= 1.1 * measured
