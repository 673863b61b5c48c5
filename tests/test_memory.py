"""The choice of a tier, and what is known of memory."""

from __future__ import annotations

import os

import pytest

import ffstream as ff
from ffstream.memory import check_disk, choose_tier, format_bytes, host_free_bytes, layer_footprint_bytes
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
