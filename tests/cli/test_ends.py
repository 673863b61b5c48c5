"""Ends of a command: by a signal, by words that do not parse, or before there is a command line; each is one line."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ffstream as ff
from tests.cli.odd_names import NAMES
from tests.helpers import run_cli, run_process
from tests.warm import run_python

STOPPED = '''
import importlib, os, signal, sys
from ffstream import cli
number = getattr(signal, sys.argv.pop())
if number == getattr(signal, "SIGHUP", None):
    signal.signal(number, signal.SIG_DFL)  # what started the tests may ignore it
def stop(*_, **__):
    os.kill(os.getpid(), number)
    raise RuntimeError("nothing has stopped this")
places = """
ffstream.infer.committed:CommittedLayers.count_usable ffstream.run.run:read_layer_figures
ffstream.infer.model:save_tensors ffstream.studies.offline:save_tensors ffstream.studies.memory_profile:_measure_apart
"""
for place in places.split():
    module, _, path = place.partition(":")
    owner, _, name = path.rpartition(".")
    target = importlib.import_module(module)
    target = getattr(target, owner) if owner else target
    assert hasattr(target, name)
    setattr(target, name, stop)
cli.main()
'''


@pytest.mark.parametrize(
    ("command", "left"),
    [
        (["evaluate", "RUN", "--split", "validation"], "evaluate was not finished: nothing was written"),
        (["inspect", "RUN"], "inspect was not finished: nothing was written"),
        (["predict", "RUN", "IMAGES", "--output", "out.csv"], "predict was not finished: out.csv was not written"),
        (["predict", "RUN", "IMAGES"], "predict was not finished: nothing was written"),
        (["export", "RUN", "out.safetensors"], "export was not finished: out.safetensors was not written"),
        (
            ["negatives", "n.safetensors", "--per-sample", "1"],
            "negatives was not finished: n.safetensors was not written",
        ),
        (["profile", "--output", "p"], "profile was not finished: the points that are measured are kept"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_signal_is_one_line_that_says_what_is_left(command, left, run, tmp_path):
    signal, code = {"inspect": ("SIGINT", 130), "profile": ("SIGHUP", 129)}.get(command[0], ("SIGTERM", 143))
    words = {"RUN": str(run.path), "IMAGES": str(Path(run.config.data) / NAMES[0])}
    command = [words.get(word, word) for word in command]
    done = run_python("-c", STOPPED, *command, signal, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert f"stopped by {signal}; {left}" in done.stderr
    assert {path.name for path in tmp_path.rglob("*")} <= {"p", "lock"}


def test_options_that_do_not_parse_are_one_line(tmp_path):
    for command in (["train", "--layers", "x"], ["trian"], ["export"], ["inspect", "--bogus\x1b[31m", "run"]):
        done = run_process(*command, cwd=tmp_path)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert "--help" in done.stderr
        assert "\x1b" not in done.stderr
    assert run_process(cwd=tmp_path).returncode == 2
    assert json.loads(run_process("recipes", "--json", cwd=tmp_path).stdout)


@pytest.mark.parametrize("arguments", [["recipes"], ["inspect", "run"]])
def test_a_current_folder_that_is_gone_is_said_in_one_line(arguments, tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    code = "import os, sys; os.rmdir(os.getcwd()); from ffstream.entry import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=gone, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("ffstream: the current folder cannot be used")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_an_interrupt_before_the_command_line_is_there_is_one_line(tmp_path):
    code = (
        "import os, signal, sys\n"
        "class Interrupting:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'ffstream.cli':\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupting())\n"
        "from ffstream.entry import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code, "recipes"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr, done.stdout) == (130, "ffstream: interrupted\n", "")


def test_the_backend_that_a_notebook_hands_on_does_not_matter(run, tmp_path):
    backend = "module://matplotlib_inline.backend_inline"
    done = run_process("plot", run.path, cwd=tmp_path, environment=os.environ | {"MPLBACKEND": backend})
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "errors.png").exists()


@pytest.mark.parametrize(
    "command", [["inspect", ""], ["train", "--run-dir="], ["predict", "run", ""], ["plot", "a", ""]]
)
def test_an_empty_word_is_no_current_folder(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run_process(*command, cwd=tmp_path)
    assert done.returncode == 2
    assert "is empty, allowed a value" in done.stderr
    for call in (lambda: ff.Run(""), lambda: ff.train(ff.Config(layers=1), ""), lambda: ff.load("")):
        with pytest.raises(ff.ConfigError, match="path '': is empty"):
            call()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["inspect", "evaluate", "resume", "repair", "clean"])
def test_a_file_in_place_of_a_run_is_called_a_file(command, tmp_path):
    (tmp_path / "net").write_text("")
    _, _, error = run_cli(command, tmp_path / "net")
    assert re.search("net: is a file, allowed", str(error))


def test_a_library_that_cannot_be_loaded_is_one_line(tmp_path):
    code = (
        "import sys\n"
        "class Failing:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'ffstream.field.catalogue':\n"
        "            raise ImportError('libtorch_cpu.so: failed to map segment from shared object')\n"
        "sys.meta_path.insert(0, Failing())\n"
        "from ffstream.entry import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code, "recipes"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("ffstream: a library cannot be loaded (libtorch_cpu.so")
    assert done.stderr.count("\n") == 1


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs")
def test_what_lies_in_the_current_folder_does_not_decide_a_picture(run, tmp_path):
    pytest.importorskip("matplotlib")
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\n")
    assert run_process("plot", run.path, cwd=tmp_path).returncode == 0
    (tmp_path / "matplotlibrc").unlink()
    os.mkfifo(tmp_path / "matplotlibrc")
    done = run_process("plot", run.path, "--force", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("ffstream: matplotlibrc: in the current folder, is no regular file")
    assert done.stderr.count("\n") == 1
