"""Recognises an earlier output of a command: by what it says of itself, and by a digest, unless it was edited since."""

from __future__ import annotations

import hashlib
import io
import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ffstream.errors import FFStreamError
from ffstream.ground.files import MANIFEST_BYTES, read_up_to
from ffstream.storage.tensor_file import read_tensors
from ffstream.storage.tensor_format import order_entries, payload_of

DIGEST = "sha256"  # the key of the digest of everything else in the file
_PNG = b"\x89PNG\r\n\x1a\n"
_MOST_BYTES = 1 << 30  # of JSON, or of a picture, that is read back


def digest_tensors_and_text(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """The sha256 of everything in a file of tensors: its metadata, and the names, shapes and bytes of its tensors."""
    ordered, entries = order_entries(tensors)
    found = hashlib.sha256(json.dumps([dict(metadata), entries], sort_keys=True).encode())
    for tensor in ordered:
        found.update(payload_of(tensor))
    return found.hexdigest()


def is_earlier_tensors(file: io.FileIO, wanted: Mapping[str, str]) -> bool:
    """Whether a safetensors file has this metadata, among others, and a right digest. Raises OSError."""
    found = read_metadata(file)
    if any(found.get(key) != value for key, value in wanted.items()):
        return False
    file.seek(0)
    try:
        metadata, tensors = read_tensors(file, Path("output"))
    except (ValueError, FFStreamError):
        return False
    digest = metadata.pop(DIGEST, None)
    return digest == digest_tensors_and_text(metadata, tensors)


def to_json(content: Mapping[str, Any]) -> str:
    """A mapping as JSON in lines, with a digest of its content at the end."""
    return json.dumps({**content, DIGEST: _digest_json(content)}, indent=1) + "\n"


def read_json(file: io.FileIO) -> dict[str, Any] | None:
    """What `to_json` wrote, without the digest; None for any other file, and for one with other content since.

    Raises OSError.
    """
    try:
        content = json.loads(read_up_to(file, _MOST_BYTES))
    except (ValueError, RecursionError):
        return None
    if not isinstance(content, dict):
        return None
    digest = content.pop(DIGEST, None)
    return content if digest == _digest_json(content) else None


def to_png(picture: bytes) -> bytes:
    """The bytes of a PNG file, with a text that holds a digest of all others put in front of the other chunks."""
    text = b"tEXt" + DIGEST.encode() + b"\0" + hashlib.sha256(picture).hexdigest().encode()
    chunk = (len(text) - 4).to_bytes(4, "big") + text + zlib.crc32(text).to_bytes(4, "big")
    end = _end_of_header(picture)
    return picture[:end] + chunk + picture[end:]


def read_png_text(file: io.FileIO, key: str) -> str | None:
    """The text under a key in a PNG file that `to_png` made; None for any other file, and for one changed since.

    Raises OSError.
    """
    content = read_up_to(file, _MOST_BYTES)
    texts: dict[bytes, bytes] = {}
    start = len(_PNG)
    while content.startswith(_PNG) and start + 8 <= len(content):
        length = int.from_bytes(content[start : start + 4], "big")
        end = start + 12 + length
        if content[start + 4 : start + 8] == b"tEXt":
            name, _, text = content[start + 8 : end - 4].partition(b"\0")
            if name == DIGEST.encode() and to_png(content[:start] + content[end:]) != content:
                return None
            texts.setdefault(name, text)
        start = end
    if DIGEST.encode() not in texts or key.encode() not in texts:
        return None
    return texts[key.encode()].decode("latin-1")


def read_metadata(file: io.FileIO) -> dict[str, str]:
    """The metadata in the header of a safetensors file; empty for any other file. Raises OSError."""
    length = int.from_bytes(read_up_to(file, 8), "little")
    if length > min(os.fstat(file.fileno()).st_size, MANIFEST_BYTES):
        return {}
    try:
        found = json.loads(read_up_to(file, length))["__metadata__"]
        return {str(key): str(value) for key, value in found.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _digest_json(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _end_of_header(picture: bytes) -> int:
    """Where the first chunk of a PNG file, which has to be its header, ends."""
    return len(_PNG) + 12 + int.from_bytes(picture[len(_PNG) : len(_PNG) + 4], "big")
