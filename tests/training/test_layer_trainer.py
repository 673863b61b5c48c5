"""One layer's training against autograd written out by hand."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from ffstream.cache import CacheLayout, compute_batches, compute_shard_order
from ffstream.data import Scaling
from ffstream.device.workspace import Workspace
from ffstream.errors import DivergedError
from ffstream.field.goodness import GOODNESSES
from ffstream.field.objectives import OBJECTIVES
from ffstream.field.similarity import GROUP_SAMPLES
from ffstream.ground import seeding
from ffstream.training.dropout import drop_features_
from ffstream.training.layer_trainer import LayerTrainer
from ffstream.training.rate_schedule import RateSchedule
from tests.helpers import describe, similarity_written_out

NUM_SAMPLES = 96


class Rows:
    def __init__(self, rows):
        self._rows = rows
        self.layout = CacheLayout(len(rows), rows.shape[1], rows.shape[2], "fp32", 48)

    def blocks(self, _cache, order):
        for shard in order:
            yield shard, self._rows[self.layout.shard_range(shard)]


def setup(config, digits):
    blueprint = describe(config)
    method, layer = blueprint.method, blueprint.build_layer(blueprint.specs[0])
    images = Scaling(16.0).apply(digits.train.images[:NUM_SAMPLES])
    labels = digits.train.labels[:NUM_SAMPLES]
    rows = method.rows.training_rows(images, labels, torch.Generator().manual_seed(0))
    return method, layer, rows, labels


def train_by_autograd(config, digits, num_epochs):
    """The paper's layer, spelt out: forward for each candidate, mean loss, backward, torch's own Adam."""
    method, layer, rows, labels = setup(config, digits)
    cache = Rows(rows)
    weight, bias = layer.weight, layer.bias
    parameters = [p for p in (layer.label_embedding, weight, bias) if p is not None]
    optimiser = torch.optim.Adam(parameters, lr=config.optimiser.learning_rate)
    running = torch.full((config.width,), 0.5)
    goodness, objective = GOODNESSES[config.objective.goodness], OBJECTIVES[config.objective.name]
    threshold = goodness.default_threshold(config.width)
    for epoch in range(num_epochs):
        generator = seeding.generator(config.seed, 0, epoch, "batches and negatives")
        taken = 0
        for shard in compute_shard_order(cache.layout, config.seed, 0, epoch, num_epochs):
            part = cache.layout.shard_range(shard)
            batches = compute_batches(part.stop - part.start, config.batch, generator)
            candidates = method.candidates.draw(labels[part], generator)
            informed = method.candidates.informed is not None and epoch > 0
            if informed:
                pool = method.candidates.draw_pool(labels[part], generator)
                noise = (
                    -torch.empty(len(candidates), method.candidates.num_choices).exponential_(generator=generator).log()
                )
                if pool is not None:
                    noise = torch.full((len(candidates), method.candidates.num_values), -torch.inf).scatter(
                        1, pool, noise
                    )
            for index in batches:
                progress = (epoch + taken / len(labels)) / config.epochs
                factor = 1.0 if progress < 0.5 else 2 * (1 - progress)
                optimiser.param_groups[0]["lr"] = config.optimiser.learning_rate * factor
                injected = layer.label_embedding is not None

                def preactivations(read, shown):
                    z = F.linear(read, weight, bias)
                    return z + layer.label_embedding[shown] if layer.label_embedding is not None else z

                shown = candidates[index]  # (n, 1 + K)
                if informed:  # by goodness and noise, the largest that are not the positive
                    every = torch.arange(method.candidates.num_values).expand(len(index), -1)
                    h = torch.relu(preactivations(rows[part][index], every)).flatten(0, 1)
                    keys = goodness.value(h).view(len(index), -1) * config.objective.scale + noise[index]
                    order = keys.argsort(dim=1, descending=True)
                    wrong = order[order != shown[:, :1]].view(len(index), -1)
                    shown = torch.cat([shown[:, :1], wrong[:, : shown.shape[1] - 1]], dim=1)
                read = rows[part][index] if injected else rows[part][index.unsqueeze(1), shown]

                def loss_of(z):
                    values = torch.stack([goodness.value(h) for h in torch.relu(z).unbind(1)], 1)
                    return objective.loss((values - threshold) * config.objective.scale).mean()

                if config.objective.perturbation:
                    leaf = read.clone().requires_grad_()
                    (direction,) = torch.autograd.grad(loss_of(preactivations(leaf, shown)), leaf)
                    read = read + config.objective.perturbation * direction.sign()
                z = preactivations(read, shown)
                running = 0.9 * running + 0.1 * torch.relu(z[:, 0]).detach().mean(0)
                peer = (z[:, 0] * (running - running.mean())).sum() * config.objective.peer_normalisation / len(index)
                term = 0.0
                if config.objective.similarity != "none":  # of what the next layer reads
                    output = torch.relu(F.linear(read[:, 0], weight, bias))
                    term = similarity_written_out(config.objective.similarity, output, shown[:, 0], GROUP_SAMPLES)
                    term = config.objective.similarity_weight * term / len(index)
                optimiser.zero_grad()
                (loss_of(z) + peer + term).backward()
                optimiser.step()
                taken += len(index)
    return layer


CASES = {
    "inject": {},
    "hinton": {"recipe": "hinton"},
    "hinton, of all wrong labels": {"recipe": "hinton", "negatives__pool": "all"},
    "inject, logistic, peers": {
        "objective__name": "logistic",
        "objective__goodness": "sum_squares",
        "objective__scale": 1.0,
        "objective__peer_normalisation": 0.03,
    },
    "inject, quiet positives": {"objective__goodness": "neg_mean_squares", "objective__name": "pairwise"},
    "inject, perturbed": {"objective__perturbation": 0.1},
    "hinton, unperturbed, peers": {
        "recipe": "hinton",
        "objective__perturbation": 0.0,
        "objective__peer_normalisation": 0.03,
    },
    "inject, perturbed, matching": {"objective__perturbation": 0.1, "objective__similarity": "matching"},
    "inject, contrastive": {"objective__similarity": "contrastive", "objective__similarity_weight": 0.5},
    "inject, mean": {"objective__goodness": "mean", "objective__name": "logistic"},
    "hinton, pairwise, 3 negatives": {
        "recipe": "hinton",
        "objective__name": "pairwise",
        "objective__scale": 0.1,
        "negatives__per_step": 3,
    },
}


@pytest.mark.parametrize("name", CASES)
def test_an_epoch_equals_autograd_written_out(name, small_config, digits):
    settings = {"network__dropout": 0.0, "optimiser__learning_rate": 1e-3} | CASES[name]
    config = small_config(**settings)
    _, layer, rows, labels = setup(config, digits)
    before = layer.weight.detach().clone()
    trainer = LayerTrainer(layer, 0, describe(config), torch.device("cpu"))
    cache = Rows(rows)
    for epoch in range(2):
        trainer.train_epoch(cache, cache, labels, epoch)
    expected = train_by_autograd(config, digits, 2)
    assert (layer.weight - before).abs().max() > 1e-3
    for key, value in layer.named_parameters():
        torch.testing.assert_close(value, dict(expected.named_parameters())[key], rtol=1e-3, atol=2e-5, msg=key)


def test_figures_are_those_of_the_batches(small_config, digits):
    config = small_config(optimiser__learning_rate=1e-12, network__dropout=0.0, objective__perturbation=0.0)
    method, layer, rows, labels = setup(config, digits)
    cache = Rows(rows)
    figures = LayerTrainer(layer, 0, describe(config), torch.device("cpu")).train_epoch(cache, cache, labels, 0)
    goodness = method.reading.sweep(
        layer, GOODNESSES["mean_squares"], layer.preactivations(rows[:, 0]).detach(), len(rows)
    )
    positive = goodness.gather(1, labels.unsqueeze(1)).mean()
    assert figures.num_samples == NUM_SAMPLES
    assert figures.goodness_positive == pytest.approx(float(positive), rel=1e-4)
    assert 0 <= figures.separation <= 1


def test_a_loss_that_is_not_finite_stops_and_says_what_to_lower(small_config, digits):
    config = small_config(objective__scale=1e38, objective__goodness="sum_squares")
    _, layer, rows, labels = setup(config, digits)
    cache = Rows(rows)
    with pytest.raises(DivergedError, match=r"layer 1, epoch 1.*learning_rate.*objective.scale"):
        LayerTrainer(layer, 0, describe(config), torch.device("cpu")).train_epoch(cache, cache, labels, 0)


def test_dropout_keeps_the_mean_shares_its_mask_and_drops_its_rate():
    rows = torch.ones(3 * 200, 50)
    dropped = drop_features_(rows, 0.25, 3, torch.Generator().manual_seed(0), Workspace(torch.device("cpu")))
    first, second, third = dropped.chunk(3)
    assert torch.equal(first, second)
    assert torch.equal(first, third)
    assert float((first == 0).float().mean()) == pytest.approx(0.25, abs=0.02)
    assert float(first.mean()) == pytest.approx(1.0, abs=0.03)
    torch.testing.assert_close(first.unique(), torch.tensor([0.0, 4 / 3]))


def test_learning_rate_is_constant_then_falls_to_zero():
    factors = [RateSchedule(100, 0.5).factor(step) for step in range(101)]
    assert factors[:50] == [1.0] * 50
    assert all(later < earlier for earlier, later in itertools.pairwise(factors[50:]))
    assert factors[100] == 0
    assert RateSchedule(100, 1.0).factor(99) == 1.0
