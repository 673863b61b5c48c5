"""Whose a path is: what runs call their own, by which the files of one are told from those of others."""

from __future__ import annotations

import json
import re
from pathlib import Path

from ffstream.ground.files import read_regular
from ffstream.ground.folder import TEMPORARY
from ffstream.ground.lock import HOLDER, LOCK
from ffstream.storage.identity import CACHE, CONFIG, CONFIG_SEAL, DATA_FILE, ENVIRONMENT_FILE, LABELS_FILE, MARKER
from ffstream.storage.metrics import METRICS

# What a run calls its own at its top, whether it is there or not, and how the folder of its caches on another disk is
# called.
_OF_RUN = {MARKER, CONFIG, DATA_FILE, ENVIRONMENT_FILE, LABELS_FILE, METRICS, LOCK, HOLDER}
_OF_RUN |= {"layers", "progress", "readout", CACHE}
_PARTS_OF_RUN = ("damaged-", TEMPORARY)
# Patterns of the files of a cache: its shards, and those that were not finished.
SHARD_NAMES = (r"shard-(\d{5,18})\.safetensors", re.escape(TEMPORARY) + r"shard-\d{5,18}")
_CACHES_ELSEWHERE = re.compile(r"ffstream-[0-9a-f]{16}")


def find_run(path: Path) -> Path | None:
    """The run that a path, all links followed, is a part of: by a name that runs use, whether it is there or not."""
    below = path
    for folder in path.parents:
        if (is_name_of_run(below.name) and is_run(folder)) or _CACHES_ELSEWHERE.fullmatch(folder.name):
            return folder
        below = folder
    return None


def is_run(folder: Path) -> bool:
    """Whether a folder says that it is a run, damaged or not."""
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
    """Whether a run calls something at its top by this name."""
    name = name.lower()  # some file systems tell no capitals apart
    return name in _OF_RUN or name.startswith(_PARTS_OF_RUN)
