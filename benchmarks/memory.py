"""Peak memory against depth, each point in a process of its own, the cache on disk."""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

DEPTHS = (4, 40)
WIDTH = 1000
NUM_RUNS = 5  # the median: what an allocator keeps of freed blocks differs from process to process

# Imports first, so that the baseline is the interpreter with everything imported; then one run.
_POINT = """
import json, sys
from pathlib import Path
import torch
import ffstream as ff
import ffstream.session, torchvision.datasets, safetensors.torch
torch.optim.Adam([torch.zeros(8, requires_grad=True)], fused=True)
torch.nn.functional.linear(torch.ones(64, 64).bfloat16(), torch.ones(64, 64).bfloat16())

def status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

depth, width, data_root, device, folder = sys.argv[1:]
before = status("VmRSS")
config = ff.Config(data="mnist", data_root=data_root, layers=int(depth), width=int(width), epochs=1, device=device)
ff.train(config.override({"cache.tier": "disk"}), folder)
peak = torch.cuda.max_memory_allocated() if device.startswith("cuda") else status("VmHWM") - before
print(json.dumps(peak))
"""


def measure_memory(data_root: str, device: str, folder: Path) -> dict[str, Any]:
    """Peak bytes at each depth: of the device on CUDA, else of the resident set above the imported interpreter."""
    peaks: dict[int, list[int]] = {depth: [] for depth in DEPTHS}
    for depth in DEPTHS * NUM_RUNS:
        path = folder / f"memory-{depth}"
        shutil.rmtree(path, ignore_errors=True)
        command = [sys.executable, "-c", _POINT, str(depth), str(WIDTH), data_root, device, str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks[depth].append(json.loads(done.stdout))
        shutil.rmtree(path)
    shallow, deep = (statistics.median(peaks[depth]) for depth in DEPTHS)
    return {
        "config": f"mnist, {' and '.join(map(str, DEPTHS))} x {WIDTH}, 1 epoch a layer, recipe inject, cache on disk",
        "peak_bytes": {DEPTHS[0]: shallow, DEPTHS[1]: deep},
        "peak_bytes_of_each_run": peaks,
        "growth": deep / shallow - 1,
    }
