"""The optimiser of one layer: its state, and the update of any group of rows of a parameter.

torch's optimisers want the gradient of a parameter whole. A layer has it in parts, some units at a time, and a part is
updated as soon as it is there, so that no gradient ever exists whole. The arithmetic is torch's own, fused, in float32.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from ffstream.cache import DTYPES
from ffstream.config import OptimiserConfig
from ffstream.workspace import Workspace

STATE_NAMES = {"adam": ("exp_avg", "exp_avg_sq"), "adamw": ("exp_avg", "exp_avg_sq"), "sgd": ("momentum_buffer",)}
_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8  # torch's defaults
_WIDE_ROWS = 512  # of a parameter, whose state is in float32 at once where it is kept in bfloat16


class LayerOptimiser:
    """State for each parameter of a layer, of its shape, where the parameter is.

    In bfloat16 it is rounded at random, up or down by how near each is: an average that moves by a thousandth a step,
    as Adam's second, would be rounded to where it was for ever.
    """

    def __init__(self, layer: nn.Module, settings: OptimiserConfig, workspace: Workspace | None = None) -> None:
        self._settings = settings
        self._dtype = DTYPES[settings.state_dtype]
        self._parameters = {name: parameter.detach() for name, parameter in layer.named_parameters()}
        self._state = {
            f"{name}.{key}": torch.zeros_like(parameter, dtype=self._dtype if self._is_narrow else None)
            for name, parameter in self._parameters.items()
            for key in STATE_NAMES[settings.name]
        }
        first = next(iter(self._parameters.values()))
        self._num_steps = torch.zeros((), device=first.device)  # taken before the current one
        self._started = False
        self._learning_rate = settings.learning_rate
        self._generator: torch.Generator | None = None
        self._workspace = workspace or Workspace(first.device)

    def begin_step(self, factor: float, generator: torch.Generator | None = None) -> None:
        """From here on, updates belong to the next step, at `factor` times the learning rate.

        State in bfloat16 is rounded by `generator`, which is on the device of the layer.
        """
        self._generator = generator
        if self._started:
            self._num_steps += 1
        self._started = True
        self._learning_rate = self._settings.learning_rate * factor

    def update(self, name: str, rows: slice, gradient: Tensor) -> None:
        """Update rows of a parameter from their gradient. Each row once a step."""
        parameter = self._parameters[name][rows]
        state = [self._state[f"{name}.{key}"][rows] for key in STATE_NAMES[self._settings.name]]
        if not self._is_narrow:
            self._apply(parameter, gradient, state)
            return
        for part, its_gradient, *kept in zip(
            *(t.split(_WIDE_ROWS) for t in (parameter, gradient, *state)), strict=True
        ):
            wide = [
                self._workspace.take(f"state {number}", tuple(part.shape), part.dtype).copy_(narrow)
                for number, narrow in enumerate(kept)
            ]
            self._apply(part, its_gradient, wide)
            for narrow, value in zip(kept, wide, strict=True):
                self._round(value, narrow)

    def _apply(self, parameter: Tensor, gradient: Tensor, state: list[Tensor]) -> None:
        settings = self._settings
        if settings.name == "sgd":
            sgd(
                [parameter],
                [gradient],
                [state[0]],
                fused=True,
                foreach=False,
                weight_decay=settings.weight_decay,
                momentum=settings.momentum,
                lr=self._learning_rate,
                dampening=0.0,
                nesterov=False,
                maximize=False,
            )
            return
        adam(
            [parameter],
            [gradient],
            [state[0]],
            [state[1]],
            [],
            [self._num_steps.clone()],  # torch counts the step up, once for each part
            fused=True,
            foreach=False,
            decoupled_weight_decay=settings.name == "adamw",
            amsgrad=False,
            beta1=_BETA1,
            beta2=_BETA2,
            lr=self._learning_rate,
            weight_decay=settings.weight_decay,
            eps=_EPSILON,
            maximize=False,
        )

    def _round(self, value: Tensor, narrow: Tensor) -> None:
        """Store float32 in bfloat16, rounded at random; `value` is used up.

        A bfloat16 is the upper half of a float32: with noise added to the lower half, which is then cut off, a number
        becomes its upper neighbour as often as it is near it.
        """
        num_words = (value.numel() + 3) // 4  # of 64 bits, which are drawn as fast as fewer
        words = self._workspace.take("rounding words", (num_words,), torch.int64)
        words.random_(torch.iinfo(torch.int64).min, None, generator=self._generator)
        noise = words.view(torch.int16)[: value.numel()].view(value.shape).bitwise_and_(0x7FFF)  # never below 0
        narrow.copy_(value.view(torch.int32).add_(noise, alpha=2).bitwise_and_(-(1 << 16)).view(value.dtype))

    @property
    def _is_narrow(self) -> bool:
        return self._dtype == torch.bfloat16

    def state(self) -> dict[str, Tensor]:
        """All that `load_state` needs, by name."""
        return {**self._state, "num_steps": self._num_steps + (1 if self._started else 0)}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave. Raises KeyError or RuntimeError when it is another layer's."""
        for name, tensor in self._state.items():
            tensor.copy_(tensors[name])
        self._num_steps.copy_(tensors["num_steps"])
        self._started = False
