"""Names of paths, classes and parts: they are shown as they are, and obeyed by nobody."""

from __future__ import annotations

import io
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

import ffstream as ff
from ffstream.cli.reporting import BarObserver, PlainObserver
from ffstream.cli.tables import catalogue_tables, confusion_report
from ffstream.errors import OutputError, printable, to_command
from ffstream.field.catalogue import read_catalogue
from ffstream.studies.charts import draw_errors, draw_profile
from ffstream.studies.memory_profile import Point, Profile, ProfileSettings
from ffstream.training.observer import Observer, RunOutline
from tests.cli.odd_names import NAMES
from tests.helpers import run_cli
from tests.warm import run_python


@given(st.text())
def test_what_is_printable_is_one_line_and_stays_as_it_is(text):
    shown = printable(text)
    assert shown.isprintable()
    assert printable(shown) == shown
    assert (shown == text) is text.isprintable()
    assert str(ff.FFStreamError(text)) == shown


@pytest.mark.parametrize(
    "name", ["run", "a b", "$HOME", "it's", "-dash", "~", "new\nline", "caf\udce9", "\x1b[31m", "a\\b\n"]
)
def test_a_command_that_is_told_can_be_pasted_whatever_the_path(name, tmp_path):
    code = "import os, sys; sys.stdout.buffer.write(os.fsencode(os.path.relpath(sys.argv[2])))"
    words = to_command("evaluate", name)
    assert words.isprintable()
    script = f'ffstream() {{ {shlex.quote(sys.executable)} -c {shlex.quote(code)} "$@"; }}; {words}'
    found = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, check=True)
    assert os.fsdecode(found.stdout) == name


def start_without_a_home(*command, cwd):
    """A process whose user has neither a home nor an entry in the list of users."""
    code = "import pwd, sys; pwd.getpwuid = {}.__getitem__; from ffstream.cli import main; main()"
    environment = {key: value for key, value in os.environ.items() if key not in ("HOME", "XDG_CACHE_HOME")}
    return run_python("-c", code, *command, cwd=cwd, environment=environment)


def test_nobody_needs_a_home(tmp_path):
    settings = ["--layers", "2", "--width", "8", "--epochs", "1", "--device", "cpu"]
    done = start_without_a_home("train", *settings, "--run-dir", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = start_without_a_home("train", *settings, "--data", "mnist", "--run-dir", "other", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("ffstream: data mnist: found no home folder")
    assert "--data-root" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_names_are_shown_by_every_command_and_obeyed_by_none(run, tmp_path):
    images = str(Path(run.config.data) / NAMES[0])
    commands = [["inspect", run.path, "--verify"], ["evaluate", run.path, "--split", "validation"]]
    commands += [["predict", run.path, images], ["resume", run.path, "--layers", "2"], ["repair", run.path]]
    commands += [["export", run.path, tmp_path / "a\x1b.safetensors"], ["predict", run.path, tmp_path / "no\x1b[31m"]]
    commands += [["evaluate", run.path, "--split", "validation", "--json"], ["predict", run.path, images, "--json"]]
    for command in commands:
        code, output, error = run_cli(*command)
        assert error is None or (code == 1 and isinstance(error, ff.DataError))
        assert all(character.isprintable() or character == "\n" for character in output), command
        assert printable(str(error)) == str(error)


def test_classes_are_shown_letter_by_letter(run):
    found = run.evaluate(split="validation")
    for width in (200, 40):  # a matrix, and the pairs that are confused
        text = io.StringIO()
        console = Console(file=text, width=200)
        for part in confusion_report(found, width):
            console.print(part)  # whatever the console makes of markup
        shown = [printable(name) for name in NAMES if printable(name) in text.getvalue()]
        assert len(shown) == len(NAMES) or width == 40
        assert all(name in text.getvalue() for name in ("[bold]", ":cat:") if printable(name) in shown)
        assert "\x1b" not in text.getvalue()


@pytest.mark.parametrize("observer", [PlainObserver, BarObserver])
def test_a_run_that_is_shown_may_have_any_name(observer):
    text = io.StringIO()
    shown: Observer = observer(Console(file=text, force_terminal=observer is BarObserver, width=300))
    shown.on_start(RunOutline("runs/[/]:cat:\x1b[31m", 1, 0, 10, 1, (5,), True, "cpu", 1, 2))
    shown.on_step("[/]\x1b[31m")
    shown.on_warning("file [/]\x1b[31m")
    shown.on_stop()
    assert "runs/[/]:cat:\\x1b[31m" in text.getvalue()
    assert "warning: file [/]\\x1b[31m" in text.getvalue()
    assert "\x1b[31m" not in text.getvalue()


def test_what_others_have_registered_is_shown_as_they_call_it():
    catalogue = read_catalogue()
    catalogue.recipes["[/]"] = ("[red]\x1b:cat:", {"data": "[/]"})
    text = io.StringIO()
    for table in catalogue_tables(catalogue):
        Console(file=text, width=200).print(table)
    assert "[red]\\x1b:cat:" in text.getvalue()
    assert "data=[/]" in text.getvalue()


def test_pictures_are_drawn_of_runs_of_any_name(tmp_path):
    pytest.importorskip("matplotlib")
    draw_errors({name: [0.2, 0.1] for name in [*NAMES, "_hidden", "漢", "\udcff"]}, "error", tmp_path / "a.png")
    settings = ProfileSettings(width=1, batch=1, micro_batch=1, device="cpu", precision="fp32")
    draw_profile(Profile(settings, {}, [Point("ffstream", 1, 1, 1, 1.0)]), tmp_path / "b.png")
    with pytest.raises(OutputError, match="--force"):
        draw_errors({"a": [0.1]}, "error", tmp_path / "b.png")
    draw_errors({"a": [0.1]}, "error", tmp_path / "a.png")


@pytest.mark.parametrize("name", ["out.pdf", "out.png.txt"])
def test_a_picture_has_the_name_of_one(name, run, tmp_path):
    pytest.importorskip("matplotlib")
    assert "allowed a name that ends in .png" in str(run_cli("plot", run.path, "--output", tmp_path / name)[2])
