"""Where the shards of an activation cache live: in memory (device or host) or on disk.

The caches here do as they are told, on the caller's thread; `transfer.py` decides when and on which thread.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import zlib
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ffstream.cache.layout import CacheLayout
from ffstream.errors import CorruptFileError
from ffstream.files import TEMPORARY, make_folder, publish, removed_on_error, storage_errors
from ffstream.tensor_file import encode_header

_SAFETENSORS_DTYPES = {"bf16": "BF16", "fp16": "F16", "fp32": "F32", "int8": "I8"}
_MAX_HEADER_BYTES = 1 << 16  # ours are about two hundred bytes


class ActivationCache(ABC):
    """Shards of rows as the layout says that they are stored, each stored once and read many times."""

    layout: CacheLayout

    @abstractmethod
    def missing(self) -> list[int]:
        """The shards that are not stored, or are freed, in ascending order."""

    @abstractmethod
    def store(self, shard: int, rows: Tensor) -> None:
        """Keep a copy of `rows`, a host tensor."""

    @abstractmethod
    def load(self, shard: int, slot: Tensor) -> None:
        """Copy one shard into `slot`, a host tensor of its shape and type."""

    @abstractmethod
    def free(self, shard: int) -> None:
        """Forget one shard."""

    @abstractmethod
    def drop(self) -> None:
        """Forget everything."""

    def sync(self, shard: int) -> None:  # noqa: B027 - most tiers do not outlive the process
        """Make a stored shard outlive the process and a loss of power, where the tier can."""

    def allocate(self, shard: int, device: torch.device) -> Tensor | None:
        """The shard's own memory where that lies on `device`, to be filled in place, else None: then it is stored."""
        return None

    def resident(self, shard: int, device: torch.device) -> Tensor | None:
        """The shard itself where it already lies on `device`, else None: then it is loaded."""
        return None


class MemoryCache(ActivationCache):
    """Shards as tensors on one device: the device tier and the host tier."""

    def __init__(self, layout: CacheLayout, device: torch.device) -> None:
        self.layout = layout
        self._device = device
        self._shards: dict[int, Tensor] = {}

    def missing(self) -> list[int]:
        """The shards that are not there."""
        return [shard for shard in range(self.layout.num_shards) if shard not in self._shards]

    def allocate(self, shard: int, device: torch.device) -> Tensor | None:
        """Memory for the shard, when `device` is this tier's."""
        if device != self._device:
            return None
        rows = torch.empty(self.layout.stored_shape(shard), dtype=self.layout.stored_dtype, device=device)
        self._shards[shard] = rows
        return rows

    def store(self, shard: int, rows: Tensor) -> None:
        """Keep a copy on this tier's device."""
        self._shards[shard] = rows.to(self._device, copy=True)

    def load(self, shard: int, slot: Tensor) -> None:
        """Copy one shard into `slot`."""
        slot.copy_(self._shards[shard])

    def resident(self, shard: int, device: torch.device) -> Tensor | None:
        """The shard itself, when `device` is this tier's."""
        return self._shards[shard] if device == self._device else None

    def free(self, shard: int) -> None:
        """Free the tensor."""
        self._shards.pop(shard, None)

    def drop(self) -> None:
        """Free the tensors."""
        self._shards.clear()


class DiskCache(ActivationCache):
    """One safetensors file a shard. A shard counts by its final name, and carries its own checksum.

    A stored shard can be read at once; `sync` writes it through to the disk and gives it its name, unless the cache is
    not `durable` and ends with the process. A shard that this process did not write is checked against its checksum
    the first time it is read. The checksum covers `identity` (what the rows were computed from) and the shard's number
    too, so that no other file passes for it.
    """

    def __init__(self, layout: CacheLayout, folder: Path, identity: str = "", *, durable: bool = True) -> None:
        self.layout = layout
        self._folder = folder
        self._durable = durable
        self._identity = f"{identity}\n{json.dumps(layout.to_mapping(), sort_keys=True)}\n"
        self._stored = {shard for shard in range(layout.num_shards) if self._path(shard).exists()}
        self._verified: set[int] = set()

    def missing(self) -> list[int]:
        """The shards without a file."""
        return [shard for shard in range(self.layout.num_shards) if shard not in self._stored]

    def store(self, shard: int, rows: Tensor) -> None:
        """Write the shard's file, which a later `sync` makes durable. Raises StorageError."""
        payload = _byte_view(rows.contiguous())
        fields = self._fields(shard) | {"data_offsets": [0, len(payload)]}
        header = encode_header({"__metadata__": {"crc32": self._checksum(shard, payload)}, "rows": fields})
        temporary = self._temporary(shard)
        with storage_errors(self._path(shard)):
            make_folder(self._folder)
            with removed_on_error(temporary), temporary.open("wb", buffering=0) as file:
                for part in (memoryview(header), payload):
                    num_written = 0
                    while num_written < len(part):
                        num_written += file.write(part[num_written:])
        self._verified.add(shard)
        self._stored.add(shard)

    def sync(self, shard: int) -> None:
        """Write the shard through to the disk and give it its name. Raises StorageError."""
        if not self._durable:
            return
        with storage_errors(self._path(shard)):
            publish(self._temporary(shard), self._path(shard))

    def load(self, shard: int, slot: Tensor) -> None:
        """Read one shard's file. Raises CorruptFileError when it is absent, truncated or altered."""
        path, payload = self._path(shard), _byte_view(slot)
        with self._open(shard) as file:
            checksum = self._check_header(file.read(8), file, shard)
            num_read = 0
            while num_read < len(payload):
                step = file.readinto(payload[num_read:])
                if not step:
                    raise self._corrupt(path, f"found {num_read} of {len(payload)} bytes of rows")
                num_read += step
        if shard not in self._verified:
            if self._checksum(shard, payload) != checksum:
                raise self._corrupt(path, "altered since it was written, or another shard's (its checksum differs)")
            self._verified.add(shard)

    def free(self, shard: int) -> None:
        """Delete the shard's file."""
        self._stored.discard(shard)
        for path in (self._temporary(shard), self._path(shard)):
            path.unlink(missing_ok=True)

    def drop(self) -> None:
        """Delete the folder."""
        self._stored.clear()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _open(self, shard: int) -> Any:
        # In this order: `sync` renames the one to the other, on another thread.
        for path in (self._temporary(shard), self._path(shard)):
            with contextlib.suppress(FileNotFoundError):
                return path.open("rb", buffering=0)
        raise self._corrupt(self._path(shard), "is missing")

    def _path(self, shard: int) -> Path:
        return self._folder / f"shard-{shard:05d}.safetensors"

    def _temporary(self, shard: int) -> Path:
        return self._folder / f"{TEMPORARY}shard-{shard:05d}"

    def _fields(self, shard: int) -> dict[str, Any]:
        return {
            "dtype": _SAFETENSORS_DTYPES[self.layout.dtype_name],
            "shape": list(self.layout.stored_shape(shard)),
        }

    def _checksum(self, shard: int, payload: memoryview) -> str:
        # Not a digest as the layers have: rot must be noticed here, and a sha256 takes as long as writing the shard.
        return f"{zlib.crc32(payload, zlib.crc32(f'{self._identity}{shard}'.encode())):08x}"

    def _check_header(self, length_bytes: bytes, file: Any, shard: int) -> str:
        """Returns the checksum that the header names."""
        path, expected = self._path(shard), self._fields(shard)
        length = int.from_bytes(length_bytes, "little")
        if len(length_bytes) != 8 or length > _MAX_HEADER_BYTES:
            raise self._corrupt(path, "is not a shard of ffstream")
        try:
            header = json.loads(file.read(length))
            found, checksum = header["rows"], header["__metadata__"]["crc32"]
            matches = {key: found[key] for key in expected} == expected and found["data_offsets"][0] == 0
        except (ValueError, KeyError, TypeError, IndexError, RecursionError):
            raise self._corrupt(path, "has a header that does not parse") from None
        if not matches:
            raise self._corrupt(path, f"describes {found}, needs {expected}")
        return str(checksum)

    def _corrupt(self, path: Path, what: str) -> CorruptFileError:
        return CorruptFileError(
            f"cache shard {path}: {what}; delete {self._folder} and resume: "
            "it is computed again from the finished layers"
        )


def _byte_view(rows: Tensor) -> memoryview:
    return rows.view(torch.uint8).numpy().data.cast("B")
