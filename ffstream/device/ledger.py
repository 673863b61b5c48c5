"""Counts the bytes of live tensors while code runs on the meta device, where a tensor has a shape and no memory.

The memory that code needs is thus known before it runs: the same lines run on the meta device ("on paper") first.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from ffstream.device.caching_allocator import Trace
from ffstream.device.operator_meter import list_tensors, may_take, measure_operator
from ffstream.ground.files import find_current

PAPER = torch.device("meta")


@dataclass(frozen=True)
class Work:
    """What operators did: flops of matrix products, bytes that other operators moved, and the number of operators."""

    flops: int = 0
    moved_bytes: int = 0
    num_operators: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.flops + other.flops,
            self.moved_bytes + other.moved_bytes,
            self.num_operators + other.num_operators,
        )

    def __sub__(self, other: Work) -> Work:
        return self + other * -1

    def __mul__(self, times: int) -> Work:
        return Work(times * self.flops, times * self.moved_bytes, times * self.num_operators)

    def __floordiv__(self, count: int) -> Work:
        return Work(self.flops // count, self.moved_bytes // count, self.num_operators // count)


def _import_compiler() -> None:
    """Import a part of torch that some operators on paper ask for, where the current folder was deleted.

    It asks for the current folder while it is imported, so another folder is the current one until it is.
    """
    gone = os.open(".", os.O_RDONLY)  # which can be returned to
    try:
        os.chdir(tempfile.gettempdir())
        importlib.import_module("torch._dynamo")
    finally:
        os.fchdir(gone)
        os.close(gone)


class Ledger(TorchDispatchMode):
    """While it is active, it has an entry with the bytes of every storage that is made, until the storage is freed.

    `work` is the sum of what all operators did. `trace` notes when tensors on paper are made and freed. Where
    `counts_kernels` is set, the peak counts what an operator's kernel takes on the CPU as alive while it runs.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """False, so that torch does not wrap this class for its unused compiler, whose import takes a second."""
        return False

    def __init__(self, trace: Trace | None = None, *, counts_kernels: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._entries: dict[int, tuple[StorageWeakRef, int]] = {}
        self._trace = trace
        self._numbers: dict[int, int] = {}  # in the trace, of entries
        self._counts_kernels = counts_kernels
        self.peak_bytes = 0
        self.work = Work()
        if "torch._dynamo" not in sys.modules and find_current() is None:
            _import_compiler()

    @property
    def live_bytes(self) -> int:
        """Bytes of the storages that are alive now."""
        self._strike_out()
        return sum(num_bytes for _, num_bytes in self._entries.values())

    def start_peak(self) -> None:
        """Measure the peak from here on."""
        self.peak_bytes = self.live_bytes

    def enter(self, tensors: Iterable[Tensor]) -> None:
        """Enter tensors on paper that no operator has made, as those of `torch.tensor`, where they are not known."""
        self._strike_out()
        storages = (tensor.untyped_storage() for tensor in tensors)
        self._enter(None, None, [storage for storage in storages if storage._cdata not in self._entries])

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operator and enter the storages that it made."""
        kwargs = kwargs or {}
        if not self._counts_kernels or _is_view(func) or not may_take(func, args, kwargs):
            return self._execute(func, args, kwargs)[0]
        key = _describe_call(func, args, kwargs)
        found, made_bytes = self._execute(func, args, kwargs)
        if key is None:
            return found
        need = measure_operator(func, args, kwargs, key)
        self.peak_bytes = max(self.peak_bytes, self.live_bytes + need.peak_bytes - made_bytes)
        return _lay_out(found, need.strides) if made_bytes else found

    def _execute(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, int]:
        """What an operator returns, and the bytes of the storages that it made, which are entered."""
        place = _find_written(func)
        if place is not None:
            written = args[place] if place < len(args) else kwargs[func._schema.arguments[place].name]
            self._add_work(func, args, kwargs, written)
            return written if func._schema.returns else None, 0
        if _is_view(func):
            return func(*args, **kwargs), 0
        key = _describe_call(func, args, kwargs)
        outcome = _outcomes.get(key) if key is not None else None
        if outcome is not None:
            found = outcome.make()
            self.work = self.work + outcome.work
            return found, self._enter(func, found, [tensor.untyped_storage() for tensor in list_tensors([found])])
        known = {tensor.untyped_storage()._cdata for tensor in list_tensors((*args, *kwargs.values()))}
        found, before = func(*args, **kwargs), self.work
        self._add_work(func, args, kwargs, found)
        # Some operators return views without declaring them: an argument's storage is not new.
        storages = (tensor.untyped_storage() for tensor in list_tensors([found]))
        made = [storage for storage in storages if storage._cdata not in known]
        if key is not None:
            _remember(key, found, made, self.work - before)
        return found, self._enter(func, found, made)

    def _enter(self, func: Any, found: Any, made: list[torch.UntypedStorage]) -> int:
        """Enter the storages that an operator has made. Returns their bytes."""
        if made:
            if self._trace is not None:
                self._strike_out()
                self._numbers |= {
                    storage._cdata: self._trace.make(storage.nbytes()) for storage in made if storage.device == PAPER
                }
            self._entries |= {storage._cdata: (StorageWeakRef(storage), storage.nbytes()) for storage in made}
            # While it runs, sorting needs memory for another copy of the indices.
            beside = found[1].nbytes if func is not None and func.overloadpacket is torch.ops.aten.sort else 0
            self.peak_bytes = max(self.peak_bytes, self.live_bytes + beside)
        return sum(storage.nbytes() for storage in made)

    def _add_work(self, func: Any, args: Any, kwargs: Any, found: Any) -> None:
        work = self.work
        flops = moved_bytes = 0
        in_new_memory = getattr(torch.ops.aten, func._schema.name.removeprefix("aten::").rstrip("_"), None)
        if in_new_memory in flop_registry:  # a product in place takes as many flops
            flops = flop_registry[in_new_memory](*args, **kwargs, out_val=found)
        elif func.overloadpacket is torch.ops.aten.index_select:  # reads no more than it writes
            moved_bytes = 2 * _num_bytes([found])
        else:
            moved_bytes = _num_bytes(args) + _num_bytes([found])
        self.work = Work(work.flops + flops, work.moved_bytes + moved_bytes, work.num_operators + 1)

    def _strike_out(self) -> None:
        for key in [key for key, (reference, _) in self._entries.items() if reference.expired()]:
            del self._entries[key]
            if self._trace is not None and key in self._numbers:
                self._trace.free(self._numbers.pop(key))


@dataclass(frozen=True)
class _Outcome:
    """What an operator returns on paper, which follows from the shapes, strides and types of its arguments."""

    outputs: tuple[tuple[torch.Size, tuple[int, ...], torch.dtype], ...]
    is_tensor: bool  # a single tensor, not a tuple of tensors
    work: Work

    def make(self) -> Any:
        """New outputs of the same shapes, strides and types."""
        made = (torch.empty_strided(size, stride, dtype=dtype, device=PAPER) for size, stride, dtype in self.outputs)
        return next(made) if self.is_tensor else tuple(made)


# Outcomes of operators that ran on paper before. Most are written in Python there: a look-up is twenty times as fast.
_outcomes: dict[Any, _Outcome] = {}
_MOST_OUTCOMES = 10_000


def _describe_call(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A key for looking up an operator's outcome: all that decides its shapes. None if there is no safe key."""
    try:
        key = (func, *map(_describe, args), *((name, _describe(value)) for name, value in kwargs.items()))
        hash(key)
    except TypeError:
        return None
    return key


def _describe(value: Any) -> Any:
    if isinstance(value, Tensor):
        if type(value) is not Tensor and type(value) is not torch.nn.Parameter:
            raise TypeError
        return value.shape, value.stride(), value.dtype, value.device
    if isinstance(value, (list, tuple)):
        return tuple(map(_describe, value))
    if isinstance(value, torch.Generator):
        return torch.Generator
    return type(value), value  # with the type, as 1, 1.0 and True are equal


def _remember(key: Any, found: Any, made: list[torch.UntypedStorage], work: Work) -> None:
    """Keep an operator's outcome if all outputs are on paper, each with a storage of its own without gaps or offset."""
    outputs = (found,) if isinstance(found, Tensor) else found
    if not isinstance(outputs, tuple) or not all(isinstance(tensor, Tensor) for tensor in outputs):
        return
    if len({storage._cdata for storage in made}) != len(outputs):
        return
    if not all(tensor.device == PAPER and tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in outputs):
        return
    if len(_outcomes) >= _MOST_OUTCOMES:
        _outcomes.clear()
    shapes = tuple((tensor.shape, tensor.stride(), tensor.dtype) for tensor in outputs)
    _outcomes[key] = _Outcome(shapes, isinstance(found, Tensor), work)


def _lay_out(found: Any, strides: tuple[tuple[int, ...], ...]) -> Any:
    """New results of an operator on paper in the layout that they have on a device, as far as their memory allows."""
    outputs = (found,) if isinstance(found, Tensor) else found
    if not isinstance(outputs, tuple) or len(list(list_tensors(outputs))) != len(strides):
        return found
    left = iter(strides)
    laid = tuple(_lay(value, next(left)) if isinstance(value, Tensor) else value for value in outputs)
    return laid[0] if isinstance(found, Tensor) else laid


def _lay(tensor: Tensor, stride: tuple[int, ...]) -> Tensor:
    if stride == tensor.stride() or len(stride) != tensor.dim() or tensor.untyped_storage().nbytes() != tensor.nbytes:
        return tensor
    last = sum((size - 1) * step for size, step in zip(tensor.shape, stride, strict=True))
    return tensor.as_strided(tensor.shape, stride) if last < tensor.numel() else tensor


def _num_bytes(values: Iterable[Any]) -> int:
    return sum(tensor.nbytes for tensor in list_tensors(values))


@functools.cache
def _is_view(func: Any) -> bool:
    """Whether an operator returns a view of an argument."""
    return any(item.alias_info is not None and not item.alias_info.is_write for item in func._schema.returns)


@functools.cache
def _find_written(func: Any) -> int | None:
    """The index of the argument that an operator writes to, if that is all it does; else None.

    Such an operator makes no storage and need not run: on the meta device some are slow, and some do not exist.
    """
    if func.overloadpacket is torch.ops.aten._fused_sgd_:  # returns nothing
        return 0
    if len(func._schema.returns) != 1 or torch.Tag.inplace_view in func.tags:
        return None
    (returned,) = func._schema.returns
    if returned.alias_info is None or not returned.alias_info.is_write:
        return None
    (place,) = [place for place, item in enumerate(func._schema.arguments) if item.alias_info is not None]
    return place
