"""Add a layer that nobody can differentiate: a simulated analog chip, trained by what is measured of it.

The chip holds weights on a few levels, and adds noise to every product. It works outside of torch, so the layer
declares the bytes that a call takes. It draws its noise from the generator that it is given, so that runs resume with
the same bits. It has no gradients: its outputs are moved at random to see how the loss changes, and pulses move a
weight by one level each.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

import ffstream as ff

LEVEL, LARGEST = 0.02, 0.6  # the step between two levels of a weight, and the largest weight
READ_NOISE = 0.02  # added to every product, at random
TRIAL, NUM_TRIALS = 0.05, 8  # how far outputs are moved, at random, to see how the loss changes, and how often


def run_chip(levels: np.ndarray, voltages: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """What would be a call to the chip's driver: (units, features), (n, features), (n, units) -> (n, units)."""
    return voltages @ (LEVEL * levels).T + READ_NOISE * noise


class Analog(ff.Layer):
    """A layer on the chip. `weight` (num_units, in_features) counts levels, in whole numbers."""

    has_gradients = False  # so that `observe` says what is learnt from a batch
    owns_update = True  # so that `update_` changes the weights, and not the optimiser
    noisy_modes = frozenset(ff.Mode)  # it adds noise while it trains, is measured, and hands on

    def __init__(self, shape: ff.LayerShape, compute_dtype: torch.dtype = torch.float32) -> None:
        super().__init__(shape, compute_dtype)
        self.weight = nn.Parameter(torch.empty(self.num_units, self.in_features))

    def initialise(self, generator: torch.Generator) -> None:
        """Weights of a variance of 1 / fan-in, on the nearest levels."""
        with torch.no_grad():
            self.weight.normal_(0, self.in_features**-0.5 / LEVEL, generator=generator).round_()
            self.weight.clamp_(-LARGEST / LEVEL, LARGEST / LEVEL)

    def declare_bytes(self, num_rows: int) -> int:
        """Copies of the weights and rows, and a few of the outputs while trials are summed, all of them in float32."""
        return 4 * (3 * self.weight.numel() + num_rows * (2 * self.in_features + 8 * self.num_units))

    def preactivations(self, rows: Tensor) -> Tensor:
        """(n, in_features) -> (n, num_units), by the chip."""
        noise = self._draw(len(rows)) if self.generator is not None else torch.zeros(len(rows), self.num_units)
        arrays = (tensor.detach().float().cpu().numpy() for tensor in (self.weight, rows, noise))
        return torch.from_numpy(run_chip(*arrays)).to(rows.device)

    def observe(
        self, rows: Tensor, gradient: Tensor, loss_of: Callable[[Tensor], Tensor]
    ) -> Iterator[tuple[str, slice, Tensor]]:
        """Node perturbation: on average, moves times the rise of the loss are its gradient by the outputs.

        `gradient` is what they estimate; a rule that is given it would need no trials.
        """
        outputs = self.preactivations(rows)
        estimate = torch.zeros_like(outputs)
        for _ in range(NUM_TRIALS):
            move = self._draw(len(rows)).mul_(TRIAL)
            rise = loss_of(outputs + move) - loss_of(outputs - move)
            estimate.addcmul_(rise.unsqueeze(1), move, value=1 / (2 * NUM_TRIALS * TRIAL**2))
        yield "weight", slice(None), estimate.t() @ rows.float()

    def update_(self, name: str, rows: slice, observed: Tensor, rate: float) -> None:
        """Pulses of one level each; what is left of a level is a pulse with the probability of its size."""
        weight = self.get_parameter(name)[rows]
        wanted = observed * (-rate / LEVEL)
        chance = torch.rand(wanted.shape, generator=self.generator, device=wanted.device)
        weight += torch.floor(wanted + chance)
        weight.clamp_(-LARGEST / LEVEL, LARGEST / LEVEL)

    def _draw(self, num_rows: int) -> Tensor:
        return torch.randn(num_rows, self.num_units, generator=self.generator, device=self.weight.device)


ff.LAYER_KINDS.register("analog", Analog)

if __name__ == "__main__":
    config = ff.Config(layers=2, width=50, epochs=6, batch=128, recipe="grouped").override(
        {
            "network.kind": "analog",
            "network.dropout": 0.0,
            "objective.perturbation": 0.0,  # rows cannot be moved by a gradient that is not there
            "optimiser.learning_rate": 0.06,
        }
    )
    run = ff.train(config, "runs/add-black-box-layer", resume=True)
    print(f"test error: {100 * run.evaluate().error:.2f} %")
