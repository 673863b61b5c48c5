"""Images that are read part by part, wherever they lie: in memory, in a file, or in pictures that are decoded.

A tensor in memory is one kind of `Images`. Nothing that looks at a data set, scales it or writes it into a cache asks
for more than a part of it at once, so that a data set may be larger than the memory.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import torch
from torch import Tensor

Index = int | slice | Tensor  # the number of one image, a range, or numbers or a mask (k,)


class Images(Protocol):
    """Images (n, *shape) of one number type, as tensors (k, *shape) of those that are asked for."""

    @property
    def shape(self) -> Sequence[int]:
        """The number of images, and the shape of each."""

    @property
    def dtype(self) -> torch.dtype:
        """The type in which they are read."""

    @property
    def nbytes(self) -> int:
        """What of them is in memory."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Index, /) -> Tensor: ...


class ReadImages(ABC):
    """Images that are read when they are asked for. A subclass says how a range of them is read, and how any are."""

    def __init__(self, shape: Sequence[int], dtype: torch.dtype) -> None:
        self.shape, self.dtype = tuple(shape), dtype

    @property
    def nbytes(self) -> int:
        """What of them is in memory."""
        return 0

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Index, /) -> Tensor:
        if isinstance(index, int):
            return self.read_range(range(len(self))[index], range(len(self))[index] + 1)[0]
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step == 1:
                return self.read_range(start, max(start, stop))
            index = torch.arange(start, stop, step)
        return self.read(index.nonzero().flatten() if index.dtype == torch.bool else index)

    def find_lost(self) -> str | None:
        """A warning if reading them loses what numbers of 32 bits do not hold; None otherwise."""
        return None

    def read_range(self, start: int, stop: int) -> Tensor:
        """Read the images from number `start` to `stop`, exclusive: (stop - start, *shape)."""
        return self.read(torch.arange(start, stop))

    @abstractmethod
    def read(self, numbers: Tensor) -> Tensor:
        """Read the images with these numbers (k,): (k, *shape)."""


class ChosenImages(ReadImages):
    """Some of other images, by their numbers (n,), in that order."""

    def __init__(self, images: Images, numbers: Tensor) -> None:
        super().__init__((len(numbers), *images.shape[1:]), images.dtype)
        self.images: Images = images
        self.numbers = numbers
        if isinstance(images, ChosenImages):
            self.images, self.numbers = images.images, images.numbers[numbers]

    @property
    def nbytes(self) -> int:
        """That of the numbers: the images are another's."""
        return self.numbers.nbytes

    def read_range(self, start: int, stop: int) -> Tensor:
        """See `ReadImages`."""
        return self.images[self.numbers[start:stop]]

    def read(self, numbers: Tensor) -> Tensor:
        """See `ReadImages`."""
        return self.images[self.numbers[numbers]]


class ConvertedImages(ReadImages):
    """Other images as numbers of 32 bits."""

    def __init__(self, images: Images) -> None:
        super().__init__(images.shape, torch.float32)
        self.images = images

    @property
    def nbytes(self) -> int:
        """What of them is in memory."""
        return self.images.nbytes

    def read_range(self, start: int, stop: int) -> Tensor:
        """See `ReadImages`."""
        return self.images[start:stop].float()

    def read(self, numbers: Tensor) -> Tensor:
        """See `ReadImages`."""
        return self.images[numbers].float()


class ReadAhead:
    """Reads images range after range, each while what was read before is worked on, by a thread of its own.

    A tensor in memory needs no thread.
    """

    def __init__(self, images: Images) -> None:
        self.images = images
        self._thread = None if isinstance(images, Tensor) else ThreadPoolExecutor(1, "reading images")
        self._start = 0
        self._coming: Future[Tensor] | None = None  # the images from number `_start` on

    def read(self, start: int, stop: int) -> Tensor:
        """The images from number `start` to `stop`, exclusive. As many after them are read ahead."""
        stop = min(stop, len(self.images))
        if self._thread is None:
            return self.images[start:stop]
        found, is_next = None, self._start == start
        if self._coming is not None:
            found = self._coming.result()[: stop - start]
        if found is None or not is_next or len(found) < stop - start:
            found = self.images[start:stop]
        self._start, self._coming = stop, None
        if stop < len(self.images):
            self._coming = self._thread.submit(self.images.__getitem__, slice(stop, 2 * stop - start))
        return found


def count_values(images: Images) -> int:
    """The number of values of one image."""
    return math.prod(images.shape[1:])


def read_parts(images: Images, num_in_part: int) -> Iterator[Tensor]:
    """All images in order, so many at a time."""
    ahead = ReadAhead(images)
    return (ahead.read(start, start + num_in_part) for start in range(0, len(images), num_in_part))


def read_columns(images: Images, features: Tensor, num_values: int, index: Tensor | None = None) -> Tensor:
    """Some features (k,) of all images, or of those in `index` (n,): (n, k), reading `num_values` values at a time."""
    step = max(num_values // count_values(images), 1)
    parts = read_parts(images, step) if index is None else (images[part] for part in index.split(step))
    return torch.cat([part.flatten(1)[:, features] for part in parts])
