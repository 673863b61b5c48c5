"""The format of safetensors files: headers, the order of tensors, and their bytes."""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ffstream.storage.manifest import COUNT, TEXT, Shape, find_misfit

_MAX_HEADER_BYTES = 100_000_000  # as in the format's own library
CHUNK_BYTES = 1 << 20
METADATA = "__metadata__"
_ENTRY: Shape = {"dtype": TEXT, "shape": [COUNT], "data_offsets": [COUNT]}
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_BY_NAME = {name: dtype for dtype, name in _DTYPES.items()}


# --- writing


def order_entries(tensors: Mapping[str, Tensor]) -> tuple[list[Tensor], dict[str, Any]]:
    """Tensors in file order, and their header entries. The largest element types come first, to keep all aligned."""
    entries: dict[str, Any] = {}
    end = 0
    ordered = sorted(tensors.items(), key=lambda item: -item[1].itemsize)
    for name, tensor in ordered:
        start, end = end, end + tensor.nbytes
        entries[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    return [tensor for _, tensor in ordered], entries


def payload_of(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor on the host."""
    data: memoryview = tensor.detach().reshape(-1).view(torch.uint8).numpy().data
    return data


def encode_header(entries: Mapping[str, object]) -> bytes:
    """The header of a safetensors file, padded so that the data begin on a multiple of 8, as the format advises."""
    text = json.dumps(entries).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    return len(text).to_bytes(8, "little") + text


# --- reading


@dataclass(frozen=True)
class Header:
    """The header of a safetensors file, with entries in the order of their data, which they cover without a gap."""

    metadata: dict[str, str]
    entries: dict[str, tuple[torch.dtype, tuple[int, ...]]]
    text: bytes  # the header as it is in the file, with its length in front

    def nbytes(self, name: str) -> int:
        """The number of bytes of one tensor's data."""
        dtype, shape = self.entries[name]
        return math.prod(shape) * dtype.itemsize


class MisfitError(Exception):
    """A file is malformed; the message says how."""


def read_header(file: io.FileIO) -> Header:
    """Read the header at the start of a file. Raises MisfitError unless its entries cover the rest, each byte once."""
    num_bytes = os.fstat(file.fileno()).st_size
    head = _read_exactly(file, 8)
    length = int.from_bytes(head, "little")
    if length > min(num_bytes - 8, _MAX_HEADER_BYTES):
        raise MisfitError(f"has a header of {length} bytes in a file of {num_bytes}")
    text = _read_exactly(file, length)
    try:
        found = json.loads(text)
        metadata = found.pop(METADATA, {})
    except (ValueError, AttributeError, RecursionError, TypeError) as error:
        raise MisfitError(f"header: does not parse ({error})") from error
    misfit = find_misfit(found, {TEXT: _ENTRY}, "header") or find_misfit(metadata, {TEXT: TEXT}, "metadata")
    if misfit is not None:
        raise MisfitError(misfit)
    entries, end = {}, 0
    for name, entry in sorted(found.items(), key=lambda item: item[1]["data_offsets"][:2]):
        dtype, shape = _BY_NAME.get(entry["dtype"]), tuple(entry["shape"])
        if dtype is None:
            raise MisfitError(f"{shorten(name)}: type {shorten(entry['dtype'])}, allowed {', '.join(_BY_NAME)}")
        start, end = end, end + math.prod(shape) * dtype.itemsize
        if entry["data_offsets"] != [start, end]:
            raise MisfitError(f"{shorten(name)}: data at {entry['data_offsets'][:2]}, allowed {[start, end]}")
        entries[name] = (dtype, shape)
    if 8 + length + end != num_bytes:
        raise MisfitError(f"has {num_bytes} bytes, allowed {8 + length + end}")
    return Header(metadata, entries, head + text)


def _read_exactly(file: io.FileIO, num_bytes: int) -> bytes:
    data = bytearray(num_bytes)
    read_into(file, memoryview(data), None)
    return bytes(data)


def read_into(file: io.FileIO, payload: memoryview, digest: Any) -> None:
    """Fill `payload` from a file, and update `digest` if given. Raises MisfitError when the file ends too early."""
    num_read = 0
    while num_read < len(payload):
        step = file.readinto(payload[num_read : num_read + CHUNK_BYTES])
        if not step:
            raise MisfitError("cut short")
        if digest is not None:
            digest.update(payload[num_read : num_read + step])
        num_read += step


def shorten(value: object) -> str:
    """A value as an error shows it: cut after 200 characters."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
