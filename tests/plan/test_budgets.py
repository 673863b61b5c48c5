"""The budgets of a run: what a machine has, and what it was given."""

from __future__ import annotations

import dataclasses
import shutil

import pytest

import ffstream as ff
from benchmarks.footprint import StopBeforeTraining, StoppedError, measure_resumed_run
from ffstream.errors import BudgetError
from ffstream.ground.units import parse_bytes
from ffstream.plan.probe import survey_resources
from ffstream.settings.sections import MemoryConfig
from ffstream.storage.run_directory import RunDirectory
from tests.helpers import InterruptAt
from tests.plan.plans import CPU, CUDA, GIB, MIB, PLENTY, plan, with_less


def test_resources_are_most_of_what_is_free(tmp_path):
    found = survey_resources(MemoryConfig(), CPU, tmp_path / "not" / "there" / "yet")
    assert 0 < found.host_used_bytes < found.host_bytes
    assert found.device_bytes == found.host_bytes - found.host_used_bytes
    assert 0 < found.disk_bytes < shutil.disk_usage(tmp_path).free


def test_budgets_replace_what_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr("ffstream.plan.probe.resident_bytes", lambda: GIB)  # more, after some other tests
    told = MemoryConfig(budget="300MiB", host_budget="3GiB", disk_budget="1GB")
    found = survey_resources(told, CPU, tmp_path)
    assert (found.device_bytes, found.host_bytes, found.disk_bytes) == (300 * MIB, 3 * GIB, 10**9)


@pytest.mark.parametrize(
    ("told", "words"),
    [
        (MemoryConfig(host_budget="1MiB"), ["host budget", "interpreter", "already"]),
        (MemoryConfig(host_budget="900TiB"), ["host budget 900TiB", "this machine has"]),
        (MemoryConfig(budget="900TiB"), ["device budget 900TiB", "this machine has"]),
        (MemoryConfig(disk_budget="900000TiB"), ["disk budget", "this machine has"]),
    ],
)
def test_impossible_budgets_are_refused(told, words, tmp_path):
    with pytest.raises(BudgetError) as caught:
        survey_resources(told, CPU, tmp_path)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("text", ["", "lots", "-1GiB", "0", "1.5", "0GiB", "1 parsec"])
def test_nonsense_is_refused_as_a_setting(text):
    if text == "1.5":  # bytes
        assert ff.Config().override({"memory.budget": text})
        return
    with pytest.raises(ff.ConfigError, match=r"memory.budget: found .*, allowed 'auto', or a size"):
        ff.Config().override({"memory.budget": text})


def test_a_run_keeps_its_budget(tmp_path, small_data):
    """As the allocator tells, at the smallest budget that is not refused; and nothing is written by a refusal."""
    config = ff.Config(data=str(small_data), layers=2, width=300, epochs=1, batch=64, device="cpu", precision="fp32")
    config = config.override({"cache.tier": "disk", "memory.budget": "1KiB"})
    with pytest.raises(BudgetError) as caught:
        ff.train(config, tmp_path / "a")
    assert not (tmp_path / "a").exists()
    named = str(caught.value).split("--budget ")[1].split()[0]
    with pytest.raises(StoppedError):
        ff.train(config.override({"memory.budget": named}), tmp_path / "a", observer=StopBeforeTraining())
    assert measure_resumed_run(tmp_path / "a") <= parse_bytes(named)


def test_shards_that_a_budget_chose_are_kept_when_a_run_goes_on_without_it(tmp_path, small_data):
    config = ff.Config(data=str(small_data), layers=1, width=64, epochs=1, batch=64, device="cpu", precision="fp32")
    config = config.override({"cache.tier": "disk"})
    run = ff.train(config.override({"cache.shard_samples": 128}), tmp_path / "a")
    grown = ff.train(dataclasses.replace(config, layers=2), tmp_path / "a", resume=True)
    assert grown.config.cache.shard_samples == run.config.cache.shard_samples == 128


def test_a_run_that_goes_on_may_use_the_space_that_its_own_files_hold(tmp_path, small_data, monkeypatch):
    """A disk that the run itself has filled does not keep it from going on."""
    config = ff.Config(data=str(small_data), layers=2, width=64, epochs=2, batch=64, device="cpu", precision="fp32")
    config = config.override({"cache.tier": "disk"})
    with pytest.raises(KeyboardInterrupt):
        ff.train(config, tmp_path / "a", observer=InterruptAt("on_epoch", 3))
    held = RunDirectory(tmp_path / "a").passing_bytes()
    usage, needed = shutil.disk_usage(tmp_path), ff.make_plan(config, tmp_path / "a", resume=True).disk
    least = needed.num_bytes - needed.terms["cache"] // 2  # one cache, not two
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=int((least - held) / 0.8) + 2))
    assert ff.train(config, tmp_path / "a", resume=True).num_layers_done == 2
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=(least - held) // 2))
    with pytest.raises(BudgetError, match="the disk needs"):
        ff.train(config, tmp_path / "b")


def test_weights_are_kept_cast_only_where_there_is_room_and_that_saves_casts():
    settings = {"width": 4096, "layers": 2, "num_features": 4096, "cache.tier": "disk", "cache.shard_samples": 1024}
    settings |= {"micro_batch": 256}
    kept = plan(CUDA, **settings)
    assert kept.keeps_cast
    tight = plan(with_less(CUDA, device_bytes=kept.device.num_bytes - 1), **settings)
    assert not tight.keeps_cast
    assert tight.sizes == kept.sizes
    assert kept.device.terms["gradient"] - tight.device.terms["gradient"] == 2 * 4096 * 4096
    for num_bytes in (tight.device.num_bytes, kept.device.num_bytes):
        assert plan(with_less(CUDA, device_bytes=num_bytes), **settings).device.num_bytes == num_bytes


@pytest.mark.parametrize(
    ("resources", "changes"),
    [(PLENTY, {"width": 4096}), (CUDA, {"width": 2000}), (CUDA, {"width": 4096, "precision": "fp32"})],
)
def test_weights_are_not_kept_cast_where_that_saves_nothing(resources, changes):
    assert not plan(resources, layers=2, **changes).keeps_cast
