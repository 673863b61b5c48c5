"""Safetensors files of a run: written durably, checked by digest before use, read and joined by units."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from ffstream.errors import CorruptFileError
from ffstream.files import make_temporary, publish, removed_on_error, sha256_file, storage_errors
from ffstream.manifest import COUNT, TEXT, Shape, find_misfit

RESTORE = "restore it from a copy, or delete its folder to have it trained again"
_FLOAT_BYTES = 4
_MAX_HEADER_BYTES = 100_000_000  # as in the format's own library
_HEADER: Shape = {TEXT: {"dtype": TEXT, "shape": [COUNT], "data_offsets": [COUNT]}}
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


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> Callable[[], str]:
    """Write tensors under a temporary name. The action that is returned makes the file durable and tells its digest."""
    return _write(path, lambda temporary: save_tensors(temporary, tensors))


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors on the host to a file, in place, tensor by tensor, those of the largest elements first.

    safetensors' own writer makes a file beside it under a name of its own, which a killed process leaves there.
    """
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    ordered = sorted(tensors.items(), key=lambda item: -item[1].itemsize)  # so that each is aligned
    end = 0
    for name, tensor in ordered:
        start, end = end, end + tensor.nbytes
        entries[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    with path.open("wb") as file:
        file.write(encode_header(entries))
        for _, tensor in ordered:
            file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)


def join_tensors(path: Path, parts: Mapping[Path, str], axes: Mapping[str, int]) -> Callable[[], str]:
    """Write one file of what several hold, each tensor joined along its axis; no more than one part is in memory.

    `parts` are files with their digests, and all float32. The action that is returned makes the file durable and tells
    its digest. Raises CorruptFileError for a part that is not the one that was written.
    """

    def write(temporary: Path) -> None:
        for part, digest in parts.items():
            check_digest(part, digest)
        shapes = {name: [_read_shape(part, name) for part in parts] for name in axes}
        joined = {name: _joined_shape(found, axes[name]) for name, found in shapes.items()}
        starts, header = _describe(joined)
        with temporary.open("wb") as file:
            file.write(header)
            file.truncate(len(header) + sum(_FLOAT_BYTES * math.prod(shape) for shape in joined.values()))
            begins = dict.fromkeys(axes, 0)  # along its axis, of the next part
            for part in parts:
                for name, tensor in load_file(part).items():
                    start = len(header) + starts[name]
                    for offset, piece in _pieces(start, joined[name], axes[name], begins[name], tensor.contiguous()):
                        file.seek(offset)
                        file.write(piece)
                    begins[name] += tensor.shape[axes[name]]

    return _write(path, write)


def load_tensors(path: Path, digest: str) -> dict[str, Tensor]:
    """All tensors of a file. Raises CorruptFileError when it is not the one that was written."""
    check_digest(path, digest)
    try:
        return load_file(path)
    except SafetensorError as error:
        raise CorruptFileError(f"file {path}: not a safetensors file ({error}); {RESTORE}") from error


def load_tensor(path: Path, digest: str, name: str, dtype: torch.dtype, num_axes: int) -> Tensor:
    """The tensor of that name, type and number of axes. Raises CorruptFileError when it is not what was written."""
    tensor = load_tensors(path, digest).get(name)
    if tensor is None or tensor.dtype != dtype or tensor.dim() != num_axes:
        found = None if tensor is None else f"{tensor.dtype} of shape {tuple(tensor.shape)}"
        raise CorruptFileError(f"file {path}: {name} is {found}, allowed {dtype} of {num_axes} axes; {RESTORE}")
    return tensor


def fill_tensors(path: Path, digest: str, targets: Mapping[str, Tensor]) -> None:
    """Read all tensors of a file into those that are there; on the host no memory is taken beside them.

    Raises CorruptFileError when the file is not the one that was written, or holds others.
    """
    check_digest(path, digest)
    with path.open("rb", buffering=0) as file:
        header, begin = _read_header(path, file)
        found = {name: (entry["dtype"], tuple(entry["shape"])) for name, entry in header.items()}
        own = {name: (_DTYPES[target.dtype], tuple(target.shape)) for name, target in targets.items()}
        if found != own:
            raise CorruptFileError(f"file {path}: holds {found}, this configuration needs {own}; {RESTORE}")
        for name, target in targets.items():
            room = target if target.device.type == "cpu" else torch.empty_like(target, device="cpu")
            file.seek(begin + header[name]["data_offsets"][0])
            payload = room.reshape(-1).view(torch.uint8).numpy().data
            if payload.nbytes and file.readinto(payload) != payload.nbytes:
                raise CorruptFileError(f"file {path}: cut short since it was checked; {RESTORE}")
            if room is not target:
                target.copy_(room)


def load_slices(path: Path, axes: Mapping[str, int], units: slice) -> dict[str, Tensor]:
    """Of each float32 tensor, the part along its axis that `units` are. The digest was checked before.

    Read, not mapped: a file that is cut short meanwhile is an error, and no more than the part takes memory. Raises
    CorruptFileError.
    """
    found = {}
    with path.open("rb", buffering=0) as file:
        header, begin = _read_header(path, file)
        for name, axis in axes.items():
            shape = header[name]["shape"]
            part = torch.empty([*shape[:axis], units.stop - units.start, *shape[axis + 1 :]])
            start = begin + header[name]["data_offsets"][0]
            for offset, piece in _pieces(start, shape, axis, units.start, part):
                file.seek(offset)
                if file.readinto(piece) != len(piece):
                    raise CorruptFileError(f"file {path}: cut short since it was checked; {RESTORE}")
            found[name] = part
    return found


def _read_header(path: Path, file: BinaryIO) -> tuple[dict[str, Any], int]:
    """What the head of a file says of each tensor, and where what it describes begins. Raises CorruptFileError."""
    length = int.from_bytes(file.read(8), "little")
    try:
        header = json.loads(file.read(min(length, _MAX_HEADER_BYTES)))
        header.pop("__metadata__", None)
        misfit = find_misfit(header, _HEADER, "header")
    except (ValueError, AttributeError, RecursionError) as error:
        misfit = f"header: does not parse ({error})"
    if misfit is not None:
        raise CorruptFileError(f"file {path}: {misfit}; {RESTORE}")
    return header, 8 + length


def check_digest(path: Path, digest: str) -> None:
    """Raises CorruptFileError when a file is not the one that was written."""
    try:
        found = sha256_file(path)
    except OSError as error:
        raise CorruptFileError(f"file {path}: cannot be read ({error.strerror}); {RESTORE}") from error
    if found != digest:
        raise CorruptFileError(
            f"file {path}: altered or truncated since it was written (sha256 {found[:12]}, manifest {digest[:12]}); "
            f"{RESTORE}"
        )


def _write(path: Path, write: Callable[[Path], None]) -> Callable[[], str]:
    with storage_errors(path):
        temporary = make_temporary(path)
        with removed_on_error(temporary):
            write(temporary)

    def publish_file() -> str:
        with storage_errors(path), removed_on_error(temporary):
            digest = sha256_file(temporary)
            publish(temporary, path)
        return digest

    return publish_file


def _read_shape(path: Path, name: str) -> tuple[int, ...]:
    with safe_open(path, framework="pt") as file:
        return tuple(file.get_slice(name).get_shape())


def _joined_shape(shapes: Sequence[tuple[int, ...]], axis: int) -> tuple[int, ...]:
    first = shapes[0]
    return (*first[:axis], sum(shape[axis] for shape in shapes), *first[axis + 1 :])


def _describe(shapes: Mapping[str, tuple[int, ...]]) -> tuple[dict[str, int], bytes]:
    """Where each tensor starts, after the header, and the header."""
    starts, entries, end = {}, {}, 0
    for name, shape in shapes.items():
        starts[name], end = end, end + _FLOAT_BYTES * math.prod(shape)
        entries[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [starts[name], end]}
    return starts, encode_header(entries)


def encode_header(entries: Mapping[str, object]) -> bytes:
    """The head of a safetensors file; what follows it begins on a multiple of 8, as the format advises."""
    text = json.dumps(entries).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    return len(text).to_bytes(8, "little") + text


def _pieces(start: int, shape: Sequence[int], axis: int, begin: int, part: Tensor) -> Iterator[tuple[int, memoryview]]:
    """Where in a file the bytes of `part` belong: from `begin` on along an axis of a tensor that begins at `start`."""
    assert part.dtype == torch.float32, "the parameters of what is tileable are"
    inner = _FLOAT_BYTES * math.prod(shape[axis + 1 :])
    for outer, piece in enumerate(part.view(math.prod(shape[:axis]), -1)):
        yield start + (outer * shape[axis] + begin) * inner, piece.numpy().data.cast("B")
