"""Files that lie about what they hold, and what is measured when they are read."""

from __future__ import annotations

import io
import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest

from ffstream.data import load_dataset
from ffstream.errors import DataError

MIB = 1 << 20


def refuse(source, error=DataError, **options):
    """What is said of data that are refused, in one line that names them."""
    with pytest.raises(error) as caught:
        load_dataset(str(source), **options)
    assert "\n" not in str(caught.value)
    assert str(source) in str(caught.value)
    return str(caught.value)


def peak_bytes(work):
    """The most memory that this process took while it did some work, beside what it had."""

    def read(name):
        text = Path("/proc/self/status").read_text()
        return 1024 * int(next(line.split()[1] for line in text.splitlines() if line.startswith(name)))

    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pytest.skip("this system does not measure the peak anew")
    before = read("VmRSS")
    work()
    return read("VmHWM") - before


def npy_header(shape, descr="|u1", is_fortran=False):
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": descr, "fortran_order": is_fortran, "shape": shape})
    return head.getvalue()


def to_npy(array):
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


def write_safetensors(path, entries, num_bytes=0, content=None):
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + (content or b""))
    os.truncate(path, 8 + len(text) + max(num_bytes, len(content or b"")))
