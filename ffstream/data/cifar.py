"""Reads the published files of CIFAR-10. They are pickles, but are parsed as data, so that nothing in them can run."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ffstream.data.pickled import Call, parse_pickle
from ffstream.data.room import Room
from ffstream.ground.files import read_regular

_MAX_FILE_BYTES = 64 << 20  # twice the size of the largest file
_PIXELS = (3, 32, 32)
# A bound on the copies of a file in memory while it is parsed: its bytes, its pixels as a string, and as bytes again.
_NUM_COPIES = 4

# A file, and the MD5 of what was published under its name.
Published = tuple[Path, str]


def read_batches(files: Sequence[Published], room: Room) -> tuple[Tensor, Tensor]:
    """Read batches of one size: images (n, 32, 32, 3) uint8, labels (n,). Raises ValueError, OSError, BudgetError."""
    images, labels = torch.empty(0), []
    for number, (path, md5) in enumerate(files):
        room.check(f"data {path}", _NUM_COPIES * path.stat().st_size)
        batch = read_published(path, md5)
        pixels = _as_array(batch["data"]).reshape(-1, *_PIXELS).transpose(0, 2, 3, 1)
        if not number:
            images = room.allocate(f"data {path}", (len(files) * len(pixels), *pixels.shape[1:]), torch.uint8)
        images.numpy()[number * len(pixels) : (number + 1) * len(pixels)] = pixels
        labels += batch["labels"]
    return images, torch.tensor(labels, dtype=torch.int64)


def read_published(path: Path, md5: str) -> Any:
    """Parse a file that must be the published one. Raises ValueError for any other file, and OSError."""
    content = read_regular(path, _MAX_FILE_BYTES)
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != md5:
        raise ValueError(f"{path} is not the file that was published: found MD5 {found}, allowed {md5}")
    return parse_pickle(content)


def _as_array(call: Call) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The array of bytes that numpy would make from `call.state`, which is (version, shape, type, order, bytes)."""
    _, shape, _, is_fortran, data = call.state
    return np.frombuffer(data.encode("latin-1"), np.uint8).reshape(shape, order="F" if is_fortran else "C")
