"""How long a command takes to begin: `ffstream --help`, and `ffstream train` from torch's import to its first step."""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

NUM_TIMES = 5
# In a process of its own, which ends at the first step that is not on paper, nor tried before a run begins.
_TO_FIRST_STEP = """
import os, sys, time
import torch
imported_s = time.perf_counter()
from ffstream import Config, train
from ffstream.training.layer_trainer import LayerTrainer
train_epoch, step = LayerTrainer.train_epoch, LayerTrainer.step

def first_step(*args, **kwargs):
    step(*args, **kwargs)
    print(time.perf_counter() - imported_s, flush=True)
    os._exit(0)

def first_epoch(*args, **kwargs):
    LayerTrainer.step = first_step
    return train_epoch(*args, **kwargs)

LayerTrainer.train_epoch = first_epoch
recipe, data, data_root, layers, width, device, folder = sys.argv[1:]
shape = {"layers": int(layers), "width": int(width)}
train(Config(recipe=recipe, data=data, data_root=data_root, device=device, **shape), folder)
"""


def measure_start(data_root: str, device: str, folder: Path) -> dict[str, Any]:
    """Medians, in seconds."""
    runs = {
        "digits, 4 x 512": ("inject", "digits", "", "4", "512"),
        "mnist, 40 x 1000": ("inject", "mnist", data_root, "40", "1000"),
        "mnist, 40 x 512, deep": ("deep", "mnist", data_root, "40", "512"),
    }
    help_s = []
    for _ in range(NUM_TIMES):
        start_s = time.perf_counter()
        subprocess.run([sys.executable, "-m", "ffstream", "--help"], check=True, capture_output=True)
        help_s.append(time.perf_counter() - start_s)
    first_step_s = {}
    for name, settings in runs.items():
        found = []
        for _ in range(NUM_TIMES):
            shutil.rmtree(folder, ignore_errors=True)
            command = [sys.executable, "-c", _TO_FIRST_STEP, *settings, device, str(folder / "run")]
            found.append(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        first_step_s[name] = statistics.median(found)
    return {
        "config": f"recipe inject unless said, medians of {NUM_TIMES} processes",
        "help_s": statistics.median(help_s),
        "first_step_s": first_step_s,
    }
