"""The plan of a run as data: which step follows which. Executed by `runner.py`."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum


class Action(Enum):
    """What a step does to its layer k."""

    WRITE_INPUT = "write input"  # write the cache that layer 0 reads, from the data set
    TRAIN = "train"  # train layer k on its input cache, measure it on the validation split, commit its weights
    PROPAGATE = "propagate"  # write the cache that layer k + 1 reads, then drop the one that layer k read


@dataclass(frozen=True)
class Step:
    """One action on one layer."""

    action: Action
    layer: int


def compute_schedule(num_layers: int) -> tuple[Step, ...]:
    """All steps of a run from scratch."""
    return remaining_steps(num_layers, num_done=0, cached_inputs=())


def remaining_steps(num_layers: int, num_done: int, cached_inputs: Collection[int]) -> tuple[Step, ...]:
    """The steps that are missing when layers 0..num_done-1 are committed.

    `cached_inputs` holds each k for which the cache that layer k reads is committed. Caches that are gone are written
    again through the committed layers, from the nearest one that is left or from the data set.
    """
    if num_done >= num_layers:
        return ()
    usable = [layer for layer in cached_inputs if layer <= num_done]
    start = max(usable, default=0)
    steps = [] if usable else [Step(Action.WRITE_INPUT, 0)]
    steps += [Step(Action.PROPAGATE, layer) for layer in range(start, num_done)]
    for layer in range(num_done, num_layers):
        steps.append(Step(Action.TRAIN, layer))
        if layer + 1 < num_layers:
            steps.append(Step(Action.PROPAGATE, layer))
    return tuple(steps)
