"""Optimisers: how rows of a parameter are updated from their gradient, and which state is kept between steps."""

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

    `state_names` are the tensors that are kept between steps, in the parameter's shape and zero at the start. Those in
    `slow_names` change too little in a step for rounding to the nearest bfloat16; if state is kept in bfloat16, they
    are rounded stochastically.
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
        counts the steps before this one, and must not be changed.
        """


class Adam(Optimiser):
    """Adam (Kingma and Ba 2015), with betas of 0.9 and 0.999."""

    state_names = ("exp_avg", "exp_avg_sq")
    slow_names = ("exp_avg_sq",)  # changes by a thousandth per step, which rounding to the nearest would lose
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
        """Use torch's fused update."""
        adam(
            [parameter],
            [gradient],
            [state[0]],
            [state[1]],
            [],
            [num_steps.clone()],  # a copy, as torch increments it, once for each part
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
        """Use torch's fused update."""
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
