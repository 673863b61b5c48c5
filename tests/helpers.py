"""Digests of a run, and a way to interrupt one."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import ffstream as ff


def layer_digests(run_dir: Path) -> list[str]:
    """Digest of each finished layer's weights and validation goodness."""
    folders = sorted(path.parent for path in Path(run_dir).glob("layers/*/manifest.json"))
    return [
        hashlib.sha256(b"".join(sorted(p.read_bytes() for p in folder.glob("*.safetensors")))).hexdigest()
        for folder in folders
    ]


def metrics_without_times(run_dir: Path) -> list[dict]:
    """The lines of metrics.jsonl without what depends on the clock or on the process."""
    volatile = {"elapsed_s", "samples_per_s", "peak_memory_bytes", "cache_tier"}
    lines = (Path(run_dir) / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in volatile} for line in lines]


class InterruptAt(ff.Observer):
    """Stops a run, as Ctrl-C does, at the nth call of one of its methods."""

    def __init__(self, method: str, nth: int) -> None:
        self._left = nth

        def interrupt(*_args):
            self._left -= 1
            if self._left < 0:
                raise KeyboardInterrupt

        setattr(self, method, interrupt)
