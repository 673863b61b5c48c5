"""Where the shards of an activation cache live: in memory (device or host) or on disk."""

from __future__ import annotations

import hashlib
import json
import shutil
from abc import ABC, abstractmethod
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ffstream.cache.layout import CacheLayout
from ffstream.errors import CorruptFileError
from ffstream.files import atomic_path, read_manifest, write_manifest

_SAFETENSORS_DTYPES = {"bf16": "BF16", "fp16": "F16", "fp32": "F32"}
_MAX_HEADER_BYTES = 1 << 16  # ours are about a hundred bytes


class ActivationCache(ABC):
    """Shards of rows, each written once in order of need and read many times."""

    layout: CacheLayout

    @abstractmethod
    def write(self, shard: int, rows: Tensor) -> None:
        """Store one shard, (samples, rows, features) in the layout's type. The caller does not change it afterwards."""

    @abstractmethod
    def commit(self) -> None:
        """Every shard is written: from here on the cache may be read."""

    @abstractmethod
    def read_into(self, shard: int, slot: Tensor) -> None:
        """Copy one shard into `slot`, a host tensor of its shape and type."""

    @abstractmethod
    def drop(self) -> None:
        """Free everything."""

    def resident(self, shard: int, device: torch.device) -> Tensor | None:
        """The shard itself where it already lies on `device`, else None."""
        return None

    def close(self) -> None:  # noqa: B027 - most tiers have nothing to close
        """Stop background work, keeping what is stored."""


class MemoryCache(ActivationCache):
    """Shards as tensors on one device: the device tier and the host tier."""

    def __init__(self, layout: CacheLayout, device: torch.device) -> None:
        self.layout = layout
        self._device = device
        self._shards: dict[int, Tensor] = {}

    def write(self, shard: int, rows: Tensor) -> None:
        """Keep the tensor, moved to this tier's device."""
        self._shards[shard] = rows.to(self._device)

    def commit(self) -> None:
        """Nothing to do: memory does not outlive the process."""

    def read_into(self, shard: int, slot: Tensor) -> None:
        """Copy one shard into `slot`."""
        slot.copy_(self._shards[shard])

    def resident(self, shard: int, device: torch.device) -> Tensor | None:
        """The shard itself, when `device` is this tier's."""
        return self._shards[shard] if device == self._device else None

    def drop(self) -> None:
        """Free the tensors."""
        self._shards.clear()


class DiskCache(ActivationCache):
    """One safetensors file a shard, and a manifest, written last, with the digest of each.

    Shards are written on another thread, one behind the computation. Read back in a later process, each shard is
    checked against its digest the first time.
    """

    def __init__(self, layout: CacheLayout, folder: Path) -> None:
        self.layout = layout
        self._folder = folder
        self._digests: dict[str, str] = {}
        self._verified: set[int] = set()
        self._writer: ThreadPoolExecutor | None = None
        self._pending: Future[None] | None = None

    @classmethod
    def open(cls, layout: CacheLayout, folder: Path) -> DiskCache:
        """A cache that an earlier process committed. Raises CorruptFileError; FileNotFoundError when there is none."""
        manifest = read_manifest(folder / "manifest.json")
        if manifest.get("layout") != layout.to_mapping():
            raise CorruptFileError(
                f"cache {folder}: its manifest describes {manifest.get('layout')}, this run needs "
                f"{layout.to_mapping()}; {_DELETE.format(folder=folder)}"
            )
        cache = cls(layout, folder)
        cache._digests = {str(name): str(digest) for name, digest in dict(manifest["shards"]).items()}
        return cache

    def write(self, shard: int, rows: Tensor) -> None:
        """Hand the shard to the writing thread, waiting for the one before it."""
        self._wait()
        if self._writer is None:
            self._writer = ThreadPoolExecutor(1, thread_name_prefix="ffstream-cache-writer")
        self._pending = self._writer.submit(self._write, shard, rows.cpu())

    def commit(self) -> None:
        """Wait for the last shard and write the manifest."""
        self._wait()
        self.close()
        manifest = {"layout": self.layout.to_mapping(), "shards": self._digests}
        write_manifest(self._folder / "manifest.json", manifest)

    def read_into(self, shard: int, slot: Tensor) -> None:
        """Read one shard's file. Raises CorruptFileError when it is absent, truncated or altered."""
        path = self._path(shard)
        payload = _byte_view(slot)
        try:
            with path.open("rb", buffering=0) as file:
                self._check_header(file.read(8), file, shard)
                num_read = 0
                while num_read < len(payload):
                    step = file.readinto(payload[num_read:])
                    if not step:
                        raise self._corrupt(path, f"found {num_read} of {len(payload)} bytes of rows")
                    num_read += step
        except FileNotFoundError:
            raise self._corrupt(path, "is missing") from None
        if shard not in self._verified:
            if hashlib.sha256(payload).hexdigest() != self._digests.get(path.name):
                raise self._corrupt(path, "altered since it was written (its digest differs)")
            self._verified.add(shard)

    def drop(self) -> None:
        """Delete the folder, its manifest first, so that a half-deleted cache is no cache."""
        self.close()
        (self._folder / "manifest.json").unlink(missing_ok=True)
        shutil.rmtree(self._folder, ignore_errors=True)

    def close(self) -> None:
        """Stop the writing thread."""
        if self._writer is not None:
            self._writer.shutdown(wait=True)
            self._writer = None

    def _wait(self) -> None:
        if self._pending is not None:
            self._pending.result()
            self._pending = None

    def _write(self, shard: int, rows: Tensor) -> None:
        rows = rows.contiguous()
        path = self._path(shard)
        with atomic_path(path) as temporary:
            save_file({"rows": rows}, temporary)
        self._digests[path.name] = hashlib.sha256(_byte_view(rows)).hexdigest()
        self._verified.add(shard)

    def _path(self, shard: int) -> Path:
        return self._folder / f"shard-{shard:05d}.safetensors"

    def _check_header(self, length_bytes: bytes, file: Any, shard: int) -> None:
        path = self._path(shard)
        length = int.from_bytes(length_bytes, "little")
        if len(length_bytes) != 8 or length > _MAX_HEADER_BYTES:
            raise self._corrupt(path, "is not a shard of ffstream")
        expected = {
            "dtype": _SAFETENSORS_DTYPES[self.layout.dtype_name],
            "shape": list(self.layout.shard_shape(shard)),
        }
        try:
            found = json.loads(file.read(length))["rows"]
            matches = {key: found[key] for key in expected} == expected and found["data_offsets"][0] == 0
        except (ValueError, KeyError, TypeError, IndexError, RecursionError):
            raise self._corrupt(path, "has a header that does not parse") from None
        if not matches:
            raise self._corrupt(path, f"describes {found}, needs {expected}")

    def _corrupt(self, path: Path, what: str) -> CorruptFileError:
        return CorruptFileError(f"cache shard {path}: {what}; {_DELETE.format(folder=self._folder)}")


_DELETE = "delete {folder} and resume: it is computed again from the finished layers"


def _byte_view(rows: Tensor) -> memoryview:
    return rows.view(torch.uint8).numpy().data.cast("B")
