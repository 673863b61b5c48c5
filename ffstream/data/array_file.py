"""Reads a file of arrays (.safetensors, .npz or .npy) that may come from anywhere and is not trusted.

The headers are read first and checked against the size of the file. Only the arrays that are asked for are read, part
by part, straight into memory of our own, so that later changes to the file have no effect. Nothing is ever unpickled.
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
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ffstream.data.rounding import WIDE, Rounding
from ffstream.errors import DataError, FFStreamError
from ffstream.ground.files import UnsuitableFileError, open_regular

_CHUNK_BYTES = 1 << 18  # a multiple of every type's size
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


class _Stream(Protocol):
    def read(self, num_bytes: int, /) -> bytes | None: ...


class _Format(Protocol):
    """An open file in one of the formats: the names of its arrays, its metadata, and access to each array."""

    names: list[str]
    metadata: dict[str, Any]

    def read_header(self, name: str) -> Header: ...

    def opened(self, name: str) -> contextlib.AbstractContextManager[_Stream]:
        """A stream that is positioned at the first byte of the array's data."""
        ...


class _MisfitError(Exception):
    """A file is malformed; the message says how."""


class ArrayFile:
    """A file of arrays, open until its `with` block ends. `name` is what error messages call the file.

    Every method raises DataError for a file that is absent, not a regular file, damaged, or altered while it is read.
    """

    def __init__(self, path: Path, name: str) -> None:
        self._noun, self._suffix = f"data {name}", path.suffix.lower()
        self._headers: dict[str, Header] = {}
        with contextlib.ExitStack() as stack, self._errors():
            self._file = stack.enter_context(open_regular(path))
            self._state = self._read_state()
            self._format = _FORMATS[self._suffix](self._file)
            stack.pop_all()

    def __enter__(self) -> ArrayFile:
        return self

    def __exit__(self, *_error: object) -> None:
        self._file.close()

    @property
    def names(self) -> list[str]:
        """The names of all arrays; the array of a .npy file is called "images"."""
        return self._format.names

    @property
    def metadata(self) -> dict[str, Any]:
        """The metadata in the header of a .safetensors file, texts by name; empty for the other formats."""
        return self._format.metadata

    def header(self, name: str, allowed: str = "integers, booleans or floating numbers") -> Header:
        """The header of an array. Raises DataError, too, for an array that does not hold supported numbers.

        `allowed` says in the message what the array may hold.
        """
        if name not in self._headers:
            with self._errors():
                found = self._format.read_header(name)
                if found.dtype is None:
                    raise _MisfitError(f"{name}: holds {_describe_type(found.type_name)}, allowed {allowed}")
                self._headers[name] = found
        return self._headers[name]

    def read(self, name: str, target: Tensor, rounding: Rounding | None = None) -> None:
        """Read an array into `target`, contiguous and with as many elements, and convert it to the type of `target`.

        `rounding` records what the conversion loses of the types in WIDE.
        """
        header = self.header(name)
        with self._errors():
            with self._format.opened(name) as stream:
                _fill(stream, header, target, rounding)
            if self._read_state() != self._state or self._format.read_header(name) != header:
                raise _MisfitError("altered while it was read")

    def _read_state(self) -> tuple[int, int]:
        found = os.fstat(self._file.fileno())
        return found.st_size, found.st_mtime_ns

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (FFStreamError, MemoryError):
            raise
        except FileNotFoundError as error:
            raise DataError(f"{self._noun}: no such file") from error
        except UnsuitableFileError as error:
            raise DataError(f"{self._noun}: {error.strerror}; name a file of arrays") from error
        except Exception as error:  # zipfile and numpy raise errors of many types for damaged files
            reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
            reason = "cut short" if isinstance(error, EOFError) else reason
            what = f"cannot be read as {self._suffix} ({_shorten(reason)})"
            raise DataError(f"{self._noun}: {what}; mend or replace it") from error


def _describe_type(type_name: str) -> str:
    """What an array of an unsupported type holds, in words, by the name that numpy or safetensors has for the type."""
    words = _KINDS.get(type_name[1:2]) if type_name[:1] in "<>|" else None
    if words is None and type_name[:1] == ">":
        return f"numbers in another byte order than this machine's ({type_name})"
    return f"type {type_name}" if words is None else f"{words} ({type_name})"


def _fill(stream: _Stream, header: Header, target: Tensor, rounding: Rounding | None) -> None:
    """Fill `target` part by part, so that only one part at a time is held in the type of the file."""
    assert header.dtype is not None
    flat = target.view(-1)
    turned = target.view(header.shape).numpy().T if header.is_fortran else None
    step = _CHUNK_BYTES // header.dtype.itemsize
    for start in range(0, header.num_elements, step):
        stop = min(start + step, header.num_elements)
        data = _read_exactly(stream, (stop - start) * header.dtype.itemsize)
        part = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        # A byte other than 0 and 1 is not a valid bool, so bytes are compared and not reinterpreted.
        values = part.ne(0) if header.dtype == torch.bool else part.view(header.dtype)
        if turned is None:
            flat[start:stop].copy_(values)
        else:
            turned.flat[start:stop] = values.to(target.dtype).numpy()
        if rounding is not None and header.dtype in WIDE:
            rounding.add(start, values, by_feature=header.shape if header.is_fortran else None)


class _Safetensors:
    """The .safetensors format: a header in JSON, then data that its entries cover without gaps."""

    def __init__(self, file: io.FileIO) -> None:
        self._file = file
        num_bytes = os.fstat(file.fileno()).st_size
        length = int.from_bytes(_read_exactly(file, 8), "little")
        if length > min(num_bytes - 8, _MAX_HEADER_BYTES):
            raise _MisfitError(f"a header of {length} bytes in a file of {num_bytes}, allowed {_MAX_HEADER_BYTES}")
        found = json.loads(_read_exactly(file, length).decode(), object_pairs_hook=_as_unique)
        if not isinstance(found, dict):
            raise _MisfitError("a header that is no object")
        metadata = found.pop("__metadata__", None)
        self.metadata = metadata if isinstance(metadata, dict) else {}
        entries = {name: _parse_entry(name, entry) for name, entry in found.items()}
        self._headers, self._starts = {}, {}
        end = 0
        for name, (header, start, stop) in sorted(entries.items(), key=lambda item: item[1][1:]):
            if start != end or stop < start or (header.dtype is not None and stop - start != header.nbytes):
                raise _MisfitError(
                    f"{_shorten(name)}: data from {start} to {stop}, allowed from {end} on, as many as its shape has"
                )
            self._headers[name], self._starts[name] = header, 8 + length + start
            end = stop
        if 8 + length + end != num_bytes:
            raise _MisfitError(f"has {num_bytes} bytes, allowed {8 + length + end}, as its header says")
        self.names = list(found)

    def read_header(self, name: str) -> Header:
        """The header of an array, which was read when the file was opened."""
        return self._headers[name]

    @contextlib.contextmanager
    def opened(self, name: str) -> Iterator[io.FileIO]:
        """The file, positioned where the array's data begin."""
        self._file.seek(self._starts[name])
        yield self._file


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
    def opened(self, name: str) -> Iterator[_Stream]:
        """The member, positioned at its data. It yields no more than its declared size, and its checksum is checked."""
        with self._open_member(name) as stream:
            _read_npy_header(stream, self._members[name].file_size)
            yield stream

    def _open_member(self, name: str) -> IO[bytes]:
        info = self._members[name]
        if info.flag_bits & _ENCRYPTED:
            raise _MisfitError(f"{_shorten(name)}: is encrypted, allowed a plain member")
        # With other methods, zipfile does not bound how much it decompresses at once.
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise _MisfitError(f"{_shorten(name)}: compression {info.compress_type}, allowed stored or deflated")
        return self._archive.open(info)


class _BoundedFile(io.FileIO):
    """A file that bounds each read, as zipfile reads the list of members whole, however long it is."""

    def read(self, size: int | None = -1, /) -> bytes:
        """Read `size` bytes, or all that are left. Raises _MisfitError for more bytes than a header may have."""
        wanted = _MAX_HEADER_BYTES + 1 if size is None or size < 0 else size
        data = super().read(min(wanted, _MAX_HEADER_BYTES + 1)) or b""
        if len(data) > _MAX_HEADER_BYTES:
            raise _MisfitError(f"a list of members of more than {_MAX_HEADER_BYTES} bytes, allowed up to that")
        return data


_FORMATS: dict[str, Callable[[io.FileIO], _Format]] = {".npy": _Npy, ".npz": _Npz, ".safetensors": _Safetensors}
SUFFIXES = tuple(_FORMATS)
# By the letter that numpy has for them.
_KINDS = {"U": "texts", "S": "texts", "O": "objects", "M": "dates", "m": "spans of time", "V": "records"}


def _read_npy_header(stream: _Stream, num_bytes: int) -> Header:
    """Read the header of a .npy stream of `num_bytes` in all, and leave the stream positioned at the data."""
    begin = _read_exactly(stream, len(_NPY_MAGIC) + 2)
    version = begin[len(_NPY_MAGIC) :]
    if not begin.startswith(_NPY_MAGIC) or version not in _NPY_PARSERS:
        raise _MisfitError(f"begins with {begin!r}, allowed an array of numpy, of format 1.0 or 2.0")
    size, parse = _NPY_PARSERS[version]
    length = _read_exactly(stream, size)
    num_text = int.from_bytes(length, "little")
    if num_text > _MAX_NPY_HEADER_BYTES:
        raise _MisfitError(f"a header of {num_text} bytes, allowed {_MAX_NPY_HEADER_BYTES}")
    shape, is_fortran, dtype = parse(io.BytesIO(length + _read_exactly(stream, num_text)))
    header = Header(_NUMPY.get(dtype.str), dtype.str, _check_shape("array", shape, dtype.itemsize), is_fortran)
    wanted = len(begin) + size + num_text + (header.nbytes if header.dtype is not None else 0)
    if header.dtype is not None and num_bytes != wanted:
        raise _MisfitError(f"an array of shape {header.shape} in {num_bytes} bytes, allowed {wanted}")
    return header


def _parse_entry(name: str, entry: Any) -> tuple[Header, int, int]:
    """The header of the array that an entry of a .safetensors header describes, and where its data begin and end."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise _MisfitError(f"{_shorten(name)}: an entry without dtype, shape and data_offsets alone")
    type_name, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(type_name, str) or not isinstance(shape, list) or not isinstance(offsets, list):
        raise _MisfitError(f"{_shorten(name)}: an entry of other types")
    if len(offsets) != 2 or not all(map(_is_count, offsets)):
        raise _MisfitError(f"{_shorten(name)}: data_offsets {_shorten(repr(offsets))}, allowed two counts")
    dtype = _SAFETENSORS.get(type_name)
    sizes = _check_shape(name, shape, 1 if dtype is None else dtype.itemsize)
    return Header(dtype, _shorten(type_name), sizes), offsets[0], offsets[1]


def _check_shape(name: str, shape: Any, num_bytes: int) -> tuple[int, ...]:
    """Return `shape` as a tuple. Raises _MisfitError for a shape that no tensor can have."""
    if len(shape) > _MAX_AXES or not all(map(_is_count, shape)):
        raise _MisfitError(f"{_shorten(name)}: shape {_shorten(repr(shape))}, allowed counts on up to {_MAX_AXES} axes")
    if num_bytes * math.prod(max(size, 1) for size in shape) >= _MAX_SIZE:
        raise _MisfitError(f"{_shorten(name)}: shape {_shorten(repr(shape))}, more than can be counted")
    return tuple(shape)


def _check_extents(archive: zipfile.ZipFile) -> None:
    """Raise _MisfitError when members overlap each other or the list of members, as they do in zip bombs."""
    end = 0
    for info in sorted(archive.infolist(), key=lambda info: info.header_offset):
        if info.header_offset < end:
            raise _MisfitError(f"{_shorten(info.filename)}: lies over another member")
        end = info.header_offset + zipfile.sizeFileHeader + info.compress_size  # type: ignore[attr-defined]
    if end > archive.start_dir:
        raise _MisfitError("a member lies over the list of members")


def _as_unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the pairs as a dictionary. Raises _MisfitError for a name that is given twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _MisfitError("a name that is given twice")
    return found


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < _MAX_SIZE


def _read_exactly(stream: _Stream, num_bytes: int) -> bytes:
    parts = []
    while num_bytes and (part := stream.read(num_bytes)):
        parts.append(part)
        num_bytes -= len(part)
    if num_bytes:
        raise _MisfitError("cut short")
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _shorten(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:200]}..."
