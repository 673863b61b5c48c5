"""Sizes as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ffstream.ground.units import format_bytes, parse_bytes

GIB = 1 << 30


@pytest.mark.parametrize(
    ("num_bytes", "text"), [(0, "0 B"), (1023, "1023 B"), (3 * GIB, "3.0 GiB"), (1 << 41, "2.0 TiB")]
)
def test_bytes_are_written_in_binary_units(num_bytes, text):
    assert format_bytes(num_bytes) == text


@given(num_bytes=st.integers(0, 1 << 60))
def test_a_number_of_bytes_reads_back_to_within_its_last_digit(num_bytes):
    text = format_bytes(num_bytes)
    unit = parse_bytes("1" + text.split()[1])
    assert abs(parse_bytes(text) - num_bytes) <= 0.0501 * unit * (unit != 1) + 1


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("1GiB", GIB),
        ("1.5 GiB", 3 * GIB // 2),
        ("512mib", GIB // 2),
        ("8GB", 8 * 10**9),
        (" 300 ", 300),
        ("0.5KB", 500),
        (".5KiB", 512),
    ],
)
def test_sizes_are_read(text, num_bytes):
    assert parse_bytes(text) == num_bytes


@pytest.mark.parametrize("text", ["", "GiB", "-1GiB", "1G", "1 GiB 2", "1e9", "nan", "inf", "1,5GiB"])
def test_what_is_not_a_size_is_refused(text):
    with pytest.raises(ValueError, match="is not a size"):
        parse_bytes(text)
