"""Add a goodness with a setting of its own: the mean of powers. `value` is enough; its gradient comes from autograd."""

from dataclasses import dataclass

from torch import Tensor

import ffstream as ff


@dataclass(frozen=True)
class PowerSettings:
    """Set by `--set parts.goodness.power=2.5`."""

    power: float = ff.setting(3.0, "The power that activities are raised to.", above=1.0)


class MeanPowers(ff.Goodness):
    """The mean of a power of the activities: the higher it is, the more few loud units count."""

    over_units = "mean"  # so that layers may be cut into tiles

    def __init__(self, settings: PowerSettings) -> None:
        self._power = settings.power

    def value(self, activities: Tensor) -> Tensor:
        """(n, num_units) -> (n,)."""
        return activities.pow(self._power).mean(dim=1)


ff.GOODNESSES.register("mean_powers", MeanPowers, settings=PowerSettings)

if __name__ == "__main__":
    config = ff.Config(layers=2, width=100, epochs=3).override({"objective.goodness": "mean_powers"})
    run = ff.train(config, "runs/add-goodness", resume=True)
    print(f"test error: {100 * run.evaluate().error:.2f} %")
