"""Safetensors files of a run: each is written once, and its digest is checked on the very bytes that are used.

Files are read, not memory-mapped: a file that is altered after it was read changes nothing in memory, and a file that
is altered while it is read fails the check of its digest.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor

from ffstream.errors import CorruptFileError
from ffstream.ground.files import storage_errors, write_all
from ffstream.ground.folder import Folder
from ffstream.ground.interrupts import check_interrupts
from ffstream.storage.tensor_format import (
    CHUNK_BYTES,
    METADATA,
    MisfitError,
    encode_header,
    order_entries,
    payload_of,
    read_header,
    read_into,
    shorten,
)

RESTORE = "restore it from a copy, or put it aside with ffstream repair --apply, so that it is trained again"


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
    head = {METADATA: dict(metadata)} if metadata else {}
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


# --- reading


def read_tensors(file: io.FileIO, path: object, digest: Any = None) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The metadata and all tensors of an open file, read once; `digest`, if given, is updated with every byte.

    `path` names the file in errors. Raises CorruptFileError when it is not a complete safetensors file.
    """
    try:
        header = read_header(file)
        if digest is not None:
            digest.update(header.text)
        tensors = {}
        for name, (dtype, shape) in header.entries.items():
            tensors[name] = torch.empty(shape, dtype=dtype)
            read_into(file, payload_of(tensors[name]), digest)
    except MisfitError as misfit:
        text = f"file {path}: altered or truncated since it was written ({misfit}); {RESTORE}"
        raise CorruptFileError(text) from misfit
    return header.metadata, tensors


def load_tensors(folder: Folder, name: str, digest: str) -> dict[str, Tensor]:
    """All tensors of a file. Raises CorruptFileError for another digest, and for numbers that are not finite."""
    with opened(folder, name) as file:
        found = hashlib.sha256()
        _, tensors = read_tensors(file, folder.path / name, found)
    if found.hexdigest() != digest:
        raise_altered(folder, name, found.hexdigest(), digest)
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
    with opened(folder, name) as file:
        found = hashlib.sha256()
        try:
            header = read_header(file)
            own = {key: (target.dtype, tuple(target.shape)) for key, target in targets.items()}
            if header.entries != own:
                _check_rest(folder, name, file, digest)
                raise CorruptFileError(
                    f"file {folder.path / name}: holds {shorten(header.entries)}, this configuration needs "
                    f"{shorten(own)}; {RESTORE}"
                )
            found.update(header.text)
            for key in header.entries:
                target = targets[key]
                room = target if target.device.type == "cpu" else torch.empty_like(target, device="cpu")
                read_into(file, payload_of(room), found)
                check_finite(room, f"file {folder.path / name}: {key}")
                if room is not target:
                    target.copy_(room)
        except MisfitError as misfit:
            raise altered(folder, name, misfit) from misfit
    if found.hexdigest() != digest:
        raise_altered(folder, name, found.hexdigest(), digest)


def check_digest(folder: Folder, name: str, digest: str) -> None:
    """Raise CorruptFileError when a file does not have this digest."""
    with opened(folder, name) as file:
        try:
            read_header(file)  # detects a file of the wrong size at once
        except MisfitError as misfit:
            raise altered(folder, name, misfit) from misfit
        _check_rest(folder, name, file, digest)


def read_entries(folder: Folder, name: str) -> Mapping[str, tuple[torch.dtype, tuple[int, ...]]]:
    """The type and shape of each tensor, from the header of a file, whose digest is not checked by this.

    Raises CorruptFileError.
    """
    with opened(folder, name) as file:
        try:
            return read_header(file).entries
        except MisfitError as misfit:
            raise altered(folder, name, misfit) from misfit


def copy_tensors(source: Folder, name: str, folder: Folder, to: str, digest: str) -> None:
    """Copy a file durably into another folder, whole or not at all. Raises CorruptFileError for another digest."""
    temporary, found = folder.name_temporary(to), hashlib.sha256()
    with opened(source, name) as file, storage_errors(folder.path / to):
        copy = folder.create(temporary)
        with folder.removed_on_error(temporary), copy:
            while part := file.read(CHUNK_BYTES):
                check_interrupts()
                found.update(part)
                write_all(copy, part)
            if found.hexdigest() != digest:
                raise_altered(source, name, found.hexdigest(), digest)
            folder.publish(copy, temporary, to)


def check_finite(tensor: Tensor, noun: str) -> None:
    """Raise CorruptFileError, whose message begins with `noun`, for NaN or infinity in a tensor. No copy is made."""
    if tensor.is_floating_point() and tensor.numel():
        least, most = torch.aminmax(tensor)
        if not (math.isfinite(float(least)) and math.isfinite(float(most))):
            raise CorruptFileError(f"{noun} holds numbers that are not finite; {RESTORE}")


@contextlib.contextmanager
def opened(folder: Folder, name: str) -> Iterator[io.FileIO]:
    """Open a file to read it. Raises CorruptFileError if it is missing, StorageError if it cannot be read."""
    try:
        file = folder.open(name)
    except FileNotFoundError:
        raise CorruptFileError(f"file {folder.path / name}: is missing; {RESTORE}") from None
    with file, storage_errors(folder.path / name, "read"):
        yield file


def _check_rest(folder: Folder, name: str, file: io.FileIO, digest: str) -> None:
    """Read a whole file again, and raise CorruptFileError when it does not have this digest."""
    found = hashlib.sha256()
    file.seek(0)
    while part := file.read(CHUNK_BYTES):
        found.update(part)
    if found.hexdigest() != digest:
        raise_altered(folder, name, found.hexdigest(), digest)


def altered(folder: Folder, name: str, misfit: MisfitError) -> CorruptFileError:
    """The error for a malformed file, which cannot be one that we wrote."""
    return CorruptFileError(
        f"file {folder.path / name}: altered or truncated since it was written ({misfit}); {RESTORE}"
    )


def raise_altered(folder: Folder, name: str, found: str, digest: str) -> NoReturn:
    """Raise the error for a file that has the digest `found` in place of `digest`."""
    raise CorruptFileError(
        f"file {folder.path / name}: altered or truncated since it was written (sha256 {found[:12]}, manifest "
        f"{digest[:12]}); {RESTORE}"
    )
