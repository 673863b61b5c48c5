"""What can go wrong for a user, as one tree of exceptions.

    FFStreamError            every error a user can meet; its text is one line
    ├── ConfigError          a setting that is unknown, of the wrong type or out of range
    ├── DataError            a data set that is absent, unreadable or of the wrong shape
    ├── BudgetError          a run that needs more memory or disk than it may take
    ├── DeviceError          a device that is unknown or absent
    ├── DivergedError        a loss that is no longer finite
    ├── StorageError         a disk that is full or refuses to be written
    ├── OutputError          an output that may not be written where it was asked for, or a stream that takes no more
    └── RunError             a run directory that cannot be used as asked
        ├── RunMismatchError it belongs to another configuration or to other data
        ├── RunLockedError   another live process is using it
        └── CorruptFileError a file in it is truncated or altered

Anything else that escapes is a bug and keeps its traceback.
"""

from __future__ import annotations

import difflib
import os
import shlex
from collections.abc import Iterable


class FFStreamError(Exception):
    """Base of every error that a user can cause and fix."""

    def __init__(self, text: str = "") -> None:
        super().__init__(printable(text))  # a name quoted in it may contain anything, such as control characters


class ConfigError(FFStreamError):
    """A setting is unknown, of the wrong type or out of range."""


class DataError(FFStreamError):
    """A data set is absent, unreadable or of the wrong shape."""


class DeviceError(FFStreamError):
    """A device is unknown or absent."""


class BudgetError(FFStreamError):
    """A run needs more memory or disk than it may take."""


class DivergedError(FFStreamError):
    """A loss is no longer finite."""


class StorageError(FFStreamError):
    """A disk is full or refuses to be written."""


class OutputError(FFStreamError):
    """An output may not be written where it was asked for, or a stream takes no more of it."""


class RunError(FFStreamError):
    """A run directory cannot be used as asked."""


class RunMismatchError(RunError):
    """A run directory belongs to another configuration or to other data."""


class RunLockedError(RunError):
    """Another live process is using the run directory."""


class CorruptFileError(RunError):
    """A file of a run is truncated or altered."""


def printable(text: str) -> str:
    """Text as one line that is safe in a terminal: all characters that are not printable are escaped."""
    return text if text.isprintable() else "".join(map(_printable_character, text))


def _printable_character(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode("ascii")


def to_command(words: str, path: object) -> str:
    """An ffstream command to paste into a shell, which takes `path` for neither an option nor a home folder."""
    text = str(path)
    text = f"./{text}" if text.startswith(("-", "~")) else text
    return f"ffstream {words} {shlex.quote(text) if text.isprintable() else _quote_bytes(text)}"


def _quote_bytes(text: str) -> str:
    """Quote as $'...', in which shells read escapes: for a name with control characters or bytes that are no text."""
    plain = {character for character in text if character.isprintable() and character not in "'\\"}
    escaped = (
        character if character in plain else "".join(f"\\x{byte:02x}" for byte in os.fsencode(character))
        for character in text
    )
    return f"$'{''.join(escaped)}'"


def nearest(word: str, allowed: Iterable[str]) -> str:
    """The end of an error about an unknown name: the nearest allowed word, if one is near, and all allowed words.

    A long list of allowed words is left out if one of them is near.
    """
    words = sorted(allowed)
    by_lower = {each.lower(): each for each in words}
    close = [by_lower[each] for each in difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.5)]
    if close and len(words) > _LONG_LIST:
        return f"did you mean {close[0]!r}?"
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}allowed: {', '.join(words)}"


_LONG_LIST = 10


def say_unknown(setting: str, noun: str, name: str, names: Iterable[str]) -> str:
    """The message for a part whose name is not registered."""
    return (
        f"config {setting}: unknown {noun} {name!r}; {nearest(name, names)}; for one of your own, name the module "
        "that registers it with --plugin"
    )


def say_no_run(path: object) -> str:
    """The message for a folder that holds no run."""
    return f"run {path}: no run there (no config.toml); start one with ffstream train --run-dir"


def say_unknown_data(source: str, names: Iterable[str]) -> str:
    """The message for data that are neither a known data set nor readable files."""
    if "://" in source:
        return f"data {source}: is an address, allowed what lies on this machine; fetch it, and name the file or folder"
    return (
        f"data {source}: neither a known data set, a folder of images by class, nor a .safetensors or .npz file; "
        f"{nearest(source, names)}"
    )
