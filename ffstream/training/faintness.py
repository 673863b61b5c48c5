"""What is far smaller in the training images than the rest, for networks that have learnt little.

A layer hardly sees features in much smaller units. Of data that are learnt well, such as spectra, nothing need be said.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ffstream.data.image_access import Images, count_values
from ffstream.data.missing_values import COPIED_VALUES
from ffstream.data.sample import draw_sample
from ffstream.data.scaling import FEATURES

_MOST_IMAGES = 1024  # images that are looked at, drawn from all
_SMALLER = 20.0  # times, relative to the largest, from which features or lines count as faint
_DENSE = 0.5  # least share of values that are not zero; lines with fewer, such as dark borders, are not compared
_MOST_NAMED = 5


@dataclass(frozen=True)
class _Sizes:
    """The sizes of parts of a sample: of its features, or of its lines along an axis."""

    noun: str
    logarithms: Tensor  # (parts,) of the sizes, whatever few values are far larger
    num_not_zero: Tensor  # (parts,)
    num_values: int  # of each part

    def find_faint(self) -> str | None:
        """Name the parts that are far smaller than the largest, else None."""
        is_dense = self.num_not_zero > _DENSE * self.num_values
        if int(is_dense.sum()) < 2:
            return None
        sizes = (self.logarithms / self.num_not_zero.clamp(min=1)).exp()
        most = float(sizes[is_dense].max())
        faint = (is_dense & (sizes * _SMALLER < most)).nonzero().flatten()
        if not len(faint):
            return None
        listed = ", ".join(str(int(number)) for number in faint[:_MOST_NAMED])
        listed += ", ..." if len(faint) > _MOST_NAMED else ""
        return (
            f"of the {len(sizes)} {self.noun} of the training images, {len(faint)} ({listed}) are up to "
            f"{most / float(sizes[faint].min()):,.0f} times smaller than the largest, so that a layer can hardly see "
            "them; add --standardise features, or bring all to units in which they are of one size"
        )


def find_faint(images: Images, standardise: str) -> str | None:
    """Features of a table, or lines of a sample of two axes such as (sensors, time), that are far smaller than others.

    Images are (n, *shape). None where there are no such features, or where each is standardised by itself. Pixels of
    bytes have one unit, so that lines of them are not compared.
    """
    shape = [size for size in images.shape[1:] if size > 1]
    is_picture = len(shape) == 2 and images.dtype == torch.uint8
    if standardise == FEATURES or not 1 <= len(shape) <= 2 or is_picture:
        return None
    logarithms, num_not_zero = torch.zeros(2, *shape, dtype=torch.float64)
    index = draw_sample(len(images), _MOST_IMAGES).sort().values
    for part in index.split(max(COPIED_VALUES // count_values(images), 1)):
        values = images[part].double().abs_().view(-1, *shape)
        num_not_zero += (values != 0).sum(dim=0)
        logarithms += values.log_().masked_fill_(values == -torch.inf, 0.0).sum(dim=0)
    if len(shape) == 1:
        return _Sizes("features", logarithms, num_not_zero, len(index)).find_faint()
    for axis in (0, 1):
        num_values = len(index) * shape[1 - axis]
        lines = _Sizes(f"lines along axis {axis}", logarithms.sum(1 - axis), num_not_zero.sum(1 - axis), num_values)
        found = lines.find_faint()
        if found is not None:
            return found
    return None
