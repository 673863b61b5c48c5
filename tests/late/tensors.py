"""Tensors that say `cuda:0`. Their operators are queued, and their bytes lie in host memory."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

import ffstream
from tests.late.memory import Arena, Block
from tests.late.streams import LateEvent, LateStream, Queues

DEVICE = torch.device("cuda:0")
_HOST, _SHAPES_ONLY = torch.device("cpu"), torch.device("meta")
_ROOTS = (str(Path(ffstream.__file__).parent), str(Path(__file__).parents[1]))
_OWN = {str(Path(__file__).with_name(f"{name}.py")) for name in ("tensors", "accelerator", "streams", "memory")}
# Matrix products and convolutions, which take nearly all of the time of a large layer.
_PRODUCTS = {f"aten::{name}" for name in ("mm", "addmm", "addmm_", "bmm", "convolution", "convolution_backward")}
_INDEXING = {"aten::index", "aten::index_put", "aten::index_put_"}  # the only ones that take indices from the host


class Wait(NamedTuple):
    """What made the host wait, the line of the package, or else of the test, and the thread that waited."""

    cause: str
    line: str
    thread: str


class LateTensor(Tensor):
    """A tensor of the late device. `host` is a view of its bytes, which hold what has been carried out so far."""

    host: Tensor
    block: Block
    device_of: LateDevice
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, host: Tensor, block: Block, device: LateDevice) -> LateTensor:
        made = Tensor._make_wrapper_subclass(
            cls,
            host.size(),
            strides=host.stride(),
            storage_offset=host.storage_offset(),
            dtype=host.dtype,
            device=DEVICE,
        )
        made.host, made.block, made.device_of = host, block, device
        return made

    def __repr__(self, **_options: Any) -> str:
        return f"LateTensor({tuple(self.shape)}, {self.dtype})"

    def tolist(self) -> Any:
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Queue an operator that a thread without the mode calls."""
        arguments = (args, kwargs or {})
        return next(_tensors(arguments, LateTensor)).device_of.dispatch(func, *arguments)


class LateMode(TorchDispatchMode):
    """Hands every operator that names the device, or a tensor of it, to the device. A thread needs one of its own."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else torch imports its compiler

    def __init__(self, device: LateDevice) -> None:
        super().__init__()
        self._device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._schema.name == "aten::is_pinned":
            return self._device.is_pinned(args[0])
        is_here = _is_late(kwargs.get("device")) or next(_tensors((args, kwargs), LateTensor), None) is not None
        return self._device.dispatch(func, args, kwargs) if is_here else func(*args, **kwargs)


class LateDevice:
    """The device: its streams, its memory, and what it counts.

    Without `multiplies`, all products are zero: for what does not depend on numbers, such as the memory that is taken.
    """

    def __init__(self, policy: str = "lazy", capacity_bytes: int = 1 << 30, *, multiplies: bool = True) -> None:
        self._multiplies = multiplies
        self.queues = Queues(policy)
        self.arena = Arena(self.queues, capacity_bytes)
        self.operators: Counter[str] = Counter()
        self.driver_bytes: Callable[[], int | None] = lambda: None  # what a driver shows of the process
        self.waits: Counter[Wait] = Counter()
        self._pinned: dict[int, tuple[StorageWeakRef, int]] = {}  # by address: of memory, while it is alive, and bytes
        self._most_pinned: Counter[int] = Counter()  # by size: the most blocks at once
        self._of_thread = threading.local()
        self._shapes: dict[Any, Any] = {}

    # --- order

    def make_event(self) -> LateEvent:
        """An event without a mark."""
        return LateEvent(lambda: self.count_wait("event"))

    @property
    def stream(self) -> LateStream:
        """The stream on which this thread queues operators."""
        found: LateStream = getattr(self._of_thread, "stream", self.queues.computing)
        return found

    @contextlib.contextmanager
    def queueing_on(self, stream: LateStream) -> Iterator[None]:
        """Queue the operators of a block on a stream."""
        before, self._of_thread.stream = self.stream, stream
        try:
            yield
        finally:
            self._of_thread.stream = before

    def count_wait(self, cause: str) -> None:
        """Count that the host waits, for the line that is to blame."""
        frame = sys._getframe(1)
        lines = []
        while frame is not None:
            path = frame.f_code.co_filename
            if path.startswith(_ROOTS) and path not in _OWN:
                lines.append((path, frame.f_lineno))
            frame = frame.f_back
        path, number = next((each for each in lines if each[0].startswith(_ROOTS[0])), (lines or [("?", 0)])[0])
        short = path.removeprefix(_ROOTS[0]).removeprefix(_ROOTS[1]).lstrip("/")
        self.waits[Wait(cause, f"{short}:{number}", threading.current_thread().name)] += 1

    def _put(self, work: Callable[[], object]) -> None:
        def task(_forced: bool) -> bool:
            with torch.no_grad():
                work()
            return True

        self.queues.put(self.stream, task)

    def _wait(self, cause: str) -> None:
        self.count_wait(cause)
        self.queues.drain(self.stream)

    # --- memory

    def allocate_pinned(self, num_bytes: int) -> Tensor:
        """Host memory from and to which copies are made when their turn comes."""
        memory = torch.empty(num_bytes, dtype=torch.uint8, device=_HOST)
        self._note_pinned(memory)
        return memory

    def _note_pinned(self, memory: Tensor) -> None:
        """Note a block as torch's allocator of pinned memory makes it: a power of two, and used again when it is free.

        What is queued on the block keeps it alive.
        """
        storage = memory.untyped_storage()
        with self.queues.lock:
            alive = {place: entry for place, entry in self._pinned.items() if not entry[0].expired()}
            if memory.nbytes:
                alive[storage.data_ptr()] = StorageWeakRef(storage), 1 << (memory.nbytes - 1).bit_length()
            self._pinned = alive
            self._most_pinned |= Counter(size for _, size in alive.values())

    @property
    def pinned_bytes(self) -> int:
        """Host memory that has been pinned so far, none of which is given back."""
        return sum(size * count for size, count in self._most_pinned.items())

    def is_pinned(self, tensor: Tensor) -> bool:
        """Whether a tensor lies in memory from `allocate_pinned`."""
        if isinstance(tensor, LateTensor):
            return False
        entry = self._pinned.get(tensor.untyped_storage().data_ptr())
        return entry is not None and not entry[0].expired()  # else its address may be that of other memory by now

    def _make(self, like: Tensor) -> LateTensor:
        """A tensor of undefined content, as large as `like` and laid out like it."""
        spans = [(size - 1) * step for size, step in zip(like.size(), like.stride(), strict=True)]
        num_bytes = (sum(spans) + 1) * like.dtype.itemsize if like.numel() else 0
        block = self.arena.take(num_bytes, self.stream)
        flat = block.memory[:num_bytes].view(like.dtype)
        return LateTensor(flat.as_strided(like.size(), like.stride()), block, self)

    # --- operators

    def dispatch(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Queue an operator, and return tensors for what it will have made."""
        name = func._schema.name
        if name == "aten::_to_copy":
            source, target = args[0], kwargs.get("device") or args[0].device
            if not (isinstance(source, LateTensor) and _is_late(target)):
                return self._move(source, torch.device(target), **{k: v for k, v in kwargs.items() if k != "device"})
        if name == "aten::copy_" and not all(isinstance(each, LateTensor) for each in args[:2]):
            return self._copy(args[0], args[1], args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
        if torch.Tag.inplace_view in func.tags:
            raise NotImplementedError(f"{func} changes the shape of a tensor, which the late device does not know")
        self._check_devices(name, (args, kwargs))
        on_host = (_map(_host_of, args), {key: _map(_host_of, value) for key, value in kwargs.items()})
        if torch.Tag.data_dependent_output in func.tags:
            self._wait(name)
            return func(*on_host[0], **on_host[1])
        if kwargs.get("device") is not None:
            if not _is_late(kwargs["device"]):  # such as empty_like for the host
                return func(*on_host[0], **kwargs)
            on_host[1]["device"] = _HOST
        aliases = [each.alias_info for each in func._schema.returns if each.alias_info is not None]
        if any(not each.is_write for each in aliases):
            block = next(_tensors((args, kwargs), LateTensor)).block
            return _map(lambda made: self._wrap(made, block), func(*on_host[0], **on_host[1]))
        self.operators[name] += 1
        if any(each.alias_info is not None and each.alias_info.is_write for each in func._schema.arguments):
            return self._write(func, args, kwargs, on_host)
        if _is_of_open_shape(func, args):
            self._wait(name)
            return _map(self._upload, func(*on_host[0], **on_host[1]))
        made = _map(lambda like: self._make(like) if isinstance(like, Tensor) else like, self._shape_of(func, on_host))
        targets = _map(_host_of, made)

        def work() -> None:
            if self._leaves_out(name, targets):
                return
            found = func(*on_host[0], **on_host[1])
            for target, value in zip(_tensors(targets), _tensors(found), strict=True):
                if target.shape == value.shape:  # what a sum of an embedding bag notes beside it has other shapes
                    target.copy_(value)
                else:
                    assert name.startswith("aten::_embedding_bag"), f"{name}: {value.shape}, not {target.shape}"

        if not name.startswith(("aten::empty", "aten::new_empty")):
            self._put(work)
        return made

    def _check_devices(self, name: str, arguments: Any) -> None:
        for tensor in _tensors(arguments):
            if isinstance(tensor, LateTensor) or tensor.dim() == 0:
                continue
            if name not in _INDEXING or tensor.is_floating_point():
                raise RuntimeError(f"Expected all tensors to be on the same device, found {DEVICE} and cpu: {name}")
            self._wait("index on the host")

    def _write(self, func: Any, args: Any, kwargs: dict[str, Any], on_host: Any) -> Any:
        """Queue an operator in place, or with `out=`."""
        arguments = func._schema.arguments
        given = {each.name: value for each, value in zip(arguments, args, strict=False)} | kwargs
        written = [given[each.name] for each in arguments if each.alias_info is not None and each.name in given]
        targets = _map(_host_of, written)
        shapes = [tensor.shape for tensor in _tensors(targets)]

        def work() -> None:
            if not self._leaves_out(func._schema.name, targets):
                func(*on_host[0], **on_host[1])
            assert [tensor.shape for tensor in _tensors(targets)] == shapes, f"{func}: the room is of another shape"

        self._put(work)
        if not func._schema.returns:
            return None
        return written[0] if len(func._schema.returns) == 1 else tuple(written)

    def _leaves_out(self, name: str, targets: Any) -> bool:
        """Whether an operator is a product that is not computed; then it is zero."""
        if self._multiplies or name not in _PRODUCTS:
            return False
        for target in _tensors(targets):
            target.zero_()
        return True

    def _shape_of(self, func: Any, on_host: Any) -> Any:
        """What an operator returns, without its content."""
        key = (func, str(_map(_describe, (on_host[0], tuple(on_host[1].items())))))
        if key not in self._shapes:
            args, kwargs = _map(_on_paper, on_host[0]), {k: _map(_on_paper, v) for k, v in on_host[1].items()}
            if "device" in kwargs or next(_tensors(on_host), None) is None:
                kwargs["device"] = _SHAPES_ONLY
            self._shapes[key] = func(*args, **kwargs)
        return self._shapes[key]

    def _wrap(self, made: Any, block: Block) -> Any:
        return LateTensor(made, block, self) if isinstance(made, Tensor) else made

    def _upload(self, made: Any) -> Any:
        if not isinstance(made, Tensor):
            return made
        room = self._make(made)
        self._put(lambda: room.host.copy_(made))
        return room

    # --- copies

    def _move(self, source: Tensor, target: torch.device, non_blocking: bool = False, **options: Any) -> Tensor:
        """A copy on the other side. Without waiting, a copy on the host lies in pinned memory, as torch has it."""
        like = torch.empty_like(_on_paper(_host_of(source)), dtype=options.get("dtype") or source.dtype)
        if _is_late(target):
            return self._copy(self._make(like), source, non_blocking)
        assert target.type == "cpu", target
        made = torch.empty_like(like, device=_HOST)
        if non_blocking:
            self._note_pinned(made)
        return self._copy(made, source, non_blocking)

    def _copy(self, target: Tensor, source: Tensor, non_blocking: bool) -> Tensor:
        """Copy to the device or from it. Only a plain copy from or to pinned memory leaves the host free to go on."""
        to_device = isinstance(target, LateTensor)
        on_host = source if to_device else target
        same = target.dtype == source.dtype and target.shape == source.shape
        is_plain = same and self.is_pinned(on_host) and target.is_contiguous() and source.is_contiguous()
        into, of = _host_of(target), _host_of(source)
        side = "to the device" if to_device else "to the host"
        self.operators[side] += 1
        self._put(lambda: into.copy_(of))
        if not (non_blocking and is_plain):
            self._wait(f"pageable copy {side}" if non_blocking else f"copy {side}")
        return target


def _is_late(device: Any) -> bool:
    return device is not None and torch.device(device).type == DEVICE.type


def _map(change: Callable[[Any], Any], value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        found = [_map(change, each) for each in value]
        return found if isinstance(value, list) else tuple(found)
    return change(value)


def _tensors(value: Any, kind: type = Tensor) -> Iterator[Any]:
    if isinstance(value, kind):
        yield value
    elif isinstance(value, (tuple, list)):
        for each in value:
            yield from _tensors(each, kind)
    elif isinstance(value, dict):
        yield from _tensors(tuple(value.values()), kind)


def _host_of(value: Any) -> Any:
    return value.host if isinstance(value, LateTensor) else value


def _on_paper(value: Any) -> Any:
    """A tensor of the same shape without content. Numbers stay, as an operator treats them otherwise than tensors."""
    if not isinstance(value, Tensor) or value.dim() == 0:
        return value
    return torch.empty_strided(value.size(), value.stride(), dtype=value.dtype, device=_SHAPES_ONLY)


def _describe(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype
    return float if isinstance(value, float) else value


def _is_of_open_shape(func: Any, args: Any) -> bool:
    """Whether the shape of what an operator returns depends on numbers that only the device knows."""
    if func._schema.name == "aten::index":
        return any(index.dtype in (torch.bool, torch.uint8) for index in _tensors(args[1]))
    return torch.Tag.dynamic_output_shape in func.tags
