"""Data sets by name: the embedded digits, and those that torchvision downloads.

torchvision fetches and unpacks the files. Readers of our own then read them, which make no folders and write nothing.
Nothing is unpickled: CIFAR-10 is published as pickles, but these are parsed as data, and the functions that they name
are neither looked up nor called. torchvision's own reader would unpickle them, and is not used.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ffstream.data.array_source import load_arrays
from ffstream.data.cifar import read_batches, read_published
from ffstream.data.dataset import Dataset, Split, check_dataset
from ffstream.data.idx import read_idx
from ffstream.data.room import Room
from ffstream.errors import DataError, FFStreamError
from ffstream.ground.files import expand_home
from ffstream.ground.registry import Registry

# A source maps the data root to a data set.
Source = Callable[[Path], Dataset]

_IDX_FILES = (
    "train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz and t10k-labels-idx1-ubyte.gz"
)


def default_data_root() -> Path | None:
    """$FFSTREAM_DATA, or ffstream in the user's cache folder; None for a user who has no home."""
    root = os.environ.get("FFSTREAM_DATA")
    if root:
        return expand_home(root)
    caches = os.environ.get("XDG_CACHE_HOME")
    home = expand_home("~")
    if not caches and str(home) == "~":
        return None
    return (expand_home(caches) if caches else home / ".cache") / "ffstream"


def load_digits(_data_root: Path) -> Dataset:
    """Embedded 8x8 digits: 3823 training and 1797 test images, values 0..16 (Alpaydin and Kaynak 1998; CC BY 4.0)."""
    return load_arrays(Path(__file__).with_name("digits.safetensors"), name="digits")


@dataclass(frozen=True)
class TorchvisionSource:
    """A data set that torchvision can download."""

    name: str
    class_name: str  # in torchvision.datasets
    files: str  # the names of the files to fetch, and their folder below the data root
    read: Callable[[Any, Path, Room], tuple[Split, Split, Sequence[str]]]  # train, test, class names

    def __call__(self, data_root: Path) -> Dataset:
        """Load the data set from its files, without fetching any. Raises DataError, BudgetError."""
        return self.load(data_root, Room(), download=False)

    def load(self, data_root: Path, room: Room, *, download: bool) -> Dataset:
        """Load the data set from its unpacked files. Raises DataError, BudgetError.

        With `download`, missing files are first fetched and unpacked; without it, nothing is written.
        """
        import torchvision.datasets  # slow to import, and only needed here

        published = getattr(torchvision.datasets, self.class_name)
        if download:
            self._fetch(published, data_root)
        try:
            train, test, class_names = self.read(published, data_root, room)
        except FFStreamError:
            raise
        except (FileNotFoundError, NotADirectoryError) as error:
            raise DataError(
                f"data {self.name}: is not in {data_root}, unpacked (found no {error.filename}); add --download to "
                "fetch or unpack it there, or name the folder that has it by --data-root"
            ) from error
        except (OSError, ValueError) as error:
            reason = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error)
            raise DataError(
                f"data {self.name}: cannot be read in {data_root} ({reason}); mend or remove that file, and add "
                "--download to fetch or unpack it anew"
            ) from error
        return check_dataset(self.name, train, test, tuple(class_names))

    def _fetch(self, published: Any, data_root: Path) -> None:
        fetching = published.__new__(published)  # without __init__, which would read the data too, and unpickle them
        fetching.root = str(data_root)
        try:
            data_root.mkdir(parents=True, exist_ok=True)
            fetching.download()
        except (OSError, RuntimeError, EOFError) as error:
            reason = " ".join(str(error).split())
            raise DataError(
                f"data {self.name}: not complete in {data_root} and could not be fetched ({reason}); put {self.files} "
                "there (torchvision unpacks beside them, so the folder must be writable), or use --data digits, which "
                "needs none"
            ) from error


def _read_mnist(published: Any, data_root: Path, room: Room) -> tuple[Split, Split, Sequence[str]]:
    folder = data_root / published.__name__ / "raw"
    train, test = (
        Split(
            read_idx(folder / f"{part}-images-idx3-ubyte", 3, room),
            read_idx(folder / f"{part}-labels-idx1-ubyte", 1, room).to(torch.int64),
        )
        for part in ("train", "t10k")
    )
    return train, test, published.classes


def _read_cifar(published: Any, data_root: Path, room: Room) -> tuple[Split, Split, Sequence[str]]:
    folder = data_root / published.base_folder
    names = read_published(folder / published.meta["filename"], published.meta["md5"])[published.meta["key"]]
    train, test = (
        Split(*read_batches([(folder / name, md5) for name, md5 in files], room))
        for files in (published.train_list, published.test_list)
    )
    return train, test, names


SOURCES: Registry[Source] = Registry("data set", "data")
SOURCES.register("digits", load_digits)
SOURCES.register("mnist", TorchvisionSource("mnist", "MNIST", f"{_IDX_FILES} in MNIST/raw", _read_mnist))
SOURCES.register(
    "fashion-mnist",
    TorchvisionSource("fashion-mnist", "FashionMNIST", f"{_IDX_FILES} in FashionMNIST/raw", _read_mnist),
)
SOURCES.register("kmnist", TorchvisionSource("kmnist", "KMNIST", f"{_IDX_FILES} in KMNIST/raw", _read_mnist))
SOURCES.register("cifar10", TorchvisionSource("cifar10", "CIFAR10", "cifar-10-python.tar.gz", _read_cifar))
