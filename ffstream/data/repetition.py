"""Images that occur more than once: in two splits, under two classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

_PART_VALUES = 1 << 20  # of images whose digests are made at once
_SEED = 20221227  # of the factors of digests; any will do
_SOME = 0.1  # share of a split's images that are no accident
_MORE = 3.0  # times as often as images repeat within the training split: tables of few values do
_SEVERAL = 0.05  # share of training images that contradict each other, or are copies, and no oversight
_FEW = 3  # copies, likewise


def digest_images(images: Tensor) -> Tensor:
    """A number for each image (n,) int64: the same for equal images, and for others as good as never."""
    num_features = images[0].numel()
    factors = torch.randint(-(1 << 62), 1 << 62, (num_features,), generator=torch.Generator().manual_seed(_SEED)) | 1
    digests = torch.empty(len(images), dtype=torch.int64)
    step = max(_PART_VALUES // num_features, 1)
    for start in range(0, len(images), step):
        rows = images[start : start + step].flatten(1)
        values = rows.double().contiguous().view(torch.int64) if rows.is_floating_point() else rows.long()
        digests[start : start + step] = (values * factors).sum(dim=1)  # modulo 2^64
    return digests


def find_seen(split: Tensor, train: Tensor) -> str | None:
    """What says that images of a split, given by their digests (n,), are training images; None if nothing does."""
    is_seen = torch.isin(split, train)
    share = float(is_seen.double().mean())
    if share < _SOME or share < _MORE * _share_repeated(train):
        return None
    first = int(is_seen.nonzero()[0])
    return (
        f"{int(is_seen.sum())} of {len(split)} are training images, such as image {first}, so that their error is no "
        "error of new images"
    )


def find_contradictions(train: Tensor, labels: Tensor, files: Sequence[Path] | None) -> str | None:
    """What says that equal images, given by their digests (n,), have different labels (n,); None if nothing does.

    Of `files`, which are pictures, a single one is named; of rows of an array, a share of one in twenty.
    """
    order = torch.argsort(train, stable=True)
    digests, sorted_labels = train[order], labels[order]
    differs = (digests[1:] == digests[:-1]) & (sorted_labels[1:] != sorted_labels[:-1])
    if not bool(differs.any()):
        return None
    is_one = torch.isin(train, digests[1:][differs])
    num_images = int(is_one.sum())
    if files is None and num_images < _SEVERAL * len(train):
        return None
    first = int(is_one.nonzero()[0])
    second = int(((train == train[first]) & (labels != labels[first])).nonzero()[0])
    names = f"images {first} and {second}" if files is None else f"{files[first]} and {files[second]}"
    return f"{num_images} of {len(train)} training images occur under several classes, such as {names}"


def find_copies(train: Tensor, files: Sequence[Path]) -> str | None:
    """What says that pictures, given by their digests (n,), lie there several times; None if nothing does."""
    order = torch.argsort(train, stable=True)
    repeats = train[order][1:] == train[order][:-1]
    num_copies = int(repeats.sum())
    if num_copies < max(_SEVERAL * len(train), _FEW):
        return None
    first = int(torch.isin(train, train[order][1:][repeats]).nonzero()[0])
    second = int((train == train[first]).nonzero()[1])
    return (
        f"{num_copies} of {len(train)} training images are copies of others, such as {files[second]} of "
        f"{files[first]}, so that a validation split holds images that are trained on"
    )


def _share_repeated(digests: Tensor) -> float:
    """The share of images that occur more than once."""
    _, index, counts = torch.unique(digests, return_inverse=True, return_counts=True)
    return float((counts[index] > 1).double().mean())
