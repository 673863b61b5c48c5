"""Rivals of streaming: the same network, trained in ways that keep all of it on the device."""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint_sequential

from ffstream.cache import DTYPES
from ffstream.data import Scaling
from ffstream.data.shape import DataShape
from ffstream.device.accelerator import operand_dtype
from ffstream.device.parts import part_sizes
from ffstream.device.workspace import Workspace
from ffstream.field.blueprint import Blueprint
from ffstream.field.layers import Mode
from ffstream.field.network import LayerSpec
from ffstream.ground import seeding
from ffstream.settings.config import Config
from ffstream.settings.sizes import Sizes
from ffstream.training.layer_trainer import LayerTrainer
from ffstream.training.micro_batch import draw_for
from ffstream.training.propagation import FrozenLayer, chunk_samples, hand_on_whole

_IN_BYTES = Scaling(255.0)


class Rival(ABC):
    """A whole network on the device. `images` are (n, features) uint8 and `labels` (n,) int64, both on the host."""

    @abstractmethod
    def train_batch(self, images: Tensor, labels: Tensor) -> None:
        """Update every layer once."""

    @abstractmethod
    def predict(self, images: Tensor) -> Tensor:
        """Scores (n, num_classes) of a batch, without training."""


class ResidentFF(Rival):
    """The layers of a run, all kept, each trained on every batch as it passes through (Hinton 2022, section 2)."""

    def __init__(self, config: Config, num_features: int, num_classes: int, device: torch.device) -> None:
        config = config.override({"cache.shard_samples": config.batch})  # a batch comes whole; the trainer cuts it
        self._device = device
        self._dtype = DTYPES[config.cache.dtype]
        blueprint = Blueprint.of(config, DataShape(num_features, num_classes))
        self._method, self._goodness, self._specs = blueprint.method, blueprint.goodness, blueprint.specs
        self._generator = seeding.generator(config.seed, 0, 0, "batches and negatives")
        self._device_generator = seeding.generator(config.seed, 0, 0, "dropout", device)
        workspace = Workspace(device)  # as in a run: one for all layers
        self._trainers = []
        for spec in self._specs:
            layer = blueprint.build_layer(spec)
            layer.workspace = workspace
            self._trainers.append(LayerTrainer(layer, spec.index, blueprint, device))

    @torch.no_grad()
    def train_batch(self, images: Tensor, labels: Tensor) -> None:
        """Take a step of each layer, then pass the rows through it to the next."""
        drawn = draw_for(labels, self._method.candidates, None, self._generator, self._device, informed=True)
        rows = self._method.rows.training_rows(_IN_BYTES.apply(images), labels, self._generator)
        rows = rows.to(self._device, self._dtype)
        index = torch.arange(len(images), device=self._device)
        for number, trainer in enumerate(self._trainers):
            trainer.step([drawn.take(rows, index)], len(index), 1.0, self._device_generator)
            rows = self._hand_on(number, rows)

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """Goodness of every label, summed over the layers."""
        rows = self._method.rows.sweep_rows(_IN_BYTES.apply(images)).to(self._device, self._dtype)
        total = torch.zeros(())
        for number, trainer in enumerate(self._trainers):
            layer, spec = trainer.layer, self._specs[number]
            layer.begin(Mode.MEASURING)
            found = []
            for chunk in self._chunks(rows, spec):
                preactivations = layer.preactivations(spec.row.read(chunk.flatten(0, 1)))
                found.append(self._method.reading.sweep(layer, self._goodness, preactivations, len(chunk)))
            total = total.to(self._device) + torch.cat(found)
            rows = self._hand_on(number, rows)
        return total

    def _hand_on(self, number: int, rows: Tensor) -> Tensor:
        spec, layer = self._specs[number], self._trainers[number].layer
        handed = torch.empty(*rows.shape[:2], spec.next_row.num_features, dtype=rows.dtype, device=rows.device)
        pairs = zip(self._chunks(rows, spec), self._chunks(handed, spec), strict=True)
        whole = FrozenLayer(spec, [slice(0, spec.width)], lambda _: layer)
        hand_on_whole(whole, [(chunk.flatten(0, 1), written.flatten(0, 1)) for chunk, written in pairs])
        return handed

    def _chunks(self, rows: Tensor, spec: LayerSpec) -> Sequence[Tensor]:
        return torch.split(rows, chunk_samples(rows.shape[1], part_sizes(rows.device.type), spec))


class Backprop(Rival):
    """ReLU layers and a linear readout, with cross-entropy and Adam; the run's type of products by autocast.

    With `checkpointed`, only the activities at the ends of about sqrt(layers) segments are kept and the rest computed
    again (Chen et al. 2016). With `accumulated`, gradients are summed over micro-batches.
    """

    def __init__(
        self,
        config: Config,
        num_features: int,
        num_classes: int,
        device: torch.device,
        *,
        checkpointed: bool = False,
        accumulated: bool = False,
    ) -> None:
        widths = [num_features] + config.layers * [config.width]
        with device:
            layers = [nn.Sequential(nn.Linear(*pair), nn.ReLU(inplace=True)) for pair in itertools.pairwise(widths)]
            self._network = nn.Sequential(*layers, nn.Linear(config.width, num_classes))
        self._optimiser = torch.optim.Adam(self._network.parameters(), config.optimiser.learning_rate, fused=True)
        self._device = device
        sizes = Sizes.of(config)
        self._num_in_part = sizes.num_in_micro_batch if accumulated else sizes.batch
        self._num_segments = round(math.sqrt(config.layers)) if checkpointed else 1
        self._dtype = operand_dtype(config.precision)

    def train_batch(self, images: Tensor, labels: Tensor) -> None:
        """Compute the gradient of the whole batch, then take one step."""
        for part, wanted in zip(images.split(self._num_in_part), labels.split(self._num_in_part), strict=True):
            with self._narrowed():
                scores = self._forward(self._load(part))
                loss = nn.functional.cross_entropy(scores, wanted.to(self._device), reduction="sum") / len(images)
            loss.backward()
        self._optimiser.step()
        self._optimiser.zero_grad()  # frees the gradients

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """The readout's scores."""
        with self._narrowed():
            return torch.cat([self._network(self._load(part)) for part in images.split(self._num_in_part)])

    def _narrowed(self) -> torch.autocast:
        return torch.autocast(self._device.type, self._dtype, enabled=self._dtype != torch.float32)

    def _forward(self, rows: Tensor) -> Tensor:
        if self._num_segments == 1:
            scores: Tensor = self._network(rows)
        else:
            scores = checkpoint_sequential(self._network, self._num_segments, rows, use_reentrant=False)
        return scores

    def _load(self, images: Tensor) -> Tensor:
        return _IN_BYTES.apply(images).to(self._device)
