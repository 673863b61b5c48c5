"""Writing the caches that the first layer of a stack reads, from the images of a run."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from ffstream.cache import ActivationCache
from ffstream.cache.transfer import Transfer
from ffstream.data import Scaling, Split
from ffstream.data.augmentation import Augmentation
from ffstream.field.blueprint import Blueprint
from ffstream.field.network import LayerSpec
from ffstream.run.cache_set import TRAIN, VALIDATION, CacheSet
from ffstream.run.schedule import Pass
from ffstream.training.input_rows import InputRows
from ffstream.training.propagation import write_rows


class InputWriter:
    """Writes rows of images. What is drawn for them is a function of (seed, layer, epoch)."""

    def __init__(
        self, blueprint: Blueprint, splits: Mapping[str, Split], scaling: Scaling, caches: CacheSet, transfer: Transfer
    ) -> None:
        self._blueprint, self._scaling = blueprint, scaling
        self._splits = dict(splits)  # until no more caches are written from them
        self._caches, self._transfer = caches, transfer

    def forget(self, names: Collection[str]) -> None:
        """Free the images of these splits, from which no more caches are written."""
        for name in names:
            self._splits.pop(name, None)

    def write(self, spec: LayerSpec, of_pass: Pass) -> None:
        """Write the caches that a stack reads which begins with this layer, in place of those of the stack before.

        In a round with windows, they hold the training samples of one window.
        Overlay, scale, views and, in rounds, augmentation are decided here: later caches of these splits in the stack
        do not read the data set. Held-out rows are the same for every stack, because the goodness of all stacks is
        summed.
        """
        caches, config = self._caches.current, self._blueprint.config
        augmentation, seed, epoch = Augmentation(config.augmentation), config.seed, of_pass.input_epoch
        for name in list(caches):
            self._transfer.commit(caches.pop(name).drop)
        self._transfer.finish()
        self._transfer.release()
        for name in self._caches.lasting:
            split = self._splits[name]
            selected = of_pass.select(len(split), seed) if name == TRAIN else None
            split = split if selected is None else split.choose(selected)
            num_samples = len(split)
            caches[name] = self._caches.make(spec.index, name)
            rows = self._make_rows(name, spec, epoch if name == TRAIN else 0, split)
            for view in range(caches[name].layout.num_views):
                draws = augmentation.draw_view(num_samples, view, seed, spec.index) if view else None
                if name == TRAIN and config.in_rounds and augmentation.is_there:
                    draws = augmentation.draw_fresh(num_samples, seed, spec.index, epoch)
                write_rows(self._transfer, caches[name], rows.make(augmentation, draws), view)

    def write_fresh(
        self, spec: LayerSpec, epoch: int, move: Callable[[ActivationCache, LayerSpec], ActivationCache]
    ) -> None:
        """Replace what a layer read in its last epoch by freshly augmented images, put through the layers below.

        `move` puts a cache through a layer. The epochs of a layer are counted through its tiles. The rows do not depend
        on those of the last epoch or of an earlier process.
        """
        config = self._blueprint.config
        augmentation = Augmentation(config.augmentation)
        if TRAIN in self._caches.current:
            self._caches.current.pop(TRAIN).drop()
        self._caches.fresh = f"{spec.index} {epoch}"
        cache = self._caches.make(spec.stack_start, TRAIN)
        draws = augmentation.draw_fresh(len(self._splits[TRAIN]), config.seed, spec.index, epoch)
        rows = self._make_rows(TRAIN, spec, epoch, self._splits[TRAIN])
        write_rows(self._transfer, cache, rows.make(augmentation, draws))
        for below in self._blueprint.specs[spec.stack_start : spec.index]:
            cache = move(cache, below)
        self._caches.current[TRAIN] = cache

    def _make_rows(self, name: str, spec: LayerSpec, epoch: int, split: Split) -> InputRows:
        """The rows of a split, or of a window of it, for a layer. Every stack reads the same held-out images."""
        held_out = name == VALIDATION
        start, layer = self._blueprint.specs[spec.stack_start], 0 if held_out else spec.index
        return InputRows(
            *(self._blueprint.method.rows, split, self._scaling, self._blueprint.config.seed),
            held_out=held_out,
            layer=layer,
            epoch=epoch,
            hidden=None if held_out else self._blueprint.draw_hidden(start),
        )
