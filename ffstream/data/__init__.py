"""Data sets by name, from folders and from files; augmentation and scaling. Imports `device` and below."""

import dataclasses
from pathlib import Path

from ffstream.data.dataset import (
    GIVEN,
    Dataset,
    Split,
    check_classes,
    split_validation,
)
from ffstream.data.fit import fit_images
from ffstream.data.given import as_dataset
from ffstream.data.own_dataset import check_own
from ffstream.data.room import Room
from ffstream.data.scaling import Scaling
from ffstream.data.sources import SOURCES, TorchvisionSource, default_data_root
from ffstream.data.tensors import as_tensor
from ffstream.errors import DataError, say_unknown_data
from ffstream.ground.files import expand_home

__all__ = [
    "GIVEN",
    "SOURCES",
    "Dataset",
    "Scaling",
    "Split",
    "as_dataset",
    "as_tensor",
    "check_classes",
    "find_path",
    "fit_images",
    "holds_pictures",
    "load_dataset",
    "split_validation",
]

_ARRAYS = (".safetensors", ".npz")


def load_dataset(
    source: str,
    data_root: str = "",
    *,
    skips_bad: bool = False,
    room_bytes: int | None = None,
    download: bool = False,
    is_held: bool = True,
) -> Dataset:
    """Load the data set that `--data` names. Raises DataError when it is unknown, absent or unreadable.

    `skips_bad` leaves out files of a folder that cannot be read or are of another size than most. `room_bytes` is the
    most memory that the data may take while they are loaded (by default, what this machine has free); BudgetError is
    raised before more is taken. `download` fetches or unpacks a data set of torchvision that is missing; without it,
    nothing is written. A file or folder that is not at the path `source` is looked for by its name in `data_root`.
    Unless the data set `is_held` in memory, the images of a .safetensors file or a folder are read when asked for;
    `Dataset.check_values` then has to be called before they are used.
    """
    room = Room(room_bytes)
    if not source:
        raise DataError("data: found an empty name, allowed a known data set, or a file or folder of data")
    if source in SOURCES:
        root = expand_home(data_root) if data_root else default_data_root()
        dataset = _load_named(source, root, room, download=download)
        if not Path(source).exists():
            return dataset
        note = f"{source} is the known data set of that name; the folder or file {source} here is not read (./{source})"
        return dataclasses.replace(dataset, notes=(*dataset.notes, note))
    if "://" in source:
        raise DataError(say_unknown_data(source, SOURCES))
    path = expand_home(source)
    try:
        path = find_path(source, data_root)
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        if source == GIVEN:
            raise DataError(
                f"data {GIVEN}: were given by a program, and a run keeps none; give them again as data=..., or name a "
                "file of the same samples by --data"
            ) from None
        if Path(source).name != source or path.suffix.lower() in _ARRAYS:
            raise DataError(
                f"data {source}: no such file or folder; if it was moved, say by --data where it is now"
            ) from None
    except (OSError, ValueError) as error:  # an impossible file name, or no permission to look for it
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"data {source[:80]!r}: neither a known data set, nor a file to read: {reason}") from error
    if path.suffix.lower() in _ARRAYS:
        from ffstream.data.array_source import load_arrays

        return load_arrays(path, room=room, is_held=is_held)
    if path.is_dir():
        from ffstream.data.folder_source import load_folder

        return load_folder(path, skips_bad=skips_bad, room=room, is_held=is_held)
    raise DataError(say_unknown_data(source, SOURCES))


def find_path(source: str, data_root: str) -> Path:
    """The path `source`, or, where nothing is there, the path of the same name in `data_root` if one is given."""
    path = expand_home(source)
    return path if path.exists() or not data_root else expand_home(data_root) / path.name


def holds_pictures(source: str) -> bool:
    """Whether `source` names a folder of images, whose values are those of picture files; it need not exist."""
    return source not in SOURCES and Path(source).suffix.lower() not in _ARRAYS


def _load_named(source: str, data_root: Path | None, room: Room, *, download: bool) -> Dataset:
    part = SOURCES[source]
    if isinstance(part, TorchvisionSource):
        if data_root is None:
            raise DataError(
                f"data {source}: found no home folder, in whose .cache it would lie, allowed any folder; give "
                "--data-root or $FFSTREAM_DATA"
            )
        return part.load(data_root, room, download=download)
    dataset = check_own(part(data_root or Path()), source)
    room.take(f"data {source}", dataset.num_bytes)  # its size is known only once it is loaded
    return dataset
