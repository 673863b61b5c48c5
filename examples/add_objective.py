"""Add an objective: a hinge between the positive and each negative. `loss` is enough."""

from torch import Tensor

import ffstream as ff


class Hinge(ff.Objective):
    """max(0, 1 - (positive - negative)), averaged over the negatives."""

    def loss(self, logits: Tensor) -> Tensor:
        """(n, 1 + K), the positive in column 0 -> (n,)."""
        return (1 - logits[:, :1] + logits[:, 1:]).relu().mean(dim=1)


ff.OBJECTIVES.register("hinge", Hinge())

if __name__ == "__main__":
    config = ff.Config(layers=2, width=100, epochs=3).override({"objective.name": "hinge"})
    run = ff.train(config, "runs/add-objective", resume=True)
    print(f"test error: {100 * run.evaluate().error:.2f} %")
