"""The shape of an activation cache, and the order in which an epoch visits it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ffstream.cache.coding import ROWS_DTYPE, as_coded, coding_bytes
from ffstream.ground import seeding

_MOST_BETWEEN_IMAGES = 4  # epochs, at most, from one visit of the unshifted images to the next

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
CODED = "int8"  # the type of rows that `coding.py` codes


@dataclass(frozen=True)
class CacheLayout:
    """Rows (num_samples, num_rows, num_features), cut into shards of `shard_samples` samples; the last may be short.

    With several views of every sample, a shard holds one view of a block of samples, and the shards of a block follow
    one another: shard s is view s % num_views of block s // num_views.
    """

    num_samples: int
    num_rows: int  # per sample
    num_features: int
    dtype_name: str  # bf16, fp16, fp32, int8
    shard_samples: int
    num_views: int = 1  # per sample, of which an epoch visits one
    carried: tuple[int, ...] = ()  # features at the end of a row that its layer does not read, in parts by source

    @property
    def is_coded(self) -> bool:
        """Whether rows are stored in another type than they are used in."""
        return self.dtype_name == CODED

    @property
    def dtype(self) -> torch.dtype:
        """The type in which rows are used."""
        return ROWS_DTYPE if self.is_coded else DTYPES[self.dtype_name]

    @property
    def stored_dtype(self) -> torch.dtype:
        """The type in which rows are stored."""
        return torch.int8 if self.is_coded else self.dtype

    @property
    def row_bytes(self) -> int:
        """Bytes per row as it is stored."""
        return (self.num_features + self._num_scales) * self.stored_dtype.itemsize

    @property
    def _num_scales(self) -> int:
        """Numbers of a row as it is stored that are scales: one for what is read, and one for each part carried."""
        return 1 + len(self.carried) if self.is_coded else 0

    @property
    def num_blocks(self) -> int:
        """Blocks of samples, which is also the number of shards that an epoch visits: one view of each block."""
        return -(-self.num_samples // self.shard_samples)

    @property
    def num_shards(self) -> int:
        return self.num_blocks * self.num_views

    @property
    def num_stored(self) -> int:
        """Samples stored, with every view counted."""
        return self.num_samples * self.num_views

    @property
    def epoch_bytes(self) -> int:
        """Bytes that an epoch visits."""
        return self.num_samples * self.num_rows * self.row_bytes

    @property
    def num_bytes(self) -> int:
        return self.epoch_bytes * self.num_views

    @property
    def shard_bytes(self) -> int:
        """Bytes of the largest shard."""
        return min(self.shard_samples, self.num_samples) * self.num_rows * self.row_bytes

    def coding_bytes(self, coded_rows: int) -> int:
        """Bytes of the largest shard decoded, with temporary memory for coding it; 0 if rows are not coded.

        `coded_rows` is how many rows are coded at once.
        """
        if not self.is_coded:
            return 0
        num_rows = min(self.shard_samples, self.num_samples) * self.num_rows
        return num_rows * self.num_features * self.dtype.itemsize + coding_bytes(num_rows, coded_rows)

    def shard_range(self, shard: int) -> slice:
        """The samples of a shard."""
        start = shard // self.num_views * self.shard_samples
        return slice(start, min(start + self.shard_samples, self.num_samples))

    def stored_range(self, shard: int) -> slice:
        """The positions of a shard's samples in an array of one entry for each view of each sample, shard by shard."""
        samples = self.shard_range(shard)
        num_samples = samples.stop - samples.start
        start = samples.start * self.num_views + shard % self.num_views * num_samples
        return slice(start, start + num_samples)

    def shard_shape(self, shard: int) -> tuple[int, int, int]:
        """(samples, rows, features) of a shard as it is used."""
        samples = self.shard_range(shard)
        return samples.stop - samples.start, self.num_rows, self.num_features

    def stored_shape(self, shard: int) -> tuple[int, int, int]:
        """(samples, rows, features) of a shard as it is stored: a coded row has more, for its scales."""
        *counts, num_features = self.shard_shape(shard)
        return counts[0], counts[1], num_features + self._num_scales

    def shard_sizes(self) -> set[int]:
        """The distinct numbers of samples that shards have."""
        return {self.shard_shape(shard)[0] for shard in (0, self.num_shards - 1)}

    def batch_sizes(self, batch: int) -> set[int]:
        """The distinct sizes of the batches into which `compute_batches` cuts shards."""
        batches = {count: -(-count // batch) for count in self.shard_sizes()}
        return {size for count, num in batches.items() for size in (count // num, -(-count // num))}

    def to_mapping(self) -> dict[str, Any]:
        """Plain settings, for a manifest."""
        found = asdict(self)
        return found if self.carried else {name: value for name, value in found.items() if name != "carried"}


def as_cached(rows: Tensor, dtype_name: str, carried: Sequence[int] = ()) -> Tensor:
    """Rows (..., F) as they come back from a cache of that type. Gradients pass through the rounding unchanged.

    `carried` are the features of the parts at the end of a row that its layer does not read.
    """
    if dtype_name != CODED:
        return rows.to(DTYPES[dtype_name])
    found = rows.to(ROWS_DTYPE)
    coded = as_coded(found.detach(), carried)
    return coded + (found - found.detach()) if found.requires_grad else coded


def compute_shard_order(layout: CacheLayout, seed: int, layer: int, epoch: int, num_epochs: int) -> Sequence[int]:
    """The shards in the order of this epoch: the first half of the block shuffle. It visits one view of each block.

    `num_epochs` is the number of epochs of a layer, or of one of its tiles. The last of them and every fourth before it
    (every second or third, if there are only so many views) visit view 0, the unshifted images: a trained layer is used
    on these, and how often it meets them must not be left to chance. The other epochs visit the other views, for each
    block in a random order of its own, each view once before any view twice.
    """
    generator = seeding.generator(seed, layer, epoch, "shards")
    order = torch.randperm(layout.num_blocks, generator=generator)
    if layout.num_views > 1:
        order = order * layout.num_views + _draw_views(layout, seed, layer, epoch, num_epochs)[order]
    shards: list[int] = order.tolist()
    return shards


def _draw_views(layout: CacheLayout, seed: int, layer: int, epoch: int, num_epochs: int) -> Tensor:
    """The view of each block that an epoch visits: (num_blocks,)."""
    interval, (repeat, place) = min(_MOST_BETWEEN_IMAGES, layout.num_views), divmod(epoch, num_epochs)
    if (num_epochs - 1 - place) % interval == 0:
        return torch.zeros(layout.num_blocks, dtype=torch.int64)
    num_shifted = layout.num_views - 1
    before = place - len(range((num_epochs - 1) % interval, place, interval))  # earlier epochs of shifted views
    before += repeat * (num_epochs - -(-num_epochs // interval))
    cycle, place = divmod(before, num_shifted)
    generator = seeding.generator(seed, layer, cycle, "views")
    return 1 + torch.rand(layout.num_blocks, num_shifted, generator=generator).argsort(dim=1)[:, place]


def group_shards(order: Sequence[int], most: int) -> list[Sequence[int]]:
    """Cut an order into groups of at most `most` shards, whose sizes differ by at most one."""
    num_groups = -(-len(order) // most)
    starts = [group * len(order) // num_groups for group in range(num_groups + 1)]
    return [order[start:stop] for start, stop in itertools.pairwise(starts)]


def compute_batches(num_samples: int, batch: int, generator: torch.Generator) -> Sequence[Tensor]:
    """A permutation of a shard's samples, cut into batches of at most `batch`: the second half of the block shuffle.

    The sizes of batches differ by at most one sample, so that no batch is a small remainder with a noisy gradient.
    """
    order = torch.randperm(num_samples, generator=generator)
    return order.tensor_split(-(-num_samples // batch))
