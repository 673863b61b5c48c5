"""The input of the first layer: rows made of images, which may be augmented."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ffstream.data import Scaling, Split
from ffstream.data.augmentation import Augmentation
from ffstream.data.hybrids import draw_with_others
from ffstream.data.image_access import Images, ReadAhead
from ffstream.errors import DataError
from ffstream.field.labels import SampleRows
from ffstream.field.normalisation import length_normalise
from ffstream.ground import seeding

# Maps a slice of the samples to their rows, (n, rows per sample, features) float32, on the host.
RowsOf = Callable[[slice], Tensor]


def check_negatives(name: str, split: Split, rows: SampleRows) -> None:
    """Raise DataError if data bring negatives of their own, but layers do not read them, or need more of them."""
    if split.negatives is None:
        return
    if not rows.mixes_samples:
        raise DataError(
            f"data {name}: brings negatives of its own, which layers that see labels do not read; allowed with "
            "--recipe unsupervised; leave train.negatives out, or train on the data they were made of"
        )
    num_there, num_shown = split.negatives.shape[1], rows.num_training_rows - 1
    if num_there < num_shown:
        raise DataError(
            f"data {name}: brings {num_there} negatives per image, allowed {num_shown} or more, the number that is "
            f"cached (negatives.per_sample); use --negatives-per-sample {num_there}, or write more of them"
        )


class InputRows:
    """Makes the rows of a split that the first layer reads. What is drawn is a function of (seed, layer, epoch).

    `held_out` says that the split is the one for validation. `layer` and `epoch` are those for which rows are made
    anew. `hidden` (features,) marks the features of a row that are set to zero.
    """

    def __init__(
        self,
        rows: SampleRows,
        split: Split,
        scaling: Scaling,
        seed: int,
        *,
        held_out: bool = False,
        layer: int = 0,
        epoch: int = 0,
        hidden: Tensor | None = None,
    ) -> None:
        self._split, self._scaling, self._hidden, self._mixes_samples = split, scaling, hidden, rows.mixes_samples
        self._make = rows.validation_rows if held_out else rows.training_rows
        self._num_rows = rows.num_validation_rows if held_out else rows.num_training_rows
        purpose = "held-out negatives" if held_out else "cached negatives"
        self._generator = seeding.generator(seed, layer, epoch, purpose)
        self._others = seeding.generator(seed, layer, epoch, f"{purpose}, others")

    def make(self, augmentation: Augmentation | None = None, draws: Tensor | None = None) -> RowsOf:
        """A function that makes the rows of one view, (n, rows per sample, features); ask it for slices in order.

        If `draws` (num_samples, draws) of an `augmentation` are given, images are changed first, so that a label that
        is written over an image is not changed with it.
        """

        def change(images: Tensor, index: Tensor | slice) -> Tensor:
            if augmentation is None or draws is None:
                return images
            return augmentation.apply(images, draws[index])

        ahead = ReadAhead(self._split.images)

        def images_of(index: Tensor | slice) -> Tensor:
            images = ahead.read(index.start, index.stop) if isinstance(index, slice) else self._split.images[index]
            return self._scaling.apply(change(images, index))

        def drawn(part: slice) -> Tensor:
            if not self._mixes_samples:
                return images_of(part)
            index = draw_with_others(part, len(self._split), self._num_rows - 1, self._others)
            return images_of(index.flatten()).view(*index.shape, -1)

        def given(part: slice, negatives: Images) -> Tensor:
            shown = negatives[part][:, : self._num_rows - 1].unbind(1)
            every = [images_of(part), *(self._scaling.apply(change(images, part)) for images in shown)]
            return length_normalise(torch.stack(every, dim=1))

        def rows_of(part: slice) -> Tensor:
            if self._split.negatives is not None:
                rows = given(part, self._split.negatives)
            else:
                rows = self._make(drawn(part), self._split.labels[part], self._generator)
            return rows.masked_fill_(self._hidden, 0.0) if self._hidden is not None else rows

        return rows_of
