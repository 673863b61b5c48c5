"""Add a goodness: the mean activity. `value` is enough; its gradient comes from autograd."""

from torch import Tensor

import ffstream as ff


class MeanActivity(ff.Goodness):
    """The mean of the activities, without a square."""

    def value(self, activities: Tensor) -> Tensor:
        """(n, num_units) -> (n,)."""
        return activities.mean(dim=1)


ff.GOODNESSES.register("mean_activity", MeanActivity())

config = ff.Config(layers=2, width=100, epochs=3).override({"objective.goodness": "mean_activity"})
run = ff.train(config, "runs/add-goodness", resume=True)
print(f"test error: {100 * run.evaluate().error:.2f} %")
