"""Run the benchmarks: `python -m benchmarks.run [NAME ...] --data-root DIR [--device cuda]`.

Each result goes into benchmarks/results/<device>.json as soon as it is there, with config, machine and commit. A
benchmark that was interrupted goes on from the runs it has finished.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.accelerator import measure_accelerator
from benchmarks.accuracy import SHIFTED, UNLABELLED, UNLABELLED_LOCAL, measure_depth, measure_recipe
from benchmarks.batches import measure_batches
from benchmarks.conv_memory import measure_conv_memory
from benchmarks.conv_step import measure_conv_step
from benchmarks.data_memory import measure_data_memory
from benchmarks.dtypes import measure_rows, measure_state
from benchmarks.figures import describe
from benchmarks.footprint import measure_conv_footprint, measure_footprint
from benchmarks.growth import measure_growth
from benchmarks.machine import describe_machine
from benchmarks.memory import measure_memory
from benchmarks.peers.compare import measure_peers
from benchmarks.profile import measure_depths
from benchmarks.start import measure_start
from benchmarks.step import measure_step
from benchmarks.stream import measure_stream
from benchmarks.tiers import measure_tiers
from benchmarks.tiles import measure_tiles
from benchmarks.times import measure_times
from ffstream.device.device import device_name

RESULTS = Path(__file__).parent / "results"

BENCHMARKS: dict[str, Callable[[str, str, Path], dict[str, Any]]] = {
    "inject": partial(measure_recipe, "inject"),
    "mono": partial(measure_recipe, "mono"),
    "shifts": partial(measure_recipe, "mono", settings=SHIFTED),
    "hinton": partial(measure_recipe, "hinton"),
    "unsupervised": partial(measure_recipe, "unsupervised", settings=UNLABELLED),
    "unsupervised-local": partial(measure_recipe, "unsupervised", settings=UNLABELLED_LOCAL),
    "depth": lambda root, device, folder: measure_depth(root, device, folder, picture_path(device, "depth")),
    "memory": measure_memory,
    "tiers": measure_tiers,
    "tiles": measure_tiles,
    "times": measure_times,
    "state": measure_state,
    "rows": measure_rows,
    "batches": measure_batches,
    "step": lambda _, device, __: measure_step(device),
    "accelerator": lambda _, device, folder: measure_accelerator(device, folder),
    "conv-step": lambda _, device, __: measure_conv_step(device),
    "growth": measure_growth,
    "stream": measure_stream,
    "data-memory": lambda _, device, folder: measure_data_memory(device, folder),
    "start": measure_start,
    "peers": measure_peers,
    "footprint": lambda _, device, folder: measure_footprint(device, folder),
    "conv-footprint": lambda _, device, folder: measure_conv_footprint(device, folder),
    "conv-memory": lambda _, device, folder: measure_conv_memory(device, folder),
    "profile": lambda _, device, folder: measure_depths(device, folder, picture_path(device, "profile")),
}


def slug(device: str) -> str:
    """The name of a device as a part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", device_name(device).lower()).strip("-")


def picture_path(device: str, noun: str) -> Path:
    """Where a picture of a device's figures stands."""
    return RESULTS / f"{slug(device)}-{noun}.png"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}; all by default")
    parser.add_argument("--data-root", default="", help="the folder that holds MNIST/raw; downloaded there if absent")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--scratch", type=Path, default=Path("scratch/bench"), help="where runs are kept meanwhile")
    options = parser.parse_args()
    unknown = set(options.names) - set(BENCHMARKS)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(BENCHMARKS)}")
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{slug(options.device)}.json"
    for name in options.names or BENCHMARKS:
        machine, start_s = describe_machine(options.device), time.perf_counter()
        found = BENCHMARKS[name](options.data_root, options.device, options.scratch / name)
        shutil.rmtree(options.scratch / name, ignore_errors=True)
        results = json.loads(path.read_text()) if path.is_file() else {}
        before = results.get(name)
        results[name] = {"machine": machine, "wall_s": time.perf_counter() - start_s, **found}
        path.write_text(json.dumps(results, indent=1) + "\n")
        print(f"{name}: {describe(name, found)}", flush=True)
        if before:  # so that a regression shows
            print(f"  was, at {before['machine']['commit']}: {describe(name, before)}", flush=True)


if __name__ == "__main__":
    main()
