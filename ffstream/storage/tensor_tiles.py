"""Files of tensors that are cut along their units: joined from the tiles of a layer, and read tile by tile."""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ffstream.errors import CorruptFileError
from ffstream.field.layers import UnitAxis
from ffstream.ground.files import storage_errors, write_all
from ffstream.ground.folder import Folder
from ffstream.storage.tensor_file import RESTORE, altered, check_finite, load_tensors, opened, raise_altered
from ffstream.storage.tensor_format import (
    CHUNK_BYTES,
    Header,
    MisfitError,
    encode_header,
    payload_of,
    read_header,
    read_into,
    shorten,
)


def join_tensors(folder: Folder, name: str, parts: Mapping[str, str], axes: Mapping[str, UnitAxis]) -> str:
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
            num_units = next(axis.count_units(tensors[key].shape) for key, axis in axes.items())
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


def digest_tiles(
    folder: Folder, name: str, digest: str, axes: Mapping[str, UnitAxis], tiles: Sequence[slice]
) -> list[str]:
    """Check the digest of a file once, and return a digest for each tile of units, for `load_slices` to check.

    Raises CorruptFileError when the file has another digest.
    """
    with opened(folder, name) as file:
        found, of_tiles = _digest_tiles(folder, name, file, axes, tiles)
    if found != digest:
        raise_altered(folder, name, found, digest)
    return of_tiles


def load_slices(
    folder: Folder, name: str, axes: Mapping[str, UnitAxis], units: slice, digest: str
) -> dict[str, Tensor]:
    """Read the slice `units` of each float32 tensor along its axis; only that slice takes memory.

    `digest` is that of this tile, from `digest_tiles`. Raises CorruptFileError when the file has changed since then.
    """
    parts, found = {}, hashlib.sha256()
    with opened(folder, name) as file:
        try:
            header = read_header(file)
            _check_axes(header, axes)
            start = len(header.text)
            for key, (_, shape) in header.entries.items():
                axis = axes[key]
                part = torch.empty(axis.resize(shape, units.stop - units.start))
                for offset, piece in _pieces(start, shape, axis, units.start, part):
                    file.seek(offset)
                    read_into(file, piece, found)
                parts[key] = part
                start += header.nbytes(key)
        except MisfitError as misfit:
            raise CorruptFileError(f"file {folder.path / name}: {misfit} since it was checked; {RESTORE}") from misfit
    if found.hexdigest() != digest:
        raise CorruptFileError(f"file {folder.path / name}: altered since it was checked; {RESTORE}")
    return parts


def fill_units(
    folder: Folder, name: str, digest: str, targets: Mapping[str, Tensor], axes: Mapping[str, UnitAxis], first: int
) -> None:
    """Fill `targets` with the tensors of those names, or with what a tile has of them: the units from `first` on.

    Other tensors of the file are passed over. Raises CorruptFileError for another digest and for tensors of another
    shape; `targets` must not be used after that.
    """
    found = hashlib.sha256()
    with opened(folder, name) as file:
        try:
            header = read_header(file)
            found.update(header.text)
            missing = sorted(targets.keys() - header.entries.keys())
            if missing:
                raise MisfitError(f"holds no {shorten(missing)}")
            for key, (dtype, shape) in header.entries.items():
                if key not in targets:
                    _pass_over(file, header.nbytes(key), found)
                    continue
                target = targets[key]
                room = target if target.device.type == "cpu" else torch.empty_like(target, device="cpu")
                pieces, others = [payload_of(room)], (0, 0)  # bytes before and behind each piece: those of other tiles
                if tuple(target.shape) != shape:
                    num_outer, num_units, num_inner = axes[key].fold(shape)
                    inner = dtype.itemsize * num_inner
                    num_after = num_units - first - axes[key].count_units(target.shape)
                    pieces = [payload_of(part) for part in room.view(num_outer, -1)]
                    others = (first * inner, num_after * inner)
                if dtype != target.dtype or (len(pieces[0]) + sum(others)) * len(pieces) != header.nbytes(key):
                    raise MisfitError(f"{shorten(key)} is {dtype} of shape {shape}, which has not these units")
                for piece in pieces:
                    _pass_over(file, others[0], found)
                    read_into(file, piece, found)
                    _pass_over(file, others[1], found)
                check_finite(room, f"file {folder.path / name}: {key}")
                if room is not target:
                    target.copy_(room)
        except MisfitError as misfit:
            raise altered(folder, name, misfit) from misfit
    if found.hexdigest() != digest:
        raise_altered(folder, name, found.hexdigest(), digest)


def _pass_over(file: io.FileIO, num_bytes: int, digest: Any) -> None:
    """Read bytes of which only the digest is needed."""
    while num_bytes:
        piece = memoryview(bytearray(min(num_bytes, CHUNK_BYTES)))
        read_into(file, piece, digest)
        num_bytes -= len(piece)


def _digest_tiles(
    folder: Folder, name: str, file: io.FileIO, axes: Mapping[str, UnitAxis], tiles: Sequence[slice]
) -> tuple[str, list[str]]:
    """The digest of a whole file and that of each tile, from one read that starts at the beginning."""
    try:
        header = read_header(file)
        _check_axes(header, axes)
        whole, of_tiles = hashlib.sha256(header.text), [hashlib.sha256() for _ in tiles]
        room = memoryview(bytearray(CHUNK_BYTES))
        for key, (dtype, shape) in header.entries.items():
            num_outer, _, num_inner = axes[key].fold(shape)
            inner = dtype.itemsize * num_inner
            for _ in range(num_outer):
                for tile, of_tile in zip(tiles, of_tiles, strict=True):
                    left = (tile.stop - tile.start) * inner
                    while left:
                        piece = room[: min(left, CHUNK_BYTES)]
                        read_into(file, piece, whole)
                        of_tile.update(piece)
                        left -= len(piece)
    except MisfitError as misfit:
        raise altered(folder, name, misfit) from misfit
    return whole.hexdigest(), [of_tile.hexdigest() for of_tile in of_tiles]


def _check_axes(header: Header, axes: Mapping[str, UnitAxis]) -> None:
    for key, (dtype, shape) in header.entries.items():
        if key not in axes or dtype != torch.float32 or not axes[key].divides(shape):
            raise MisfitError(f"{shorten(key)} is {dtype} of shape {shape}, allowed what a tile has")
    if header.entries.keys() != axes.keys():
        raise MisfitError(f"holds {shorten(sorted(header.entries))}, allowed {shorten(sorted(axes))}")


def _read_shapes(folder: Folder, name: str) -> dict[str, tuple[int, ...]]:
    """The shapes in the header of a file. Its digest is checked later, when the data are read."""
    with opened(folder, name) as file:
        try:
            return {key: shape for key, (_, shape) in read_header(file).entries.items()}
        except MisfitError as misfit:
            raise altered(folder, name, misfit) from misfit


def _joined_shape(shapes: Sequence[tuple[int, ...]], axis: UnitAxis) -> tuple[int, ...]:
    return axis.resize(shapes[0], sum(map(axis.count_units, shapes)))


def _pieces(
    start: int, shape: Sequence[int], axis: UnitAxis, begin: int, part: Tensor
) -> Iterator[tuple[int, memoryview]]:
    """Yield the pieces of `part`, each with its offset in the file.

    The file holds a float32 tensor of `shape` from byte `start` on; `part` lies in it from unit `begin` on along
    `axis`, in each of its runs.
    """
    num_outer, num_units, num_inner = axis.fold(shape)
    inner = torch.float32.itemsize * num_inner
    for outer, piece in enumerate(part.view(num_outer, -1)):
        yield start + (outer * num_units + begin) * inner, piece.numpy().data.cast("B")
