"""Add a negative sampler: only the two neighbours of the true digit."""

import torch
from torch import Tensor

import ffstream as ff


def neighbours(labels: Tensor, num_classes: int, num_negatives: int, generator: torch.Generator) -> Tensor:
    """(n,) -> (n, num_negatives): one up or one down, in a random order."""
    first = torch.randint(0, 2, (len(labels), 1), generator=generator) * 2 - 1
    return (labels.unsqueeze(1) + torch.cat([first, -first], dim=1)[:, :num_negatives]) % num_classes


ff.NEGATIVE_SAMPLERS.register("neighbours", neighbours)

if __name__ == "__main__":
    config = ff.Config(layers=2, width=100, epochs=3).override(
        {"negatives.sampler": "neighbours", "negatives.per_step": 2}
    )
    run = ff.train(config, "runs/add-negative-sampler", resume=True)
    print(f"test error: {100 * run.evaluate().error:.2f} % (a poor sampler: it never shows the other labels)")
