"""The formats of files of arrays (.safetensors, .npz, .npy): what their headers say, and where their data lie.

Headers come from anywhere and are not trusted: they are checked against the size of the file before data are read.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any, Protocol

import numpy as np
import torch

_MAX_HEADER_BYTES = 1 << 20  # of a whole file: thousands of arrays; the parsed header takes tens of times that
_MAX_NPY_HEADER_BYTES = 10_000  # the limit of numpy itself
_MAX_AXES = 32
_MAX_SIZE = 1 << 63  # elements or bytes; a tensor has fewer

_SAFETENSORS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NUMPY_NAMES = "bool uint8 uint16 uint32 uint64 int8 int16 int32 int64 float16 float32 float64 complex64 complex128"
_NUMPY = {np.dtype(name).str: getattr(torch, name) for name in _NUMPY_NAMES.split()}  # in this machine's byte order
_NPY_MAGIC = b"\x93NUMPY"
_NPY_PARSERS = {
    b"\x01\x00": (2, np.lib.format.read_array_header_1_0),
    b"\x02\x00": (4, np.lib.format.read_array_header_2_0),
}
_ENCRYPTED = 1  # flag bit of a member of a zip archive


@dataclass(frozen=True)
class Header:
    """The type and shape that a file declares for an array, read before its data."""

    dtype: torch.dtype | None  # None for a type that is not supported
    type_name: str  # as written in the file
    shape: tuple[int, ...]
    is_fortran: bool = False  # the first axis varies fastest in the file

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The bytes of its data in the file; `dtype` must not be None."""
        assert self.dtype is not None
        return self.num_elements * self.dtype.itemsize


class Stream(Protocol):
    """What bytes are read from."""

    def read(self, num_bytes: int, /) -> bytes | None: ...


class Format(Protocol):
    """An open file in one of the formats: the names of its arrays, its metadata, and access to each array."""

    names: list[str]
    metadata: dict[str, Any]

    def read_header(self, name: str) -> Header: ...

    def opened(self, name: str) -> contextlib.AbstractContextManager[Stream]:
        """A stream that is positioned at the first byte of the array's data."""
        ...

    def find_start(self, name: str) -> int | None:
        """Where the array's data begin in the file; None in a format that is not read by position."""
        ...


class MisfitError(Exception):
    """A file is malformed; the message says how."""


class _Safetensors:
    """The .safetensors format: a header in JSON, then data that its entries cover without gaps."""

    def __init__(self, file: io.FileIO) -> None:
        self._file = file
        num_bytes = os.fstat(file.fileno()).st_size
        length = int.from_bytes(read_exactly(file, 8), "little")
        if length > min(num_bytes - 8, _MAX_HEADER_BYTES):
            raise MisfitError(f"a header of {length} bytes in a file of {num_bytes}, allowed {_MAX_HEADER_BYTES}")
        found = json.loads(read_exactly(file, length).decode(), object_pairs_hook=_as_unique)
        if not isinstance(found, dict):
            raise MisfitError("a header that is no object")
        metadata = found.pop("__metadata__", None)
        self.metadata = metadata if isinstance(metadata, dict) else {}
        entries = {name: _parse_entry(name, entry) for name, entry in found.items()}
        self._headers, self._starts = {}, {}
        end = 0
        for name, (header, start, stop) in sorted(entries.items(), key=lambda item: item[1][1:]):
            if start != end or stop < start or (header.dtype is not None and stop - start != header.nbytes):
                raise MisfitError(
                    f"{shorten(name)}: data from {start} to {stop}, allowed from {end} on, as many as its shape has"
                )
            self._headers[name], self._starts[name] = header, 8 + length + start
            end = stop
        if 8 + length + end != num_bytes:
            raise MisfitError(f"has {num_bytes} bytes, allowed {8 + length + end}, as its header says")
        self.names = list(found)

    def read_header(self, name: str) -> Header:
        """The header of an array, which was read when the file was opened."""
        return self._headers[name]

    @contextlib.contextmanager
    def opened(self, name: str) -> Iterator[io.FileIO]:
        """The file, positioned where the array's data begin."""
        self._file.seek(self._starts[name])
        yield self._file

    def find_start(self, name: str) -> int | None:
        """Where the array's data begin in the file."""
        return self._starts[name]


class _Npy:
    """The .npy format, which holds one array."""

    def __init__(self, file: io.FileIO) -> None:
        self._file = file
        self.names = ["images"]
        self.metadata: dict[str, Any] = {}

    def read_header(self, name: str) -> Header:
        """Read the header from the start of the file, and leave the file positioned at the data."""
        self._file.seek(0)
        return _read_npy_header(self._file, os.fstat(self._file.fileno()).st_size)

    @contextlib.contextmanager
    def opened(self, name: str) -> Iterator[io.FileIO]:
        """The file, positioned where the array's data begin."""
        self.read_header(name)
        yield self._file

    def find_start(self, name: str) -> int | None:
        """None: it is read from its beginning."""
        return None


class _Npz:
    """The .npz format: a zip archive of .npy members, each array being named as its member without .npy."""

    def __init__(self, file: io.FileIO) -> None:
        self._archive = zipfile.ZipFile(_BoundedFile(file.fileno(), closefd=False))
        members = [(info.filename.removesuffix(".npy"), info) for info in self._archive.infolist()]
        self._members = _as_unique(members)
        self.names = list(self._members)
        self.metadata: dict[str, Any] = {}
        _check_extents(self._archive)

    def read_header(self, name: str) -> Header:
        """Read the header from the start of the array's member."""
        with self._open_member(name) as stream:
            return _read_npy_header(stream, self._members[name].file_size)

    @contextlib.contextmanager
    def opened(self, name: str) -> Iterator[Stream]:
        """The member, positioned at its data. It yields no more than its declared size, and its checksum is checked."""
        with self._open_member(name) as stream:
            _read_npy_header(stream, self._members[name].file_size)
            yield stream

    def find_start(self, name: str) -> int | None:
        """None: it is read from its beginning."""
        return None

    def _open_member(self, name: str) -> IO[bytes]:
        info = self._members[name]
        if info.flag_bits & _ENCRYPTED:
            raise MisfitError(f"{shorten(name)}: is encrypted, allowed a plain member")
        # With other methods, zipfile does not bound how much it decompresses at once.
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise MisfitError(f"{shorten(name)}: compression {info.compress_type}, allowed stored or deflated")
        return self._archive.open(info)


class _BoundedFile(io.FileIO):
    """A file that bounds each read, as zipfile reads the list of members whole, however long it is."""

    def read(self, size: int | None = -1, /) -> bytes:
        """Read `size` bytes, or all that are left. Raises MisfitError for more bytes than a header may have."""
        wanted = _MAX_HEADER_BYTES + 1 if size is None or size < 0 else size
        data = super().read(min(wanted, _MAX_HEADER_BYTES + 1)) or b""
        if len(data) > _MAX_HEADER_BYTES:
            raise MisfitError(f"a list of members of more than {_MAX_HEADER_BYTES} bytes, allowed up to that")
        return data


FORMATS: dict[str, Callable[[io.FileIO], Format]] = {".npy": _Npy, ".npz": _Npz, ".safetensors": _Safetensors}
SUFFIXES = tuple(FORMATS)
# By the letter that numpy has for them.
KINDS = {"U": "texts", "S": "texts", "O": "objects", "M": "dates", "m": "spans of time", "V": "records"}


def _read_npy_header(stream: Stream, num_bytes: int) -> Header:
    """Read the header of a .npy stream of `num_bytes` in all, and leave the stream positioned at the data."""
    begin = read_exactly(stream, len(_NPY_MAGIC) + 2)
    version = begin[len(_NPY_MAGIC) :]
    if not begin.startswith(_NPY_MAGIC) or version not in _NPY_PARSERS:
        raise MisfitError(f"begins with {begin!r}, allowed an array of numpy, of format 1.0 or 2.0")
    size, parse = _NPY_PARSERS[version]
    length = read_exactly(stream, size)
    num_text = int.from_bytes(length, "little")
    if num_text > _MAX_NPY_HEADER_BYTES:
        raise MisfitError(f"a header of {num_text} bytes, allowed {_MAX_NPY_HEADER_BYTES}")
    shape, is_fortran, dtype = parse(io.BytesIO(length + read_exactly(stream, num_text)))
    header = Header(_NUMPY.get(dtype.str), dtype.str, _check_shape("array", shape, dtype.itemsize), is_fortran)
    wanted = len(begin) + size + num_text + (header.nbytes if header.dtype is not None else 0)
    if header.dtype is not None and num_bytes != wanted:
        raise MisfitError(f"an array of shape {header.shape} in {num_bytes} bytes, allowed {wanted}")
    return header


def _parse_entry(name: str, entry: Any) -> tuple[Header, int, int]:
    """The header of the array that an entry of a .safetensors header describes, and where its data begin and end."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise MisfitError(f"{shorten(name)}: an entry without dtype, shape and data_offsets alone")
    type_name, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(type_name, str) or not isinstance(shape, list) or not isinstance(offsets, list):
        raise MisfitError(f"{shorten(name)}: an entry of other types")
    if len(offsets) != 2 or not all(map(_is_count, offsets)):
        raise MisfitError(f"{shorten(name)}: data_offsets {shorten(repr(offsets))}, allowed two counts")
    dtype = _SAFETENSORS.get(type_name)
    sizes = _check_shape(name, shape, 1 if dtype is None else dtype.itemsize)
    return Header(dtype, shorten(type_name), sizes), offsets[0], offsets[1]


def _check_shape(name: str, shape: Any, num_bytes: int) -> tuple[int, ...]:
    """Return `shape` as a tuple. Raises MisfitError for a shape that no tensor can have."""
    if len(shape) > _MAX_AXES or not all(map(_is_count, shape)):
        raise MisfitError(f"{shorten(name)}: shape {shorten(repr(shape))}, allowed counts on up to {_MAX_AXES} axes")
    if num_bytes * math.prod(max(size, 1) for size in shape) >= _MAX_SIZE:
        raise MisfitError(f"{shorten(name)}: shape {shorten(repr(shape))}, more than can be counted")
    return tuple(shape)


def _check_extents(archive: zipfile.ZipFile) -> None:
    """Raise MisfitError when members overlap each other or the list of members, as they do in zip bombs."""
    end = 0
    for info in sorted(archive.infolist(), key=lambda info: info.header_offset):
        if info.header_offset < end:
            raise MisfitError(f"{shorten(info.filename)}: lies over another member")
        end = info.header_offset + zipfile.sizeFileHeader + info.compress_size  # type: ignore[attr-defined]
    if end > archive.start_dir:
        raise MisfitError("a member lies over the list of members")


def _as_unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the pairs as a dictionary. Raises MisfitError for a name that is given twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise MisfitError("a name that is given twice")
    return found


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < _MAX_SIZE


def read_exactly(stream: Stream, num_bytes: int) -> bytes:
    """Read so many bytes. Raises MisfitError where there are fewer."""
    parts = []
    while num_bytes and (part := stream.read(num_bytes)):
        parts.append(part)
        num_bytes -= len(part)
    if num_bytes:
        raise MisfitError("cut short")
    return parts[0] if len(parts) == 1 else b"".join(parts)


def shorten(text: str) -> str:
    """A text that a file holds, as short as a message may quote it."""
    return text if len(text) <= 200 else f"{text[:200]}..."
