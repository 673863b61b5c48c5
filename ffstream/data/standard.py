"""Data sets by name: the embedded digits, and those that torchvision downloads."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ffstream.data.arrays import load_arrays
from ffstream.data.dataset import Dataset, Split, check_dataset
from ffstream.errors import DataError
from ffstream.registry import Registry

# A source maps the data root to a data set.
Source = Callable[[Path], Dataset]

_IDX_FILES = (
    "train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz and t10k-labels-idx1-ubyte.gz"
)
_TORCHVISION = {
    "mnist": ("MNIST", f"{_IDX_FILES} in MNIST/raw"),
    "fashion-mnist": ("FashionMNIST", f"{_IDX_FILES} in FashionMNIST/raw"),
    "kmnist": ("KMNIST", f"{_IDX_FILES} in KMNIST/raw"),
    "cifar10": ("CIFAR10", "cifar-10-python.tar.gz"),
}


def default_data_root() -> Path:
    """$FFSTREAM_DATA, or ffstream in the user's cache folder."""
    root = os.environ.get("FFSTREAM_DATA")
    if root:
        return Path(root)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ffstream"


def load_digits(_data_root: Path) -> Dataset:
    """The embedded digits: 3823 and 1797 images of 8x8, values 0..16 (Alpaydin and Kaynak 1998; CC BY 4.0)."""
    return load_arrays(Path(__file__).with_name("digits.safetensors"), name="digits")


def load_torchvision(name: str, data_root: Path) -> Dataset:
    """A torchvision data set under `data_root`, downloaded when it is not there. Raises DataError."""
    import torchvision.datasets  # slow to import, and only needed here

    class_name, files = _TORCHVISION[name]
    make: Any = getattr(torchvision.datasets, class_name)
    try:
        data_root.mkdir(parents=True, exist_ok=True)
        parts = [make(str(data_root), train=train, download=True) for train in (True, False)]
    except (OSError, RuntimeError, EOFError) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"data {name}: not complete in {data_root} and could not be fetched ({reason}); put {files} there "
            "(torchvision unpacks beside them, so the folder must be writable), or use --data digits, which needs none"
        ) from error
    train, test = (Split(torch.as_tensor(part.data), torch.as_tensor(part.targets).to(torch.int64)) for part in parts)
    return check_dataset(name, train, test, tuple(parts[0].classes))


SOURCES: Registry[Source] = Registry("data set")
SOURCES.register("digits", load_digits)
SOURCES.register("mnist", lambda root: load_torchvision("mnist", root))
SOURCES.register("fashion-mnist", lambda root: load_torchvision("fashion-mnist", root))
SOURCES.register("kmnist", lambda root: load_torchvision("kmnist", root))
SOURCES.register("cifar10", lambda root: load_torchvision("cifar10", root))
