"""Add a layer kind: a dense layer of low rank. Parameters and `preactivations` are enough to train it."""

import torch
from torch import Tensor, nn

import ffstream as ff

RANK = 16


class LowRank(ff.Layer):
    """preactivations = x A B + b, with A (in_features, rank) and B (rank, num_units)."""

    def __init__(self, shape: ff.LayerShape, compute_dtype: torch.dtype = torch.float32) -> None:
        super().__init__(shape, compute_dtype)
        self.down = nn.Parameter(torch.empty(self.in_features, RANK))
        self.up = nn.Parameter(torch.empty(RANK, self.num_units))
        self.bias = nn.Parameter(torch.zeros(self.num_units))

    def initialise(self, generator: torch.Generator) -> None:
        """Fill the parameters so that preactivations start with unit variance."""
        with torch.no_grad():
            self.down.normal_(0, self.in_features**-0.5, generator=generator)
            self.up.normal_(0, RANK**-0.5, generator=generator)

    def hide(self, hidden: Tensor) -> None:
        """Leave features out: for `network.stack_features`, where it is less than 1."""
        with torch.no_grad():
            self.down[hidden] = 0.0

    def preactivations(self, rows: Tensor) -> Tensor:
        """(n, in_features) -> (n, num_units) float32."""
        return rows.float() @ self.down @ self.up + self.bias


ff.LAYER_KINDS.register("low_rank", LowRank)

if __name__ == "__main__":
    config = ff.Config(layers=2, width=100, epochs=3).override({"network.kind": "low_rank"})
    run = ff.train(config, "runs/add-layer-kind", resume=True)
    print(f"test error: {100 * run.evaluate().error:.2f} %")
