"""The network as a list of layer specifications, of which one is built at a time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ffstream import seeding
from ffstream.config import Config
from ffstream.layers import LAYER_KINDS, Layer
from ffstream.normalisation import length_normalise, length_normalise_
from ffstream.workspace import Workspace


@dataclass(frozen=True)
class LayerSpec:
    """The shape of one layer."""

    index: int
    in_features: int  # of a row that the layer reads
    num_units: int
    out_features: int  # of a row that the layer hands on
    num_skip_features: int  # trailing features of every row but the first layer's that are the normalised image


def compute_layer_specs(config: Config, num_features: int) -> list[LayerSpec]:
    """Shapes of all layers, for images of `num_features` features."""
    num_skip = num_features if config.network.input_skip else 0
    out_features = config.width + num_skip
    return [
        LayerSpec(index, num_features if index == 0 else out_features, config.width, out_features, num_skip)
        for index in range(config.layers)
    ]


def build_layer(config: Config, spec: LayerSpec, num_classes: int) -> Layer:
    """One layer as it stands before training, on the CPU: a pure function of (config, seed, spec.index)."""
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    layer = LAYER_KINDS[config.network.kind](spec.in_features, spec.num_units, dtype)
    generator = seeding.generator(config.seed, spec.index, 0, "initialise")
    layer.initialise(generator)
    if config.labels.method == "injection":
        layer.add_label_embedding(num_classes, config.labels.embedding_std, generator)
    return layer


def hand_on(spec: LayerSpec, rows: Tensor, preactivations: Tensor, workspace: Workspace | None = None) -> Tensor:
    """What the next layer reads: (n, in_features), (n, num_units) -> (n, out_features).

    The normalised, label-free activities and, with an input skip, the normalised image that `rows` ends in. With a
    `workspace`, `preactivations` is overwritten.
    """
    if workspace is None:
        activities = length_normalise(torch.relu(preactivations))
    else:
        activities = length_normalise_(preactivations.relu_(), workspace)
    if spec.num_skip_features == 0:
        return activities
    return torch.cat([activities, rows[:, -spec.num_skip_features :].to(activities.dtype)], dim=1)
