"""What stands beside every figure: machine, versions, commit."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

import ffstream
from ffstream.device.device import device_name


def describe_machine(device: str) -> dict[str, Any]:
    """Processor or GPU, core count, versions and commit."""
    return {
        "device": device_name(device),
        "num_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),  # to run on
        "python": platform.python_version(),
        "torch": torch.__version__,
        "ffstream": ffstream.__version__,
        "commit": _commit(),
    }


def _commit() -> str:
    """The commit, marked when anything but the results differs from it."""
    here = Path(__file__).parent
    revision = _git("rev-parse", "--short", "HEAD", cwd=here)
    written = [f":(exclude,top)benchmarks/{name}" for name in ("results", "reliability")]
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ":/", *written, cwd=here)
    return (revision or "unknown") + ("-dirty" if changed else "")


def _git(*arguments: str, cwd: Path) -> str:
    return subprocess.run(["git", *arguments], cwd=cwd, capture_output=True, text=True, check=False).stdout.strip()
