"""Tensors made of what a user gives as images or labels: arrays, lists, pictures, or tensors of any kind."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Mapping
from itertools import islice
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from ffstream.errors import DataError

# What holds numbers or texts alone, and is no sequence of images that numpy would look into one by one.
_PLAIN = (Tensor, np.ndarray, np.generic, int, float, complex, str, bytes, bytearray, memoryview, array)
_UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)


def as_tensor(values: Any, noun: str, *, on_paper: bool = False) -> Tensor:
    """Convert an array, lists or a tensor to a tensor of real numbers. `noun` begins the message of a DataError.

    With `on_paper`, a tensor on the meta device, which has a shape and no values, is one too.
    """
    values = _open(values)
    _check_members(values, noun)
    if isinstance(values, (list, tuple)) and any(isinstance(each, Tensor) for each in values):
        values = _stack([as_tensor(each, f"{noun}[{i}]", on_paper=on_paper) for i, each in enumerate(values)], noun)
    try:
        if not isinstance(values, Tensor):
            numbers = np.asarray(values)
            numbers = numbers.astype(numbers.dtype.newbyteorder("="), copy=not numbers.flags.writeable)
            values = torch.from_numpy(np.ascontiguousarray(numbers))
    except (TypeError, ValueError) as error:
        raise DataError(_describe_misfit(values, noun)) from error
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


def _open(values: Any) -> Any:
    """Values as numpy will see them: lists in place of other sequences, and the array that an object says that it is.

    A sequence that reads each picture when it is asked for is read once, and so what is checked is what is taken.
    """
    if isinstance(values, _PLAIN) or _is_picture(values):
        return values
    if hasattr(type(values), "__array__"):
        try:
            return np.asanyarray(values)  # which keeps a mask
        except (TypeError, ValueError):
            return values  # numpy says why when an array is made of it
    if not isinstance(values, (list, tuple)):
        is_sequence = all(hasattr(type(values), name) for name in ("__len__", "__getitem__"))
        if not is_sequence or isinstance(values, Mapping):
            return values
        values = list(islice(iter(values), len(values)))
    opened = [_open(each) for each in values]
    return values if all(own is each for own, each in zip(opened, values, strict=True)) else opened


def _check_members(values: Any, noun: str) -> None:
    """Raise DataError for what numpy would turn into other numbers: masked values, and most pictures.

    Lists and tuples, which `_open` makes of other sequences, are searched, as numpy drops the masks of their members,
    and takes the numbers of a palette for shades.
    """
    if isinstance(values, np.ma.MaskedArray) and np.ma.is_masked(values):
        raise DataError(f"{noun}: holds values that are masked, allowed numbers; fill them, or leave them out")
    if _is_picture(values):
        from ffstream.data.given_pictures import check_picture  # slow to import, and needed for pictures alone

        check_picture(values, noun)
    if isinstance(values, (list, tuple)):
        for number, each in enumerate(values):
            if isinstance(each, (list, tuple, np.ma.MaskedArray)) or _is_picture(each):
                _check_members(each, f"{noun}[{number}]")


def _stack(tensors: list[Tensor], noun: str) -> Tensor:
    try:
        return torch.stack(tensors)
    except RuntimeError as error:  # of several shapes, or on several devices
        kinds = [(tuple(each.shape), str(each.device)) for each in tensors]
        number = next(number for number, kind in enumerate(kinds) if kind != kinds[0])
        raise DataError(
            f"{noun}[{number}]: found a tensor of shape {kinds[number][0]} on {kinds[number][1]}, allowed "
            f"{kinds[0][0]} on {kinds[0][1]}, as {noun}[0] is; pad, crop or move it"
        ) from error


def _describe_misfit(values: Any, noun: str) -> str:
    """Why no array of numbers can be made of values: the first member of a list that is none, or of another shape."""
    first = None
    for number, each in enumerate(values if isinstance(values, (list, tuple)) else ()):
        try:
            member = np.asarray(each)
        except (TypeError, ValueError):  # such as a pair of an image and its label
            member = np.asarray(None)
        if member.dtype.kind not in "biufc":
            kind = type(each).__name__
            if isinstance(each, (list, tuple)):
                names = sorted({type(part).__name__ for part in each})
                kind += f" of {' and '.join(names[:3])}"
            return f"{noun}[{number}]: found a {kind}, allowed numbers, as an array, a tensor or lists of one shape"
        first = member.shape if first is None else first
        if member.shape != first:
            return (
                f"{noun}[{number}]: found shape {member.shape}, allowed {first}, which {noun}[0] has; pad or crop it, "
                "or leave it out"
            )
    return f"{noun}: found {getattr(values, 'dtype', type(values).__name__)}, allowed numbers"


def _is_picture(value: Any) -> bool:
    pillow = sys.modules.get("PIL.Image")  # slow to import, and there is no picture of it before somebody did
    return pillow is not None and isinstance(value, pillow.Image)
