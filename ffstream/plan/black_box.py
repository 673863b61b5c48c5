"""Layers that cannot work on paper: they take there what they declare, or are refused."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ffstream.device.ledger import PAPER
from ffstream.errors import ConfigError, FFStreamError
from ffstream.field.layers import LAYER_KINDS, Layer
from ffstream.field.layers.contract import check_bytes


def use_declared(layer: Layer) -> None:
    """Let a layer on paper, if its kind declares bytes, take these instead of working, and give what has no values."""
    if layer.is_black_box:
        stand_in = _StandIn(layer)
        for name in ("preactivations", "gradients", "input_gradients", "observe", "update_"):
            setattr(layer, name, getattr(stand_in, name))


class _StandIn:
    """Has the methods that a black box cannot execute on paper."""

    def __init__(self, layer: Layer) -> None:
        self._layer = layer

    def _take(self, num_rows: int) -> Tensor:
        return torch.empty(
            check_bytes(self._layer, self._layer.declare_bytes(num_rows)), dtype=torch.uint8, device=PAPER
        )

    def preactivations(self, rows: Tensor) -> Tensor:
        room = self._take(len(rows))
        found = torch.empty(len(rows), self._layer.num_units, dtype=torch.float32, device=PAPER)
        del room
        return found

    def gradients(
        self, rows: Tensor, gradient: Tensor, total: Tensor | None = None
    ) -> Iterator[tuple[str, slice, Tensor]]:
        room = self._take(len(rows))
        for name in self._layer.list_inner():
            yield name, slice(None), torch.empty_like(self._layer.get_parameter(name))
        del room

    def input_gradients(self, rows: Tensor, gradient: Tensor) -> Iterator[tuple[slice, Tensor]]:
        room = self._take(len(rows))
        yield slice(None), torch.empty_like(rows, dtype=torch.float32)
        del room

    def observe(
        self, rows: Tensor, gradient: Tensor, loss_of: Callable[[Tensor], Tensor]
    ) -> Iterator[tuple[str, slice, Tensor]]:
        room = self._take(len(rows))
        loss_of(torch.empty(len(rows), self._layer.num_units, dtype=torch.float32, device=PAPER))
        for name in self._layer.list_inner():
            yield name, slice(None), torch.empty_like(self._layer.get_parameter(name))
        del room

    def update_(self, name: str, rows: slice, observed: Tensor, rate: float) -> None:
        self._take(0)


@contextlib.contextmanager
def refusing_undeclared(kind: str) -> Iterator[None]:
    """Raise ConfigError where a layer of a user's own kind looks at values on paper, where there are none."""
    try:
        yield
    except FFStreamError:
        raise
    except (RuntimeError, TypeError) as error:
        if LAYER_KINDS.is_built_in(kind) or "meta" not in str(error).lower():
            raise
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"layer kind {kind!r}: cannot be planned, as it looks at values of tensors that have none ({reason}); "
            "define declare_bytes(num_rows) in it, as ff.Layer says, if it works outside of torch"
        ) from error
