"""Learning from a stream: MNIST seen once, memory over many windows, and a process that is killed again and again."""

from __future__ import annotations

import hashlib
import multiprocessing
import random
import re
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import ffstream as ff
from ffstream.data import load_dataset

REPLAYS = (1, 4)
_WINDOW, _SMALL_WINDOW = 4096, 512
_NUM_WINDOWS, _FIRST = 120, 20  # of them, the first that memory is compared with
_NUM_FILES, _NUM_FILE_SAMPLES, _MOST_S = 8, 1500, 6.0  # of a stream that is killed, within so many seconds of its start


def measure_stream(data_root: str, device: str, folder: Path) -> dict[str, Any]:
    """The test error of MNIST seen once, by replays; the growth of memory; and whether killed runs end alike."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    config = ff.Config(layers=4, width=500, device=device).override({"data_root": data_root, "epochs": 10**9})
    errors = {}
    for replays in REPLAYS:
        asked = config.override({"schedule.window_samples": _WINDOW, "schedule.replays": replays})
        start_s = time.perf_counter()
        run = ff.stream(asked, "mnist", folder / f"replays-{replays}")
        elapsed_s = time.perf_counter() - start_s
        errors[replays] = {"test_error": run.evaluate(data_root=data_root).error, "elapsed_s": elapsed_s}
    small = config.override({"schedule.window_samples": _SMALL_WINDOW, "schedule.replays": 1})
    spawn = multiprocessing.get_context("spawn")
    with spawn.Pool(1) as pool:
        sizes = pool.apply(_learn_long, (small, data_root, folder / "long"))
    files = _write_files(data_root, folder / "files")
    _learn_files(small, files, folder / "whole")
    num_kills = _kill_often(small, files, folder / "killed")
    return {
        "config": f"recipe inject, 4 layers of 500 units; windows of {_WINDOW} samples, for memory and kills of "
        f"{_SMALL_WINDOW}",
        "replays": errors,
        "num_windows": _NUM_WINDOWS,
        "memory_bytes": sizes,
        "growth": max(sizes[_FIRST:]) / sizes[_FIRST] - 1,
        "num_kills": num_kills,
        "are_alike": _digest(folder / "whole") == _digest(folder / "killed"),
    }


class _Sizes(ff.Observer):
    """Reads the anonymous memory of this process after every window."""

    def __init__(self) -> None:
        self.found: list[int] = []

    def on_window(self, figures: ff.WindowFigures) -> None:
        """Read it."""
        found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
        assert found is not None, "Linux tells it"
        self.found.append(int(found[1]) << 10)


def _learn_long(config: ff.Config, data_root: str, path: Path) -> list[int]:
    train, sizes = load_dataset("mnist", data_root).train, _Sizes()
    orders = (torch.randperm(len(train))[:_SMALL_WINDOW] for _ in range(_NUM_WINDOWS))
    ff.stream(config, ((train.images[each], train.labels[each]) for each in orders), path, observer=sizes)
    return sizes.found


def _write_files(data_root: str, path: Path) -> str:
    train = load_dataset("mnist", data_root).train
    path.mkdir()
    for number in range(_NUM_FILES):
        part = slice(number * _NUM_FILE_SAMPLES, (number + 1) * _NUM_FILE_SAMPLES)
        images, labels = train.images[part], train.labels[part]
        np.savez(path / f"{number:03d}.npz", images=images.numpy(), labels=labels.numpy())
    return str(path)


def _learn_files(config: ff.Config, files: str, path: Path) -> None:
    ff.stream(config, files, path, num_classes=10, resume=True)


def _kill_often(config: ff.Config, files: str, path: Path) -> int:
    """Have processes learn, each killed a random time after its start, until one is done. Returns how many were."""
    chance, spawn, num_kills = random.Random(0), multiprocessing.get_context("spawn"), 0
    while True:
        process = spawn.Process(target=_learn_files, args=(config, files, path))
        process.start()
        process.join(chance.uniform(_MOST_S / 2, _MOST_S))
        if not process.is_alive():
            assert process.exitcode == 0, "a run that is not killed ends well"
            return num_kills
        process.kill()
        process.join()
        num_kills += 1


def _digest(path: Path) -> str:
    files = sorted(path.glob("rounds/*/*/*.safetensors"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
