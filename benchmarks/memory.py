"""Peak memory against depth, each point in a process of its own, the cache on disk."""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

# Layers, and in how many a stack; 0: one stack. Networks of several keep the data set, to read it once a stack.
SHAPES = {"4": (4, 0), "40": (40, 0), "40 in stacks": (40, 4)}
WIDTH = 1000
NUM_RUNS = 5  # the median: what an allocator keeps of freed blocks differs from process to process

# Imports first, so that the baseline is the interpreter with everything imported; then one run.
_POINT = """
import json, sys
from pathlib import Path
import torch
import ffstream as ff
import ffstream.run.launch, torchvision.datasets, safetensors.torch
torch.optim.Adam([torch.zeros(8, requires_grad=True)], fused=True)
torch.nn.functional.linear(torch.ones(64, 64).bfloat16(), torch.ones(64, 64).bfloat16())

def status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

depth, in_stack, width, data_root, device, folder = sys.argv[1:]
before = status("VmRSS")
config = ff.Config(data="mnist", data_root=data_root, layers=int(depth), width=int(width), epochs=1, device=device)
ff.train(config.override({"cache.tier": "disk", "network.stack_layers": int(in_stack)}), folder)
peak = torch.cuda.max_memory_allocated() if device.startswith("cuda") else status("VmHWM") - before
print(json.dumps(peak))
"""


def measure_memory(data_root: str, device: str, folder: Path) -> dict[str, Any]:
    """Peak bytes of each shape: of the device on CUDA, else of the resident set above the imported interpreter."""
    peaks: dict[str, list[int]] = {name: [] for name in SHAPES}
    for name in list(SHAPES) * NUM_RUNS:
        path = folder / "run"
        shutil.rmtree(path, ignore_errors=True)
        shape = [str(number) for number in (*SHAPES[name], WIDTH)]
        command = [sys.executable, "-c", _POINT, *shape, data_root, device, str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks[name].append(json.loads(done.stdout))
        shutil.rmtree(path)
    medians = {name: statistics.median(found) for name, found in peaks.items()}
    return {
        "config": f"mnist, {' and '.join(SHAPES)} x {WIDTH}, 1 epoch a layer, recipe inject, cache on disk",
        "peak_bytes": medians,
        "peak_bytes_of_each_run": peaks,
        "growth": medians["40"] / medians["4"] - 1,
    }
