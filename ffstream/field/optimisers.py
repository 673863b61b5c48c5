"""Optimisers: how rows of a parameter are updated from their gradient, and what is kept for them from step to step."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from ffstream.ground.registry import Registry
from ffstream.settings.sections import OptimiserConfig

_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8  # torch's defaults


class Optimiser(ABC):
    """Updates some rows of a parameter at a time, so that the gradient of a parameter never exists whole.

    `state_names` are tensors that are kept, in the parameter's shape, zero at the start. Of these `slow_names` move too
    little in a step for bfloat16 rounded to the nearest; where state is kept in bfloat16 they are rounded at random.
    """

    state_names: tuple[str, ...] = ()
    slow_names: tuple[str, ...] = ()

    @abstractmethod
    def update_(
        self,
        parameter: Tensor,
        gradient: Tensor,
        state: list[Tensor],
        num_steps: Tensor,
        learning_rate: float,
        settings: OptimiserConfig,
    ) -> None:
        """Update rows of a parameter, and their state, in place.

        All are float32 and of one shape, and `state` is in the order of `state_names`. `num_steps`, a float32 scalar,
        counts the steps before this one, and is left as it is.
        """


class Adam(Optimiser):
    """Adam (Kingma and Ba 2015), with betas of 0.9 and 0.999."""

    state_names = ("exp_avg", "exp_avg_sq")
    slow_names = ("exp_avg_sq",)  # moves by a thousandth a step: to the nearest it would stay where it is
    is_decoupled = False

    def update_(
        self,
        parameter: Tensor,
        gradient: Tensor,
        state: list[Tensor],
        num_steps: Tensor,
        learning_rate: float,
        settings: OptimiserConfig,
    ) -> None:
        """By torch's fused update."""
        adam(
            [parameter],
            [gradient],
            [state[0]],
            [state[1]],
            [],
            [num_steps.clone()],  # torch counts the step up, once for each part
            fused=True,
            foreach=False,
            decoupled_weight_decay=self.is_decoupled,
            amsgrad=False,
            beta1=_BETA1,
            beta2=_BETA2,
            lr=learning_rate,
            weight_decay=settings.weight_decay,
            eps=_EPSILON,
            maximize=False,
        )


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019)."""

    is_decoupled = True


class SGD(Optimiser):
    """Stochastic gradient descent with momentum."""

    state_names = ("momentum_buffer",)

    def update_(
        self,
        parameter: Tensor,
        gradient: Tensor,
        state: list[Tensor],
        num_steps: Tensor,
        learning_rate: float,
        settings: OptimiserConfig,
    ) -> None:
        """By torch's fused update."""
        sgd(
            [parameter],
            [gradient],
            [state[0]],
            fused=True,
            foreach=False,
            weight_decay=settings.weight_decay,
            momentum=settings.momentum,
            lr=learning_rate,
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )


OPTIMISERS: Registry[Optimiser] = Registry("optimiser", "optimiser.name")
OPTIMISERS.register("adam", Adam())
OPTIMISERS.register("adamw", AdamW())
OPTIMISERS.register("sgd", SGD())
