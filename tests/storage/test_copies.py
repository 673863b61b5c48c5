"""Copies of a run: those that went apart, lost files, or share a cache on another disk."""

from __future__ import annotations

import contextlib
import shutil

import pytest

import ffstream as ff
from ffstream.run import launch
from ffstream.run.cleaning import clean_run
from ffstream.run.repair import diagnose
from ffstream.storage.run_directory import RunDirectory
from tests.helpers import layer_digests


def say_first(problems):
    raise ff.CorruptFileError(problems[0])


USES = {
    "verify": lambda run, **_: ff.Run(run).verify(),
    "repair": lambda run, **_: say_first(diagnose(RunDirectory(run)).problems),
    "evaluate": lambda run, **options: ff.Run(run).evaluate(**options),
    "load": lambda run, **options: ff.load(run, **options),
    "export": lambda run, **options: ff.Run(run).export(run.parent / "net.safetensors", **options),
    "resume": lambda run, **options: ff.resume(run, **options),
    "grow": lambda run, **options: ff.resume(run, layers=3, **options),
}


@pytest.mark.parametrize("use", USES)
def test_an_environment_that_is_gone_is_noticed_by_whatever_uses_it(use, copy):
    (copy / "environment.json").unlink()
    with pytest.raises(ff.CorruptFileError, match=r"has no environment\.json"):
        USES[use](copy)


def test_a_run_can_go_on_without_its_environment_if_told_so(copy):
    (copy / "environment.json").unlink()
    ff.Run(copy).evaluate(accept_environment=True)
    ff.resume(copy, layers=3, accept_environment=True)
    assert ff.Run(copy).verify() == 3  # the layers from before name an environment of which only the digest is known
    ff.resume(copy, layers=4)


def grow_elsewhere(run, layers, monkeypatch):
    """Add layers in another environment, which is accepted."""
    describe = launch.describe_environment
    with monkeypatch.context() as patch:
        patch.setattr(launch, "describe_environment", lambda *where: describe(*where) | {"torch": "of another day"})
        ff.resume(run, layers=layers, accept_environment=True)


def test_copies_of_a_run_that_went_apart_are_not_put_together(copy, tmp_path, monkeypatch):
    other = tmp_path / "other"
    shutil.copytree(copy, other)
    grow_elsewhere(other, 3, monkeypatch)
    shutil.copytree(other / "layers/002", copy / "layers/002")
    for name in ("metrics.jsonl", "config.toml"):
        shutil.copy(other / name, copy / name)
    with pytest.raises(ff.CorruptFileError, match=r"trained in an environment that environment\.json does not record"):
        ff.Run(copy).verify()
    with pytest.raises(ff.CorruptFileError, match=r"environment\.json does not record"):
        ff.resume(copy, layers=4)


def test_an_older_record_of_environments_does_not_fit_newer_layers(copy, monkeypatch):
    older = (copy / "environment.json").read_text()
    grow_elsewhere(copy, 3, monkeypatch)
    (copy / "environment.json").write_text(older)
    with pytest.raises(ff.CorruptFileError, match=r"environment\.json does not record"):
        ff.Run(copy).verify()
    with pytest.raises(ff.CorruptFileError, match=r"environment\.json does not record"):
        ff.Run(copy).evaluate()


def copy_while_it_changes(source, target):
    """Until a copy has all that its original names."""
    while True:
        with contextlib.suppress(shutil.Error, ff.FFStreamError):
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(source, target, symlinks=True)
            ff.Run(target).verify()
            return target


def test_a_copy_that_was_made_while_a_run_is_trained_is_not_in_use(small_config, tmp_path):
    copies = []

    class Copying(ff.Observer):
        def on_epoch(self, layer, epoch, *_):
            if (layer, epoch) == (2, 2):
                copies.append(copy_while_it_changes(tmp_path / "run", tmp_path / "copy"))
                clean_run(ff.Run(tmp_path / "copy"))

    whole = ff.train(small_config(), tmp_path / "run", observer=Copying()).path
    assert copies
    assert layer_digests(ff.resume(tmp_path / "copy").path) == layer_digests(whole)


@pytest.mark.parametrize("restream", [False, True])
@pytest.mark.parametrize("how", ["setting", "link"])
def test_a_copy_and_its_original_do_not_use_one_cache_at_once(how, restream, small_config, tmp_path):
    """They have one identity, by which a folder on another disk is named."""
    scratch, run, copy = tmp_path / "scratch", tmp_path / "run", tmp_path / "copy"
    scratch.mkdir()
    settings = {"cache__folder": str(scratch)} if how == "setting" else {}
    settings |= {"augmentation__restream": restream, "augmentation__max_shift": 1}
    if how == "link":
        run.mkdir()
        (run / "cache").symlink_to(scratch)
    said = []

    class Copying(ff.Observer):
        def on_epoch(self, layer, epoch, *_):
            if (layer, epoch) == (2, 2):
                copy_while_it_changes(run, copy)
                for use in (lambda: clean_run(ff.Run(copy)), lambda: ff.resume(copy)):
                    with pytest.raises(ff.RunLockedError) as caught:
                        use()
                    said.append(str(caught.value))

    ff.train(small_config(cache__tier="disk", **settings), run, observer=Copying())
    assert all(text.startswith("cache ") and "in use by process" in text for text in said)
    assert len(said) == 2
    assert layer_digests(ff.resume(copy).path) == layer_digests(run)
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("instead", ["a folder", "another run"])
def test_a_run_that_is_moved_while_it_is_trained_goes_on_where_it_is(small_config, tmp_path, instead):
    other = ff.train(small_config(seed=1, layers=1), tmp_path / "other").path
    whole = ff.train(small_config(cache__tier="disk"), tmp_path / "whole").path

    class Moving(ff.Observer):
        def on_epoch(self, layer, epoch, *_):
            if (layer, epoch) == (2, 2):
                (tmp_path / "run").rename(tmp_path / "moved")
                if instead == "another run":
                    shutil.copytree(other, tmp_path / "run")
                else:
                    (tmp_path / "run/cache").mkdir(parents=True)
                    (tmp_path / "run/cache/mine").write_text("mine")

    with pytest.raises(ff.RunError, match="was moved while it was trained"):
        ff.train(small_config(cache__tier="disk"), tmp_path / "run", observer=Moving())
    if instead == "another run":
        assert layer_digests(tmp_path / "run") == layer_digests(other)
    else:
        assert [path.name for path in (tmp_path / "run").rglob("*")] == ["cache", "mine"]
    assert layer_digests(ff.resume(tmp_path / "moved").path) == layer_digests(whole)
