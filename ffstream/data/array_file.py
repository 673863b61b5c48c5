"""Reads a file of arrays (.safetensors, .npz or .npy) that may come from anywhere and is not trusted.

The headers are read first and checked against the size of the file. Only the arrays that are asked for are read, part
by part, straight into memory of our own, so that a part does not change once it was read. Nothing is ever unpickled.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ffstream.data.array_formats import FORMATS, KINDS, Header, MisfitError, Stream, read_exactly, shorten
from ffstream.data.rounding import WIDE, Rounding
from ffstream.errors import DataError, FFStreamError
from ffstream.ground.files import UnsuitableFileError, open_regular

_CHUNK_BYTES = 1 << 18  # a multiple of every type's size


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
            self._format = FORMATS[self._suffix](self._file)
            stack.pop_all()

    def __enter__(self) -> ArrayFile:
        return self

    def __exit__(self, *_error: object) -> None:
        self._file.close()

    def __del__(self) -> None:
        if hasattr(self, "_file"):  # else it could not be opened
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
                    raise MisfitError(f"{name}: holds {_describe_type(found.type_name)}, allowed {allowed}")
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
                raise MisfitError("altered while it was read")

    @property
    def is_read_by_position(self) -> bool:
        """Whether `read_rows` can be used."""
        return self._suffix == ".safetensors"

    def read_rows(self, name: str, numbers: Tensor, target: Tensor) -> None:
        """Read rows with the numbers (k,) of an array (n, ...) into `target` (k, ...), contiguous, of the file's type.

        Rows that lie side by side are read at once. Booleans are read as the bytes that they are in the file.
        """
        header = self.header(name)
        start, row_bytes = self._format.find_start(name), header.nbytes // max(header.shape[0], 1)
        assert start is not None, "asked for a format that is read by position"
        ends = ((numbers.diff() != 1).nonzero().flatten() + 1).tolist() if len(numbers) else []
        runs = zip([0, *ends], [*ends, len(numbers)], strict=True)
        memory = memoryview(target.view(-1).view(torch.uint8).numpy().data)
        with self._errors():
            for first, stop in runs:
                at = start + int(numbers[first]) * row_bytes if stop > first else start
                left = memory[first * row_bytes : stop * row_bytes]
                while left:
                    num_bytes = os.preadv(self._file.fileno(), [left], at)
                    if not num_bytes:
                        raise MisfitError("cut short")
                    left, at = left[num_bytes:], at + num_bytes
            if self._read_state() != self._state:
                raise MisfitError("altered while it was read")

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
            what = f"cannot be read as {self._suffix} ({shorten(reason)})"
            raise DataError(f"{self._noun}: {what}; mend or replace it") from error


def _describe_type(type_name: str) -> str:
    """What an array of an unsupported type holds, in words, by the name that numpy or safetensors has for the type."""
    words = KINDS.get(type_name[1:2]) if type_name[:1] in "<>|" else None
    if words is None and type_name[:1] == ">":
        return f"numbers in another byte order than this machine's ({type_name})"
    return f"type {type_name}" if words is None else f"{words} ({type_name})"


def _fill(stream: Stream, header: Header, target: Tensor, rounding: Rounding | None) -> None:
    """Fill `target` part by part, so that only one part at a time is held in the type of the file."""
    assert header.dtype is not None
    flat = target.view(-1)
    turned = target.view(header.shape).numpy().T if header.is_fortran else None
    step = _CHUNK_BYTES // header.dtype.itemsize
    for start in range(0, header.num_elements, step):
        stop = min(start + step, header.num_elements)
        data = read_exactly(stream, (stop - start) * header.dtype.itemsize)
        part = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        # A byte other than 0 and 1 is not a valid bool, so bytes are compared and not reinterpreted.
        values = part.ne(0) if header.dtype == torch.bool else part.view(header.dtype)
        if turned is None:
            flat[start:stop].copy_(values)
        else:
            turned.flat[start:stop] = values.to(target.dtype).numpy()
        if rounding is not None and header.dtype in WIDE:
            rounding.add(start, values, by_feature=header.shape if header.is_fortran else None)


SUFFIXES = tuple(FORMATS)
