"""What a layer of a user's own kind gives is checked as it comes, so that a mistake in it is said and trains nothing.

torch stretches a shape that is too small to the one that is needed, and takes other types, so that most mistakes would
train a layer without a word. A step on paper goes through the same checks before anything is written.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ffstream.errors import ConfigError, DeviceError
from ffstream.field.layers.base import Layer
from ffstream.field.layers.mode import Mode

LossOf = Callable[[Tensor], Tensor]


def compute(layer: Layer, rows: Tensor) -> Tensor:
    """The preactivations (n, num_units) of rows (n, in_features). Raises ConfigError for anything else."""
    with naming_driver(layer, "preactivations"):
        found = layer.preactivations(rows)
    _check(layer, "preactivations gave", found, (len(rows), layer.num_units), layer.unit_dtype, rows.device)
    return found


def learn(
    layer: Layer, rows: Tensor, gradient: Tensor, total: Tensor | None, loss_of: LossOf
) -> Iterator[tuple[str, slice, Tensor]]:
    """What the layer learns by, from `gradients` or `observe`. Raises ConfigError for what fits no parameter."""
    method, counts = "gradients" if layer.has_gradients else "observe", dict[str, int]()
    own = {name: layer.get_parameter(name) for name in layer.list_inner()}
    with naming_driver(layer, method):
        if layer.has_gradients:
            found: Any = layer.gradients(rows, gradient, total)
        else:
            found = layer.observe(rows, gradient, _checked(layer, loss_of, len(rows)))
        if not hasattr(found, "__iter__"):
            raise _fault(layer, f"{method} gave {_describe(found)}, allowed an iterator; yield what is learnt by")
        for part in found:
            name, units, value = _take_apart(layer, method, part)
            if name not in own:
                raise _fault(layer, f"{method} yields {name!r}, allowed what it learns, {', '.join(own)}")
            num_rows = len(range(*units.indices(len(own[name]))))
            shape = (num_rows, *own[name].shape[1:])
            _check(layer, f"{method} yields for {name}", value, shape, own[name].dtype, own[name].device)
            counts[name] = counts.get(name, 0) + num_rows
            if counts[name] > len(own[name]):
                raise _fault(layer, f"{method} yields some rows of {name} twice, allowed once in a call; add them up")
            yield name, units, value


def check_handed(layer: Layer, found: Tensor, like: Tensor) -> None:
    """Raise ConfigError where rows that a layer hands on are not of the shape of the rows that they are for."""
    if found.shape != like.shape:
        given, wanted = tuple(found.shape), tuple(like.shape)
        raise _fault(layer, f"hand_on leads to rows of shape {given}, allowed {wanted}, as handed_on_by says")


def check_moving(layer: Layer, found: Tensor, like: Tensor) -> None:
    """Raise ConfigError where gradients by some features of rows are not of the shape of these features."""
    _check(layer, "input_gradients yields", found, tuple(like.shape), found.dtype, like.device)


def check_made(layer: Layer) -> None:
    """Raise ConfigError for parameters and buffers that cannot be saved or updated, and for modes that are none."""
    if layer.num_units % layer.width:
        raise _fault(layer, f"units_of gives {layer.num_units} units, allowed a multiple of the width, {layer.width}")
    modes = layer.noisy_modes
    if not isinstance(modes, (set, frozenset)) or not all(isinstance(mode, Mode) for mode in modes):
        raise _fault(layer, f"noisy_modes is {modes!r}, allowed a frozenset of modes, such as frozenset(ff.Mode)")
    for name, tensor in layer.state_dict().items():
        if tensor.dtype != torch.float32:
            raise _fault(layer, f"{name} is of {tensor.dtype}, allowed torch.float32 in parameters and buffers")
    for name, parameter in layer.named_parameters():
        if not parameter.dim():
            raise _fault(layer, f"the parameter {name} is a single number, allowed at least one axis; make it (1,)")


def check_bytes(layer: Layer, found: Any) -> int:
    """The bytes that a layer declares. Raises ConfigError for what is no number of bytes."""
    if isinstance(found, int) and not isinstance(found, bool) and found >= 0:
        return found
    raise _fault(layer, f"declare_bytes gave {found!r}, allowed an integer of 0 or more for any number of rows")


@contextlib.contextmanager
def naming_driver(layer: Layer, method: str) -> Iterator[None]:
    """Raise DeviceError for an OSError of a layer, as of a driver, which would be taken for one of the run's files."""
    try:
        yield
    except OSError as error:
        raise DeviceError(
            f"layer kind {type(layer).__name__}: {method} failed ({type(error).__name__}: {error}); see to what it "
            "works with, then resume the run: nothing that was committed is lost"
        ) from error


def _checked(layer: Layer, loss_of: LossOf, num_rows: int) -> LossOf:
    def tell(preactivations: Tensor) -> Tensor:
        shape = (num_rows, layer.num_units)
        _check(layer, "loss_of was given", preactivations, shape, layer.unit_dtype, preactivations.device)
        return loss_of(preactivations)

    return tell


def _take_apart(layer: Layer, method: str, part: Any) -> tuple[str, slice, Any]:
    if not isinstance(part, tuple) or len(part) != 3 or not isinstance(part[1], slice):
        kinds = ", ".join(type(each).__name__ for each in part) if isinstance(part, tuple) else type(part).__name__
        raise _fault(layer, f"{method} yields ({kinds}), allowed (name, slice of the parameter's rows, numbers)")
    return part


def _check(
    layer: Layer, words: str, found: Any, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> None:
    is_like = isinstance(found, Tensor) and found.shape == shape and found.dtype == dtype and found.device == device
    if not is_like:
        is_elsewhere = isinstance(found, Tensor) and found.device != device
        place, of_place = (f" on {found.device}", f" on {device}") if is_elsewhere else ("", "")
        raise _fault(layer, f"{words} {_describe(found)}{place}, allowed {dtype} of shape {shape}{of_place}")


def _describe(found: Any) -> str:
    return f"{found.dtype} of shape {tuple(found.shape)}" if isinstance(found, Tensor) else repr(type(found))


def _fault(layer: Layer, text: str) -> ConfigError:
    return ConfigError(f"layer kind {type(layer).__name__}: {text}")
