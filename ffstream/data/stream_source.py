"""Sources of a stream: what yields samples without end, or as long as there are any.

A source says where it is by a cursor, plain values that are kept in the run, and goes on from there when it is asked
to. A pipe and an iterator cannot: they have no cursor, and go on with whatever comes next.
"""

from __future__ import annotations

import hashlib
import os
import select
import stat
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import torch
from torch import Tensor

from ffstream.data.array_file import ArrayFile
from ffstream.data.classes import to_classes
from ffstream.data.dataset import Dataset, Split, draw_order
from ffstream.data.fit import check_values
from ffstream.data.tensors import to_host
from ffstream.errors import DataError
from ffstream.ground.interrupts import check_interrupts

PIPE = "-"  # the name of standard input, as a source
_SUFFIXES = (".npz", ".safetensors")
_IMAGES, _LABELS = (
    ("images", "x", "train.images", "train_images", "x_train"),
    (
        "labels",
        "y",
        "train.labels",
        "train_labels",
        "y_train",
    ),
)
_POLL_S = 0.5  # between two looks at a folder that may grow, or at a pipe
_MOST_BYTES = 1 << 20  # read of a pipe at once
_PART_SAMPLES = 1024  # of a data set, at a time

Cursor = Mapping[str, Any]


@dataclass(frozen=True)
class Batch:
    """Some samples, and where the source goes on after them."""

    samples: Split
    cursor: Cursor


class StreamSource(Protocol):
    """Yields batches of any size, all of one shape and type."""

    @property
    def can_seek(self) -> bool:
        """Whether samples can be read again, from a cursor on."""
        ...

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The names of the classes, where the source knows them."""
        ...

    def read(self, cursor: Cursor) -> Iterator[Batch]:
        """Yield what comes after `cursor`, which is empty at first. Raises DataError."""
        ...


class IteratorSource:
    """Samples from an iterable of pairs of images (n, *shape) and labels (n,): arrays, tensors or lists.

    Raises DataError for what is no iterable.
    """

    can_seek = False
    class_names: tuple[str, ...] | None = None

    def __init__(self, batches: Iterable[Any]) -> None:
        if not isinstance(batches, Iterable):
            raise DataError(
                f"stream: source is {type(batches).__name__}, allowed the name of one, or an iterable of pairs of "
                "images and labels; give it batches"
            )
        self._batches = iter(batches)

    def read(self, cursor: Cursor) -> Iterator[Batch]:
        """Yield what comes next. Raises DataError for what is no pair of images and labels."""
        for number, found in enumerate(self._batches):
            if not isinstance(found, (tuple, list)) or len(found) != 2:
                kind = f"{type(found).__name__} of {len(found)}" if hasattr(found, "__len__") else type(found).__name__
                raise DataError(f"stream: batch {number} is {kind}, allowed a pair (images, labels)")
            images, labels = found
            yield Batch(to_samples(images, labels, f"stream: batch {number}"), {})


class PipeSource:
    """Samples from .npy records, one after another, as numpy.save writes them: images (n, *shape), then labels (n,)."""

    can_seek = False
    class_names: tuple[str, ...] | None = None

    def __init__(self, file: BinaryIO) -> None:
        self._file: Any = _Patient(file)  # numpy asks for a file of more methods than it uses

    def read(self, cursor: Cursor) -> Iterator[Batch]:
        """Yield what comes next, until the pipe is closed. Raises DataError for anything but records."""
        number = 0
        while True:
            images = self._read_record(f"stream: record {2 * number}")
            if images is None:
                return
            labels = self._read_record(f"stream: record {2 * number + 1}")
            if labels is None:
                raise DataError(
                    f"stream: ends after record {2 * number}, allowed pairs of images and labels; write the labels too"
                )
            yield Batch(to_samples(images, labels, f"stream: batch {number}"), {})
            number += 1

    def _read_record(self, noun: str) -> Any:
        """The next array; None at the end. Nothing is unpickled."""
        first = self._file.read(1)
        if not first:
            return None
        self._file.put_back(first)
        try:
            return np.lib.format.read_array(self._file, allow_pickle=False)
        except (ValueError, EOFError, OSError, MemoryError, SyntaxError, TypeError, OverflowError) as error:
            reason = " ".join(str(error).split())[:200]
            raise DataError(
                f"{noun}: is no array as numpy.save writes it ({reason}); write images and labels in turn"
            ) from error


class _Patient:
    """A file that is waited for, so that an interrupt is met while nothing comes; bytes can be put back before it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._ahead = file, b""
        try:
            self._number: int | None = file.fileno()
        except OSError:  # such as of bytes in memory
            self._number = None

    def put_back(self, ahead: bytes) -> None:
        """Have these bytes read before all others."""
        self._ahead = ahead + self._ahead

    def read(self, size: int) -> bytes:
        """Read up to `size` bytes; none at the end of the file."""
        if self._ahead:
            found, self._ahead = self._ahead[:size], self._ahead[size:]
            return found
        if self._number is None:
            return self._file.read(size)
        while not select.select([self._number], [], [], _POLL_S)[0]:
            check_interrupts()
        return os.read(self._number, min(size, _MOST_BYTES))


@dataclass(frozen=True)
class FolderSource:
    """Samples from the files of arrays in a folder that may grow, in the order of their names.

    Each file holds images (n, *shape) and labels (n,). A file is read once; its name must come after those of the files
    that were read before. With `follows`, the folder is looked at again and again; otherwise the stream ends with it.
    """

    path: Path
    follows: bool
    class_names: tuple[str, ...] | None = None
    can_seek: bool = True

    def read(self, cursor: Cursor) -> Iterator[Batch]:
        """Yield the samples of each file. Raises DataError."""
        last, num_files = str(cursor.get("file", "")), cursor.get("num_files")
        known: set[str] | None = None  # of the files up to the last
        while True:
            try:
                names = sorted(each.name for each in self.path.iterdir() if is_array_name(each.name))
            except OSError as error:
                raise DataError(f"stream {self.path}: cannot be read ({error.strerror}); see to the folder") from error
            found = {name for name in names if name <= last}
            late = found - known if known is not None else set()
            if late or (known is None and num_files is not None and len(found) > int(num_files)):
                noun = min(late) if late else f"{len(found) - int(num_files or 0)} of the files up to {last}"
                raise DataError(
                    f"stream {self.path}: {noun} came after {last} was read, allowed names that sort after it, such as "
                    "00012.npz after 00011.npz; rename what is not learnt yet, or move it away"
                )
            for number, name in enumerate(names, 1):
                if name > last:
                    last = name
                    yield Batch(_read_file(self.path / name), {"file": name, "num_files": number})
            known = set(names)
            if not self.follows:
                return
            check_interrupts()
            time.sleep(_POLL_S)


@dataclass(frozen=True)
class DatasetSource:
    """The training samples of a data set, each once, in an order that a seed decides."""

    dataset: Dataset
    seed: int
    can_seek: bool = True

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The names of the classes of the data set."""
        return self.dataset.class_names

    def read(self, cursor: Cursor) -> Iterator[Batch]:
        """Yield the samples that are left. Raises DataError where they are not those of which some were read."""
        train, start = self.dataset.train, int(cursor.get("num_samples", 0))
        digest = hashlib.sha256(train.labels.contiguous().numpy().data).hexdigest()[:16]
        if cursor.get("labels", digest) != digest:
            raise DataError(
                f"stream {self.dataset.name}: is not the data set of which {start} samples were read, as its "
                f"{len(train)} labels are others; give that one again, or start a new run with this one"
            )
        for some in draw_order(len(train), self.seed)[start:].split(_PART_SAMPLES):
            start += len(some)
            if len(some):
                yield Batch(Split(train.images[some], train.labels[some]), {"num_samples": start, "labels": digest})


def is_array_name(name: str) -> bool:
    """Whether this is the name of a file of arrays, and not one that is hidden because it is still written."""
    return not name.startswith(".") and name.lower().endswith(_SUFFIXES)


def is_pipe(path: Path) -> bool:
    """Whether a path is standard input, or a pipe with a name."""
    return str(path) == PIPE or (path.exists() and stat.S_ISFIFO(path.stat().st_mode))


def _is_folder_of_arrays(path: Path) -> bool:
    """Whether a path is a folder of files of arrays, or one that may become it, as it holds no other folders."""
    if not path.is_dir():
        return False
    found = [each for each in path.iterdir() if not each.name.startswith(".")]
    return any(is_array_name(each.name) for each in found) or not any(each.is_dir() for each in found)


def can_be_read_again(name: str) -> bool:
    """Whether the source of a stream is a data set, with splits of its own."""
    path = Path(name)
    return not is_pipe(path) and not _is_folder_of_arrays(path)


def open_source(name: str, *, follows: bool, load: Callable[[], Dataset], seed: int) -> StreamSource:
    """The source of this name: a pipe, a folder of files of arrays, or else the data set that `load` loads.

    Raises DataError.
    """
    path = Path(name)
    if name == PIPE:
        if sys.stdin.isatty():
            raise DataError("stream -: standard input is a terminal, allowed a pipe of .npy records; pipe them in")
        return PipeSource(sys.stdin.buffer)
    if is_pipe(path):
        return PipeSource(path.open("rb"))
    if _is_folder_of_arrays(path):
        return FolderSource(path, follows)
    if follows:
        raise DataError(f"stream {name}: nothing comes later there, allowed a folder of files of arrays with --follow")
    return DatasetSource(load(), seed)


def to_samples(images: Any, labels: Any, noun: str) -> Split:
    """A checked batch: as many labels as images, real and finite numbers. `noun` begins the message of a DataError."""
    images = to_host(images, f"{noun}: images")
    if images.dtype != torch.uint8:
        images = images.float()
    labels = to_classes(to_host(labels, f"{noun}: labels"), f"{noun}: labels")
    if images.dim() < 2 or len(images) == 0 or images[0].numel() == 0:
        raise DataError(f"{noun}: images have shape {tuple(images.shape)}, allowed (n, ...) with n > 0")
    if labels.dim() != 1 or len(labels) != len(images):
        raise DataError(
            f"{noun}: labels have shape {tuple(labels.shape)}, allowed ({len(images)},), one for each image"
        )
    if int(labels.min()) < 0:
        raise DataError(f"{noun}: labels go down to {int(labels.min())}, allowed integers from 0")
    check_values(images, noun)
    return Split(images, labels)


@dataclass(frozen=True)
class Place:
    """A place in a stream: so many samples after a cursor."""

    cursor: Cursor = field(default_factory=dict)
    num_skipped: int = 0  # samples between the cursor and the place
    num_before: int = 0  # samples of the whole stream before the place

    def move(self, num_samples: int) -> Place:
        """The place so many samples later, in the same batch."""
        return Place(self.cursor, self.num_skipped + num_samples, self.num_before + num_samples)

    def to_mapping(self) -> dict[str, Any]:
        """Plain values, for a manifest."""
        return asdict(self) | {"cursor": dict(self.cursor)}

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Place:
        """The inverse of `to_mapping`."""
        return cls(dict(values["cursor"]), int(values["num_skipped"]), int(values["num_before"]))


@dataclass(frozen=True)
class StreamWindow:
    """Samples that are learnt together, and what was read of the stream beyond them."""

    start: Place  # of its first sample
    samples: Split
    end: Place  # of the next sample
    beyond: Split | None  # what the next window begins with, at `end`
    cursor: Cursor  # where the source goes on after all that was read


def cut_windows(
    source: StreamSource, num_samples: int, start: Place, held: Split | None = None, cursor: Cursor | None = None
) -> Iterator[StreamWindow]:
    """Yield windows of `num_samples` samples from `start` on. The last one may be smaller.

    `held` are the samples at `start`, if these were read before; the source then goes on at `cursor`. Raises DataError
    for batches of unlike shapes or types.
    """
    cursor = start.cursor if cursor is None else cursor
    num_skipped = start.num_skipped if held is None else 0
    batches, is_end = source.read(cursor), False
    pieces = [] if held is None else [(start, held)]
    num_before = start.num_before + (0 if held is None else len(held))
    while True:
        while sum(len(samples) for _, samples in pieces) < num_samples and not is_end:
            found = next(batches, None)
            is_end = found is None
            if found is None:
                continue
            samples = Split(found.samples.images[num_skipped:], found.samples.labels[num_skipped:])
            place = Place(cursor, num_skipped, num_before)
            num_skipped, cursor = max(num_skipped - len(found.samples), 0), dict(found.cursor)
            num_before += len(samples)
            if len(samples):
                _check_like(pieces[0][1] if pieces else samples, samples)
                pieces.append((place, samples))
        if not pieces:
            return
        images, labels = (torch.cat([getattr(samples, name) for _, samples in pieces]) for name in ("images", "labels"))
        first, (last, of_last) = pieces[0][0], pieces[-1]
        num_beyond = max(len(labels) - num_samples, 0)
        end, beyond = Place(cursor, 0, num_before), None
        if num_beyond:
            end = last.move(len(of_last) - num_beyond)
            beyond = Split(images[num_samples:].clone(), labels[num_samples:].clone())
        pieces = [] if beyond is None else [(end, beyond)]
        yield StreamWindow(first, Split(images[:num_samples], labels[:num_samples]), end, beyond, cursor)


def _check_like(first: Split, other: Split) -> None:
    found, allowed = ((each.images.dtype, tuple(each.images.shape[1:])) for each in (other, first))
    if found != allowed:
        raise DataError(
            f"stream: images of {found[0]} and shape {found[1]} come after {allowed[0]} of {allowed[1]}, allowed one "
            "type and shape; bring them to that"
        )


def _read_file(path: Path) -> Split:
    with ArrayFile(path, str(path)) as file:
        by_name: dict[str, Tensor] = {}
        for noun, aliases in (("images", _IMAGES), ("labels", _LABELS)):
            names = {name.lower(): name for name in file.names}
            found = next((names[alias] for alias in aliases if alias in names), None)
            if found is None:
                raise DataError(
                    f"stream {path}: found arrays {sorted(file.names)[:20]}, needs {noun}; add them, or move it away"
                )
            header = file.header(found)
            assert header.dtype is not None, "a header of numbers has a type"
            dtype = header.dtype if header.dtype == torch.uint8 else torch.float32
            target = torch.empty(header.shape, dtype=dtype if noun == "images" else torch.float64)
            file.read(found, target)
            by_name[noun] = target
    return to_samples(by_name["images"], by_name["labels"], f"stream {path}")
