"""The schedule of a run as data: the sequence of its steps, which `executor.py` executes."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from enum import Enum

from torch import Tensor

from ffstream.training.window import WHOLE, Window


class Action(Enum):
    """What a step does to its layer k."""

    WRITE_INPUT = "write input"  # write the cache that layer k reads, from the data set
    TRAIN = "train"  # train layer k on its input cache, measure it on the validation split, commit its weights
    PROPAGATE = "propagate"  # write the cache that layer k + 1 reads, which replaces the one that layer k read


@dataclass(frozen=True)
class Step:
    """One action on one layer."""

    action: Action
    layer: int

    @property
    def description(self) -> str:
        """What is going on, for whoever watches the run."""
        if self.action is Action.WRITE_INPUT:
            return "writing the input cache"
        return f"{'training' if self.action is Action.TRAIN else 'propagating through'} layer {self.layer + 1}"


@dataclass(frozen=True)
class Pass:
    """A pass of the training samples through all layers, in which each layer takes some of its epochs in a row."""

    round: int = 0  # from 1; 0 stands for the only pass of a sequential run, in which a layer takes all its epochs
    window: Window = WHOLE  # of the round

    @property
    def is_last(self) -> bool:
        """Whether the layers are committed as this pass leaves them, and not as a later one of the round does."""
        return self.window.is_last

    @property
    def next(self) -> Pass:
        """The pass after this one: with the next window, or in the next round."""
        number = 0 if self.is_last else self.window.number + 1
        return Pass(self.round + self.is_last, replace(self.window, number=number))

    @property
    def description(self) -> str:
        """Where the run is, for whoever watches it; empty in a sequential run."""
        if not self.round:
            return ""
        window = f", window {self.window.number + 1} of {self.window.num}" if self.window.num > 1 else ""
        return f" in round {self.round}{window}"

    def list_epochs(self, num_epochs: int, tile: int) -> range:
        """The epochs, counted through the tiles of a layer, that a tile takes if it takes `num_epochs` in all."""
        if self.round:
            return range(self.round - 1, self.round)
        return range(tile * num_epochs, (tile + 1) * num_epochs)

    @property
    def input_epoch(self) -> int:
        """The epoch for which the input of a stack is written, or the number of windows that come before."""
        return self.window.count_before(max(self.round - 1, 0))

    def select(self, num_samples: int, seed: int) -> Tensor | None:
        """The numbers of the training samples that pass, in ascending order; None if all do."""
        return self.window.select(num_samples, seed, max(self.round - 1, 0))


def compute_schedule(num_layers: int, num_in_stack: int) -> tuple[Step, ...]:
    """All steps of a run from scratch."""
    return remaining_steps(num_layers, num_in_stack, num_done=0, cached_inputs=())


def remaining_steps(
    num_layers: int, num_in_stack: int, num_done: int, cached_inputs: Collection[int]
) -> tuple[Step, ...]:
    """The steps that are missing when layers 0..num_done-1 are committed. The first layer of a stack reads images.

    `cached_inputs` holds each k for which the cache that layer k reads is committed. Missing caches are written again
    through the committed layers of the stack, from the nearest cache that is left or from the data set.
    """
    if num_done >= num_layers:
        return ()
    first = num_done - num_done % num_in_stack
    usable = [layer for layer in cached_inputs if first <= layer <= num_done]
    steps = [] if usable else [Step(Action.WRITE_INPUT, first)]
    steps += [Step(Action.PROPAGATE, layer) for layer in range(max(usable, default=first), num_done)]
    steps.append(Step(Action.TRAIN, num_done))
    for layer in range(num_done + 1, num_layers):
        steps.append(Step(Action.PROPAGATE, layer - 1) if layer % num_in_stack else Step(Action.WRITE_INPUT, layer))
        steps.append(Step(Action.TRAIN, layer))
    return tuple(steps)
