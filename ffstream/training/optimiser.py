"""The optimiser of one layer: its state, and the update of any group of rows of a parameter.

torch's optimisers need the whole gradient of a parameter. A layer yields it in parts, some units at a time, and each
part is used for an update at once, so that no gradient ever exists whole. An `Optimiser` defines what an update
computes.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version

from ffstream.cache import DTYPES
from ffstream.device.workspace import Buffer, Workspace
from ffstream.field.optimisers import Optimiser
from ffstream.settings.sections import OptimiserConfig

_ROUNDING_WORDS = Buffer("rounding words", "gradient")
_NOISY_ROWS = 128  # rows of a parameter that have noise of their own in an update; the next ones share it


@functools.cache
def _wide_buffer(key: str) -> Buffer:
    """The buffer for some rows of a bfloat16 state in float32, shared by all layers of a workspace."""
    return Buffer(f"wide {key}", "gradient")


class LayerOptimiser:
    """The state for each parameter of a layer, of the parameter's shape and on its device.

    State in bfloat16 that changes slowly, such as Adam's second average, is rounded stochastically: up or down, with
    the nearer of the two more probable.
    """

    def __init__(
        self,
        layer: nn.Module,
        optimiser: Optimiser,
        settings: OptimiserConfig,
        workspace: Workspace | None = None,
        left_out: Collection[str] = (),
    ) -> None:
        """Begin with a state of zeros. Parameters that are `left_out` are updated by the layer itself."""
        self._optimiser, self.settings = optimiser, settings
        self._dtype = DTYPES[settings.state_dtype]
        self._parameters = {name: parameter.detach() for name, parameter in layer.named_parameters()}
        first = next(itertools.chain(self._parameters.values(), layer.buffers()))
        for name in left_out:
            del self._parameters[name]
        self._state = {
            f"{name}.{key}": torch.zeros_like(parameter, dtype=self._dtype if self._is_narrow else None)
            for name, parameter in self._parameters.items()
            for key in self._optimiser.state_names
        }
        self._num_steps = torch.zeros((), device=first.device)  # steps before the current one
        self._started = False
        self._learning_rate = settings.learning_rate
        self._generator: torch.Generator | None = None
        self._workspace = workspace or Workspace(first.device)

    def begin_step(self, factor: float, generator: torch.Generator | None = None) -> None:
        """Begin the next step, to which all further updates belong, at `factor` times the learning rate.

        `generator`, on the device of the layer, draws the noise by which state in bfloat16 is rounded.
        """
        self._generator = generator
        if self._started:
            self._num_steps += 1
        self._started = True
        self._learning_rate = self.settings.learning_rate * factor

    @property
    def learning_rate(self) -> float:
        """That of the current step."""
        return self._learning_rate

    def update(self, name: str, rows: slice, gradient: Tensor) -> None:
        """Update rows of a parameter from their gradient. Each row is updated once per step."""
        parameter = self._parameters[name][rows]
        if gradient.stride() != parameter.stride():  # as autograd may leave it; fused updates read memory in its order
            gradient = torch.empty_like(parameter).copy_(gradient)
        increment_version(parameter)  # fused updates do not do so, but casts of the weights depend on it
        keys, slow = self._optimiser.state_names, self._optimiser.slow_names
        state = [self._state[f"{name}.{key}"][rows] for key in keys]
        if not self._is_narrow:
            self._apply(parameter, gradient, state)
            return
        noise = self._draw_noise(parameter[:_NOISY_ROWS]) if slow else None
        num_wide = self._workspace.parts.wide_rows
        for part, its_gradient, *kept in zip(*(t.split(num_wide) for t in (parameter, gradient, *state)), strict=True):
            wide = {
                key: self._workspace.take(_wide_buffer(key), tuple(part.shape), torch.float32).copy_(narrow)
                for key, narrow in zip(keys, kept, strict=True)
            }
            self._apply(part, its_gradient, list(wide.values()))
            for (key, value), narrow in zip(wide.items(), kept, strict=True):
                if key in slow and noise is not None:  # a bfloat16 is the upper half of a float32
                    bits = value.view(torch.int32)
                    _add_to_each(bits, noise)
                    bits.bitwise_and_(-(1 << 16))
                narrow.copy_(value)

    def _apply(self, parameter: Tensor, gradient: Tensor, state: list[Tensor]) -> None:
        self._optimiser.update_(parameter, gradient, state, self._num_steps, self._learning_rate, self.settings)

    def _draw_noise(self, like: Tensor) -> Tensor:
        """16 random bits per number. Added to the lower half of a float32, they carry over with the right probability.

        The groups of rows in an update share this noise: it only has to differ from step to step.
        """
        num_words = (like.numel() + 1) // 2  # words of 64 bits, which are drawn as fast as smaller ones
        words = self._workspace.take(_ROUNDING_WORDS, (num_words,), torch.int64)
        words.random_(torch.iinfo(torch.int64).min, None, generator=self._generator)
        return words.view(torch.int32)[: like.numel()].view(like.shape).bitwise_and_(0xFFFF)

    @property
    def _is_narrow(self) -> bool:
        return self._dtype == torch.bfloat16

    def state(self) -> dict[str, Tensor]:
        """All tensors that `load_state` needs, by name."""
        return {**self._state, "num_steps": self._num_steps + (1 if self._started else 0)}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from what `state` returned. Raises KeyError or RuntimeError if it does not fit this layer."""
        for name, tensor in self._state.items():
            tensor.copy_(tensors[name])
        self._num_steps.copy_(tensors["num_steps"])
        self._started = False


def _add_to_each(rows: Tensor, few: Tensor) -> None:
    """Add `few` rows to each group of as many rows, in place; the last group may be smaller."""
    num_whole = len(rows) // len(few) * len(few)
    if num_whole:
        rows[:num_whole].unflatten(0, (-1, len(few))).add_(few)
    if num_whole < len(rows):
        rows[num_whole:].add_(few[: len(rows) - num_whole])
