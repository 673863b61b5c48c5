"""Where the system refuses to pin memory, a run goes on by pageable memory, and says so once."""

from __future__ import annotations

import dataclasses
import resource

import pytest
import torch

import ffstream as ff
from ffstream.cache.pinned import allocate_host
from ffstream.data.shape import DataShape
from ffstream.device.accelerator import ACCELERATORS
from ffstream.device.memory import unpinned_reason
from ffstream.plan.fitting import compute_plan
from ffstream.plan.machine import parse_machine
from ffstream.plan.probe import _find_unpinned
from tests.cli.test_reporting import show


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a system that refuses to pin: one without a driver")
def test_memory_that_cannot_be_pinned_is_pageable_and_the_survey_says_so():
    found = allocate_host(4096, ACCELERATORS["cuda"])
    assert found.nbytes == 4096
    assert not found.is_pinned()
    assert _find_unpinned(torch.device("cuda")) == unpinned_reason()
    assert _find_unpinned(torch.device("cpu")) is None


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("tier", ["disk", "device"])
def test_a_run_says_once_that_its_slots_are_not_pinned(tier, terminal, small_config, tmp_path, monkeypatch):
    monkeypatch.setattr("ffstream.cache.transfer._Slot.is_as_wanted", False)
    text = " ".join(show(small_config(cache__tier=tier), tmp_path / "run", terminal=terminal).split())
    assert text.count(f"warning: {unpinned_reason()}") == (tier == "disk")  # other caches need no slots here


def test_the_limit_on_locked_memory_is_told():
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    try:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (64 << 10, hard))
        assert "limit on locked memory is 64.0 KiB" in unpinned_reason()
    finally:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (soft, hard))


@pytest.mark.parametrize("tier", ["device", "host", "disk"])
def test_a_plan_warns_where_shards_pass_through_the_host(tier):
    data = DataShape(64, 10, {"train": 20_000, "validation": 1000})
    config = ff.Config(layers=3, width=100, batch=64, precision="bf16").override({"cache.tier": tier})
    machine = dataclasses.replace(parse_machine("device=1GiB,1TFLOP/s;h2d=1GB/s;host=4GiB;disk=9GiB,1GB/s"))
    plans = [
        compute_plan(config, data, 64 * 21_000, resources)
        for resources in (machine, dataclasses.replace(machine, unpinned="not pinned"))
    ]
    assert [plan.warning for plan in plans] == [None, None if tier == "device" else "not pinned"]
