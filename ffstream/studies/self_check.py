"""Whether a device does what a run relies on, in about a minute: for the owner of hardware that nobody here has."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ffstream.cache import CacheLayout, MemoryCache
from ffstream.cache.pinned import allocate_host
from ffstream.cache.transfer import Transfer
from ffstream.device.accelerator import ACCELERATORS, Accelerator, find_accelerator, operand_dtype
from ffstream.device.device import device_name, explain_fallback, resolve_device, resolve_precision
from ffstream.device.memory import unpinned_reason
from ffstream.errors import DeviceError
from ffstream.ground.files import storage_errors
from ffstream.ground.scratch import make_scratch
from ffstream.ground.units import format_bytes
from ffstream.plan.probe import best_s, epochs_of_one_layer
from ffstream.run.launch import resume, train
from ffstream.run.preparation import make_plan
from ffstream.run.run import Run
from ffstream.settings.config import Config
from ffstream.training.observer import Observer

HOLDS, FAILS, UNCHECKED = "holds", "fails", "not checked"

_PINNED_BYTES = 64 << 20  # as large as the slots of a run may be
_TIERS = ("device", "host", "disk")
_NUM_LAYERS, _STOPPED_LAYER, _STOPPED_EPOCH = 3, 2, 1  # of the runs that are compared; layers and epochs from 1
_WIDTH, _BATCH = 1024, 1024  # of the layer whose steps are counted and timed
_NUM_SHARDS, _SHARD_SAMPLES, _BUSY_UNITS = 24, 64, 1024  # of the blocks that are read while the device is busy


@dataclass(frozen=True)
class Check:
    """What became of one check."""

    name: str
    outcome: str  # HOLDS, FAILS or UNCHECKED
    text: str

    def to_mapping(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return dataclasses.asdict(self)


class _UncheckedError(Exception):
    """Why something cannot be checked here."""


class _FailedError(Exception):
    """What does not hold."""


def check_device(asked: str, folder: Path) -> Iterator[Check]:
    """Check what runs rely on, and yield each result as it is there. `asked` is as for `train`.

    If the device that is asked for is not here, that is said, and the rest is checked on the CPU. Runs are made in a
    temporary folder in `folder`, which exists. Raises DeviceError for a kind of device that is not known.
    """
    try:
        device, fallback = resolve_device(asked), explain_fallback(asked)
        yield Check("device", HOLDS if fallback is None else FAILS, fallback or _name(device))
    except DeviceError as error:
        kind = asked.partition(":")[0]
        if kind not in ACCELERATORS:
            raise
        device, is_here = torch.device("cpu"), ACCELERATORS[kind].count_devices() > 0
        yield Check("device", FAILS if is_here else UNCHECKED, f"{error}; the CPU is checked instead")
    accelerator = find_accelerator(device)
    with storage_errors(folder), make_scratch(folder) as scratch:
        checks: Sequence[tuple[str, Callable[[], str]]] = (
            ("pinned memory", lambda: _check_pinned(accelerator)),
            ("blocks read while the device is busy", lambda: _check_blocks(device)),
            ("tiers", lambda: _check_tiers(device, scratch.path)),
            ("resume", lambda: _check_resume(device, scratch.path)),
            ("planned memory", lambda: _check_plan(device, accelerator, scratch.path)),
            ("steps", lambda: _check_steps(device, accelerator)),
            ("speed", lambda: _check_speed(device)),
        )
        for name, check in checks:
            try:
                yield Check(name, HOLDS, check())
            except _UncheckedError as reason:
                yield Check(name, UNCHECKED, str(reason))
            except _FailedError as found_wrong:
                yield Check(name, FAILS, str(found_wrong))
            except Exception as error:  # whatever a device raises is a result: the other checks are made all the same
                yield Check(name, FAILS, f"{type(error).__name__}: {' '.join(str(error).split())}")


def _name(device: torch.device) -> str:
    return f"{device_name(str(device))}, torch {torch.__version__}, {resolve_precision('auto', device)}"


def _check_pinned(accelerator: Accelerator | None) -> str:
    """Whether host memory can be pinned."""
    if accelerator is None:
        raise _UncheckedError("a CPU needs none")
    if not allocate_host(_PINNED_BYTES, accelerator).is_pinned():
        raise _FailedError(unpinned_reason())
    return f"{format_bytes(_PINNED_BYTES)} at once, as much as is needed"


def _check_blocks(device: torch.device) -> str:
    """Whether blocks that are staged while the device lags behind the host are those of the cache."""
    layout = CacheLayout(_NUM_SHARDS * _SHARD_SAMPLES, 1, 512, "fp32", _SHARD_SAMPLES)
    generator = torch.Generator().manual_seed(0)
    cache = MemoryCache(layout, torch.device("cpu"))
    rows = torch.rand(layout.num_samples, 1, 512, generator=generator)
    for shard in range(layout.num_shards):
        cache.store(shard, rows[layout.shard_range(shard)])
    order = torch.randperm(layout.num_shards, generator=generator).tolist() * 2
    busy, found = torch.ones(_BUSY_UNITS, _BUSY_UNITS, device=device), []
    with Transfer(device) as transfer:
        for _, block in transfer.blocks(cache, order):
            for _ in range(4):
                busy = torch.mm(busy, busy).clamp_(-1, 1)
            found.append(block.amax(dim=0) + 0 * busy[0, 0])
    wrong = [
        shard
        for shard, most in zip(order, found, strict=True)
        if not torch.equal(most.cpu(), rows[layout.shard_range(shard)].amax(dim=0))
    ]
    if wrong:
        raise _FailedError(f"{len(wrong)} of {len(order)} blocks are others than those of the cache")
    return f"all {len(order)} blocks are those of the cache"


def _configure(device: torch.device, tier: str) -> Config:
    return Config(layers=_NUM_LAYERS, width=128, epochs=2, batch=128, device=str(device)).override(
        {"cache.tier": tier, "cache.shard_samples": 512}
    )


def _train(device: torch.device, tier: str, folder: Path) -> list[str]:
    """The digests of the layers of a small run."""
    path = folder / f"whole-{tier}"
    run = Run(path) if path.exists() else train(_configure(device, tier), path, observer=Observer())
    return run.directory.read_weight_digests(_NUM_LAYERS)


def _check_tiers(device: torch.device, folder: Path) -> str:
    """Whether a run has the same bits wherever its cache lies."""
    tiers = _TIERS if device.type != "cpu" else _TIERS[1:]
    found = {tier: _train(device, tier, folder) for tier in tiers}
    different = [tier for tier in tiers if found[tier] != found[tiers[0]]]
    if different:
        raise _FailedError(f"with the cache on {' or '.join(different)} layers have other bits than on {tiers[0]}")
    return f"a run has the same bits with its cache on {', '.join(tiers[:-1])} and {tiers[-1]}"


class _Stop(Observer):
    """Interrupts a run."""

    def on_epoch(self, layer: int, epoch: int, *_: Any) -> None:
        """Stop in the middle of a layer."""
        if (layer, epoch) == (_STOPPED_LAYER, _STOPPED_EPOCH):
            raise KeyboardInterrupt


def _check_resume(device: torch.device, folder: Path) -> str:
    """Whether a run that was interrupted ends with the same bits."""
    try:
        train(_configure(device, "disk"), folder / "stopped", observer=_Stop())
    except KeyboardInterrupt as stop:
        if stop.args:  # a signal, meant for this process
            raise
    found = resume(folder / "stopped", observer=Observer()).directory.read_weight_digests(_NUM_LAYERS)
    if found != _train(device, "disk", folder):
        raise _FailedError("a run that was interrupted and resumed has other bits than one that was not")
    return f"interrupted in layer {_STOPPED_LAYER}, a run ends with the same bits"


def _check_plan(device: torch.device, accelerator: Accelerator | None, folder: Path) -> str:
    """Whether a run takes no more of the device than was planned."""
    if accelerator is None:
        raise _UncheckedError("torch does not account for a CPU's memory")
    config = _configure(device, "disk").override({"width": 1024})
    needed = make_plan(config).device
    planned, context = needed.num_bytes, needed.terms["context"]
    accelerator.synchronise(device)
    accelerator.release_unused(device)
    requested, reserved = accelerator.requested_bytes(device), accelerator.reserved_bytes(device)
    accelerator.reset_peak(device)
    train(config, folder / "planned", observer=Observer())
    accelerator.synchronise(device)
    taken = accelerator.peak_reserved_bytes(device) - reserved
    said = f"allowed the planned {format_bytes(planned)}, {format_bytes(context)} of them for the device's context"
    said += f"; tensors took {format_bytes(accelerator.peak_bytes(device) - requested)} at most"
    said += f", and {format_bytes(taken)} were reserved for them"
    shown = accelerator.driver_bytes(device)
    if shown is None:
        said += "; the driver does not tell what it shows"
    else:
        shown -= reserved
        said += f"; the driver shows {format_bytes(shown)} more than before"
    if max(taken + context, shown or 0) > planned:
        raise _FailedError(said)
    return said


class _Counter(TorchDispatchMode):
    """Counts operators."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.num_operators = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), settings: Any = None) -> Any:
        self.num_operators += 1
        return function(*arguments, **(settings or {}))


def _check_steps(device: torch.device, accelerator: Accelerator | None) -> str:
    """How many operators a step starts, and whether the host waits for the device in one."""
    config = Config(precision=resolve_precision("auto", device))
    with epochs_of_one_layer(config, _WIDTH, _BATCH, device) as (train_epoch, num_steps, _):
        train_epoch()
        with _Counter() as counter:
            train_epoch()
        said = f"{counter.num_operators / num_steps:.0f} operators in a step of {_WIDTH} units"
        waits = None if accelerator is None else accelerator.count_waits(train_epoch)
    if waits is None:
        return f"{said} (no limit)"
    said += f" (no limit); the host waits {waits} times in {num_steps} steps, allowed fewer than one a step"
    if waits >= num_steps:
        raise _FailedError(said)
    return said


def _check_speed(device: torch.device) -> str:
    """The arithmetic of a step beside that of a matrix product of the same size."""
    precision = resolve_precision("auto", device)
    dtype = operand_dtype(precision)
    left = torch.randn(_BATCH, _WIDTH, device=device).to(dtype)
    right = torch.randn(_WIDTH, _WIDTH, device=device).to(dtype)
    out = torch.empty(_BATCH, _WIDTH, dtype=dtype, device=device)
    product_s = best_s(lambda: torch.mm(left, right.t(), out=out), device)
    rate = 2 * _BATCH * _WIDTH * _WIDTH / product_s
    with epochs_of_one_layer(Config(precision=precision), _WIDTH, _BATCH, device) as (train_epoch, num_steps, step):
        epoch_s = best_s(train_epoch, device, 4)
    share = step.flops * num_steps / epoch_s / rate
    product = f"the {rate / 1e12:.2f} TFLOP/s of a matrix product in {precision}"
    return f"a step runs at {100 * share:.0f} % of {product} (no limit)"
