"""Run the torture: `python -m tests.torture [--quick] [--report FOLDER]`. Exits with 1 on any silent error."""

from __future__ import annotations

import argparse
import errno
import json
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.machine import describe_machine
from tests.torture.faults import Faults, start_preloaded

FULL = {errno.ENOSPC: "ENOSPC", errno.EDQUOT: "EDQUOT", errno.EROFS: "EROFS"}
KINDS = ("crash", "repeat", "signal", "memory", "full", "broken", "power", "rot", "soak", "fuzz")
_NUM_QUICK = 5  # changes tried of a workload
BROKEN = {errno.EIO: "EIO", errno.EMFILE: "EMFILE"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a part of all, in a minute or two")
    parser.add_argument("--stride", type=int, default=1, help="try every so many changes (1)")
    parser.add_argument("--kinds", default=",".join(KINDS), help="which, separated by commas")
    parser.add_argument("--workloads", default="", help="which, separated by commas; all by default")
    parser.add_argument("--cases", type=int, default=1_000_000, help="of the fuzz (1000000); with --quick a thousandth")
    parser.add_argument("--seed", type=int, default=0, help="of the fuzz (0)")
    parser.add_argument("--report", type=Path, help="a folder for torture.json")
    parser.add_argument("--preloaded", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.preloaded:
        return start_preloaded(["-m", "tests.torture", *sys.argv[1:], "--preloaded"])

    from tests.helpers import write_small_data
    from tests.torture.crash import Bench, Counts, fail_everywhere, interrupt_often, kill_everywhere, kill_often, starve
    from tests.torture.fuzz import fuzz
    from tests.torture.power import lose_power
    from tests.torture.rot import let_rot
    from tests.torture.soak import soak
    from tests.torture.work import WORKLOADS, make_config, train

    faults, start_s = Faults(), time.monotonic()
    names = options.workloads.split(",") if options.workloads else list(WORKLOADS)
    kinds = options.kinds.split(",")
    found: dict[str, Counts] = {kind: Counts() for kind in kinds}
    with tempfile.TemporaryDirectory(prefix="torture-") as folder:
        data = Path(folder) / "data.safetensors"
        write_small_data(data)
        train(make_config("disk", data), Path(folder) / "warm")  # what is imported late is imported by now
        for name in names:
            bench = Bench(name, faults, Path(folder), data)
            stride = max(bench.num_changes // _NUM_QUICK, 1) if options.quick else options.stride
            for kind in kinds:
                if kind == "crash":
                    kill_everywhere(bench, stride, found[kind])
                elif kind == "repeat":
                    kill_often(bench, 1 if options.quick else 60 // options.stride, found[kind])
                elif kind == "signal":
                    interrupt_often(bench, 1 if options.quick else 60 // options.stride, found[kind])
                elif kind == "memory" and (not options.quick or name == "disk"):
                    starve(bench, 3 if options.quick else 60 // options.stride, found[kind])
                elif kind == "full":
                    errors = [errno.ENOSPC] if options.quick else FULL
                    fail_everywhere(bench, errors, stride, found[kind], lasting=True)
                elif kind == "broken":
                    fail_everywhere(bench, BROKEN, 2 * stride, found[kind], lasting=False)
                elif kind == "power":
                    lose_power(bench, stride, 1 if options.quick else 3, found[kind])
                elif kind == "rot" and (not options.quick or name == "disk"):
                    let_rot(bench, 4 if options.quick else 40, 24 if options.quick else options.stride, found[kind])
                counts = found[kind]
                print(f"{name} {kind}: {counts.num_cases} cases so far, {len(counts.failures)} wrong", flush=True)
        if "soak" in kinds and (not options.quick or "disk" in names):
            soak(Path(folder), data, 40 if options.quick else 400, 0.5, found["soak"])
        if "fuzz" in kinds and (not options.quick or "disk" in names):
            fuzz(Path(folder), options.cases // (1000 if options.quick else 1), options.seed, found["fuzz"])
    for kind, counts in found.items():
        for failure in counts.failures[:10]:
            print(f"WRONG {kind} {failure}")
        print(
            f"{kind}: {counts.num_cases} cases, {counts.num_exact} {'taken' if kind == 'fuzz' else 'resumed exactly'}, "
            f"{counts.num_refused} refused by name before, {len(counts.failures)} silent errors"
        )
    print(f"{time.monotonic() - start_s:.0f} s")
    if options.report:
        options.report.mkdir(parents=True, exist_ok=True)
        run = {"arguments": sys.argv[1:], "took_s": round(time.monotonic() - start_s)} | describe_machine("cpu")
        content = run | {kind: vars(counts) for kind, counts in found.items()}
        (options.report / "torture.json").write_text(json.dumps(content, indent=1) + "\n")
    return 1 if any(counts.failures for counts in found.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
