"""The late device as the package sees it, and how it takes the place of CUDA."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from ffstream.device.accelerator import ACCELERATORS, Accelerator
from tests.late.streams import LateEvent, LateStream
from tests.late.tensors import LateDevice, LateMode

_GENERATOR = torch.Generator
CONTEXT_BYTES = 4 << 20  # which the device is said to take for a process; it is not kept anywhere


class LateAccelerator(Accelerator):
    """The interface of the package to a late device."""

    kind = "cuda"

    def __init__(self, late: LateDevice) -> None:
        self._late = late

    def count_devices(self) -> int:
        return 1

    def name(self, device: torch.device) -> str:
        return "a device that runs late"

    def version(self) -> str:
        return torch.__version__

    def narrow_products(self, device: torch.device) -> tuple[str, ...]:
        return ("bf16", "fp16")

    def free_bytes(self, device: torch.device) -> int:
        return self._late.arena.capacity_bytes - self._late.arena.requested_bytes

    def total_bytes(self, device: torch.device) -> int:
        return self._late.arena.capacity_bytes

    def requested_bytes(self, device: torch.device) -> int:
        return self._late.arena.requested_bytes

    def peak_bytes(self, device: torch.device) -> int:
        return self._late.arena.peak_bytes

    def reserved_bytes(self, device: torch.device) -> int:
        return self._late.arena.reserved_bytes

    def peak_reserved_bytes(self, device: torch.device) -> int:
        return self._late.arena.peak_reserved_bytes

    def reset_peak(self, device: torch.device) -> None:
        self._late.arena.reset_peak()

    def release_unused(self, device: torch.device) -> None:
        self._late.arena.release_unused()

    def limit(self, device: torch.device, reserved_bytes: int | None) -> None:
        self._late.arena.limit_bytes = reserved_bytes

    def driver_bytes(self, device: torch.device) -> int | None:
        return self._late.driver_bytes()

    def context_bytes(self, device: torch.device) -> int:
        return CONTEXT_BYTES

    def allocate_pinned(self, num_bytes: int) -> Tensor:
        return self._late.allocate_pinned(num_bytes)

    def synchronise(self, device: torch.device) -> None:
        self._late.count_wait("device")
        self._late.queues.drain_all()

    def count_waits(self, work: Callable[[], object]) -> int:
        before = self._late.waits.total()
        work()
        return self._late.waits.total() - before

    def make_stream(self, device: torch.device) -> LateStream:
        return self._late.queues.make_stream()

    def make_event(self, device: torch.device) -> LateEvent:
        return self._late.make_event()

    def current_stream(self, device: torch.device) -> LateStream:
        return self._late.stream

    def queueing_on(self, stream: Any) -> contextlib.AbstractContextManager[None]:
        return self._late.queueing_on(stream)

    def set_for_thread(self, device: torch.device) -> None:
        pass


class _HostGenerator(torch.Generator):
    def __new__(cls, device: object = "cpu") -> torch.Generator:  # type: ignore[misc]
        return _GENERATOR("cpu")


@contextlib.contextmanager
def late_cuda(policy: str = "lazy", **options: Any) -> Iterator[LateDevice]:
    """Let `cuda` be a late device, in this thread and in those that are started meanwhile.

    Its generators are those of the host, so that a run on it draws what a run on the CPU draws.
    """
    late = LateDevice(policy, **options)
    run, overwrites = threading.Thread.run, torch.__future__.get_overwrite_module_params_on_conversion()

    def run_with_mode(thread: threading.Thread) -> None:
        with LateMode(late):
            run(thread)

    if not torch.cuda.is_available():
        torch._C._ensureCUDADeviceGuardSet()
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.dict(ACCELERATORS, cuda=LateAccelerator(late)))
        stack.enter_context(mock.patch.object(threading.Thread, "run", run_with_mode))
        stack.enter_context(mock.patch.object(torch, "Generator", _HostGenerator))
        stack.enter_context(
            mock.patch.object(torch.cuda, "_lazy_init", return_value=None)
        )  # there is no driver to start
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, overwrites)
        stack.enter_context(LateMode(late))
        yield late
        late.queues.drain_all()
