"""Images of an array in a file, which are read by their position there and are not held."""

from __future__ import annotations

import torch
from torch import Tensor

from ffstream.data.array_file import ArrayFile
from ffstream.data.image_access import ReadImages, count_values
from ffstream.data.rounding import WIDE, Rounding

_PART_VALUES = 1 << 20  # values that are read at once


class FileImages(ReadImages):
    """An array (n, *shape) of an open file, converted to `dtype`, bytes or floats, as it is read.

    Nothing is mapped into memory: what was read stays what it is. Reading raises DataError if the file has changed
    since it was opened.
    """

    def __init__(self, file: ArrayFile, array: str, dtype: torch.dtype) -> None:
        header = file.header(array)
        assert header.dtype is not None, "checked by `header`"
        super().__init__(header.shape, dtype)
        self._file, self._array, self._stored = file, array, header.dtype

    def read(self, numbers: Tensor) -> Tensor:
        """See `ReadImages`."""
        return self._read_as_stored(numbers).to(self.dtype)

    def _read_as_stored(self, numbers: Tensor) -> Tensor:
        # A byte other than 0 and 1 is not a valid bool, so bytes are compared and not reinterpreted.
        is_bool = self._stored == torch.bool
        found = torch.empty((len(numbers), *self.shape[1:]), dtype=torch.uint8 if is_bool else self._stored)
        self._file.read_rows(self._array, numbers, found)
        return found.ne(0) if is_bool else found

    def find_lost(self) -> str | None:
        """A warning if float32 does not hold the differences of these numbers, of which all are read for it."""
        if self._stored not in WIDE:
            return None
        rounding, num_values = Rounding(count_values(self)), count_values(self)
        step = max(_PART_VALUES // num_values, 1)
        for start in range(0, len(self), step):
            part = self._read_as_stored(torch.arange(start, min(start + step, len(self))))
            rounding.add(start * num_values, part.flatten())
        lost = rounding.describe()
        return None if lost is None else f"array {self._array}: {lost}"
