"""Every command that README shows and every example runs; the commands of the CLI are all in README."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.helpers import run_cli

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))

# What a reader runs for minutes is run here for seconds: the same command on little data and few layers.
SMALLER = {"--layers": "2", "--width": "16", "--epochs": "1", "--data": None, "--data-root": None, "--device": "cpu"}
SMALLER |= {"--depths": "2"}  # of a profile, whose every point is a process


def readme_commands():
    blocks = re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.partition("#")[0].strip() for line in lines if line.strip().startswith("ffstream ")]


def make_smaller(command, data):
    """Replace the options that make a command long; a train command without them gets them."""
    words = shlex.split(command)
    for option, value in SMALLER.items():
        if option in words:
            words[words.index(option) + 1] = value or str(data)
    if words[1] == "train":
        for option in ("--width", "--epochs"):
            words += [] if option in words else [option, SMALLER[option]]
    if "network.kind=local" in words:
        words[words.index("--width") + 1] = "144"  # the smallest that has its grids
    if words[1] == "resume" and "--layers" in words:
        words[words.index("--layers") + 1] = "3"
    return words


def test_readme_commands_run_one_after_another(tmp_path, small_data, monkeypatch):
    commands = readme_commands()
    assert len(commands) >= 8
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    (tmp_path / "images").mkdir()  # to predict: of the size of `small_data`
    Image.new("L", (8, 8)).save(tmp_path / "images" / "black.png")
    monkeypatch.chdir(tmp_path)
    for command in commands:
        code, output, error = run_cli(*make_smaller(command, small_data)[1:])
        assert code == 0, f"{command}\n{output}\n{error}"


def test_readme_python_runs(tmp_path, monkeypatch, small_data):
    (block,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    smaller = block.replace('data="mnist"', f"data={str(small_data)!r}").replace(
        "layers=40, width=500", "layers=2, width=16"
    )
    assert smaller != block
    done = subprocess.run([sys.executable, "-c", smaller], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", EXAMPLES, ids=[path.stem for path in EXAMPLES])
def test_example_runs(path, tmp_path):
    environment = os.environ | {"MPLBACKEND": "Agg"}
    done = subprocess.run(
        [sys.executable, path], cwd=tmp_path, capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert "%" in done.stdout


def test_readme_shows_every_command_and_make_target():
    from ffstream.cli import app

    for command in app.registered_commands:
        assert f"ffstream {command.callback.__name__}" in README
    for target in ("make demo", "make test", "make bench"):
        assert target in README
