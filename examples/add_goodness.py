"""Add a goodness: the mean of cubes. `value` is enough; its gradient comes from autograd."""

from torch import Tensor

import ffstream as ff


class MeanCubes(ff.Goodness):
    """The mean of the cubed activities: few loud units count for more than in a mean of squares."""

    def value(self, activities: Tensor) -> Tensor:
        """(n, num_units) -> (n,)."""
        return activities.pow(3).mean(dim=1)


ff.GOODNESSES.register("mean_cubes", MeanCubes())

if __name__ == "__main__":
    config = ff.Config(layers=2, width=100, epochs=3).override({"objective.goodness": "mean_cubes"})
    run = ff.train(config, "runs/add-goodness", resume=True)
    print(f"test error: {100 * run.evaluate().error:.2f} %")
