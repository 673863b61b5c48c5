"""Runs in processes of their own: killed, signalled, and two of them at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import ffstream as ff
from tests.helpers import layer_digests, run_process


def start(*arguments, cwd):
    """A long run in a real process."""
    command = [sys.executable, "-m", "ffstream", "train", "--layers", "30", "--width", "64", "--epochs", "4"]
    return subprocess.Popen(
        [*command, "--device", "cpu", *map(str, arguments)],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        # A shell that runs the tests in the background has its children ignore SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_for(condition, process):
    for _ in range(6000):
        if condition():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    raise AssertionError("the run did not get there within a minute")


@pytest.mark.parametrize("tier", ["host", "disk"])
def test_killed_in_mid_layer_a_run_resumes_bitwise(tier, tmp_path):
    process = start("--run-dir", "run", "--cache", tier, cwd=tmp_path)
    wait_for((tmp_path / "run/layers/001/manifest.json").exists, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = ff.Run(tmp_path / "run").num_layers_done
    assert 2 <= done < 30
    # The same, to a depth that is soon reached: what a layer learns does not depend on how many follow.
    config = ff.Run(tmp_path / "run").config.override({"layers": done + 2})
    (tmp_path / "run/config.toml").write_text(config.to_toml())
    result = run_process("resume", "run", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    torch.set_num_threads(1)
    whole = ff.train(config, tmp_path / "whole")
    assert layer_digests(tmp_path / "run") == layer_digests(whole.path)


def test_a_second_process_on_one_run_is_refused_while_the_first_lives(tmp_path):
    process = start("--run-dir", "run", cwd=tmp_path)
    wait_for((tmp_path / "run/layers/000/manifest.json").exists, process)
    result = run_process("resume", "run", cwd=tmp_path)
    assert result.returncode == 1
    assert f"in use by process {process.pid}" in result.stderr
    assert run_process("inspect", "run", cwd=tmp_path).returncode == 0
    process.kill()
    process.wait()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_run_with_the_command_that_resumes(number, tmp_path):
    process = start("--run-dir", "run", cwd=tmp_path)
    wait_for((tmp_path / "run/layers/000/manifest.json").exists, process)
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == (143 if number == signal.SIGTERM else 130), output
    assert "Go on with: ffstream resume run" in errors
    assert "Traceback" not in errors
    assert not list((tmp_path / "run").rglob(".tmp-*"))
    assert Path(tmp_path / "run/layers/000/manifest.json").exists()


@pytest.mark.parametrize("name", ["é" * 200, "a/" * 3000 + "b"])
@pytest.mark.parametrize("command", [["train", "--layers", "2", "--run-dir"], ["inspect"], ["plot"]])
def test_a_name_that_no_folder_can_have_is_refused_in_one_line(command, name, tmp_path):
    found = subprocess.run(
        [sys.executable, "-m", "ffstream", *command, name], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert found.returncode == 1
    last = found.stderr.splitlines()[-1]
    assert last.startswith("ffstream: ")
    assert "File name too long" in last
    assert "Traceback" not in found.stderr
    assert not list(tmp_path.iterdir())
