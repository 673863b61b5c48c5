"""A part of `make torture`: a run is killed, starved and cut off from power at some of its changes to files."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.torture.work import WORKLOADS


@pytest.mark.skipif(sys.platform != "linux", reason="needs LD_PRELOAD")
@pytest.mark.parametrize("names", ["disk", ",".join(name for name in WORKLOADS if name != "disk")])
def test_no_error_is_silent(names):
    command = [sys.executable, "-m", "tests.torture", "--quick", "--workloads", names]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout[-5000:] + found.stderr[-5000:]
    assert "0 silent errors" in found.stdout
