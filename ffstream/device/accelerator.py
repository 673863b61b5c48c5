"""What ffstream needs of a GPU, or of another accelerator, beside torch's operators: one small interface for all kinds.

No other file of the package names a kind of device or one of its libraries. `torch.accelerator`, `torch.Stream` and
`torch.Event` serve every kind that torch knows; what they lack, and kinds that torch does not know, are registered in
`ACCELERATORS`.
"""

from __future__ import annotations

import contextlib
import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

_PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}  # of the operands of products


def operand_dtype(precision: str) -> torch.dtype:
    """The type of the operands of products; float32 for "auto", as long as no device was asked for its own."""
    return _PRECISIONS.get(precision, torch.float32)


_ARCHITECTURE = re.compile(r"(sm|compute)_(\d+)(\d)([a-z]?)")
# CUDA 13 has no code for devices before Turing; wheels for CUDA 12.6, which torch is published with up to 2.14, have.
_OLDEST_OF_TODAY = (7, 5)
_FIRST_FP16 = (7, 0)  # Volta: the first with units that multiply fp16 and sum in fp32
_LEGACY = "torch 2.14 or older for CUDA 12.6"
_LEGACY_INSTALL = "pip install 'torch<2.15' --index-url https://download.pytorch.org/whl/cu126"


class Event(Protocol):
    """A point in the work of a stream."""

    def record(self, stream: Any) -> None:
        """Mark the end of what is queued on a stream now."""

    def synchronize(self) -> None:
        """Make the host wait until all before the mark is done; at once if nothing was marked."""


class Stream(Protocol):
    """A queue of work that a device carries out in order, beside the work of its other streams."""

    def wait_event(self, event: Any) -> None:
        """Let what is queued from here on begin only when all before the mark of the event is done."""


class Accelerator(ABC):
    """One kind of device that computes beside the host. Devices of the kind are told apart by their index."""

    kind: str  # as in torch.device(kind, index)
    has_side_streams = True  # whether copies can run beside the computation
    is_automatic = True  # whether `auto` takes such a device; otherwise it has to be asked for by name

    @abstractmethod
    def count_devices(self) -> int:
        """How many devices of the kind can be used here; 0 without any. Nothing is started on them."""

    @abstractmethod
    def name(self, device: torch.device) -> str:
        """The name of a device, as its maker gives it."""

    def find_misfit(self, _device: torch.device) -> str | None:
        """Why the installed torch cannot compute on a device, and which one would; None if it can."""
        return None

    @abstractmethod
    def version(self) -> str:
        """The version of the library through which torch uses the kind, as far as it may decide bits."""

    @abstractmethod
    def narrow_products(self, device: torch.device) -> tuple[str, ...]:
        """The types of 16 bits, of bf16 and fp16, that the device has fast instructions to multiply; the best first.

        bf16 is better where there are both: it has the range of fp32.
        """

    # --- memory

    @abstractmethod
    def free_bytes(self, device: torch.device) -> int:
        """Bytes that this process could still allocate."""

    @abstractmethod
    def total_bytes(self, device: torch.device) -> int:
        """Bytes of memory that the device has."""

    def shares_host_memory(self, _device: torch.device) -> bool:
        """Whether the device has no memory of its own and takes that of the host, as the GPU of a Jetson does."""
        return False

    @abstractmethod
    def allocated_bytes(self, device: torch.device) -> int:
        """Bytes of the tensors of this process, as its allocator counts them."""

    @abstractmethod
    def peak_bytes(self, device: torch.device) -> int:
        """The most bytes that were allocated at once since the start, or since `reset_peak`."""

    @abstractmethod
    def reserved_bytes(self, device: torch.device) -> int:
        """Bytes that the allocator of this process has taken from the device, used or not."""

    @abstractmethod
    def reset_peak(self, device: torch.device) -> None:
        """Let `peak_bytes` begin anew."""

    def allocate_pinned(self, num_bytes: int) -> Tensor:
        """Bytes on the host from which and to which the device copies by itself. Raises RuntimeError if refused.

        They may be freed while a copy from them is under way: they are not handed out again before it has ended.
        """
        return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)

    # --- order

    @abstractmethod
    def synchronise(self, device: torch.device) -> None:
        """Make the host wait until the device has done all that is queued."""

    def count_waits(self, _work: Callable[[], object]) -> int | None:
        """How often the host waits for the device in some work; None where that cannot be seen."""
        return None

    @abstractmethod
    def make_stream(self, device: torch.device) -> Stream:
        """A side stream, beside the one on which operators are queued otherwise."""

    @abstractmethod
    def make_event(self, device: torch.device) -> Event:
        """An event without a mark."""

    @abstractmethod
    def current_stream(self, device: torch.device) -> Stream:
        """The stream on which this thread queues operators now."""

    @abstractmethod
    def queueing_on(self, stream: Any) -> contextlib.AbstractContextManager[Any]:
        """Queue the operators of a block on a stream."""

    @abstractmethod
    def set_for_thread(self, device: torch.device) -> None:
        """Let this thread use the device: some libraries start work on device 0 in a thread that has named none."""


class TorchAccelerator(Accelerator):
    """A kind that torch knows, by `torch.accelerator`; what that lacks is asked of the kind's own module of torch."""

    def __init__(self, kind: str, *, has_side_streams: bool = True, is_automatic: bool = True) -> None:
        self.kind = kind
        self.has_side_streams, self.is_automatic = has_side_streams, is_automatic

    @property
    def _module(self) -> Any:
        return getattr(torch, self.kind)

    def count_devices(self) -> int:
        found = torch.accelerator.current_accelerator(check_available=True)
        return torch.accelerator.device_count() if found is not None and found.type == self.kind else 0

    def name(self, device: torch.device) -> str:
        ask = getattr(self._module, "get_device_name", None)
        return str(ask(device)) if ask is not None else self.kind

    def find_misfit(self, device: torch.device) -> str | None:
        if self.kind != "cuda" or torch.version.cuda is None:  # ROCm's wheels name architectures in another way
            return None
        capability, built = torch.cuda.get_device_capability(device), torch.cuda.get_arch_list()
        if is_served(capability, built):
            return None
        number = f"{capability[0]}.{capability[1]}"
        wheel = f"{_LEGACY} ({_LEGACY_INSTALL})" if capability < _OLDEST_OF_TODAY else "a newer torch"
        return (
            f"{self.name(device)} has compute capability {number}, and torch {torch.__version__} was built for "
            f"{', '.join(built) or 'none'}; {wheel} would serve it"
        )

    def version(self) -> str:
        return str(getattr(torch.version, self.kind, None) or torch.__version__)

    def narrow_products(self, device: torch.device) -> tuple[str, ...]:
        if self.kind != "cuda":
            ask = getattr(self._module, "is_bf16_supported", None)
            return ("bf16", "fp16") if ask is None or ask() else ("fp16",)
        with torch.cuda.device(device):  # torch asks the current device
            has_bf16 = bool(torch.cuda.is_bf16_supported(including_emulation=False))
        has_fp16 = torch.version.cuda is None or bool(torch.cuda.get_device_capability(device) >= _FIRST_FP16)
        return ("bf16",) * has_bf16 + ("fp16",) * has_fp16

    def free_bytes(self, device: torch.device) -> int:
        ask = getattr(torch.accelerator, "get_memory_info", None) or self._module.mem_get_info
        free, _ = ask(device)
        # What the allocator keeps without using it can be allocated too.
        return int(free + torch.accelerator.memory_reserved(device) - torch.accelerator.memory_allocated(device))

    def total_bytes(self, device: torch.device) -> int:
        ask = getattr(torch.accelerator, "get_memory_info", None) or self._module.mem_get_info
        return int(ask(device)[1])

    def shares_host_memory(self, device: torch.device) -> bool:
        if self.kind == "cuda":
            return bool(torch.cuda.get_device_properties(device).is_integrated)
        return self.kind == "mps"

    def allocated_bytes(self, device: torch.device) -> int:
        return int(torch.accelerator.memory_allocated(device))

    def peak_bytes(self, device: torch.device) -> int:
        return int(torch.accelerator.max_memory_allocated(device))

    def reserved_bytes(self, device: torch.device) -> int:
        return int(torch.accelerator.memory_reserved(device))

    def reset_peak(self, device: torch.device) -> None:
        torch.accelerator.reset_peak_memory_stats(device)

    def synchronise(self, device: torch.device) -> None:
        torch.accelerator.synchronize(device)

    def count_waits(self, work: Callable[[], object]) -> int | None:
        if self.kind != "cuda":
            return None
        before = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                work()
            finally:
                torch.cuda.set_sync_debug_mode(before)
        return sum("synchronizing" in str(each.message) for each in caught)

    def make_stream(self, device: torch.device) -> Stream:
        return torch.Stream(device)

    def make_event(self, device: torch.device) -> Event:
        return torch.Event(device)

    def current_stream(self, device: torch.device) -> Stream:
        return torch.accelerator.current_stream(device)

    def queueing_on(self, stream: Any) -> contextlib.AbstractContextManager[Any]:
        found: contextlib.AbstractContextManager[Any] = stream
        return found

    def set_for_thread(self, device: torch.device) -> None:
        if device.index is not None:
            torch.accelerator.set_device_index(device.index)


def is_served(capability: tuple[int, int], built: Sequence[str]) -> bool:
    """Whether a build of torch has code for a CUDA device, by its compute capability.

    `built` is as `torch.cuda.get_arch_list` gives it. Code for sm_XY runs on devices of the same X with at least that
    Y; compute_XY is compiled for any later device when it is first used; the letter a ties code to exactly one device
    (CUDA C++ Programming Guide, on compute capabilities).
    """
    for each in built:
        found = _ARCHITECTURE.fullmatch(each)
        if found is None:
            continue
        kind, letter, own = found[1], found[4], (int(found[2]), int(found[3]))
        if letter == "a" and own == capability:
            return True
        if letter == "" and kind == "compute" and own <= capability:
            return True
        if letter != "a" and kind == "sm" and own[0] == capability[0] and own[1] <= capability[1]:
            return True
    return False


# By kind, the first being the one that `auto` tries first.
ACCELERATORS: dict[str, Accelerator] = {
    each.kind: each
    for each in (
        TorchAccelerator("cuda"),
        TorchAccelerator("xpu"),
        TorchAccelerator("mps", has_side_streams=False, is_automatic=False),  # not tried yet
    )
}
ANY = "cuda"  # stands for whichever accelerator a machine has that is only described


def find_accelerator(device: torch.device) -> Accelerator | None:
    """The interface to a device; None for a CPU, which computes as part of the host."""
    return ACCELERATORS.get(device.type)
