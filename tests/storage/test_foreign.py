"""Nothing that is not a run's is ever touched: not below it, not beside it, and not behind a link."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile

import pytest

import ffstream as ff
from ffstream.device import reservations
from ffstream.ground import folder
from ffstream.run.cleaning import clean_run
from ffstream.run.repair import put_aside
from tests.helpers import InterruptAt, check_resumed_equals, layer_digests


def snapshot(*folders):
    """Everything below some folders: links as such, files with their content."""
    found = {}
    for each in folders:
        for path in sorted(each.rglob("*")):
            if path.is_symlink():
                found[path] = f"-> {path.readlink()}"
            elif path.is_file():
                found[path] = path.read_bytes()
            else:
                found[path] = None
    return found


FOREIGN = {
    "a file": lambda path: path.write_text("mine"),
    "a folder": lambda path: path.mkdir(),
    "a link": lambda path: path.symlink_to("/dev/null"),
    "a broken link": lambda path: path.symlink_to("nowhere"),
    "a FIFO": lambda path: os.mkfifo(path),
}
NAMES = ["cache", "progress", "layers", "data.json", "run.json", "config.toml", "metrics.jsonl", "lock.json"]
NAMES += [
    "readout",
    "validation.safetensors",
    "environment.json",
    ".tmp-draft",
    "notes.txt",
    ".git",
    "damaged-1",
    "lock",
]


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind in FOREIGN for name in NAMES if not ("link" in kind and name == "cache")]
)
def test_a_folder_with_anything_of_somebodys_in_it_is_refused_and_left_as_it_is(kind, name, small_config, tmp_path):
    place = tmp_path / "folder"
    place.mkdir()
    FOREIGN[kind](place / name)
    before = snapshot(tmp_path)
    for resume in (False, True):
        with pytest.raises(ff.FFStreamError, match=r"folder") as caught:
            ff.train(small_config(layers=1, epochs=1), place, resume=resume)
        assert "\n" not in str(caught.value)
    for use in (ff.Run, ff.resume, ff.load):
        with pytest.raises(ff.FFStreamError):
            use(place)
    assert snapshot(tmp_path) == before


def test_a_project_keeps_its_cache_its_progress_and_its_drafts(small_config, tmp_path):
    project = tmp_path / "project"
    files = ["cache/npm/x", "cache/top", "progress/log", "src/.tmp-draft", "src/main.py", "data.json"]
    for name in files:
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text("mine")
    before = snapshot(project)
    with pytest.raises(ff.RunError, match="is neither empty nor a run .it holds cache, data.json, progress and 1 more"):
        ff.train(small_config(), project)
    assert snapshot(project) == before


@pytest.mark.parametrize("name", ["config.toml", "data.json", "run.json"])
def test_a_users_own_file_of_our_name_does_not_make_a_run(name, small_config, tmp_path):
    text = {"config.toml": "[tool]\nlayers = 3\n", "data.json": '{"a": 1}', "run.json": '{"format": "mine"}'}
    for each in text:
        (tmp_path / each).write_text(text[each])
    (tmp_path / name).unlink()
    before = snapshot(tmp_path)
    with pytest.raises(ff.RunError, match="neither empty nor a run"):
        ff.train(small_config(), tmp_path, resume=True)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("depth", ["missing", "missing/deeper/run", "empty"])
def test_a_refused_run_leaves_no_folder_and_no_lock(depth, small_config, tmp_path):
    (tmp_path / "empty").mkdir()
    before = snapshot(tmp_path)
    with pytest.raises(ff.FFStreamError):
        ff.train(small_config(data="nothing-of-that-name"), tmp_path / depth)
    with pytest.raises(ff.BudgetError):
        ff.train(small_config(memory__budget="1KiB"), tmp_path / depth)
    assert snapshot(tmp_path) == before


# --- caches elsewhere


@pytest.fixture
def scratch(tmp_path):
    """A larger disk, where others have folders too."""
    for name in ("thesis/a", "000-train/shard-00000.safetensors", "photos/.tmp-b", ".tmp-0123456789abcdef-01234567"):
        path = tmp_path / "scratch" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    return tmp_path / "scratch"


@pytest.mark.parametrize("how", ["link", "setting"])
def test_a_cache_on_another_disk_has_a_folder_of_its_own_there_and_others_are_left(
    how, scratch, small_config, tmp_path
):
    whole = ff.train(small_config(cache__tier="disk"), tmp_path / "whole").path
    before, run, settings = snapshot(scratch), tmp_path / "run", {}
    run.mkdir()
    if how == "link":
        (run / "cache").symlink_to(scratch)
    else:
        settings = {"cache__folder": str(scratch)}
    with pytest.raises(KeyboardInterrupt):
        ff.train(small_config(cache__tier="disk", **settings), run, observer=InterruptAt("on_epoch", 4))
    identity = ff.Run(run).directory.read_identity()
    shards = list((scratch / f"ffstream-{identity}").rglob("shard-*.safetensors"))
    assert len(shards) >= 4
    assert not list(run.rglob("shard-*"))
    ff.Run(run).verify()
    ff.resume(run)
    assert snapshot(scratch) == before
    assert layer_digests(run) == layer_digests(whole)
    assert (run / "cache").is_symlink() == (how == "link")


def test_a_cache_moves_with_resume_and_the_old_one_goes(scratch, small_config, tmp_path):
    whole = ff.train(small_config(cache__tier="disk"), tmp_path / "whole").path
    with pytest.raises(KeyboardInterrupt):
        ff.train(small_config(cache__tier="disk"), tmp_path / "run", observer=InterruptAt("on_epoch", 4))
    before = snapshot(scratch)
    with pytest.raises(KeyboardInterrupt):
        ff.resume(tmp_path / "run", cache_dir=str(scratch), observer=InterruptAt("on_epoch", 1))
    assert not (tmp_path / "run/cache").exists()
    assert list(scratch.glob("ffstream-*/*/shard-*"))
    ff.resume(tmp_path / "run")
    assert snapshot(scratch) == before
    check_resumed_equals(whole, tmp_path / "run")


def test_a_cache_folder_that_is_not_there_is_refused_before_anything_is_written(small_config, tmp_path):
    with pytest.raises(ff.StorageError, match=r"cache .*nowhere: is no folder; make it"):
        ff.train(small_config(cache__tier="disk", cache__folder=str(tmp_path / "nowhere")), tmp_path / "run")
    assert not list(tmp_path.iterdir())


# --- links inside a run


@pytest.fixture
def stopped(small_config, tmp_path):
    """A run that was stopped in its second layer."""
    with pytest.raises(KeyboardInterrupt):
        ff.train(small_config(cache__tier="disk"), tmp_path / "run", observer=InterruptAt("on_epoch", 4))
    return tmp_path / "run"


@pytest.fixture
def outside(tmp_path):
    """What links lead to."""
    place = tmp_path / "outside"
    (place / "below").mkdir(parents=True)
    for name in ("precious", "below/layer-001-x.safetensors", "below/manifest.json", "below/.tmp-x"):
        (place / name).write_text("precious")
    return place


LINKS = [
    "lock.json",
    "lock-1-1-00000000-0000000000000000.json",
    "lock",
    "metrics.jsonl",
    "config.toml",
    "data.json",
    "run.json",
    "environment.json",
]
LINKS += ["progress/manifest.json", "layers/001", "layers/000/weights.safetensors", "layers", "progress", "readout"]
LINKS += ["cache/*/001-train/.tmp-shard-00000", "cache/*/001-train", "cache/*/002-train"]


@pytest.mark.parametrize("name", LINKS)
@pytest.mark.parametrize("target", ["precious", "below", "missing"])
def test_nothing_is_written_or_removed_through_a_link(name, target, stopped, outside, small_config, tmp_path):
    (own,) = (stopped / "cache").iterdir()
    path = stopped / name.replace("*", own.name)
    if path.is_dir():
        shutil.rmtree(path)
    elif path.exists():
        path.unlink()
    path.symlink_to(outside / target)
    before = snapshot(outside)
    for work in (
        lambda: ff.resume(stopped),
        lambda: ff.train(small_config(cache__tier="disk"), stopped, resume=True),
        lambda: ff.Run(stopped).evaluate("softmax"),
        lambda: put_aside(ff.Run(stopped).directory),
        lambda: clean_run(ff.Run(stopped)),
        lambda: ff.resume(stopped, layers=4),
    ):
        with contextlib.suppress(ff.FFStreamError):
            work()
    assert snapshot(outside) == before


def test_a_file_that_has_two_names_is_not_written_under_the_other_one(stopped, tmp_path):
    """As in a copy of a run by hard links, which takes no room."""
    copy = tmp_path / "copy"
    shutil.copytree(stopped, copy, copy_function=os.link)
    before = {path: content for path, content in snapshot(copy).items() if path.name != "lock"}
    ff.resume(stopped)
    assert {path: content for path, content in snapshot(copy).items() if path.name != "lock"} == before


# --- what is removed


def test_one_bad_name_does_not_keep_the_rest_from_being_cleaned(stopped):
    identity = ff.Run(stopped).directory.read_identity()
    bad, left_over = stopped / f".tmp-{identity}-00000000", stopped / f"layers/.tmp-{identity}-00000001"
    bad.mkdir()
    (bad / "mine").write_text("mine")
    left_over.mkdir()
    (left_over / "weights.safetensors").write_text("half")
    (stopped / f"progress/.tmp-{identity}-00000002").write_text("half")
    (stopped / "progress/.tmp-mine").write_text("mine")
    ff.resume(stopped)
    assert (bad / "mine").read_text() == "mine"
    assert not left_over.exists()
    assert [path.name for path in (stopped / "progress").iterdir()] == [".tmp-mine"]


def test_foreign_files_below_a_run_are_left_where_they_are(stopped, small_config, tmp_path):
    whole = ff.train(small_config(cache__tier="disk"), tmp_path / "whole").path
    (own,) = (stopped / "cache").iterdir()
    names = ["layers/notes", "layers/000/notes", "layers/zzz/x", "progress/log", "cache/mine/x", "readme"]
    names += [f"cache/{own.name}/mine", f"cache/{own.name}/001-train/mine", ".tmp-mine", "layers/²/manifest.json"]
    names += ["layers/0000/manifest.json", "progress/layer-001-epoch-0001-0123456789abcdef.safetensors"]
    for name in names:
        (stopped / name).parent.mkdir(parents=True, exist_ok=True)
        (stopped / name).write_text("mine")
    ff.resume(stopped)
    clean_run(ff.Run(stopped))
    assert [(stopped / name).read_text() for name in names] == ["mine"] * len(names)
    shutil.rmtree(stopped / "layers/0000")
    shutil.rmtree(stopped / "layers/²")
    assert layer_digests(stopped) == layer_digests(whole)


def test_what_stands_where_the_next_layer_goes_is_put_aside_and_not_overwritten(stopped):
    (stopped / "layers/001").mkdir()
    (stopped / "layers/001/weights.safetensors").write_text("mine")
    said = []

    class Hearing(ff.Observer):
        def on_warning(self, text):
            said.append(text)

    ff.resume(stopped, observer=Hearing())
    assert (stopped / "damaged-1/layers/001/weights.safetensors").read_text() == "mine"
    assert "moved to" in said[0]
    assert ff.Run(stopped).verify() == 3


def test_a_clean_removes_what_can_be_made_again_and_says_how_much(stopped, small_config, tmp_path):
    whole = ff.train(small_config(cache__tier="disk"), tmp_path / "whole").path
    num_bytes = sum(path.stat().st_size for path in (stopped / "cache").rglob("shard-*"))
    assert clean_run(ff.Run(stopped)) == num_bytes > 0
    assert not (stopped / "cache").exists()
    assert clean_run(ff.Run(stopped)) == 0
    ff.resume(stopped)
    check_resumed_equals(whole, stopped)


# --- systems without descriptors of folders


@pytest.fixture
def no_descriptors(monkeypatch):
    """As on Windows: each folder on the way is looked at first."""
    monkeypatch.setattr(folder, "_HAS_DESCRIPTORS", False)


@pytest.mark.parametrize("tier", ["host", "disk"])
def test_a_run_has_the_same_bits_where_folders_cannot_be_opened(tier, small_config, tmp_path, monkeypatch):
    whole = ff.train(small_config(cache__tier=tier), tmp_path / "whole").path
    monkeypatch.setattr(folder, "_HAS_DESCRIPTORS", False)
    with pytest.raises(KeyboardInterrupt):
        ff.train(small_config(cache__tier=tier), tmp_path / "run", observer=InterruptAt("on_epoch", 4))
    ff.resume(tmp_path / "run")
    assert ff.Run(tmp_path / "run").verify() == 3
    check_resumed_equals(whole, tmp_path / "run")


@pytest.mark.parametrize("name", ["layers", "progress", "metrics.jsonl", "lock.json", "cache/*/002-train"])
def test_nor_is_anything_written_through_a_link_there(name, stopped, outside, no_descriptors, small_config, tmp_path):
    test_nothing_is_written_or_removed_through_a_link(name, "below", stopped, outside, small_config, tmp_path)


@pytest.mark.parametrize("target", ["layers", "."])
def test_a_linked_cache_is_no_part_of_another_run(target, small_config, tmp_path):
    other = ff.train(small_config(layers=2), tmp_path / "other")
    before = {path: path.read_bytes() for path in other.path.rglob("*") if path.is_file()}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "cache").symlink_to(other.path / target)
    with pytest.raises(ff.StorageError, match="is a part of the run"):
        ff.train(small_config(cache__tier="disk"), tmp_path / "run")
    assert {path: path.read_bytes() for path in other.path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("place", ["run", "run/layers", "run/new", "run/cache"])
@pytest.mark.parametrize("is_there", [True, False])
def test_a_run_that_is_refused_for_its_cache_folder_was_not_started(place, is_there, small_config, tmp_path):
    if is_there:
        (tmp_path / "run").mkdir()
    config = small_config(cache__tier="disk", cache__folder=str(tmp_path / place))
    with pytest.raises(ff.StorageError, match=r"choose another --cache-dir"):
        ff.train(config, tmp_path / "run")
    assert not is_there or list((tmp_path / "run").iterdir()) == []
    ff.train(small_config(cache__tier="disk", layers=1), tmp_path / "run")


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_cache_folder_that_cannot_be_written_is_refused_before_the_run_is_started(small_config, tmp_path):
    (tmp_path / "scratch").mkdir(mode=0o500)
    with pytest.raises(ff.StorageError, match="cannot be written; mend its permissions"):
        ff.train(small_config(cache__tier="disk", cache__folder=str(tmp_path / "scratch")), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_reservations_leave_what_is_not_theirs_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = tmp_path / f"ffstream-{os.getuid()}"
    folder.mkdir(mode=0o700)
    for make in (
        lambda path: path.write_text("precious"),
        lambda path: path.symlink_to(tmp_path / "mine"),
        os.mkfifo,
        os.mkdir,
    ):
        (tmp_path / "mine").write_text("precious")
        make(folder / "planning")
        with reservations.planning(), reservations.reserved(1 << 20):
            assert reservations.reserved_by_others() == 0
        assert (tmp_path / "mine").read_text() == "precious"
        if (folder / "planning").is_dir():
            (folder / "planning").rmdir()
        else:
            assert (folder / "planning").is_fifo() or (folder / "planning").read_text() == "precious"
            (folder / "planning").unlink()
