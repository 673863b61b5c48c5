"""What is read and shown as text: names obey nobody, numbers have an end, and every failure is one line."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shlex
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

import ffstream as ff
from ffstream.cli.reporting import BarObserver, PlainObserver
from ffstream.cli.streams import _RawStream
from ffstream.cli.tables import catalogue_tables, confusion_report
from ffstream.errors import OutputError, printable, to_command
from ffstream.field.catalogue import read_catalogue
from ffstream.ground.units import parse_integer
from ffstream.infer import predictions
from ffstream.infer.predictions import to_cell
from ffstream.studies.charts import draw_errors, draw_profile
from ffstream.studies.memory_profile import Point, Profile, ProfileSettings
from ffstream.training.observer import Observer, RunOutline
from tests.helpers import run_cli, run_process, write_pictures
from tests.warm import run_python

NAMES = ["=1+1", "[bold]", "[red]x", "\x1b[31mred\x1b[0m", ":cat:", "a\nb", "\u202eabc", "$\\frac"]
DIGITS = "1" * 5000


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Of classes whose folders are called so."""
    folder = tmp_path_factory.mktemp("odd") / "[" / "] da\x1bta"
    shades = np.random.default_rng(0).integers(0, 256, (len(NAMES), 8, 6, 6), dtype=np.uint8)
    write_pictures(folder, dict(zip(NAMES, shades, strict=True)), "={}.png")
    config = ff.Config(data=str(folder), layers=2, width=16, epochs=1, batch=16, device="cpu", validation_fraction=0.25)
    return ff.train(config, folder.parent / "run [/] \x1b:cat:é")


# --- names


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
    shown.on_start(RunOutline("runs/[/]:cat:\x1b[31m", 1, 0, 10, 1, 5, True, "cpu", 1, 2))
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


# --- spreadsheets


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("=1+1", "'=1+1"),
        ("@sum", "'@sum"),
        ("-cmd", "'-cmd"),
        ("+a", "'+a"),
        ("\t=1", "'\\t=1"),
        ("\rx", "'\\rx"),
        (" =1", "' =1"),
        ("\uff1d1", "'\uff1d1"),
        ("-1", "-1"),
        ("+1.5e3", "+1.5e3"),
        ("-1+1", "'-1+1"),
        ("-²", "'-²"),
        ("cat", "cat"),
        ("a=b", "a=b"),
        ("a\nb\x1b", "a\\nb\\x1b"),
    ],
)
def test_no_name_is_a_formula(text, cell):
    assert to_cell(text) == cell


def test_no_cell_of_predictions_is_a_formula(run, tmp_path, monkeypatch):
    monkeypatch.chdir(Path(run.config.data) / NAMES[0])
    code, output, error = run_cli("predict", run.path, "=0.png", "=1.png", "--output", tmp_path / "a.csv")
    assert (code, error) == (0, None), output
    rows = list(csv.DictReader(io.StringIO((tmp_path / "a.csv").read_text())))
    assert [row["image"] for row in rows] == ["'=0.png", "'=1.png"]
    assert {row["label"] for row in rows} <= {to_cell(name) for name in NAMES}


# --- what predictions are written over


def test_predictions_of_the_same_images_are_replaced_and_others_by_force_alone(run, tmp_path):
    image, other = (Path(run.config.data) / NAMES[1] / f"={number}.png" for number in range(2))
    for name in ("a.csv", "a.json"):
        command = ["predict", run.path, image, "--output", tmp_path / name]
        for _ in range(2):
            assert run_cli(*command)[0] == 0
        for changed in ([*command, other], [*command, "--force", other], command):
            code, _, error = run_cli(*changed)
            assert (code == 0) is ("--force" in changed), error
        (tmp_path / name).write_text("image,theirs\n" if name == "a.csv" else "[]")
        assert isinstance(run_cli(*command)[2], OutputError)
        assert run_cli(*command, "--force")[0] == 0


@pytest.mark.parametrize("name", ["x.csv", "x.json"])
def test_predictions_are_never_written_onto_what_is_predicted(name, run, tmp_path):
    image = tmp_path / "image.png"
    Image.new("L", (6, 6)).save(image)
    (tmp_path / name).symlink_to(image)
    assert "is an input" in str(run_cli("predict", run.path, image, "--output", tmp_path / name, "--force")[2])


# --- numbers


@pytest.mark.parametrize("text", ["", "-", "--5", "²", "٣", "1.5", "1_000", "0x10", "1 2", "nan"])
def test_what_is_no_whole_number_is_none(text):
    assert parse_integer(text) is None


def test_whole_numbers_are_read_and_those_of_many_digits_refused():
    assert [parse_integer(text) for text in ("12", "-12", "+3", " 4 ")] == [12, -12, 3, 4]
    with pytest.raises(ValueError, match="has 5,000 digits"):
        parse_integer(DIGITS)


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--negatives-per-sample=²"],
        ["train", "--negatives-per-sample=--5"],
        ["train", f"--negatives-per-sample={DIGITS}"],
        ["train", "--set", f"seed={DIGITS}"],
        ["train", "--set", f"seed=0x{DIGITS}"],
        ["train", "--set", f"seed=[{DIGITS}]"],
        ["train", "--set", "seed=" + "[" * 5000],
        ["train", "--set", f"objective.scale={DIGITS}.0"],
        ["train", "--budget", f"{DIGITS}GiB"],
        ["train", "--budget", "²GiB"],
        ["profile", "--depths", "²"],
        ["profile", "--depths", DIGITS],
        ["plan", "--machine", f"device={DIGITS}GiB,30TFLOP/s;h2d=12GB/s;host=32GiB;disk=1TiB,3GB/s"],
    ],
    ids=lambda arguments: " ".join(arguments)[:40],
)
def test_numbers_that_are_none_or_have_no_end_are_users_errors(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, error = run_cli(*arguments)
    assert code == 1
    assert isinstance(error, ff.ConfigError), error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "text", [f"seed = {DIGITS}", f"seed = 0x{DIGITS}", f"[network]\ntile_units = {DIGITS}", "\udcff"]
)
def test_so_are_those_of_a_file(text, tmp_path):
    (tmp_path / "a.toml").write_text(text, errors="surrogateescape")
    code, _, error = run_cli("train", "--config", tmp_path / "a.toml", "--run-dir", tmp_path / "run")
    assert code == 1
    assert isinstance(error, ff.ConfigError), error


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.mkdir(), lambda path: path.symlink_to("/dev/zero")])
def test_settings_are_read_from_regular_files_alone(make, tmp_path):
    make(tmp_path / "a.toml")
    code, _, error = run_cli("train", "--config", tmp_path / "a.toml")
    assert code == 1
    assert isinstance(error, ff.ConfigError)


def test_settings_of_no_plausible_size_are_not_read(tmp_path):
    with (tmp_path / "a.toml").open("wb") as file:
        file.truncate(1 << 40)
    assert isinstance(run_cli("train", "--config", tmp_path / "a.toml")[2], ff.ConfigError)


# --- what has no label


def test_an_image_that_leads_to_no_number_has_no_label(run, monkeypatch):
    images = torch.zeros(3, 6, 6)
    monkeypatch.setattr(
        predictions, "stream_goodness", lambda *_: iter([torch.tensor([[0.0] * 8, [float("nan")] * 8, [0.0] * 8])] * 2)
    )
    with pytest.raises(ff.DataError, match="image 1, counted from 0, gets scores that are not finite"):
        run.predict(images)
    images[2, 0, 0] = float("nan")
    with pytest.raises(ff.DataError, match="image 2, counted from 0, gets scores"):
        run.load().predict(images)


# --- streams


class Failing(io.RawIOBase):
    """A stream that takes some bytes and then fails."""

    def __init__(self, room, error):
        self.room, self.error, self.written = room, error, b""

    def writable(self):
        return True

    def write(self, data):
        if not self.room:
            raise self.error
        taken = bytes(data[: self.room])
        self.room -= len(taken)
        self.written += taken
        return len(taken)


def test_a_stream_fails_once_and_takes_everything_from_then_on():
    raw = Failing(5, OSError(28, "No space left on device"))
    stream = io.TextIOWrapper(io.BufferedWriter(_RawStream(raw, "standard output")))
    stream.write("0123456789")
    with pytest.raises(OutputError, match=r"standard output: cannot be written \(No space left on device\)"):
        stream.flush()
    for _ in range(3):
        stream.write("more" * 10_000)
        stream.flush()
    stream.close()
    assert raw.written == b"01234"


def test_the_main_thread_is_told_of_what_failed_in_another():
    stream = _RawStream(Failing(0, BrokenPipeError(32, "Broken pipe")), "standard output")
    thread = threading.Thread(target=lambda: stream.write(b"x"))
    thread.start()
    thread.join()
    with pytest.raises(OutputError, match="its reader has closed it"):
        stream.write(b"x")
    assert stream.write(b"x") == 1


def process(arguments, **options):
    command = [sys.executable, "-m", "ffstream", *map(str, arguments)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **options)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_output_is_one_line_and_no_full_disk(run):
    with open("/dev/full", "w") as full:  # noqa: PTH123 - a device
        done = process(["inspect", run.path], stdout=full)
        _, error = done.communicate()
    assert done.returncode == 1
    assert error.count("\n") == 1
    assert error.startswith("ffstream: standard output: cannot be written (No space left on device)")


def test_a_reader_that_is_gone_is_said(run):
    done = process(["inspect", run.path, "--json"], stdout=subprocess.PIPE)
    done.stdout.close()
    error = done.stderr.read()
    assert done.wait() == 1
    assert error.count("\n") == 1
    assert "standard output: its reader has closed it" in error


def test_an_encoding_that_lacks_a_character_does_not_matter(run, tmp_path):
    environment = os.environ | {"PYTHONIOENCODING": "ascii:strict"}
    done = process(["inspect", run.path], env=environment, stdout=subprocess.PIPE)
    output, error = done.communicate()
    assert done.returncode == 0, error
    assert "cat:\\xe9" in output
    done = process(["inspect", tmp_path / "漢é"], env=environment)
    _, error = done.communicate()
    assert done.returncode == 1
    assert error.count("\n") == 1
    assert "\\u6f22\\xe9" in error


# --- ends


STOPPED = '''
import importlib, os, signal, sys
from ffstream import cli
number = getattr(signal, sys.argv.pop())
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
    done = subprocess.run(
        [sys.executable, "-c", STOPPED, *command, signal], cwd=tmp_path, capture_output=True, text=True, check=False
    )
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


# --- before there is a command line


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


@pytest.mark.skipif(os.name != "posix", reason="asks a shell")
@pytest.mark.parametrize("command", ["recipes", "--version", "--help"])
def test_streams_that_are_closed_from_the_start(command, tmp_path):
    """Nobody would see what a command shows, so it fails; what is meant for standard error goes nowhere else."""
    start = f"{shlex.quote(sys.executable)} -m ffstream"
    done = subprocess.run(["sh", "-c", f"{start} {command} >&-"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "standard output: is closed" in done.stderr
    done = subprocess.run(["sh", "-c", f"{start} inspect nothing 2>&-"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")


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
