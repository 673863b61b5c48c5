"""Measures what the kernels of a CPU take while they run beside operands and results: copies in other layouts or types.

No formula tells how much that is, as it depends on the processor: libraries below torch choose a kernel by its
instructions. So each operator whose kernel may take something is run once, on zeros of the same shapes. How it lays out
its results, which on paper may be otherwise, is found by the way.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ffstream.device.memory import is_out_of_memory, measure_peak_bytes

_CPU = torch.device("cpu")
_aten = torch.ops.aten

# Operators that take nothing, whatever the types of their tensors. Sorting is counted by the ledger on every device.
_FRUGAL = {
    *(_aten.copy_, _aten._to_copy, _aten.clone, _aten.contiguous, _aten.cat, _aten.stack, _aten.repeat, _aten.roll),
    *(_aten.index_select, _aten.gather, _aten.scatter_, _aten.masked_fill, _aten.masked_fill_, _aten.where),
    *(_aten.searchsorted, _aten.sort, _aten.topk, _aten.embedding, _aten.index, _aten._local_scalar_dense),
    *(_aten._fused_adam_, _aten._fused_adamw_, _aten._fused_sgd_, _aten._foreach_add_),
    *(_aten.normal_, _aten.uniform_, _aten.random_, _aten.bernoulli_, _aten.exponential_, _aten.zero_, _aten.fill_),
    *(_aten.empty_like, _aten.zeros_like, _aten.ones_like, _aten.new_full, _aten.new_zeros, _aten.new_empty),
}
# Those that take nothing if no tensor has to be cast, beside those that torch says to be elementwise.
_FRUGAL_IN_ONE_TYPE = {
    *(_aten.sum, _aten.mean, _aten.linalg_vector_norm, _aten.std_mean, _aten.var_mean, _aten.amax),
    *(_aten._log_softmax, _aten._softmax, _aten.avg_pool2d, _aten._adaptive_avg_pool2d),
}
_PRODUCTS = {_aten.mm, _aten.addmm, _aten.addmm_, _aten.bmm, _aten.baddbmm, _aten.baddbmm_}


@dataclass(frozen=True)
class OperatorNeed:
    """What an operator takes on the CPU, and how it lays out its results."""

    peak_bytes: int  # the most that it allocates at once, results included
    strides: tuple[tuple[int, ...], ...]  # of those results that are tensors


# By the number of threads and the call: the same for all layers and drafts of a process.
_found: dict[Any, OperatorNeed] = {}
_MOST_FOUND = 10_000


def measure_operator(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], key: Any) -> OperatorNeed:
    """What an operator takes on the CPU. Its tensors may be on paper.

    `key` stands for all that decides this, but the number of threads. Nothing is known of an operator that cannot be
    run on zeros.
    """
    key = (torch.get_num_threads(), key)
    if key not in _found:
        if len(_found) >= _MOST_FOUND:
            _found.clear()
        _found[key] = _run(func, args, kwargs)
    return _found[key]


def may_take(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the kernel of an operator may take memory beside its operands and results."""
    packet = func.overloadpacket
    if packet in _FRUGAL:
        return False
    tensors = list(list_tensors((*args, *kwargs.values())))
    if not tensors:
        return False
    types = {tensor.dtype for tensor in tensors} | {kwargs.get("dtype") or tensors[0].dtype}
    if packet in _PRODUCTS:
        return not (_is_x86() and types <= {torch.float32, torch.float64} and all(map(_is_packed, tensors)))
    return len(types) > 1 or not (_is_elementwise(func) or packet in _FRUGAL_IN_ONE_TYPE)


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> OperatorNeed:
    own, named = _make(args), {name: _make(value) for name, value in kwargs.items()}
    results: list[Any] = []  # which live until the end
    try:
        peak_bytes = measure_peak_bytes(lambda: results.append(func(*own, **named)), _CPU)
    except (RuntimeError, IndexError) as error:
        if is_out_of_memory(error):
            raise
        return OperatorNeed(0, ())
    return OperatorNeed(peak_bytes, tuple(tensor.stride() for tensor in list_tensors(results)))


def _make(value: Any) -> Any:
    """The same argument with zeros for tensors, on the CPU."""
    if isinstance(value, Tensor):
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=_CPU).zero_()
    if isinstance(value, (list, tuple)):
        return type(value)(map(_make, value))
    return _CPU if isinstance(value, torch.device) else value


def list_tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among an operator's arguments or results, also those in lists and tuples."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from list_tensors(value)


def _is_packed(tensor: Tensor) -> bool:
    """Whether a library for products of matrices reads a tensor as it lies in memory."""
    if tensor.dim() < 2:
        return tensor.is_contiguous()
    rows, columns = tensor.stride()[-2:]
    return (columns == 1 and rows >= tensor.shape[-1]) or (rows == 1 and columns >= tensor.shape[-2])


@functools.cache
def _is_elementwise(func: Any) -> bool:
    packet = getattr(_aten, func._schema.name.removeprefix("aten::").rstrip("_"), None)  # not in place: it is tagged
    return packet is not None and any(torch.Tag.pointwise in getattr(packet, name).tags for name in packet.overloads())


@functools.cache
def _is_x86() -> bool:
    """Where products in float32 are MKL's, whose workspaces are its own; elsewhere a library may ask torch for them."""
    return platform.machine().lower() in ("x86_64", "amd64")
