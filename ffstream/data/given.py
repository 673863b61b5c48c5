"""Data that a program gives: a pair of arrays, a torch Dataset, batches from an iterable, or a `Dataset` of ours.

They become what the same samples would be in a file: images of bytes stay bytes, all others become float32.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sized
from typing import Any

import torch
import torch.utils.data
from torch import Tensor

from ffstream.data.dataset import GIVEN, Dataset, Split
from ffstream.data.image_access import ConvertedImages, Images
from ffstream.data.own_dataset import check_own
from ffstream.data.tensors import to_host
from ffstream.errors import DataError

_ALLOWED = (
    "a pair (images, labels), a torch Dataset or an iterable of such pairs, or a Dataset, such as "
    "Dataset.from_arrays(x, y, x_val=..., y_val=...)"
)
_BATCH_SAMPLES = 256  # of a torch Dataset, whose samples come one by one


def as_dataset(data: Any) -> Dataset:
    """A checked data set of what `ff.train` takes as `data`. Raises DataError that names the sample that does not fit.

    An iterable is read to its end, and its samples stay in memory, as it may not be read twice.
    """
    if isinstance(data, Dataset):
        return _check(data)
    if isinstance(data, tuple):
        if len(data) != 2:
            raise DataError(f"data {GIVEN}: found a tuple of {len(data)}, allowed {_ALLOWED}")
        return _check(Dataset.from_arrays(*data))
    if isinstance(data, torch.utils.data.Dataset):
        return _check(Dataset.from_arrays(*_join(_batch(_list_samples(data)))))
    if isinstance(data, (str, bytes, dict)) or not isinstance(data, Iterable) or hasattr(data, "__array__"):
        raise DataError(f"data {GIVEN}: found a {type(data).__name__}, allowed {_ALLOWED}")
    return _check(Dataset.from_arrays(*_join(data)))


def _check(dataset: Dataset) -> Dataset:
    """Hold a data set to what a file is held to. Raises DataError."""
    checked = check_own(dataset, dataset.name)
    test, validation = (None if split is None else _as_in_a_file(split) for split in (checked.test, checked.validation))
    return dataclasses.replace(checked, train=_as_in_a_file(checked.train), test=test, validation=validation)


def _as_in_a_file(split: Split) -> Split:
    if split.images.dtype == torch.uint8:
        return split
    return Split(
        _as_floats(split.images), split.labels, None if split.negatives is None else _as_floats(split.negatives)
    )


def _as_floats(images: Images) -> Images:
    return images.float() if isinstance(images, Tensor) else ConvertedImages(images)


def _list_samples(data: torch.utils.data.Dataset[Any]) -> Iterator[Any]:
    """The samples of a torch Dataset, by number where it knows how many there are. Raises DataError."""
    if isinstance(data, torch.utils.data.IterableDataset):
        yield from data
        return
    if not isinstance(data, Sized):
        raise DataError(
            f"data {GIVEN}: found a {type(data).__name__} without __len__, allowed a torch Dataset that knows how many "
            "samples it has, or an IterableDataset; add __len__"
        )
    for number in range(len(data)):
        yield data[number]


def _batch(samples: Iterable[Any]) -> Iterator[tuple[Tensor, Tensor]]:
    """Single samples in batches, so that few tensors are held. Raises DataError."""
    images, labels, first = list[Tensor](), list[Tensor](), None
    for number, sample in enumerate(samples):
        noun = f"data {GIVEN}: sample {number}"
        image, label = _take_apart(sample, noun, "an image and its label")
        images.append(to_host(image, f"{noun}: image"))
        labels.append(to_host(label, f"{noun}: label"))
        found = tuple(images[-1].shape), tuple(labels[-1].shape)
        first = first or found
        if found != first:
            raise DataError(
                f"{noun}: has shapes {found[0]} and {found[1]}, allowed {first[0]} and {first[1]}, as the first"
            )
        if len(images) == _BATCH_SAMPLES:
            yield torch.stack(images), torch.stack(labels)
            images, labels = [], []
    if images:
        yield torch.stack(images), torch.stack(labels)


def _take_apart(found: Any, noun: str, members: str) -> tuple[Any, Any]:
    if not isinstance(found, (tuple, list)) or len(found) != 2:
        raise DataError(f"{noun}: found a {type(found).__name__}, allowed a pair of {members}")
    return found[0], found[1]


def _join(batches: Iterable[Any]) -> tuple[Tensor, Tensor]:
    """All images and all labels of batches of both. Raises DataError."""
    images, labels, num_samples = list[Tensor](), list[Tensor](), 0
    for number, batch in enumerate(batches):
        noun = f"data {GIVEN}: batch {number}"
        of_batch = _take_apart(batch, noun, "images and labels")
        images.append(to_host(of_batch[0], f"{noun}: images"))
        labels.append(to_host(of_batch[1], f"{noun}: labels"))
        if images[-1].dim() < 2 or labels[-1].shape[:1] != images[-1].shape[:1]:
            raise DataError(
                f"{noun} (sample {num_samples} on): images have shape {tuple(images[-1].shape)} and labels "
                f"{tuple(labels[-1].shape)}, allowed (n, ...) and one label for each image"
            )
        for what, own in (("images", images), ("labels", labels)):
            if own[-1].shape[1:] != own[0].shape[1:] or own[-1].dtype != own[0].dtype:
                raise DataError(
                    f"{noun} (sample {num_samples} on): {what} are {own[-1].dtype} of shape {tuple(own[-1].shape)}, "
                    f"allowed {own[0].dtype} of {tuple(own[0].shape)} but for their number, as in the first"
                )
        num_samples += len(images[-1])
    if not images:
        raise DataError(f"data {GIVEN}: found no batch, allowed one or more")
    return torch.cat(images), torch.cat(labels)
