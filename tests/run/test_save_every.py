"""Progress that is saved by time, also within an epoch: a run that was stopped anywhere ends with the same bits."""

from __future__ import annotations

import itertools
import re

import pytest

import ffstream as ff
from ffstream.run import progress_saver
from ffstream.run.progress_saver import ProgressSaver
from ffstream.storage.manifest import PROGRESS, read_manifest, write_manifest
from tests.helpers import check_resumed_equals, layer_digests

KINDS = {
    "one shard a batch": {},
    "several shards a batch, cut": {"batch": 96, "micro_batch": 20, "cache__shard_samples": 32},
    "tiles": {"network__tile_units": 12, "cache__tier": "disk"},
    "restreamed": {"augmentation__restream": True, "augmentation__max_shift": 1},
    "state in bf16": {"optimiser__state_dtype": "bf16", "cache__dtype": "int8", "cache__tier": "disk"},
    "views": {"augmentation__views": 2, "augmentation__max_shift": 1},
}


class Stop(ff.Observer):
    """Counts the saves of a run, and stops it behind the one with a number."""

    def __init__(self, monkeypatch, number=None):
        self.names, save = [], ProgressSaver.save

        def save_and_stop(saver, spec, num_epochs, trainer, part=None):
            save(saver, spec, num_epochs, trainer, part)
            saver._commits._transfer.finish()
            self.names.append((spec.index, num_epochs, None if part is None else part.num_groups))
            if len(self.names) == number:
                raise KeyboardInterrupt

        monkeypatch.setattr(ProgressSaver, "save", save_and_stop)


@pytest.fixture
def clock(monkeypatch):
    """A clock that shows a second more each time it is looked at."""
    ticks = itertools.count()
    monkeypatch.setattr(progress_saver, "_now_s", lambda: float(next(ticks)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_was_stopped_behind_any_save_ends_with_the_same_bits(
    kind, clock, small_config, tmp_path, monkeypatch
):
    config = small_config(layers=2, epochs=2, **KINDS[kind])
    whole = ff.train(config, tmp_path / "whole").path
    config = config.override({"save_every": "2s"})
    with monkeypatch.context() as patch:
        found = Stop(patch)
        ff.train(config, tmp_path / "by time")
    check_resumed_equals(whole, tmp_path / "by time")
    assert any(part is not None for _, _, part in found.names)
    assert any(num_epochs == 0 for _, num_epochs, _ in found.names)  # within the first epoch
    for number in range(1, len(found.names) + 1):
        path = tmp_path / str(number)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            Stop(patch, number)
            ff.train(config, path)
        assert ff.Run(path).verify() == found.names[number - 1][0]
        assert ff.resume(path).config.save_every == "2s"
        check_resumed_equals(whole, path)


def test_no_more_is_lost_than_was_asked_for(small_config, tmp_path, monkeypatch):
    """On a clock that shows a second more for each batch: at most three seconds lie between two saves."""
    now = [0.0]
    monkeypatch.setattr(progress_saver, "_now_s", lambda: now[0])
    config = small_config(layers=1, epochs=3, save_every="3s", cache__shard_samples=32, validation_fraction=0.0)
    saved_s, save, is_due = [0.0], ProgressSaver.save, ProgressSaver.is_due

    def look(saver):
        now[0] += 1
        return is_due(saver)

    def count(saver, *arguments):
        saved_s.append(now[0])
        save(saver, *arguments)

    monkeypatch.setattr(ProgressSaver, "is_due", look)
    monkeypatch.setattr(ProgressSaver, "save", count)
    ff.train(config, tmp_path / "run")
    assert len(saved_s) > 5
    assert {later - before for before, later in itertools.pairwise(saved_s)} == {3.0}


def test_without_it_every_epoch_is_saved_and_nothing_within_one(small_config, tmp_path, monkeypatch):
    found = Stop(monkeypatch)
    ff.train(small_config(layers=2, epochs=3), tmp_path / "run")
    assert found.names == [(0, 1, None), (0, 2, None), (1, 1, None), (1, 2, None)]


def test_a_run_can_change_it(small_config, tmp_path, monkeypatch, clock):
    config = small_config(layers=2)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        Stop(patch, 1)
        ff.train(config, tmp_path / "run")
    with monkeypatch.context() as patch:
        found = Stop(patch)
        run = ff.resume(tmp_path / "run", save_every="1s")
    assert any(part is not None for *_, part in found.names)
    assert run.config.save_every == "1s"
    assert layer_digests(run.path) == layer_digests(ff.train(config, tmp_path / "whole").path)


@pytest.mark.parametrize("text", ["0s", "-3s", "soon", "3 parsecs", "", "1e3s", "9" * 400 + "h"])
def test_a_time_that_is_none_is_refused(text):
    with pytest.raises(ff.ConfigError, match="save_every: found .*allowed 'auto', or a time such as 30s"):
        ff.Config(save_every=text)


@pytest.mark.parametrize("text", ["auto", "30s", "0.5 s", "5min", "1h", "90"])
def test_times_as_people_write_them(text):
    assert ff.Config(save_every=text).save_every == text


def test_an_altered_progress_within_an_epoch_is_refused(clock, small_config, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        Stop(patch, 1)
        ff.train(small_config(save_every="2s"), tmp_path / "run")
    (path,) = (tmp_path / "run/progress").glob("*-part-*")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ff.CorruptFileError, match="progress"):
        ff.resume(tmp_path / "run")


@pytest.mark.parametrize(
    "change",
    [{"num_groups": 4000}, {"num_groups": 1}, {"num_samples": 1}, {"num_groups": 4}],
    ids=str,
)
def test_a_part_that_does_not_fit_is_refused(change, clock, small_config, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        Stop(patch, 1)
        ff.train(small_config(save_every="2s"), tmp_path / "run")
    folder = ff.Run(tmp_path / "run").directory.folder
    content = read_manifest(folder, "progress/manifest.json", PROGRESS)
    (name,) = content["digests"]
    renamed = re.sub(r"part-\d+", f"part-{change.get('num_groups', content['part']['num_groups']):05d}", name)
    content["part"] |= change
    content["digests"] = {renamed: content["digests"][name]}
    (tmp_path / "run/progress" / name).rename(tmp_path / "run/progress" / renamed)
    write_manifest(folder, "progress/manifest.json", content)
    with pytest.raises(ff.CorruptFileError, match="was saved within an epoch of other shards"):
        ff.resume(tmp_path / "run")
