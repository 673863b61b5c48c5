"""Data sets: by name, from a folder of images, or from a file of arrays."""

from pathlib import Path

from ffstream.data.dataset import Dataset, Split, check_classes, fit_images, scale_images, split_validation
from ffstream.data.standard import SOURCES, default_data_root
from ffstream.errors import DataError, nearest

__all__ = [
    "SOURCES",
    "Dataset",
    "Split",
    "check_classes",
    "fit_images",
    "holds_pictures",
    "load_dataset",
    "scale_images",
    "split_validation",
]

_ARRAYS = (".safetensors", ".npz")


def load_dataset(source: str, data_root: str = "", *, skips_bad: bool = False) -> Dataset:
    """Load the data set that `--data` names. Raises DataError when it is unknown, absent or unreadable.

    `skips_bad`: of a folder, leave out the files that cannot be read.
    """
    if source in SOURCES:
        return SOURCES[source](Path(data_root).expanduser() if data_root else default_data_root())
    path = Path(source).expanduser()
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:  # a name that no file can have, or that may not be looked for
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"data {source[:80]!r}: neither a known data set, nor a file to read: {reason}") from error
    if path.suffix in _ARRAYS:
        from ffstream.data.arrays import load_arrays

        return load_arrays(path)
    if path.is_dir():
        from ffstream.data.folder import load_folder

        return load_folder(path, skips_bad=skips_bad)
    raise DataError(
        f"data {source}: neither a known data set, a folder of images by class, nor a .safetensors or .npz file; "
        f"{nearest(source, SOURCES)}"
    )


def holds_pictures(source: str) -> bool:
    """Whether `source` is a folder of images, so that its values are those of picture files; it need not be there."""
    return source not in SOURCES and Path(source).suffix not in _ARRAYS
