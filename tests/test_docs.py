"""Every command that documents show runs, and every example; all commands are shown, and links lead somewhere."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from tests.helpers import run_cli, run_process
from tests.warm import run_python

ROOT = Path(__file__).parent.parent
README, GUIDE, EXTENDING = ROOT / "README.md", ROOT / "docs" / "guide.md", ROOT / "docs" / "extending.md"
DOCUMENTS = (
    sorted(path for path in ROOT.glob("*.md"))
    + sorted((ROOT / "docs").rglob("*.md"))
    + sorted((ROOT / "benchmarks").rglob("*.md"))
)
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
MOST_ERROR = 45  # % of test digits that an example takes for another one; by chance it would be 90
MOST_BYTES = {"README.md": 6000, "docs/architecture.md": 8000}

# What a reader runs for minutes is run here for seconds: the same command on little data and few layers.
SMALLER = {"--layers": "2", "--width": "16", "--epochs": "1", "--data": None, "--data-root": None, "--device": "cpu"}
SMALLER |= {"--depths": "2", "--windows": "1", "--replays": "1"}


def shown_commands(document):
    blocks = re.findall(r"```sh\n(.*?)```", document.read_text(), flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.partition("  #")[0].strip() for line in lines if line.strip().startswith("ffstream ")]


def shown_python(document):
    return re.findall(r"```python\n(.*?)```", document.read_text(), flags=re.DOTALL)


def make_smaller(command, data):
    """Replace the options that make a command long; a train command without them gets them."""
    words = shlex.split(command)
    for option, value in SMALLER.items():
        if option in words:
            words[words.index(option) + 1] = value or str(data)
    if words[1] == "train":
        is_listed = "--network" in words or "conv" in words  # which says how many layers there are, and how wide
        for option in ("--epochs",) if is_listed else ("--width", "--epochs", "--layers"):
            words += [] if option in words else [option, SMALLER[option]]
    if "network.kind=local" in words:
        words[words.index("--width") + 1] = "144"  # the smallest that has its grids
    if words[1] == "profile":  # every point is a process, and its own tests measure the others
        words += ["--methods", "ffstream,backprop"]
    if words[1] == "resume" and "--layers" in words:
        words[words.index("--layers") + 1] = "3"
    return words


@pytest.mark.parametrize("document", [README, GUIDE], ids=lambda path: path.name)
def test_shown_commands_run_one_after_another(document, tmp_path, small_data, monkeypatch):
    commands = shown_commands(document)
    assert len(commands) >= 5
    (tmp_path / "images").mkdir()  # to predict: of the size of `small_data`
    Image.new("L", (8, 8)).save(tmp_path / "images" / "black.png")
    monkeypatch.chdir(tmp_path)
    for command in commands:
        code, output, error = run_cli(*make_smaller(command, small_data)[1:])
        assert code == ("--samples 1000000000" in command), f"{command}\n{output}\n{error}"  # which does not fit


@pytest.mark.parametrize("document", [README, GUIDE], ids=lambda path: path.name)
def test_shown_python_runs(document, tmp_path, monkeypatch, small_data):
    (block,) = shown_python(document)
    smaller = re.sub(r'data="\w+"', lambda _: f"data={str(small_data)!r}", block)
    smaller = smaller.replace("layers=40, width=512", "layers=2, width=16")
    assert str(small_data) in smaller
    assert "40" not in smaller
    done = run_python("-c", smaller, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_part_that_is_shown_trains(tmp_path, small_data):
    """A module of a reader's own, by the commands that stand beside it."""
    part, check = shown_python(EXTENDING)
    (tmp_path / "my_parts.py").write_text(part)
    for command in shown_commands(EXTENDING):
        done = run_process(*make_smaller(command, small_data)[1:], cwd=tmp_path)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
    done = run_python("-c", check, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_what_is_there(document):
    text = re.sub(r"```.*?```", "", document.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        path = document.parent / name if name else document
        assert path.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", path.read_text(), flags=re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", each).strip().lower().replace(" ", "-") for each in headings}


def test_documents_are_as_short_as_they_mean_to_be():
    for name, most in MOST_BYTES.items():
        assert (ROOT / name).stat().st_size <= most, name


@pytest.mark.parametrize("path", EXAMPLES, ids=[path.stem for path in EXAMPLES])
def test_example_runs(path, tmp_path):
    done = run_python(path, cwd=tmp_path, environment=os.environ | {"MPLBACKEND": "Agg"})
    assert done.returncode == 0, done.stderr
    assert "%" in done.stdout
    for error in re.findall(r"test error: ([\d.]+) %", done.stdout):
        assert float(error) < MOST_ERROR


def test_every_command_and_make_target_is_shown():
    from ffstream.cli import app

    shown = README.read_text() + GUIDE.read_text()
    for command in app.registered_commands:
        assert f"ffstream {command.callback.__name__}" in shown
    for target in ("make demo", "make test"):
        assert target in shown
