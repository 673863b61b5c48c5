"""The batches of one epoch: the shards of a cache in their order, in groups that are batched together."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ffstream.cache import ActivationCache, compute_batches, group_shards
from ffstream.cache.pinned import all_to_device
from ffstream.cache.transfer import Transfer
from ffstream.field.blueprint import Blueprint
from ffstream.ground import seeding
from ffstream.storage.epoch_part import EpochPart
from ffstream.training.micro_batch import MicroBatch, draw_for


class EpochBatches:
    """A batch is a part of one shard or, where shards are smaller, all samples of several shards.

    `order` lists all shards of the cache.
    """

    def __init__(
        self, cache: ActivationCache, order: Sequence[int], blueprint: Blueprint, device: torch.device
    ) -> None:
        self._cache, self._device = cache, device
        self._candidates, self._batch = blueprint.method.candidates, blueprint.sizes.batch
        self._groups = group_shards(order, blueprint.sizes.num_shards_in_batch)
        num_samples = [
            sum(part.stop - part.start for part in map(cache.layout.shard_range, group)) for group in self._groups
        ]
        self.ends = list(itertools.accumulate(num_samples))  # for each group, the number of samples up to its end

    def fits(self, part: EpochPart) -> bool:
        """Whether a part of the epoch can have ended where it says, with generators that can be in these states."""
        try:
            for device, state in ((torch.device("cpu"), part.host_state), (self._device, part.device_state)):
                seeding.generator(0, 0, 0, "part", device).set_state(state)
        except RuntimeError:  # torch refuses a state that no generator can have
            return False
        return part.num_groups < len(self.ends) and part.num_samples == self.ends[part.num_groups - 1]

    def load(
        self,
        transfer: Transfer,
        labels: Tensor,
        others: Tensor | None,
        generator: torch.Generator,
        *,
        informed: bool,
        num_skipped: int = 0,
    ) -> Iterator[tuple[int, Iterator[MicroBatch]]]:
        """Yield every batch: the number of its samples, and an iterator that loads these in parts.

        `informed` is true after the layer's first epoch, when its goodness can rank negatives. The first `num_skipped`
        groups of shards are left out.
        """
        layout, groups = self._cache.layout, self._groups[num_skipped:]
        blocks = transfer.blocks(self._cache, [shard for group in groups for shard in group])
        for group in groups:
            loaded = itertools.islice(blocks, len(group))
            samples = [layout.shard_range(shard) for shard in group]
            kept = [layout.stored_range(shard) for shard in group]
            parts = itertools.chain.from_iterable(
                self._draw(
                    block, labels[part], others[stored] if others is not None else None, generator, informed=informed
                )
                for part, stored, (_, block) in zip(samples, kept, loaded, strict=True)
            )
            if len(group) > 1:
                yield sum(part.stop - part.start for part in samples), parts
            else:
                yield from ((len(part.index), iter([part])) for part in parts)

    def _draw(
        self,
        block: Tensor,
        labels: Tensor,
        others: Tensor | None,
        generator: torch.Generator,
        *,
        informed: bool,
    ) -> Iterator[MicroBatch]:
        """The samples of a block in batches, with the candidates that this epoch shows them."""
        batches = compute_batches(len(block), self._batch, generator)
        drawn = draw_for(labels, self._candidates, others, generator, self._device, informed=informed)
        for index in all_to_device(batches, self._device):
            yield drawn.take(block, index)
