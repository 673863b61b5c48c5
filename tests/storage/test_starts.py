"""A run that is started: by several processes at once, and after starts that were killed."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

import ffstream as ff
from ffstream.ground.lock import RunLock
from ffstream.storage.identity import FolderState
from ffstream.storage.initial import Origin, TakenLayer
from ffstream.storage.run_directory import RunDirectory
from tests.helpers import InterruptAt, layer_digests, run_process


def test_processes_that_start_in_one_second_have_a_folder_each_and_their_own_weights(small_data, tmp_path):
    options = f"--data {small_data} --layers 1 --width 16 --epochs 1 --device cpu --precision fp32".split()
    with ThreadPoolExecutor() as threads:
        started = [
            threads.submit(run_process, "train", *options, "--seed", seed, cwd=tmp_path) for seed in (1, 2, 3, 4)
        ]
    assert [process.result().returncode for process in started] == [0] * 4
    found = {ff.Run(path).config.seed: layer_digests(path) for path in (tmp_path / "runs").iterdir()}
    assert sorted(found) == [1, 2, 3, 4]
    for seed, digests in found.items():
        config = ff.Config(
            data=str(small_data), layers=1, width=16, epochs=1, device="cpu", precision="fp32", seed=seed
        )
        assert layer_digests(ff.train(config, tmp_path / f"alone-{seed}").path) == digests


def test_a_start_that_was_killed_is_gone_on_with_whatever_is_asked_then(small_config, tmp_path, monkeypatch):
    """Killed here between its marker and its configuration."""
    whole = ff.train(small_config(seed=3), tmp_path / "whole").path
    with pytest.raises(KeyboardInterrupt):
        ff.train(small_config(), tmp_path / "run", observer=InterruptAt("on_epoch", 1))
    for name in ("layers", "progress", "cache"):
        shutil.rmtree(tmp_path / "run" / name, ignore_errors=True)
    identity = ff.Run(tmp_path / "run").directory.read_identity()
    for name in ("config.toml", "metrics.jsonl"):
        (tmp_path / "run" / name).unlink()
    directory = ff.train(small_config(seed=3), tmp_path / "run").directory
    assert directory.survey().state is FolderState.RUN
    assert directory.read_identity() != identity  # which may be that of a run from which these files were copied
    assert layer_digests(tmp_path / "run") == layer_digests(whole)


def test_copies_of_a_runs_files_alone_are_no_start_of_a_run_and_are_kept(runs, small_config, tmp_path):
    for names in (["run.json", "data.json"], ["run.json", "validation.safetensors"], ["run.json", "environment.json"]):
        place = tmp_path / "-".join(names)
        place.mkdir()
        shutil.copy(runs / "one/run.json", place)
        (place / names[1]).write_text("mine")
        for resume in (False, True):
            with pytest.raises(ff.RunError, match=names[1]):
                ff.train(small_config(seed=7), place, resume=resume)
        assert (place / names[1]).read_text() == "mine"


class Killed(BaseException):
    pass


def kill_at(number, work, monkeypatch):
    """Let the process die before its change `number` to the file system: nothing changes after that, cleaning neither.

    Returns whether it died.
    """
    num_changes = 0

    def before(function, changes):
        def call(*arguments, **options):
            nonlocal num_changes
            if changes(*arguments):
                num_changes += 1
                if num_changes >= number:
                    raise Killed
            return function(*arguments, **options)

        return call

    with monkeypatch.context() as patched:
        for name in ("rename", "replace", "unlink", "mkdir", "rmdir", "link"):
            patched.setattr(os, name, before(getattr(os, name), lambda *_: True))
        patched.setattr(os, "open", before(os.open, lambda _path, flags, *_: bool(flags & os.O_CREAT)))
        with contextlib.suppress(Killed):
            work()
    return num_changes >= number


def start(path, config, data, labels, origin):
    path.mkdir(exist_ok=True)
    with RunLock(path, "") as lock:
        RunDirectory(path, lock).create(config, data, {"torch": "2"}, labels, origin)


@pytest.mark.parametrize("num_taken", [0, 1])  # layers that start from another run's
def test_wherever_two_starts_are_killed_a_third_one_starts_the_run(num_taken, runs, tmp_path, monkeypatch):
    run, file = ff.Run(runs / "one"), runs / "other/layers/000/weights.safetensors"
    config, data = run.config, run.directory.read_data()
    labels = run.directory.load_validation_labels()
    taken = TakenLayer(0, hashlib.sha256(file.read_bytes()).hexdigest(), file.stat().st_size, ())
    origin = Origin(str(runs / "other"), "layer 1 starts from the other", (taken,)) if num_taken else None
    work = partial(start, config=config, data=data, labels=labels, origin=origin)
    num_changes = next(n for n in itertools.count(1) if not kill_at(n, partial(work, tmp_path / f"{n}"), monkeypatch))
    assert num_changes > 10
    template = tmp_path / "template"
    for first in range(1, num_changes):
        shutil.rmtree(template, ignore_errors=True)
        template.mkdir()
        kill_at(first, partial(work, template), monkeypatch)
        if RunDirectory(template).survey().state is FolderState.RUN:  # it died after everything was there
            continue
        for second in itertools.count(1):
            path = tmp_path / "again"
            shutil.rmtree(path, ignore_errors=True)
            shutil.copytree(template, path)
            died = kill_at(second, partial(work, path), monkeypatch)
            if RunDirectory(path).survey().state is not FolderState.RUN:
                assert RunDirectory(path).survey().state is FolderState.FREE, (first, second)
                work(path)
            directory = RunDirectory(path)
            assert directory.survey().state is FolderState.RUN
            assert len(directory.folder.names("initial")) == num_taken
            assert directory.initial.list_missing(0) == []
            if not died:
                break
