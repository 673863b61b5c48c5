"""The rounds over which the learning rate of a run in rounds falls to zero, and how many of them are left. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ffstream.data.stream_source import Place
from ffstream.settings.sections import OptimiserConfig
from ffstream.training.rate_schedule import RateSchedule


@dataclass(frozen=True)
class Cycle:
    """Rounds `start` + 1 to `stop`. All rounds of a run are one cycle, unless it was finished and then takes more.

    `errors` are the network's validation errors after each round of the cycle that is done, by which it may end early;
    in a stream, its error on the only window of the cycle before that was learnt.
    """

    start: int
    stop: int
    errors: tuple[float, ...] = ()
    place: Place | None = None  # where a stream goes on, which has one window, and a cycle, for each round

    def find_schedule(self, settings: OptimiserConfig) -> RateSchedule:
        """The learning rate in this cycle, by the errors so far."""
        whole = RateSchedule(self.stop - self.start, settings.decay_start, self.start)
        return whole.shorten(self.errors, settings.patience)

    def is_over(self, num_rounds: int, settings: OptimiserConfig) -> bool:
        """Whether nothing is left of the cycle after so many rounds of the run."""
        return num_rounds >= self.start + self.find_schedule(settings).num_epochs

    def add_error(self, error: float | None) -> Cycle:
        """The cycle after one more round with this error; None without a validation split."""
        return self if error is None else replace(self, errors=(*self.errors, error))

    def to_mapping(self) -> dict[str, Any]:
        """Plain values, for a manifest."""
        return {"start": self.start, "stop": self.stop, "errors": list(self.errors)} | (
            {} if self.place is None else {"place": self.place.to_mapping()}
        )

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Cycle:
        """The inverse of `to_mapping`."""
        place = Place.from_mapping(values["place"]) if "place" in values else None
        return cls(int(values["start"]), int(values["stop"]), tuple(map(float, values["errors"])), place)


def find_cycle(last: Cycle | None, num_rounds: int, asked: int, settings: OptimiserConfig) -> Cycle | None:
    """The cycle of the next round of a run that has taken `num_rounds` of the `asked` rounds; None if none is left.

    `last` is the cycle of its last round. A run that is not finished goes on in it, as if it had been started with as
    many rounds as are asked for now. Once the cycle is over, the learning rate has fallen to zero: if more rounds are
    asked for then, they begin at the whole rate and let it fall again, as a warm restart (Loshchilov and Hutter 2017).
    """
    if last is None:
        return Cycle(0, asked)
    if not last.is_over(num_rounds, settings):
        cycle = replace(last, stop=max(asked, num_rounds))
        return None if cycle.is_over(num_rounds, settings) else cycle
    return Cycle(num_rounds, asked) if asked > num_rounds and asked != last.stop else None
