"""Tensors made of what a user gives as images or labels: arrays, lists, pictures, or tensors of any kind."""

from __future__ import annotations

import sys
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from ffstream.errors import DataError

_UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)
_MODES = ("L", "RGB")  # of pictures whose numbers are what is seen, in bytes


def as_tensor(values: Any, noun: str, *, on_paper: bool = False) -> Tensor:
    """Convert an array, lists or a tensor to a tensor of real numbers. `noun` begins the message of a DataError.

    With `on_paper`, a tensor on the meta device, which has a shape and no values, is one too.
    """
    _check_members(values, noun)
    if isinstance(values, (list, tuple)) and any(isinstance(each, Tensor) for each in values):
        values = _stack([as_tensor(each, f"{noun}[{i}]", on_paper=on_paper) for i, each in enumerate(values)], noun)
    try:
        if not isinstance(values, Tensor):
            array = np.asarray(values)
            array = array.astype(array.dtype.newbyteorder("="), copy=not array.flags.writeable)
            values = torch.from_numpy(np.ascontiguousarray(array))
    except (TypeError, ValueError) as error:
        found = getattr(values, "dtype", type(values).__name__)
        raise DataError(f"{noun}: found {found}, allowed numbers") from error
    if values.is_nested:
        raise DataError(f"{noun}: found a nested tensor, allowed a dense one, of one shape a sample; pad or crop them")
    if isinstance(values, torch.masked.MaskedTensor):
        raise DataError(f"{noun}: found a masked tensor, allowed numbers; fill it by to_tensor(value)")
    if values.is_complex():
        raise DataError(f"{noun}: found {values.dtype}, allowed real numbers")
    if values.device.type == "meta" and not on_paper:
        raise DataError(f"{noun}: found a tensor on the meta device, which holds no values, allowed one that does")
    if values.layout != torch.strided or values.is_quantized or _is_short(values):
        found = values.layout if values.layout != torch.strided else values.dtype
        raise DataError(
            f"{noun}: found a tensor of {found} on {values.device.type}, allowed a dense one of integers, booleans or "
            "floating numbers of 16 bits or more"
        )
    # torch supports few operations on the unsigned types other than uint8.
    return cast(Tensor, values.float() if values.dtype in _UNSIGNED else values)


def to_host(values: Any, noun: str) -> Tensor:
    """The same without an autograd graph, on the host, and with a negation that torch has only noted carried out."""
    return as_tensor(values, noun).detach().cpu().resolve_neg()


def _is_short(values: Tensor) -> bool:
    """Whether the values are floats of 8 bits or fewer, on which torch computes nothing."""
    return values.is_floating_point() and values.element_size() < 2


def _check_members(values: Any, noun: str) -> None:
    """Raise DataError for what numpy would turn into other numbers: masked values, and pictures of most modes.

    Lists and tuples are searched, as numpy drops the masks of their members, and takes the numbers of a palette for
    shades.
    """
    if isinstance(values, np.ma.MaskedArray) and np.ma.is_masked(values):
        raise DataError(f"{noun}: holds values that are masked, allowed numbers; fill them, or leave them out")
    if _is_picture(values) and values.mode not in _MODES:
        raise DataError(
            f"{noun}: found a picture of mode {values.mode}, allowed {' or '.join(_MODES)}; give its file to "
            'load_images, or the picture as picture.convert("L"), or "RGB"'
        )
    if isinstance(values, (list, tuple)):
        for number, each in enumerate(values):
            if isinstance(each, (list, tuple, np.ma.MaskedArray)) or _is_picture(each):
                _check_members(each, f"{noun}[{number}]")


def _stack(tensors: list[Tensor], noun: str) -> Tensor:
    try:
        return torch.stack(tensors)
    except RuntimeError as error:  # of several shapes, or on several devices
        found = sorted({f"{tuple(each.shape)} on {each.device}" for each in tensors})
        raise DataError(
            f"{noun}: found a list of tensors of shapes {' and '.join(found[:2])}, allowed one shape and one device; "
            "pad, crop or move them"
        ) from error


def _is_picture(value: Any) -> bool:
    pillow = sys.modules.get("PIL.Image")  # slow to import, and there is no picture of it before somebody did
    return pillow is not None and isinstance(value, pillow.Image)
