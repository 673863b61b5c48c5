"""Layers below one layer: the two ways to train a layer by tiles, against the same layer trained whole."""

from __future__ import annotations

import torch
from torch import Tensor

from ffstream.config import Config
from ffstream.labels import LabelMethod
from ffstream.layer_trainer import LayerTrainer
from ffstream.layers import Layer


def make_exact_trainers(
    tiles: list[Layer], layer_index: int, config: Config, method: LabelMethod, device: torch.device
) -> list[LayerTrainer]:
    """One for each tile, that all learn at once, so that the goodness and the threshold are those of the whole."""
    whole = config.override({"network.tile_units": config.width})
    return [LayerTrainer(tile, layer_index, whole, method, device, slice(0, config.width)) for tile in tiles]


def take_exact_step(
    trainers: list[LayerTrainer],
    block: Tensor,
    index: Tensor,
    candidates: Tensor,
    factor: float,
    generator: torch.Generator | None,
) -> None:
    """The step of the whole layer, up to rounding: each tile's goodness, their sum, then each tile's update.

    Every tile visits the device twice a step, and its preactivations are computed twice.
    """
    state = generator.get_state() if generator is not None else None

    def rewound() -> torch.Generator | None:  # every visit drops the same features
        return generator.set_state(state) if generator is not None and state is not None else None

    found = [trainer.forward(block, index, candidates, rewound())[2] for trainer in trainers]
    total = torch.stack(found).sum(dim=0)
    for trainer, own in zip(trainers, found, strict=True):
        trainer.step(block, index, candidates, factor, rewound(), total - own)
