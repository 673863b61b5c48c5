"""The committed layers of a run and how they were trained: what every way of reading out labels needs."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch

from ffstream.data.facts import DataFacts
from ffstream.errors import RunError
from ffstream.field.blueprint import Blueprint
from ffstream.settings.config import Config
from ffstream.storage.run_directory import RunDirectory


@dataclass(frozen=True)
class CommittedLayers:
    """The layers of a run directory, and the device on which they are evaluated, one at a time."""

    directory: RunDirectory
    config: Config
    facts: DataFacts
    device: torch.device

    def blueprint(self, num_layers: int) -> Blueprint:
        """The blueprint of the first `num_layers` layers."""
        whole = Blueprint.of(self.config, self.facts.shape())
        return dataclasses.replace(whole, specs=whole.specs[:num_layers])

    def count_usable(self, first_layer: int) -> int:
        """The number of committed layers. Raises RunError for none, and for several but fewer than `first_layer`."""
        num_layers = self.directory.count_layers()
        if num_layers == 0:
            raise RunError(f"run {self.directory.path}: no layer is finished yet; resume it first")
        if first_layer > num_layers and num_layers > 1:
            raise RunError(f"run {self.directory.path}: has {num_layers} layers, allowed first layer 1 to {num_layers}")
        return num_layers
