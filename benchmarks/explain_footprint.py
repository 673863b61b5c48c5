"""What a planned and a measured peak of memory consist of: `python -m benchmarks.explain_footprint conv|dense N`.

N is the number of a configuration of the sweep in benchmarks/footprint.py. The tensors that are alive at each peak are
listed by the operator that made them, the largest first: those of the dry run of each layer, where slots are left out,
and those that the run itself had at once.
"""

from __future__ import annotations

import argparse
import tempfile
import unittest.mock
import warnings
from collections import Counter
from collections.abc import Iterable
from operator import itemgetter
from pathlib import Path
from typing import Any, ClassVar

import torch

from benchmarks.footprint import draw_config, draw_conv_config, plan_and_measure
from ffstream.device import memory
from ffstream.device.ledger import Ledger
from ffstream.device.memory import PeakMeter
from ffstream.plan import dry_run

_DRAW = {"conv": draw_conv_config, "dense": draw_config}
_MOST_LINES = 12

Parts = Counter[tuple[str, int]]  # numbers of tensors, by what made them and their bytes


class _NotingLedger(Ledger):
    """Notes what is alive at the highest peak since it was last asked."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._names: dict[int, tuple[Any, str]] = {}  # with the entry's reference, as keys are used again
        self.noted_bytes, self.noted = 0, Parts()

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        before, name = self.peak_bytes, str(func)
        found = super().__torch_dispatch__(func, types, args, kwargs)
        before_names, self._names = self._names, {}
        for key, (reference, _) in self._entries.items():
            known = before_names.get(key)
            self._names[key] = known if known is not None and known[0] is reference else (reference, name)
        if self.peak_bytes > before and self.peak_bytes > self.noted_bytes:
            self.noted_bytes = self.peak_bytes
            self.noted = Parts((self._names[key][1], num_bytes) for key, (_, num_bytes) in self._entries.items())
            self.noted[f"beside {name}", self.peak_bytes - sum(num for _, num in self._entries.values())] += 1
        return found

    def take_noted(self) -> tuple[int, Parts]:
        noted = self.noted_bytes, self.noted
        self.noted_bytes, self.noted = 0, Parts()
        return noted


class _NotingMeter(PeakMeter):
    """Notes what is alive at the peak on a CPU, by the outermost operator that asked for it."""

    made: ClassVar[list[_NotingMeter]] = []

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.noted_bytes, self.noted = 0, Parts()
        self._named: dict[int, tuple[str, int]] = {}
        self.made.append(self)

    def _close_account(self) -> list[tuple[int, int]]:
        profiler, self._profiler = self._profiler, None
        profiler.__exit__(None, None, None)
        found = []
        events = [(event, "") for event in profiler.profiler.kineto_results.experimental_event_tree()]
        while events:
            event, name = events.pop()
            if event.tag == torch._C._profiler._EventType.Allocation:
                found.append((event.start_time_ns, event.extra_fields.ptr, event.extra_fields.alloc_size, name))
            events += [(child, name or event.name) for child in event.children]
        found.sort(key=itemgetter(0))
        for _, address, num_bytes, name in found:
            self._note(address, num_bytes, name)
        return [(address, num_bytes) for _, address, num_bytes, _ in found]

    def _note(self, address: int, num_bytes: int, name: str) -> None:
        self._named.pop(address, None)
        if num_bytes > 0:
            self._named[address] = name, num_bytes
            alive_bytes = sum(size for _, size in self._named.values())
            if alive_bytes > self.noted_bytes:
                self.noted_bytes, self.noted = alive_bytes, Parts(self._named.values())


def explain(kind: str, number: int) -> None:
    """Print the peaks of a configuration, and what each consists of."""
    config, num_features = _DRAW[kind](number)
    on_layer = dry_run._PaperWork.on_layer
    planned: list[tuple[int, Parts]] = []

    def noting(work: Any, *args: Any, **kwargs: Any) -> Any:
        work._ledger.take_noted()
        found = on_layer(work, *args, **kwargs)
        planned.append(work._ledger.take_noted())
        return found

    with (
        tempfile.TemporaryDirectory() as folder,
        unittest.mock.patch.object(dry_run, "Ledger", _NotingLedger),
        unittest.mock.patch.object(dry_run._PaperWork, "on_layer", noting),
        unittest.mock.patch.object(memory, "PeakMeter", _NotingMeter),
    ):
        footprints, measured = plan_and_measure(config, num_features, Path(folder) / "run")
    highest = max(footprint.peak for footprint in footprints)
    print(f"planned {highest:,}, measured {measured:,} bytes: x {highest / measured:.4f}")
    for place, (footprint, noted) in enumerate(zip(footprints, planned[-len(footprints) :], strict=True)):
        print(f"\nlayer {place + 1}: {footprint}")
        _print(*noted)
    print("\nthe run:")
    of_run = next(meter for meter in _NotingMeter.made if meter.noted_bytes == measured)
    _print(of_run.noted_bytes, of_run.noted)


def _print(peak_bytes: int, parts: Parts) -> None:
    print(f"{peak_bytes:>15,} bytes at the peak, of which")
    for (name, num_bytes), count in sorted(parts.items(), key=lambda item: -item[0][1] * item[1])[:_MOST_LINES]:
        print(f"{num_bytes * count:>15,} {name}{f' ({count} x {num_bytes:,})' if count > 1 else ''}")


def main() -> None:
    """Explain the configuration of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=_DRAW)
    parser.add_argument("number", type=int)
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # of what the repeated digits are no good for
    explain(options.kind, options.number)


if __name__ == "__main__":
    main()
