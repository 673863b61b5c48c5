"""What a layer computes preactivations for."""

from __future__ import annotations

from enum import Enum


class Mode(Enum):
    """What the preactivations of a layer are for, as `Layer.mode` says while they are computed."""

    TRAINING = "training"  # a step that changes the layer
    MEASURING = "measuring"  # goodness, of a layer as it is
    HANDING_ON = "handing on"  # what the next layer reads, and the statistics of that; a loaded network
