"""Run the torture: `python -m tests.torture [--quick] [--report FOLDER]`. Exits with 1 on any silent error."""

from __future__ import annotations

import argparse
import errno
import os
import random
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.torture.faults import Faults, start_preloaded

FULL = {errno.ENOSPC: "ENOSPC", errno.EDQUOT: "EDQUOT", errno.EROFS: "EROFS"}
KINDS = (
    "crash",
    "repeat",
    "signal",
    "memory",
    "full",
    "broken",
    "power",
    "rot",
    "meddle",
    "hostile",
    "race",
    "meaning",
    "soak",
    "fuzz",
)
_NUM_QUICK, _NUM_QUICK_OTHERS = 5, 3  # changes tried of the first workload, and of each other one
# Of file systems of all kinds, on networks too; two more are drawn by the seed.
BROKEN = [errno.EIO, errno.EMFILE, errno.EINVAL, errno.ENOTSUP, errno.ETIMEDOUT, errno.ESTALE, errno.EBUSY, errno.EFBIG]
BROKEN += [errno.ENOTCONN, errno.EXDEV, errno.EACCES, errno.ENOLCK]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a part of all, in a minute or two")
    parser.add_argument("--stride", type=int, default=1, help="try every so many changes (1)")
    parser.add_argument("--kinds", default=",".join(KINDS), help="which, separated by commas")
    parser.add_argument("--workloads", default="", help="which, separated by commas; all by default")
    parser.add_argument("--cases", type=int, default=1_000_000, help="of the fuzz (1000000); with --quick a thousandth")
    parser.add_argument("--seed", type=int, default=0, help="of the fuzz (0)")
    parser.add_argument("--report", type=Path, help="a folder for torture.json; what it holds is not tried again")
    parser.add_argument("--preloaded", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.preloaded:
        return start_preloaded(["-m", "tests.torture", *sys.argv[1:], "--preloaded"])

    from tests.helpers import write_small_data
    from tests.torture.crash import Bench, Counts, fail_everywhere, interrupt_often, kill_everywhere, kill_often, starve
    from tests.torture.fuzz import fuzz
    from tests.torture.hostile import meet_hostile
    from tests.torture.meaning import mistake
    from tests.torture.meddle import meddle
    from tests.torture.power import lose_power
    from tests.torture.race import race
    from tests.torture.report import Report
    from tests.torture.rot import let_rot
    from tests.torture.soak import soak
    from tests.torture.work import WORKLOADS, make_config, plan_once, train

    faults, quick, report = Faults(), options.quick, Report(options.report)
    names = options.workloads.split(",") if options.workloads else list(WORKLOADS)
    kinds = options.kinds.split(",")
    stride = options.stride
    found: dict[str, Counts] = {}
    with tempfile.TemporaryDirectory(prefix="torture-") as folder:
        place, data = Path(folder), Path(folder) / "data.safetensors"
        os.environ["TMPDIR"] = tempfile.tempdir = folder  # else trainings wait for others of this user while they plan
        write_small_data(data)
        plan_once()
        train(make_config("disk", data), place / "warm")  # what is imported late is imported by now
        num_random = 1 if quick else max(60 // stride, 1)
        for name in names:
            bench = Bench(name, faults, place, data)
            num_tried = _NUM_QUICK if name == "disk" else _NUM_QUICK_OTHERS
            step = max(bench.num_changes // num_tried, 1) if quick else stride
            full = [errno.ENOSPC] if quick else FULL
            drawn = random.Random(options.seed).sample(sorted({*errno.errorcode} - {*BROKEN, *FULL}), 2)
            broken = [BROKEN[0], *drawn[: name == "disk"]] if quick else [*BROKEN, *drawn]
            work: dict[str, Callable[[Counts], None]] = {
                "crash": partial(kill_everywhere, bench, step),
                "repeat": partial(kill_often, bench, num_random),
                "signal": partial(interrupt_often, bench, 1 if quick else 5 * num_random),  # short, and faults are rare
                "full": partial(fail_everywhere, bench, full, step, lasting=True),
                "broken": partial(fail_everywhere, bench, broken, step, lasting=False),
                "power": partial(lose_power, bench, step, 1 if quick else 3),
            }
            if not quick or name == "disk":
                work["memory"] = partial(starve, bench, 3 if quick else num_random)
                work["meddle"] = partial(meddle, bench, 80 if quick else stride)
                work["hostile"] = partial(meet_hostile, bench, 12 if quick else stride)
                work["rot"] = partial(let_rot, bench, 4 if quick else 40, 24 if quick else stride)
            for kind in [kind for kind in kinds if kind in work]:
                found[f"{name} {kind}"] = report.add(f"{name} {kind}", {"stride": step}, work[kind])
        if "disk" in names and "race" in kinds:
            num_cases = 3 if quick else max(600 // stride, 1)
            found["race"] = report.add("race", {"cases": num_cases}, partial(race, place, data, num_cases))
        if "disk" in names and "meaning" in kinds:
            num_cases = 8 if quick else max(1500 // stride, 1)
            found["meaning"] = report.add(
                "meaning",
                {"cases": num_cases, "seed": options.seed},
                partial(mistake, place, num_cases, options.seed),
            )
        if "disk" in names and "soak" in kinds:
            num_layers = 24 if quick else 400
            found["soak"] = report.add("soak", {"layers": num_layers}, partial(soak, place, data, num_layers, 0.5))
        if "disk" in names and "fuzz" in kinds:
            num_cases = options.cases // (1000 if quick else 1)
            found["fuzz"] = report.add(
                "fuzz", {"cases": num_cases, "seed": options.seed}, partial(fuzz, place, num_cases, options.seed)
            )
    for name, counts in found.items():
        for failure in counts.failures[:10]:
            print(f"WRONG {name}: {failure}")
    print(f"{sum(len(counts.failures) for counts in found.values())} silent errors in all")
    return 1 if any(counts.failures for counts in found.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
