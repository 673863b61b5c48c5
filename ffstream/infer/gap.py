"""Whether the error of a test split is far above that of the validation split of the same run. Pure."""

from __future__ import annotations

import math

from torch import Tensor

from ffstream.infer.stretch import measure_runs

_HIGHER = 0.1  # by which the error of the test split must be above that of the validation split
_FAR = 4.5  # standard deviations of the difference of two shares


def find_gap(wrong: Tensor, held_out_wrong: Tensor) -> str | None:
    """A warning if far more predictions are wrong for test images than for validation images; None otherwise.

    `wrong` (n,) and `held_out_wrong` (m,) say which predictions are wrong; the former are in the order of the file, as
    images of it that follow each other may be of one person, and then count for fewer than they are.
    """
    num, num_held_out = len(wrong), len(held_out_wrong)
    if not num or not num_held_out:
        return None
    error, held_out_error = float(wrong.double().mean()), float(held_out_wrong.double().mean())
    far = _FAR * measure_spread(wrong, held_out_wrong)
    if error - held_out_error < max(_HIGHER, far):
        return None
    return (
        f"the test error of {error:.3f} ({num:,} images) is far above the validation error of {held_out_error:.3f} "
        f"({num_held_out:,} images), which chance does not explain; see whether some or all of the test images are "
        "turned, mirrored or in other units, whether the order of columns or the labels of a part of them is another, "
        "and whether they are of another origin, such as other people or a later time, than the images in training"
    )


def measure_spread(wrong: Tensor, held_out_wrong: Tensor) -> float:
    """The standard deviation of the difference of two errors, if the splits were alike.

    One right and one wrong prediction are added to each split, so that it is not zero.
    """
    num, num_held_out = len(wrong) + 2, len(held_out_wrong) + 2
    share = float(wrong.sum() + held_out_wrong.sum() + 2) / (num + num_held_out)
    return math.sqrt(share * (1 - share) * (measure_runs(wrong.double()) / num + 1 / num_held_out))
