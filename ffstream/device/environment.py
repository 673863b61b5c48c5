"""What in a machine and its libraries affects the bits of results, and the torch defaults that our code needs."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import platform
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch

from ffstream.device.accelerator import ACCELERATORS, find_accelerator, operand_dtype
from ffstream.ground.interrupts import Interrupts

_T = TypeVar("_T")

# Variables with which users choose the instructions and precision of the libraries below torch.
_VARIABLES = (
    "ATEN_CPU_CAPABILITY",
    "ONEDNN_MAX_CPU_ISA",
    "DNNL_MAX_CPU_ISA",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS",
    "MKL_DEBUG_CPU_TYPE",
    "NVIDIA_TF32_OVERRIDE",
)
# The instructions of processors for which products and sums have code of their own.
_INSTRUCTIONS = [
    "avx2",
    "fma",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_bf16",
    "asimd",
    "sve",
    "bf16",
]
# Entries that are not compared by name: the number of threads can be set anywhere; `arithmetic` is compared if no named
# entry differs; `memory` says which sizes a lack of memory chose, and these sizes stand in the configuration.
_NOT_COMPARED = ("threads", "arithmetic", "memory", "parts")  # parts are compared in field/parts.py
_PROBE = (192, 1000, 257)  # rows, features and units of a test product, not all multiples of the sizes of kernels
# Where torch keeps the precision of float32 products: for the products of each library, and, for a library that has
# none of its own, in these more general places, the most general one first. "none" refers to the more general place.
_PRODUCTS = (("cuda", "matmul"), ("mkldnn", "matmul"))
_ABOVE_PRODUCTS = (("generic", "all"), ("cuda", "all"), ("mkldnn", "all"))
_EXACT = ("none", "ieee")  # of the values that such a place may have, those with which products are float32 throughout


class _Entry:
    """What one entry into `plain_torch` found in the states of torch that all threads share, as what sets them back."""

    def __init__(self) -> None:
        self.undo: dict[str, Callable[[], None]] = {}


# Threads of one program may be in blocks of `plain_torch` at once, and need not leave them in the order in which they
# came. Of torch's states, all threads share the default type, the precision of products, and the number of threads with
# which a further thread starts; so these are plain as long as any thread is in a block. Each thread has its own default
# device, inference mode, gradients, autocast, and number of threads once it has started.
_entries: list[_Entry] = []  # blocks that were entered and not left yet, in the order of entry
_entries_lock = threading.RLock()  # a signal's handler may enter a block while its thread is entering one


@contextlib.contextmanager
def plain_torch(num_threads: int | None = None) -> Iterator[None]:
    """Run a block with torch's own defaults, whatever the calling program has set; all is restored on leaving.

    Default types and devices, gradients and the precision of products are then those that our code assumes. The number
    of threads is set too if `num_threads` is given, as the way a sum is split among threads decides its last bits. It
    is that of the thread in the block: other threads in blocks keep theirs.
    """
    with contextlib.ExitStack() as stack:
        entry = _Entry()
        stack.callback(_leave, entry)
        _enter(entry, num_threads, stack)
        if torch.get_default_device().type != "cpu":  # only then, as every call of torch goes through this context
            stack.enter_context(torch.device("cpu"))
        stack.enter_context(torch.inference_mode(mode=False))
        stack.enter_context(torch.enable_grad())
        for kind in ("cpu", *ACCELERATORS):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


def _enter(entry: _Entry, num_threads: int | None, stack: contextlib.ExitStack) -> None:
    with Interrupts(defers=True), _entries_lock:
        _entries.append(entry)
        entry.undo["type"] = functools.partial(torch.set_default_dtype, torch.get_default_dtype())
        torch.set_default_dtype(torch.float32)
        entry.undo["products"] = _make_products_exact()
        own = torch.get_num_threads()
        if num_threads is not None and num_threads != own:
            entry.undo["threads"] = functools.partial(_set_of_further_threads, _get_of_further_threads())
            stack.callback(torch.set_num_threads, own)
            torch.set_num_threads(num_threads)


def _leave(entry: _Entry) -> None:
    """Set back what an entry found. If a later one is still open, that one sets it back, in place of what it found."""
    with Interrupts(defers=True), _entries_lock:
        if entry not in _entries:  # it was interrupted before it changed anything
            return
        position = _entries.index(entry)
        del _entries[position]
        if position < len(_entries):
            _entries[position].undo |= entry.undo
            return
        for undo in entry.undo.values():
            undo()


def _get_of_further_threads() -> int:
    """The number of threads with which a thread starts: only one that has just started tells it."""
    return _in_further_thread(torch.get_num_threads)


def _set_of_further_threads(num_threads: int) -> None:
    """Set the number of threads with which a thread starts, but not that of this thread."""
    if _get_of_further_threads() != num_threads:
        _in_further_thread(lambda: torch.set_num_threads(num_threads))


def _in_further_thread(call: Callable[[], _T]) -> _T:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result()


def _make_products_exact() -> Callable[[], None]:
    """Have products of float32 computed in float32, whichever of torch's two ways lowered that; returns the undoing.

    The older way is one word for all libraries, which also sets the places of their products, and which torch refuses
    to tell as long as a place says something else. The newer way sets these places, or those above them, one by one.
    """
    are_exact = all(_get_precision(*place) in _EXACT for place in _PRODUCTS)
    if are_exact and torch.get_float32_matmul_precision() == "highest":
        return lambda: None
    places = _read_products()
    for place in _PRODUCTS:
        _set_precision(*place, "ieee")
    word = torch.get_float32_matmul_precision()  # torch tells it now, as no place says anything else
    torch.set_float32_matmul_precision("highest")

    def undo() -> None:
        torch.set_float32_matmul_precision(word)
        for place, value in places.items():
            _set_precision(*place, value)

    return undo


def _read_products() -> dict[tuple[str, str], str]:
    """What the place of each library's products says itself: for "none", torch tells what the places above it say."""
    above = {}
    try:
        for place in _ABOVE_PRODUCTS:
            above[place] = _get_precision(*place)
            _set_precision(*place, "none")
        return {place: _get_precision(*place) for place in _PRODUCTS}
    finally:
        for place, value in above.items():
            _set_precision(*place, value)


# The attributes `fp32_precision` in torch.backends call these two. They are not used here, as that of mkldnn reads one
# place and sets another.
def _get_precision(library: str, operation: str) -> str:
    get = getattr(torch._C, "_get_fp32_precision_getter", None)
    return "none" if get is None else str(get(library, operation))


def _set_precision(library: str, operation: str, value: str) -> None:
    if (set_ := getattr(torch._C, "_set_fp32_precision_setter", None)) is not None:
        set_(library, operation, value)


def describe_environment(device: torch.device, precision: str) -> dict[str, Any]:
    """What affects the bits of results on this machine, by name, in plain values.

    `arithmetic` is a digest of the results of a few products and sums: it also reveals differences without a name.
    """
    accelerator = find_accelerator(device)
    found: dict[str, Any] = {
        "torch": torch.__version__,
        "device": device.type if accelerator is None else accelerator.name(device),
        "instructions": _describe_instructions(),
        "threads": torch.get_num_threads(),
        "arithmetic": _digest_arithmetic(device, precision),
    }
    if accelerator is not None:
        found[accelerator.kind] = accelerator.version()
    found["variables"] = " ".join(f"{name}={os.environ[name]}" for name in _VARIABLES if os.environ.get(name))
    return found


def find_differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Lines "name: found, wanted" for entries that differ, except for threads, whose number can be set anywhere."""
    names = [name for name in dict.fromkeys([*found, *wanted]) if name not in _NOT_COMPARED]
    differing = [name for name in names if found.get(name) != wanted.get(name)]
    lines = [f"{name}: {found.get(name) or 'none'}, {wanted.get(name) or 'none'}" for name in differing]
    if not lines and found["arithmetic"] != wanted.get("arithmetic"):
        lines = [
            "arithmetic: the same matrix products give other numbers, although torch, instructions and variables "
            "are the same"
        ]
    return lines


def has_bf16_products() -> bool:
    """Whether the processor has instructions that multiply bf16. Their speed is not measured."""
    tells = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(tell() for tell in tells if tell is not None) or (
        platform.machine().lower() in ("arm64", "aarch64") and "bf16" in _processor_flags()
    )


def _describe_instructions() -> str:
    flags = _processor_flags()
    known = [name for name in _INSTRUCTIONS if name in flags]
    return " ".join([platform.machine(), torch.backends.cpu.get_cpu_capability(), *known])


def _processor_flags() -> Sequence[str]:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip().lower() in ("flags", "features"):
                return value.split()
    return []


@torch.no_grad()
def _digest_arithmetic(device: torch.device, precision: str) -> str:
    """A digest of products, sums and random draws like those of a step, with the current number of threads."""
    rows, features, units = _PROBE
    generator = torch.Generator().manual_seed(0)
    left = torch.empty(rows, features).normal_(generator=generator)
    right = torch.empty(units, features).normal_(generator=generator)
    digest = hashlib.sha256(left.numpy().data)
    left, right = left.to(device), right.to(device)
    for dtype in dict.fromkeys((torch.float32, operand_dtype(precision))):
        products = torch.mm(left.to(dtype), right.to(dtype).t()).float()
        back = torch.mm(products.to(dtype).t(), left.to(dtype)).float()
        sums = (products.sum(dim=0), products.square().sum(dim=1), torch.softmax(products, dim=1))
        for found in (products, back, *sums):
            digest.update(found.cpu().contiguous().numpy().data)
    return digest.hexdigest()
