"""Outputs: never in place of what somebody else wrote, whole or not at all, and nothing is left of killed processes."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import ffstream as ff
from ffstream.errors import OutputError
from ffstream.storage import outputs
from ffstream.storage.outputs import Output
from ffstream.storage.run_names import find_run, is_run
from tests.helpers import run_cli


def own(file):
    return file.read() == b"ours"


@pytest.fixture
def run(tmp_path):
    """A folder that says that it is a run, with two of its files."""
    path = tmp_path / "run"
    (path / "layers" / "000").mkdir(parents=True)
    (path / "config.toml").write_text("# sha256 00\nlayers = 1\n")
    (path / "layers" / "000" / "weights.safetensors").write_bytes(b"weights")
    return path


def state_below(folder):
    """What writing below a folder would change; the time of the last reading, which looking changes, is left out."""
    found = {each: each.lstat() for each in folder.rglob("*")}
    return {each: (at.st_ino, at.st_mode, at.st_nlink, at.st_size, at.st_mtime_ns) for each, at in found.items()}


def refused(path, *inputs, **options):
    """Why a path is refused, in one line that names it; nothing is changed by that."""
    before = state_below(Path(path).parent)
    with pytest.raises(OutputError) as caught:
        Output(path, inputs, **options).write(b"new")
    assert state_below(Path(path).parent) == before
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- what may be there


def test_a_new_file_is_written_with_the_folders_above_it(tmp_path):
    Output(tmp_path / "a" / "b" / "file").write(b"new")
    assert (tmp_path / "a" / "b" / "file").read_bytes() == b"new"
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["file"]


def test_another_file_is_replaced_by_force_alone(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"theirs")
    assert "--force" in refused(path, is_own=own)
    Output(path, force=True).write(b"new")
    assert path.read_bytes() == b"new"


def test_an_own_earlier_output_is_replaced(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"ours")
    Output(path, is_own=own).write(b"new")
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o755])
def test_what_is_there_keeps_its_permissions(mode, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"ours")
    path.chmod(mode)
    Output(path, is_own=own).write(b"new")
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_a_new_file_has_the_permissions_that_any_has(tmp_path):
    (tmp_path / "any").write_bytes(b"")
    Output(tmp_path / "file").write(b"new")
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "any").stat().st_mode


def make_folder(path):
    path.mkdir()


KINDS = {"a folder": make_folder, "a FIFO": os.mkfifo}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_regular_file_is_never_replaced(kind, tmp_path):
    KINDS[kind](tmp_path / "it")
    assert kind in refused(tmp_path / "it", force=True, is_own=lambda _: True)


def test_a_device_is_refused():
    with pytest.raises(OutputError, match="is a device"):
        Output("/dev/null", force=True)


@pytest.mark.parametrize("name", ["a" * 300, "a\0b", "file/below"])
def test_names_that_no_file_can_have_are_refused(name, tmp_path):
    (tmp_path / "file").write_bytes(b"theirs")
    with pytest.raises(OutputError, match=r"^output "):
        Output(tmp_path / name, force=True)


def test_a_loop_of_links_is_refused(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    refused(tmp_path / "a", force=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_folder_that_cannot_be_written_is_said_before_any_work(tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(OutputError, match="cannot be written"):
        Output(tmp_path / "closed" / "file")


def test_the_rules_are_asked_again_when_the_file_gets_its_name(tmp_path):
    path = tmp_path / "file"
    output = Output(path, is_own=own)
    with pytest.raises(OutputError, match="there already"), output.writing() as file:
        file.write(b"new")
        path.write_bytes(b"theirs")  # of somebody, meanwhile
    assert path.read_bytes() == b"theirs"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_identical_bytes_are_no_loss(tmp_path):
    path = tmp_path / "file"
    with Output(path).writing() as file:
        file.write(b"new")
        path.write_bytes(b"new")
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


# --- inputs


def test_an_input_is_never_replaced_under_any_of_its_names(tmp_path):
    source = tmp_path / "source"
    source.write_bytes(b"ours")
    (tmp_path / "linked").symlink_to(source)
    (tmp_path / "same").hardlink_to(source)
    for name in ("source", "linked", "same", "../" + tmp_path.name + "/source"):
        for given in (source, tmp_path / "linked"):
            assert "is an input" in refused(tmp_path / name, given, force=True, is_own=own)


def test_files_below_an_input_folder_are_inputs_however_they_are_reached(tmp_path):
    folder = tmp_path / "images"
    (folder / "below").mkdir(parents=True)
    (folder / "below" / "a.png").write_bytes(b"a")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "b.png").write_bytes(b"b")
    (folder / "more").symlink_to(tmp_path / "elsewhere")
    (folder / "more" / "back").symlink_to(folder)  # a loop
    for name in ("images/below/a.png", "elsewhere/b.png"):
        assert "a file of the input" in refused(tmp_path / name, folder, force=True)


def test_beside_the_files_of_an_input_folder_an_output_may_lie_and_be_replaced(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"a")
    for content in (b"ours", b"new"):
        Output(tmp_path / "images" / "found.csv", [tmp_path / "images"], is_own=own).write(content)
    assert (tmp_path / "images" / "found.csv").read_bytes() == b"new"


def test_inputs_that_are_not_there_do_not_count(tmp_path):
    Output(tmp_path / "file", ["digits", tmp_path / "absent", "a" * 5000]).write(b"new")


# --- runs


NAMES = """
run.json environment.json config.toml data.json validation.safetensors metrics.jsonl lock lock.json layers/000
layers/000/manifest.json layers/007/x progress/x cache/x readout/weights.safetensors damaged-1/x .tmp-x
""".split()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("force", [False, True])
def test_no_name_that_a_run_uses_is_written_whether_it_is_there_or_not(name, force, run):
    assert "is a file of the run" in refused(run / name, force=force, is_own=lambda _: True)


def test_links_into_a_run_are_followed_before_they_are_judged(run, tmp_path):
    (tmp_path / "file").symlink_to(run / "layers" / "000" / "weights.safetensors")
    (tmp_path / "folder").symlink_to(run / "layers")
    (tmp_path / "dangling").symlink_to(run / "data.json")
    for name in ("file", "folder/000/new", "dangling"):
        assert "is a file of the run" in refused(tmp_path / name, force=True)


def test_hard_links_to_the_files_of_a_run_that_is_an_input_are_refused(run, tmp_path):
    (tmp_path / "same").hardlink_to(run / "layers" / "000" / "weights.safetensors")
    assert "a file of the input" in refused(tmp_path / "same", run, force=True)


def test_other_names_in_a_run_are_free(run):
    for content in (b"ours", b"new"):
        Output(run / "exported.safetensors", [run], is_own=own).write(content)
    assert find_run(run / "exported.safetensors") is None


def test_the_caches_of_a_run_on_another_disk_are_its_files(tmp_path):
    folder = tmp_path / "ffstream-0123456789abcdef" / "000-train"
    folder.mkdir(parents=True)
    refused(folder / "shard-00000.safetensors", force=True)


@pytest.mark.parametrize(
    ("name", "content", "wanted"),
    [
        ("run.json", '{"format": "ffstream run 1"}', True),
        ("run.json", '{"format": "ffstream run 9", "more": 1}', True),
        ("run.json", '{"format": "other"}', False),
        ("run.json", "[" * 100_000, False),
        ("run.json", '{"format": ', False),
        ("config.toml", "# sha256 00\n", True),
        ("config.toml", "layers = 1\n", False),
    ],
)
def test_a_run_is_known_by_what_it_says_of_itself(name, content, wanted, tmp_path):
    (tmp_path / name).write_text(content)
    assert is_run(tmp_path) is wanted


# --- whole or not at all


def test_what_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"ours")
    with pytest.raises(ZeroDivisionError), Output(path, is_own=own).writing() as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert path.read_bytes() == b"ours"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_is_one_line_that_names_the_output(tmp_path, monkeypatch):
    def no_room(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(outputs.os, "fsync", no_room)
    with pytest.raises(ff.StorageError, match=r"file: No space left on device; free space or mend"):
        Output(tmp_path / "file").write(b"new")
    assert not list(tmp_path.iterdir())


KILLED = """
import os, signal, sys
from ffstream.storage.outputs import Output
with Output(sys.argv[1]).writing() as file:
    file.write(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_left_goes_at_the_next_output_and_nothing_else_does(tmp_path):
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "file")], check=False)
    (left,) = tmp_path.iterdir()
    assert re.fullmatch(r"\.ffstream-\d+-\d+-[0-9a-f]{8}-[0-9a-f]{8}", left.name)
    others = [f".ffstream-1-{'0' * 8}-{'0' * 8}", ".ffstream-mine", f"{left.name}x", left.name[:-8] + "ffffffff"]
    for name in others[:3]:
        (tmp_path / name).write_bytes(b"theirs")
    (tmp_path / others[3]).symlink_to(tmp_path / others[1])
    with Output(tmp_path / "other").writing() as file:
        file.write(b"new")
        assert len(list(tmp_path.iterdir())) == len(others) + 1  # and the one that is being written
        Output(tmp_path / "another").write(b"new")  # which does not take that one for left over
    assert {each.name for each in tmp_path.iterdir()} == {*others, "other", "another"}


def test_the_home_of_a_profile_is_expanded_before_anything_is_looked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "home" / "p").mkdir(parents=True)
    (tmp_path / "home" / "p" / "profile.json").write_text('{"my": "precious"}')
    options = ["--depths", "1", "--width", "16", "--batch", "32", "--methods", "resident", "--device", "cpu"]
    code, _, error = run_cli("profile", "--output", "~/p", *options)
    assert code == 1, error
    assert (tmp_path / "home" / "p" / "profile.json").read_text() == '{"my": "precious"}'
    assert {path.name for path in tmp_path.iterdir()} == {"home"}
