"""Anonymous memory of a process that trains on images it does not hold: a file, and a folder of pictures."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import struct
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import ffstream as ff

FILE_IMAGES, FOLDER_IMAGES = (50_000, 200_000), (10_000, 40_000)
_SHAPE, _NUM_CLASSES, _PART = (64, 64, 3), 10, 1000
_SHARD_SAMPLES = 512  # of which a cache has a few in memory
_POLL_S = 0.02


def measure_data_memory(device: str, folder: Path) -> dict[str, Any]:
    """The peak above what the process takes after a run on the digits, by source and number of images."""
    found: dict[str, dict[int, dict[str, float]]] = {"file": {}, "folder": {}}
    for noun, sizes in (("file", FILE_IMAGES), ("folder", FOLDER_IMAGES)):
        for num_images in sizes:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            data = write_file(folder / "data.safetensors", num_images) if noun == "file" else folder / "data"
            if noun == "folder":
                write_folder(data, num_images)
            start_s = time.perf_counter()
            num_bytes = _measure(data, folder / "run", device)
            elapsed_s = time.perf_counter() - start_s
            found[noun][num_images] = {"bytes": num_bytes, "elapsed_s": elapsed_s}
    shutil.rmtree(folder)
    growth = {
        noun: (sizes[max(sizes)]["bytes"] - sizes[min(sizes)]["bytes"]) / (max(sizes) - min(sizes))
        for noun, sizes in found.items()
    }
    return {
        "config": f"recipe inject, 2 layers of 64 units, 1 epoch, cache on disk in shards of {_SHARD_SAMPLES} samples; "
        f"images of {_SHAPE}, random",
        "sources": found,
        "growth_bytes_per_image": growth,
    }


def write_file(path: Path, num_images: int) -> Path:
    """Write random images, part by part, as safetensors does."""
    num_bytes = num_images * int(np.prod(_SHAPE))
    header = {
        "train.images": {"dtype": "U8", "shape": [num_images, *_SHAPE], "data_offsets": [0, num_bytes]},
        "train.labels": {"dtype": "U8", "shape": [num_images], "data_offsets": [num_bytes, num_bytes + num_images]},
    }
    entries = json.dumps(header).encode()
    random = np.random.default_rng(0)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(entries)) + entries)
        for start in range(0, num_images, _PART):
            file.write(_draw(random, min(_PART, num_images - start)).tobytes())
        file.write((np.arange(num_images) % _NUM_CLASSES).astype(np.uint8).tobytes())
    return path


def write_folder(folder: Path, num_images: int) -> None:
    """Write random pictures as JPEG, in a folder for each class."""
    random = np.random.default_rng(0)
    for number in range(num_images):
        place = folder / f"class-{number % _NUM_CLASSES}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(_draw(random, 1)[0]).save(place / f"{number:06d}.jpg")


def _draw(random: np.random.Generator, num_images: int) -> np.ndarray[Any, Any]:
    """Images (n, 64, 64, 3) of squares of random colours."""
    small = random.integers(0, 256, (num_images, 8, 8, 3), dtype=np.uint8)
    return small.repeat(8, axis=1).repeat(8, axis=2)


def _measure(data: Path, run_dir: Path, device: str) -> int:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_train, (data, run_dir, device))


def _train(data: Path, run_dir: Path, device: str) -> int:
    """The most anonymous memory of this process while it trains, above what it has after a run on the digits."""
    config = ff.Config(layers=2, width=64, epochs=1, device=device)
    config = config.override({"cache.tier": "disk", "cache.shard_samples": _SHARD_SAMPLES})
    ff.train(config, run_dir.with_name("before"))
    before_bytes, seen, has_ended = _read_anonymous_bytes(), list[int](), threading.Event()

    def look() -> None:
        while not has_ended.wait(_POLL_S):
            seen.append(_read_anonymous_bytes())

    looking = threading.Thread(target=look)
    looking.start()
    try:
        ff.train(config.override({"data": str(data)}), run_dir)
    finally:
        has_ended.set()
        looking.join()
    return max(seen) - before_bytes


def _read_anonymous_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))
