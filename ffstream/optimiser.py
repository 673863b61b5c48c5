"""The optimiser of one layer: its state, and the update of any group of rows of a parameter.

torch's optimisers want the gradient of a parameter whole. A layer has it in parts, some units at a time, and a part is
updated as soon as it is there, so that no gradient ever exists whole. The arithmetic is torch's own, fused.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from ffstream.config import OptimiserConfig

STATE_NAMES = {"adam": ("exp_avg", "exp_avg_sq"), "adamw": ("exp_avg", "exp_avg_sq"), "sgd": ("momentum_buffer",)}
_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8  # torch's defaults


class LayerOptimiser:
    """State for each parameter of a layer, of its shape, in float32, where the parameter is."""

    def __init__(self, layer: nn.Module, settings: OptimiserConfig) -> None:
        self._settings = settings
        self._parameters = {name: parameter.detach() for name, parameter in layer.named_parameters()}
        self._state = {
            f"{name}.{key}": torch.zeros_like(parameter)
            for name, parameter in self._parameters.items()
            for key in STATE_NAMES[settings.name]
        }
        first = next(iter(self._parameters.values()))
        self._num_steps = torch.zeros((), device=first.device)  # taken before the current one
        self._started = False
        self._learning_rate = settings.learning_rate

    def begin_step(self, factor: float) -> None:
        """From here on, updates belong to the next step, at `factor` times the learning rate."""
        if self._started:
            self._num_steps += 1
        self._started = True
        self._learning_rate = self._settings.learning_rate * factor

    def update(self, name: str, rows: slice, gradient: Tensor) -> None:
        """Update rows of a parameter from their gradient. Each row once a step."""
        settings, parameter = self._settings, self._parameters[name][rows]
        state = [self._state[f"{name}.{key}"][rows] for key in STATE_NAMES[settings.name]]
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

    def state(self) -> dict[str, Tensor]:
        """All that `load_state` needs, by name."""
        return {**self._state, "num_steps": self._num_steps + (1 if self._started else 0)}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave. Raises KeyError or RuntimeError when it is another layer's."""
        for name, tensor in self._state.items():
            tensor.copy_(tensors[name])
        self._num_steps.copy_(tensors["num_steps"])
        self._started = False
