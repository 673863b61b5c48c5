"""The names that runs use for their files, by which a path is recognised as part of a run."""

from __future__ import annotations

import json
import re
from pathlib import Path

from ffstream.ground.files import read_regular
from ffstream.ground.folder import TEMPORARY
from ffstream.ground.lock import is_lock_name
from ffstream.storage.identity import (
    CACHE,
    CONFIG,
    CONFIG_SEAL,
    DATA_FILE,
    ENVIRONMENT_FILE,
    INITIAL,
    LABELS_FILE,
    MARKER,
    STREAM,
)
from ffstream.storage.metrics import METRICS

# The names at the top level of a run directory that belong to the run, whether they exist or not; _PARTS_OF_RUN are
# beginnings of names.
_OF_RUN = {MARKER, CONFIG, DATA_FILE, ENVIRONMENT_FILE, LABELS_FILE, METRICS}
_OF_RUN |= {"layers", "rounds", "progress", "readout", CACHE, INITIAL, STREAM}
_PARTS_OF_RUN = ("damaged-", TEMPORARY)
# Patterns of the file names in a cache: finished shards and unfinished ones.
SHARD_NAMES = (r"shard-(\d{5,18})\.safetensors", re.escape(TEMPORARY) + r"shard-\d{5,18}")
CACHE_NAMES = re.compile(r"\d{3,18}-\w+")  # of the folder of one layer's cache
_CACHES_ELSEWHERE = re.compile(r"ffstream-[0-9a-f]{16}")  # the folder of a run's caches on another disk


def find_run(path: Path) -> Path | None:
    """The run that a path with all links followed belongs to, judged by its names; the path need not exist."""
    below = path
    for folder in path.parents:
        if (is_name_of_run(below.name) and is_run(folder)) or _CACHES_ELSEWHERE.fullmatch(folder.name):
            return folder
        below = folder
    return None


def is_run(folder: Path) -> bool:
    """Whether the files in a folder say that it is a run, damaged or not."""
    try:
        content = json.loads(read_regular(folder / MARKER))
        if isinstance(content, dict) and str(content.get("format")).startswith("ffstream run"):
            return True
    except (OSError, ValueError, RecursionError):
        pass
    try:
        return read_regular(folder / CONFIG).startswith(CONFIG_SEAL)
    except OSError:
        return False


def is_name_of_run(name: str) -> bool:
    """Whether this name, at the top level of a run directory, belongs to the run."""
    name = name.lower()  # some file systems ignore case
    return name in _OF_RUN or is_lock_name(name) or name.startswith(_PARTS_OF_RUN)
