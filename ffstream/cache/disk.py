"""The disk tier: one file per shard, each of which can be checked by itself."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import re
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ffstream.cache.layout import CacheLayout
from ffstream.cache.tiers import ActivationCache
from ffstream.errors import CorruptFileError
from ffstream.ground.files import storage_errors, write_all
from ffstream.ground.folder import TEMPORARY, Folder
from ffstream.storage.manifest import SIZE, TEXT, Shape, find_misfit
from ffstream.storage.run_names import SHARD_NAMES
from ffstream.storage.tensor_format import encode_header

_SAFETENSORS_DTYPES = {"bf16": "BF16", "fp16": "F16", "fp32": "F32", "int8": "I8"}
_SHARD = "shard-{:05d}.safetensors"
_MAX_HEADER_BYTES = 1 << 16  # ours are about four hundred bytes
_COUNTS = ("num_samples", "num_rows", "num_features", "shard_samples", "num_views")
_LAYOUT: Shape = {"dtype_name": TEXT, **dict.fromkeys(_COUNTS, SIZE), "carried?": [SIZE]}


class DiskCache(ActivationCache):
    """One safetensors file per shard. A shard is complete once it has its final name, and carries its own checksum.

    The cache is the folder `name` in `folder`. A stored shard can be read at once. `sync` writes it through to the disk
    and gives it its final name, unless the cache is not `durable` and ends with the process. A shard is checked against
    its checksum every time it is read, as its file may change between two epochs. The checksum also covers `identity`
    (what the rows were computed from) and the shard's number, so that no other file passes for it. The header also
    holds the layout, so that `verify_shards` needs no layout of its own.
    """

    def __init__(
        self, layout: CacheLayout, folder: Folder, name: str, identity: str = "", *, durable: bool = True
    ) -> None:
        self.layout = layout
        self._folder, self._name = folder, name
        self._durable = durable
        self._layout_text = json.dumps(layout.to_mapping(), sort_keys=True)
        self._identity = f"{identity}\n{self._layout_text}\n"
        self._stored = {shard for shard in _list_shards(folder, name) if shard < layout.num_shards}

    def missing(self) -> list[int]:
        """The shards without a file."""
        return [shard for shard in range(self.layout.num_shards) if shard not in self._stored]

    def store(self, shard: int, rows: Tensor) -> None:
        """Write the shard's file, which a later `sync` makes durable. Raises StorageError."""
        payload = _byte_view(rows.contiguous())
        fields = self._fields(shard) | {"data_offsets": [0, len(payload)]}
        metadata = {"crc32": self._checksum(shard, payload), "layout": self._layout_text}
        header = encode_header({"__metadata__": metadata, "rows": fields})
        with storage_errors(self._path(shard)):
            self._folder.make_folder(self._name)
            temporary = self._temporary(shard)
            with self._folder.removed_on_error(temporary), self._folder.create(temporary) as file:
                for part in (header, payload):
                    write_all(file, part)
        self._stored.add(shard)

    def sync(self, shard: int) -> None:
        """Write the shard through to the disk and give it its final name. Raises StorageError."""
        if not self._durable:
            return
        with storage_errors(self._path(shard)):
            self._folder.sync(self._temporary(shard))
            self._folder.rename(self._temporary(shard), self._final(shard))

    def load(self, shard: int, slot: Tensor) -> None:
        """Read one shard's file. Raises CorruptFileError when it is absent, truncated or altered."""
        path, payload = self._path(shard), _byte_view(slot)
        with self._open(shard) as file, storage_errors(path, "read"):
            checksum = self._check_header(_read_header(path, file), shard)
            num_read = 0
            while num_read < len(payload):
                step = file.readinto(payload[num_read:])
                if not step:
                    raise _corrupt(path, f"found {num_read} of {len(payload)} bytes of rows")
                num_read += step
        if self._checksum(shard, payload) != checksum:
            raise _corrupt(path, "altered since it was written, or another shard's (its checksum differs)")

    def free(self, shard: int) -> None:
        """Delete the shard's file."""
        self._stored.discard(shard)
        with storage_errors(self._path(shard), "remove"):
            for name in (self._temporary(shard), self._final(shard)):
                self._folder.remove(name)

    def drop(self) -> None:
        """Delete the files of the cache, as far as a failing disk allows, and its folder if that is then empty."""
        self._stored.clear()
        self._folder.remove_matching(self._name, *SHARD_NAMES)

    def _open(self, shard: int) -> io.FileIO:
        # The temporary name first, as `sync` may rename it to the final one at any moment, on another thread.
        for name in (self._temporary(shard), self._final(shard)):
            with contextlib.suppress(FileNotFoundError):
                return self._folder.open(name)
        raise CorruptFileError(
            f"cache shard {self._path(shard)}: is missing, as somebody has removed it; resume: it is computed again "
            "from the finished layers"
        )

    def _path(self, shard: int) -> Path:
        return self._folder.path / self._final(shard)

    def _final(self, shard: int) -> str:
        return f"{self._name}/{_SHARD.format(shard)}"

    def _temporary(self, shard: int) -> str:
        return f"{self._name}/{TEMPORARY}shard-{shard:05d}"

    def _fields(self, shard: int) -> dict[str, Any]:
        return {
            "dtype": _SAFETENSORS_DTYPES[self.layout.dtype_name],
            "shape": list(self.layout.stored_shape(shard)),
        }

    def _checksum(self, shard: int, payload: memoryview) -> str:
        # Not a sha256, as for layers: it would take as long as writing the shard, and only damage must be noticed.
        return f"{zlib.crc32(payload, zlib.crc32(f'{self._identity}{shard}'.encode())):08x}"

    def _check_header(self, header: dict[str, Any], shard: int) -> str:
        """Check the type and the shape in a header. Returns the checksum in it."""
        found, expected = header["rows"], self._fields(shard)
        if {key: found.get(key) for key in expected} != expected:
            raise _corrupt(self._path(shard), f"describes {found}, needs {expected}")
        return str(header["__metadata__"]["crc32"])


def verify_shards(folder: Folder, name: str, identity: str) -> None:
    """Check every shard of a cache against its checksum. Raises CorruptFileError.

    Shards that are deleted meanwhile, because their run goes on, are skipped.
    """
    caches: dict[str, DiskCache] = {}
    for shard in sorted(_list_shards(folder, name)):
        file_name = f"{name}/{_SHARD.format(shard)}"
        path = folder.path / file_name
        try:
            with folder.open(file_name) as file:
                header = _read_header(path, file)
                num_bytes = os.fstat(file.fileno()).st_size - file.tell()
            text = str(header["__metadata__"].get("layout"))
            if text not in caches:
                caches[text] = DiskCache(_parse_layout(path, text), folder, name, identity)
            layout = caches[text].layout
            shape, dtype = layout.stored_shape(shard), layout.stored_dtype
            if shard >= layout.num_shards or num_bytes != math.prod(shape) * dtype.itemsize:
                raise _corrupt(path, f"has {num_bytes} bytes of rows, which its layout does not fit")
            caches[text].load(shard, torch.empty(shape, dtype=dtype))
        except (FileNotFoundError, CorruptFileError):
            if folder.find_kind(file_name) is not None:
                raise


def _list_shards(folder: Folder, name: str) -> set[int]:
    """The numbers of the shards that have their final names."""
    found = (re.fullmatch(SHARD_NAMES[0], each) for each in folder.names(name))
    return {int(match[1]) for match in found if match}


def _read_header(path: Path, file: Any) -> dict[str, Any]:
    """The header of a shard's file, read from its beginning. Raises CorruptFileError."""
    length_bytes = file.read(8)
    length = int.from_bytes(length_bytes, "little")
    if len(length_bytes) != 8 or length > _MAX_HEADER_BYTES:
        raise _corrupt(path, "is not a shard of ffstream")
    try:
        header = json.loads(file.read(length))
        parses = header["rows"]["data_offsets"][0] == 0 and isinstance(header["__metadata__"]["crc32"], str)
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        parses = False
    if not parses:
        raise _corrupt(path, "has a header that does not parse")
    return dict(header)


def _parse_layout(path: Path, text: str) -> CacheLayout:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    fits = find_misfit(found, _LAYOUT) is None and set(found) - {"carried"} == {"dtype_name", *_COUNTS}
    if not fits or found["dtype_name"] not in _SAFETENSORS_DTYPES:
        raise _corrupt(path, "has a layout that does not parse")
    return CacheLayout(**found | {"carried": tuple(found.get("carried", ()))})


def _corrupt(path: Path, what: str) -> CorruptFileError:
    return CorruptFileError(
        f"cache shard {path}: {what}; delete this file and resume: it is computed again from the finished layers"
    )


def _byte_view(rows: Tensor) -> memoryview:
    return rows.view(torch.uint8).numpy().data.cast("B")
