"""The choice of a tier, and what is known of memory."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ffstream as ff
from ffstream.memory import (
    check_disk,
    choose_tier,
    format_bytes,
    host_free_bytes,
    is_out_of_memory,
    layer_footprint_bytes,
)
from ffstream.network import compute_layer_specs

GIB = 1 << 30


@pytest.mark.parametrize(
    ("requested", "device", "cache", "device_free", "host_free", "expected"),
    [
        ("auto", "cuda", 1 * GIB, 8 * GIB, 16 * GIB, "device"),
        ("auto", "cuda", 7 * GIB, 8 * GIB, 16 * GIB, "host"),
        ("auto", "cuda", 9 * GIB, 8 * GIB, 16 * GIB, "disk"),
        ("auto", "cpu", 1 * GIB, 0, 16 * GIB, "host"),
        ("auto", "cpu", 9 * GIB, 0, 16 * GIB, "disk"),
        ("disk", "cuda", 1, 8 * GIB, 16 * GIB, "disk"),
        ("device", "cuda", 9 * GIB, 8 * GIB, 16 * GIB, "device"),
        ("device", "cpu", 1, 0, 16 * GIB, "host"),
        ("host", "cuda", 1, 8 * GIB, 16 * GIB, "host"),
    ],
)
def test_the_fastest_tier_that_has_room_is_taken(requested, device, cache, device_free, host_free, expected):
    assert choose_tier(requested, device, cache, device_free, host_free) == expected


def test_a_cache_larger_than_the_disk_is_refused_before_it_is_written(tmp_path):
    check_disk(tmp_path, 10, 10)
    with pytest.raises(ff.StorageError, match=r"needs 2\.0 GiB, found 1\.0 GiB free"):
        check_disk(tmp_path, 2 * GIB, GIB)


@pytest.mark.parametrize(
    ("num_bytes", "text"), [(0, "0 B"), (1023, "1023 B"), (3 * GIB, "3.0 GiB"), (1 << 41, "2.0 TiB")]
)
def test_bytes_are_written_in_binary_units(num_bytes, text):
    assert format_bytes(num_bytes) == text


def test_free_host_memory_is_some_and_not_more_than_there_is():
    assert 0 < host_free_bytes() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_a_layers_footprint_holds_its_parameters_gradient_and_adams_state():
    config = ff.Config(layers=2, width=2000, batch=1, precision="fp32")
    spec = compute_layer_specs(config, 2000)[1]
    assert layer_footprint_bytes(config, spec, 10) >= 16 * 2000 * 2000
    assert layer_footprint_bytes(config, spec, 10) <= 16 * 2000 * 2020 * 1.02


@settings(max_examples=50, deadline=None)
@given(cache=st.integers(0, 64 * GIB), device=st.integers(0, 64 * GIB), host=st.integers(0, 64 * GIB))
def test_an_automatic_choice_fits_where_it_is_put_and_more_room_is_never_slower(cache, device, host):
    speed = ["disk", "host", "device"]
    tier = choose_tier("auto", "cuda", cache, device, host)
    assert {"device": cache <= device, "host": cache <= host, "disk": True}[tier]
    assert speed.index(choose_tier("auto", "cuda", cache, device + GIB, host + GIB)) >= speed.index(tier)
    assert choose_tier("auto", "cpu", cache, device, host) != "device"


def test_a_disk_error_names_the_folder_and_what_to_do(tmp_path):
    with pytest.raises(ff.StorageError) as caught:
        check_disk(tmp_path, 11, 10)
    for expected in (str(tmp_path), "11 B", "10 B", "--run-dir"):
        assert expected in str(caught.value)


@given(num_bytes=st.integers(0, 1 << 60))
def test_a_number_of_bytes_reads_back_to_within_its_last_digit(num_bytes):
    number, unit = format_bytes(num_bytes).split()
    scale = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}[unit]
    assert abs(float(number) * scale - num_bytes) <= 0.0501 * scale * (unit != "B")


@pytest.mark.parametrize(("limit", "used", "expected"), [(GIB, GIB // 4, 3 * GIB // 4), (GIB, 2 * GIB, 0)])
def test_a_cgroups_limit_counts_where_it_is_lower(limit, used, expected, monkeypatch):
    values = {"memory.max": limit, "memory.current": used}
    monkeypatch.setattr("ffstream.memory._read_number", lambda path: values[path.name])
    monkeypatch.setattr("ffstream.memory._meminfo_available_bytes", lambda: 100 * GIB)
    assert host_free_bytes() == expected


def test_more_of_anything_takes_more_memory():
    base = ff.Config(layers=2, width=100, batch=50, precision="fp32")
    spec = compute_layer_specs(base, 64)[1]
    small = layer_footprint_bytes(base, spec, 10)
    for changes in ({"batch": 60}, {"negatives.per_step": 4}, {"precision": "bf16"}):
        assert layer_footprint_bytes(base.override(changes), spec, 10) > small
    assert layer_footprint_bytes(base, compute_layer_specs(base.override({"width": 101}), 64)[1], 10) > small
    assert layer_footprint_bytes(base.override({"optimiser.name": "sgd"}), spec, 10) < small


def test_errors_of_memory_are_told_from_others():
    for error in (
        MemoryError(),
        torch.OutOfMemoryError("x"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ):
        assert is_out_of_memory(error)
    for error in (RuntimeError("shapes differ"), ValueError("can't allocate memory")):
        assert not is_out_of_memory(error)
