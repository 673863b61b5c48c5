"""Safetensors files of a run: each is written once, and its digest is checked on the very bytes that are used.

Files are read, not memory-mapped: a file that is altered after it was read changes nothing in memory, and a file that
is altered while it is read fails the check of its digest.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor

from ffstream.errors import CorruptFileError
from ffstream.ground.files import storage_errors, write_all
from ffstream.ground.folder import Folder
from ffstream.storage.manifest import COUNT, TEXT, Shape, find_misfit

RESTORE = "restore it from a copy, or put it aside with ffstream repair --apply, so that it is trained again"
_MAX_HEADER_BYTES = 100_000_000  # as in the format's own library
_CHUNK_BYTES = 1 << 20
_METADATA = "__metadata__"
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


def write_tensors(folder: Folder, name: str, tensors: Mapping[str, Tensor]) -> Callable[[], str]:
    """Write tensors to a temporary file. The returned function makes it durable as `name` and returns its digest."""
    temporary = folder.name_temporary(name)
    digest = stage_tensors(folder, temporary, tensors)

    def publish() -> str:
        with storage_errors(folder.path / name), folder.removed_on_error(temporary), folder.open(temporary) as file:
            folder.publish(file, temporary, name)
        return digest

    return publish


def stage_tensors(folder: Folder, name: str, tensors: Mapping[str, Tensor]) -> str:
    """Write tensors under `name`, which is temporary, and not yet durably. Returns the digest of the file."""
    with storage_errors(folder.path / name):
        file = folder.create(name)
        with folder.removed_on_error(name), file:
            return save_tensors(file, tensors)


def save_tensors(file: io.FileIO, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> str:
    """Write tensors on the host to an open file, tensor by tensor. Returns the digest of what was written.

    safetensors' own writer is not used: it makes a file under a name of its own, which a killed process leaves behind.
    """
    ordered, entries = order_entries(tensors)
    head = {_METADATA: dict(metadata)} if metadata else {}
    digest = hashlib.sha256()
    for part in itertools.chain([memoryview(encode_header(head | entries))], map(payload_of, ordered)):
        digest.update(part)
        write_all(file, part)
    return digest.hexdigest()


def digest_tensors(tensors: Mapping[str, Tensor]) -> str:
    """The digest that a file of these tensors would have."""
    ordered, entries = order_entries(tensors)
    digest = hashlib.sha256(encode_header(entries))
    for tensor in ordered:
        digest.update(payload_of(tensor))
    return digest.hexdigest()


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


def join_tensors(folder: Folder, name: str, parts: Mapping[str, str], axes: Mapping[str, int]) -> str:
    """Join the tensors of several files, each along its axis, into one file. Only one part is in memory at a time.

    `parts` maps files of the folder to their digests; all tensors are float32. The new file is not yet durable. Returns
    its digest. Raises CorruptFileError for a part that does not have its digest.
    """
    shapes = [_read_shapes(folder, part) for part in parts]
    joined = {key: _joined_shape([found[key] for found in shapes], axis) for key, axis in axes.items()}
    entries: dict[str, Any] = {}
    end = 0
    for key, shape in joined.items():
        start, end = end, end + torch.float32.itemsize * math.prod(shape)
        entries[key] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    header = encode_header(entries)
    with storage_errors(folder.path / name):
        file = folder.create(name)
    with folder.removed_on_error(name), file:
        with storage_errors(folder.path / name):
            write_all(file, header)
            file.truncate(len(header) + end)
        tiles, written, begin = [], [], 0
        for part, digest in parts.items():
            tensors = load_tensors(folder, part, digest)
            num_units = next(tensors[key].shape[axis] for key, axis in axes.items())
            tiles.append(slice(begin, begin + num_units))
            of_tile = hashlib.sha256()
            with storage_errors(folder.path / name):
                for key, axis in axes.items():
                    start = len(header) + entries[key]["data_offsets"][0]
                    tensor = tensors[key].contiguous()
                    for offset, piece in _pieces(start, joined[key], axis, begin, tensor):
                        file.seek(offset)
                        write_all(file, piece)
                        of_tile.update(piece)
            written.append(of_tile.hexdigest())
            begin += num_units
        # The file is read back once for its digest, and each tile must have the digest of what was written.
        file.seek(0)
        digest, found = _digest_tiles(folder, name, file, axes, tiles)
        if found != written:
            raise CorruptFileError(f"file {folder.path / name}: altered while it was written; resume to write it anew")
    return digest


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


class _MisfitError(Exception):
    """A file is malformed; the message says how."""


def read_tensors(file: io.FileIO, path: object, digest: Any = None) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The metadata and all tensors of an open file, read once; `digest`, if given, is updated with every byte.

    `path` names the file in errors. Raises CorruptFileError when it is not a complete safetensors file.
    """
    try:
        header = _read_header(file)
        if digest is not None:
            digest.update(header.text)
        tensors = {}
        for name, (dtype, shape) in header.entries.items():
            tensors[name] = torch.empty(shape, dtype=dtype)
            _read_into(file, payload_of(tensors[name]), digest)
    except _MisfitError as misfit:
        text = f"file {path}: altered or truncated since it was written ({misfit}); {RESTORE}"
        raise CorruptFileError(text) from misfit
    return header.metadata, tensors


def load_tensors(folder: Folder, name: str, digest: str) -> dict[str, Tensor]:
    """All tensors of a file. Raises CorruptFileError for another digest, and for numbers that are not finite."""
    with _opened(folder, name) as file:
        found = hashlib.sha256()
        _, tensors = read_tensors(file, folder.path / name, found)
    if found.hexdigest() != digest:
        _raise_altered(folder, name, found.hexdigest(), digest)
    for key, tensor in tensors.items():
        check_finite(tensor, f"file {folder.path / name}: {key}")
    return tensors


def load_tensor(folder: Folder, name: str, digest: str, key: str, dtype: torch.dtype, num_axes: int) -> Tensor:
    """The tensor of a key. Raises CorruptFileError as `load_tensors` does, and for another type or number of axes."""
    tensor = load_tensors(folder, name, digest).get(key)
    if tensor is None or tensor.dtype != dtype or tensor.dim() != num_axes:
        found = None if tensor is None else f"{tensor.dtype} of shape {tuple(tensor.shape)}"
        path = folder.path / name
        raise CorruptFileError(f"file {path}: {key} is {found}, allowed {dtype} of {num_axes} axes; {RESTORE}")
    return tensor


def fill_tensors(folder: Folder, name: str, digest: str, targets: Mapping[str, Tensor]) -> None:
    """Read all tensors of a file into `targets`; those on the host are filled in place and take no further memory.

    Raises CorruptFileError for another digest or other tensors; `targets` must not be used after that.
    """
    with _opened(folder, name) as file:
        found = hashlib.sha256()
        try:
            header = _read_header(file)
            own = {key: (target.dtype, tuple(target.shape)) for key, target in targets.items()}
            if header.entries != own:
                _check_rest(folder, name, file, digest)
                raise CorruptFileError(
                    f"file {folder.path / name}: holds {_shorten(header.entries)}, this configuration needs "
                    f"{_shorten(own)}; {RESTORE}"
                )
            found.update(header.text)
            for key in header.entries:
                target = targets[key]
                room = target if target.device.type == "cpu" else torch.empty_like(target, device="cpu")
                _read_into(file, payload_of(room), found)
                check_finite(room, f"file {folder.path / name}: {key}")
                if room is not target:
                    target.copy_(room)
        except _MisfitError as misfit:
            raise _altered(folder, name, misfit) from misfit
    if found.hexdigest() != digest:
        _raise_altered(folder, name, found.hexdigest(), digest)


def digest_tiles(folder: Folder, name: str, digest: str, axes: Mapping[str, int], tiles: Sequence[slice]) -> list[str]:
    """Check the digest of a file once, and return a digest for each tile of units, for `load_slices` to check.

    Raises CorruptFileError when the file has another digest.
    """
    with _opened(folder, name) as file:
        found, of_tiles = _digest_tiles(folder, name, file, axes, tiles)
    if found != digest:
        _raise_altered(folder, name, found, digest)
    return of_tiles


def load_slices(folder: Folder, name: str, axes: Mapping[str, int], units: slice, digest: str) -> dict[str, Tensor]:
    """Read the slice `units` of each float32 tensor along its axis; only that slice takes memory.

    `digest` is that of this tile, from `digest_tiles`. Raises CorruptFileError when the file has changed since then.
    """
    parts, found = {}, hashlib.sha256()
    with _opened(folder, name) as file:
        try:
            header = _read_header(file)
            _check_axes(header, axes)
            start = len(header.text)
            for key, (_, shape) in header.entries.items():
                axis = axes[key]
                part = torch.empty([*shape[:axis], units.stop - units.start, *shape[axis + 1 :]])
                for offset, piece in _pieces(start, shape, axis, units.start, part):
                    file.seek(offset)
                    _read_into(file, piece, found)
                parts[key] = part
                start += header.nbytes(key)
        except _MisfitError as misfit:
            raise CorruptFileError(f"file {folder.path / name}: {misfit} since it was checked; {RESTORE}") from misfit
    if found.hexdigest() != digest:
        raise CorruptFileError(f"file {folder.path / name}: altered since it was checked; {RESTORE}")
    return parts


def check_digest(folder: Folder, name: str, digest: str) -> None:
    """Raise CorruptFileError when a file does not have this digest."""
    with _opened(folder, name) as file:
        try:
            _read_header(file)  # detects a file of the wrong size at once
        except _MisfitError as misfit:
            raise _altered(folder, name, misfit) from misfit
        _check_rest(folder, name, file, digest)


def check_finite(tensor: Tensor, noun: str) -> None:
    """Raise CorruptFileError, whose message begins with `noun`, for NaN or infinity in a tensor. No copy is made."""
    if tensor.is_floating_point() and tensor.numel():
        least, most = torch.aminmax(tensor)
        if not (math.isfinite(float(least)) and math.isfinite(float(most))):
            raise CorruptFileError(f"{noun} holds numbers that are not finite; {RESTORE}")


@contextlib.contextmanager
def _opened(folder: Folder, name: str) -> Iterator[io.FileIO]:
    try:
        file = folder.open(name)
    except FileNotFoundError:
        raise CorruptFileError(f"file {folder.path / name}: is missing; {RESTORE}") from None
    with file, storage_errors(folder.path / name, "read"):
        yield file


def _read_header(file: io.FileIO) -> Header:
    """Read the header at the start of a file. Raises _MisfitError unless its entries cover the rest, each byte once."""
    num_bytes = os.fstat(file.fileno()).st_size
    head = _read_exactly(file, 8)
    length = int.from_bytes(head, "little")
    if length > min(num_bytes - 8, _MAX_HEADER_BYTES):
        raise _MisfitError(f"has a header of {length} bytes in a file of {num_bytes}")
    text = _read_exactly(file, length)
    try:
        found = json.loads(text)
        metadata = found.pop(_METADATA, {})
    except (ValueError, AttributeError, RecursionError, TypeError) as error:
        raise _MisfitError(f"header: does not parse ({error})") from error
    misfit = find_misfit(found, {TEXT: _ENTRY}, "header") or find_misfit(metadata, {TEXT: TEXT}, "metadata")
    if misfit is not None:
        raise _MisfitError(misfit)
    entries, end = {}, 0
    for name, entry in sorted(found.items(), key=lambda item: item[1]["data_offsets"][:2]):
        dtype, shape = _BY_NAME.get(entry["dtype"]), tuple(entry["shape"])
        if dtype is None:
            raise _MisfitError(f"{_shorten(name)}: type {_shorten(entry['dtype'])}, allowed {', '.join(_BY_NAME)}")
        start, end = end, end + math.prod(shape) * dtype.itemsize
        if entry["data_offsets"] != [start, end]:
            raise _MisfitError(f"{_shorten(name)}: data at {entry['data_offsets'][:2]}, allowed {[start, end]}")
        entries[name] = (dtype, shape)
    if 8 + length + end != num_bytes:
        raise _MisfitError(f"has {num_bytes} bytes, allowed {8 + length + end}")
    return Header(metadata, entries, head + text)


def _read_exactly(file: io.FileIO, num_bytes: int) -> bytes:
    data = bytearray(num_bytes)
    _read_into(file, memoryview(data), None)
    return bytes(data)


def _read_into(file: io.FileIO, payload: memoryview, digest: Any) -> None:
    """Fill `payload` from a file, and update `digest` if given. Raises _MisfitError when the file ends too early."""
    num_read = 0
    while num_read < len(payload):
        step = file.readinto(payload[num_read : num_read + _CHUNK_BYTES])
        if not step:
            raise _MisfitError("cut short")
        if digest is not None:
            digest.update(payload[num_read : num_read + step])
        num_read += step


def _digest_tiles(
    folder: Folder, name: str, file: io.FileIO, axes: Mapping[str, int], tiles: Sequence[slice]
) -> tuple[str, list[str]]:
    """The digest of a whole file and that of each tile, from one read that starts at the beginning."""
    try:
        header = _read_header(file)
        _check_axes(header, axes)
        whole, of_tiles = hashlib.sha256(header.text), [hashlib.sha256() for _ in tiles]
        room = memoryview(bytearray(_CHUNK_BYTES))
        for key, (dtype, shape) in header.entries.items():
            axis = axes[key]
            inner = dtype.itemsize * math.prod(shape[axis + 1 :])
            for _ in range(math.prod(shape[:axis])):
                for tile, of_tile in zip(tiles, of_tiles, strict=True):
                    left = (tile.stop - tile.start) * inner
                    while left:
                        piece = room[: min(left, _CHUNK_BYTES)]
                        _read_into(file, piece, whole)
                        of_tile.update(piece)
                        left -= len(piece)
    except _MisfitError as misfit:
        raise _altered(folder, name, misfit) from misfit
    return whole.hexdigest(), [of_tile.hexdigest() for of_tile in of_tiles]


def _check_axes(header: Header, axes: Mapping[str, int]) -> None:
    for key, (dtype, shape) in header.entries.items():
        if key not in axes or dtype != torch.float32 or len(shape) <= axes[key]:
            raise _MisfitError(f"{_shorten(key)} is {dtype} of shape {shape}, allowed what a tile has")
    if header.entries.keys() != axes.keys():
        raise _MisfitError(f"holds {_shorten(sorted(header.entries))}, allowed {_shorten(sorted(axes))}")


def _check_rest(folder: Folder, name: str, file: io.FileIO, digest: str) -> None:
    """Read a whole file again, and raise CorruptFileError when it does not have this digest."""
    found = hashlib.sha256()
    file.seek(0)
    while part := file.read(_CHUNK_BYTES):
        found.update(part)
    if found.hexdigest() != digest:
        _raise_altered(folder, name, found.hexdigest(), digest)


def _altered(folder: Folder, name: str, misfit: _MisfitError) -> CorruptFileError:
    """The error for a malformed file, which cannot be one that we wrote."""
    return CorruptFileError(
        f"file {folder.path / name}: altered or truncated since it was written ({misfit}); {RESTORE}"
    )


def _raise_altered(folder: Folder, name: str, found: str, digest: str) -> NoReturn:
    raise CorruptFileError(
        f"file {folder.path / name}: altered or truncated since it was written (sha256 {found[:12]}, manifest "
        f"{digest[:12]}); {RESTORE}"
    )


def _read_shapes(folder: Folder, name: str) -> dict[str, tuple[int, ...]]:
    """The shapes in the header of a file. Its digest is checked later, when the data are read."""
    with _opened(folder, name) as file:
        try:
            return {key: shape for key, (_, shape) in _read_header(file).entries.items()}
        except _MisfitError as misfit:
            raise _altered(folder, name, misfit) from misfit


def _joined_shape(shapes: Sequence[tuple[int, ...]], axis: int) -> tuple[int, ...]:
    first = shapes[0]
    return (*first[:axis], sum(shape[axis] for shape in shapes), *first[axis + 1 :])


def _pieces(start: int, shape: Sequence[int], axis: int, begin: int, part: Tensor) -> Iterator[tuple[int, memoryview]]:
    """Yield the pieces of `part`, each with its offset in the file.

    The file holds a float32 tensor of `shape` from byte `start` on; `part` lies in it from `begin` on along `axis`.
    """
    inner = torch.float32.itemsize * math.prod(shape[axis + 1 :])
    for outer, piece in enumerate(part.view(math.prod(shape[:axis]), -1)):
        yield start + (outer * shape[axis] + begin) * inner, piece.numpy().data.cast("B")


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
