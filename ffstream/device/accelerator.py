"""What ffstream needs of a GPU, or of another accelerator, beside torch's operators: one small interface for all kinds.

No other file of the package names a kind of device or one of its libraries. `torch.accelerator`, `torch.Stream` and
`torch.Event` serve every kind that torch knows; what they lack, and kinds that torch does not know, are registered in
`ACCELERATORS`.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from ffstream.device.caching_allocator import reserve_alike

_PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}  # of the operands of products


def operand_dtype(precision: str) -> torch.dtype:
    """The type of the operands of products; float32 for "auto", as long as no device was asked for its own."""
    return _PRECISIONS.get(precision, torch.float32)


_ARCHITECTURE = re.compile(r"(sm|compute)_(\d+)(\d)([a-z]?)")
# CUDA 13 has no code for devices before Turing; wheels for CUDA 12.6, which torch is published with up to 2.14, have.
_OLDEST_OF_TODAY = (7, 5)
_DRIVER_TIMEOUT_S = 10.0
CONTEXT_BYTES = 512 << 20  # assumed where the driver does not tell how much it takes for a process
_LATER_KERNEL_BYTES = 32 << 20  # assumed, of kernels that are loaded when they are first used
_CONTEXT_STEP_BYTES = 16 << 20
_WARM_UNITS = 256
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
    def requested_bytes(self, device: torch.device) -> int:
        """Bytes of the tensors of this process, without what its allocator adds to them."""

    @abstractmethod
    def peak_bytes(self, device: torch.device) -> int:
        """The most bytes that were requested at once since the start, or since `reset_peak`."""

    @abstractmethod
    def reserved_bytes(self, device: torch.device) -> int:
        """Bytes that the allocator of this process has taken from the device, used or not."""

    @abstractmethod
    def peak_reserved_bytes(self, device: torch.device) -> int:
        """The most bytes that were reserved at once since the start, or since `reset_peak`."""

    @abstractmethod
    def reset_peak(self, device: torch.device) -> None:
        """Let `peak_bytes` and `peak_reserved_bytes` begin anew."""

    @abstractmethod
    def release_unused(self, device: torch.device) -> None:
        """Give back to the device what the allocator has reserved and does not use."""

    @abstractmethod
    def limit(self, device: torch.device, reserved_bytes: int | None) -> None:
        """Let the allocator of this process reserve no more than so much, if it takes limits; None ends the limit."""

    def driver_bytes(self, _device: torch.device) -> int | None:
        """Bytes of the device that this process takes, as the driver shows them; None if it does not tell."""
        return None

    def context_bytes(self, _device: torch.device) -> int:
        """Bytes of the device that this process takes without a tensor, as far as they can be told.

        They are the context that the driver keeps for the process, its kernels, and workspaces of libraries, which lie
        in memory that the allocator reserves. The device starts to work.
        """
        return CONTEXT_BYTES

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
        self._contexts: dict[torch.device, int] = {}  # bytes, once they are known

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

    def requested_bytes(self, device: torch.device) -> int:
        # An allocated block is up to 1 MiB larger than what was requested, as the allocator does not cut off less.
        found = torch.accelerator.memory_stats(device).get("requested_bytes.all.current")
        return int(torch.accelerator.memory_allocated(device) if found is None else found)

    def peak_bytes(self, device: torch.device) -> int:
        found = torch.accelerator.memory_stats(device).get("requested_bytes.all.peak")
        return int(torch.accelerator.max_memory_allocated(device) if found is None else found)

    def reserved_bytes(self, device: torch.device) -> int:
        return int(torch.accelerator.memory_reserved(device))

    def peak_reserved_bytes(self, device: torch.device) -> int:
        return int(torch.accelerator.max_memory_reserved(device))

    def reset_peak(self, device: torch.device) -> None:
        torch.accelerator.reset_peak_memory_stats(device)

    def release_unused(self, device: torch.device) -> None:
        with contextlib.nullcontext() if device.index is None else torch.accelerator.device_index(device.index):
            torch.accelerator.empty_cache()

    def limit(self, device: torch.device, reserved_bytes: int | None) -> None:
        set_share = getattr(self._module, "set_per_process_memory_fraction", None)
        if set_share is not None:
            total_bytes = self.total_bytes(device)
            set_share(1.0 if reserved_bytes is None else min(max(reserved_bytes, 0) / total_bytes, 1.0), device)

    def driver_bytes(self, device: torch.device) -> int | None:
        if self.kind != "cuda" or torch.version.cuda is None:
            return None
        return find_process_bytes(str(torch.cuda.get_device_properties(device).uuid), os.getpid(), _ask_driver())

    def context_bytes(self, device: torch.device) -> int:
        if device not in self._contexts:
            before_bytes = self.requested_bytes(device)
            for dtype in (torch.float32, *(_PRECISIONS[name] for name in self.narrow_products(device))):
                square = torch.ones(_WARM_UNITS, _WARM_UNITS, dtype=dtype, device=device)
                torch.mm(square, square)  # makes the workspaces
                del square
            self.synchronise(device)
            self.release_unused(device)
            workspaces = reserve_alike(self.requested_bytes(device) - before_bytes, 1)
            taken = self.driver_bytes(device)
            context = CONTEXT_BYTES if taken is None else taken - self.reserved_bytes(device) + _LATER_KERNEL_BYTES
            # Rounded, as what fits decides sizes, and these decide bits: they are to be the same at every start.
            self._contexts[device] = -(-(context + workspaces) // _CONTEXT_STEP_BYTES) * _CONTEXT_STEP_BYTES
        return self._contexts[device]

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


def _ask_driver() -> str:
    """What NVIDIA's tool tells of processes: lines of device, process and MiB. Empty if it is not there or fails."""
    query = ["nvidia-smi", "--query-compute-apps=gpu_uuid,pid,used_memory", "--format=csv,noheader,nounits"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, check=False, timeout=_DRIVER_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return found.stdout if found.returncode == 0 else ""


def find_process_bytes(uuid: str, pid: int, text: str) -> int | None:
    """Bytes that a process takes of a device, from lines of (device, process, MiB); None if they do not tell.

    In a container, the driver may know the process by another number, and under Windows it does not know the bytes.
    """
    for line in text.splitlines():
        parts = [part.strip() for part in line.split(",")]
        if len(parts) == 3 and parts[0].removeprefix("GPU-") == uuid.removeprefix("GPU-") and parts[1] == str(pid):
            return int(parts[2]) << 20 if parts[2].isdigit() else None
    return None


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
