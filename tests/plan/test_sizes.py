"""The sizes that a plan chooses: they follow from what is installed, and not from what happens to be free."""

from __future__ import annotations

import dataclasses

import pytest

import ffstream as ff
from ffstream.errors import BudgetError
from ffstream.plan.probe import survey_resources
from ffstream.run import preparation
from ffstream.settings.sections import MemoryConfig
from tests.plan.plans import CPU, GIB, MIB, PLENTY, plan, with_less


def sizes(found):
    return {name: found.config.to_flat()[name] for name in ("cache.shard_samples", "micro_batch", "network.tile_units")}


def test_what_is_free_decides_the_tier_and_not_the_sizes():
    """Sizes decide bits, and the tier does not: a run that has room for them has the same ones, whatever is free."""
    roomy = plan(with_less(installed=PLENTY))
    by_tier = {"host": roomy}
    assert roomy.tier == "host"
    for host_bytes in (2 * GIB, GIB, 700 * MIB):
        found = plan(with_less(host_bytes=host_bytes, device_bytes=host_bytes, installed=PLENTY), num_samples=200_000)
        by_tier[found.tier] = found
        assert sizes(found) == sizes(roomy)
        assert found.sizes_by_free is None
    assert set(by_tier) == {"host", "disk"}


def test_sizes_follow_from_what_is_installed_even_where_more_is_free():
    whole = plan(**{"cache.tier": "disk"}).device.num_bytes
    little = with_less(device_bytes=whole - 1)
    found = plan(with_less(installed=little), **{"cache.tier": "disk"})
    assert sizes(found) == sizes(plan(little, **{"cache.tier": "disk"}))
    assert found.config.cache.shard_samples == 2048


def test_where_too_little_is_free_other_sizes_are_taken_and_named():
    whole = plan(**{"cache.tier": "disk"}).device.num_bytes
    found = plan(with_less(device_bytes=whole - 1, installed=PLENTY), **{"cache.tier": "disk"})
    assert found.fits
    assert found.config.cache.shard_samples == 2048
    assert found.sizes_by_free == "cache.shard_samples 2048, not 4096"


def test_a_run_of_more_than_its_share_of_what_is_installed_takes_what_is_free():
    found = plan(with_less(installed=with_less(host_bytes=GIB // 4 + MIB, device_bytes=MIB)))
    assert found.fits
    assert found.config.cache.shard_samples == 4096


def test_what_fits_into_nothing_that_is_installed_is_refused_by_what_is_free():
    installed = with_less(device_bytes=2 * MIB)
    with pytest.raises(BudgetError, match=r"the device .* allowed 1.0 MiB"):
        plan(with_less(installed, device_bytes=MIB, installed=installed))


def test_sizes_that_are_given_are_taken_whatever_there_is():
    given = {"cache.tier": "disk", "cache.shard_samples": 1000, "network.tile_units": 500, "micro_batch": 256}
    found = plan(with_less(installed=with_less(device_bytes=MIB)), **given)
    assert sizes(found) == {name: given[name] for name in sizes(found)}
    assert found.sizes_by_free is None


def test_what_is_installed_does_not_move_with_what_is_free(tmp_path, monkeypatch):
    found = []
    for free, resident in ((3 * GIB, 500 * MIB), (2 * GIB, 900 * MIB)):
        monkeypatch.setattr("ffstream.plan.probe.host_free_bytes", lambda free=free: free)
        monkeypatch.setattr("ffstream.plan.probe.resident_bytes", lambda resident=resident: resident)
        for told in (MemoryConfig(), MemoryConfig(host_budget="1.5GiB"), MemoryConfig(budget="100MiB")):
            found.append(survey_resources(told, CPU, tmp_path).installed)
    assert [dataclasses.replace(each, disk_bytes=0) for each in found[:3]] == [
        dataclasses.replace(each, disk_bytes=0) for each in found[3:]
    ]


def test_a_run_says_and_remembers_that_too_little_was_free(small_config, tmp_path, monkeypatch):
    config = small_config(layers=2, cache__shard_samples="auto", cache__tier="disk")
    usual = ff.train(config, tmp_path / "usual").config.cache.shard_samples
    needed = ff.make_plan(config, tmp_path / "new").device.num_bytes
    said = []

    class Listener(ff.Observer):
        def on_warning(self, text):
            said.append(text)

    survey = preparation.survey_resources

    def survey_little(*arguments):
        found = survey(*arguments)
        return dataclasses.replace(found, device_bytes=needed - 1)

    monkeypatch.setattr(preparation, "survey_resources", survey_little)
    run = ff.train(config, tmp_path / "run", observer=Listener())
    assert run.config.cache.shard_samples < usual
    words = f"cache.shard_samples {run.config.cache.shard_samples}, not {usual}"
    assert any(words in text and "too little memory is free" in text for text in said)
    assert run.directory.read_environments()[-1]["memory"] == words
    said.clear()
    monkeypatch.undo()
    grown = ff.resume(run.path, layers=3, observer=Listener())  # with the same sizes, and nothing more to say
    assert grown.config.cache.shard_samples == run.config.cache.shard_samples
    assert not [text for text in said if "no better than chance" not in text]  # as so short a training is
    assert [environment["memory"] for environment in grown.directory.read_environments()] == [words]
