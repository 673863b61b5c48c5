"""How fast a machine is at what a run does, where the time of a run went, and what would save time."""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ffstream.cache import CODED
from ffstream.cache.pinned import allocate_host
from ffstream.cache.transfer import READING, SYNCING, WRITING
from ffstream.device.accelerator import find_accelerator, operand_dtype
from ffstream.device.device import device_name, resolve_precision
from ffstream.device.memory import device_free_bytes, host_free_bytes, is_in_memory, unpinned_reason
from ffstream.errors import RunError
from ffstream.ground.files import storage_errors
from ffstream.ground.units import format_bytes
from ffstream.plan.plan import Plan
from ffstream.plan.probe import best_s, find_place, measure_link, measure_rates
from ffstream.run.preparation import make_plan
from ffstream.run.run import Run
from ffstream.settings.config import Config

_PRODUCT = (1024, 2048, 2048)  # rows, features, units
_FILE_BYTES, _PART_BYTES = 256 << 20, 8 << 20
_NUM_SYNCS = 16
_PAGE_BYTES = 4096

# Shares of a run's time from which on it is worth doing something about what the time was spent on.
_MUCH, _SOME = 0.3, 0.1


@dataclass(frozen=True)
class MachineSpeeds:
    """What `ffstream doctor` measures; None for what this machine does not have."""

    device_name: str
    device_type: str  # cpu, or a kind of accelerator
    num_threads: int
    precision: str  # what `auto` stands for
    product_flops_per_s: dict[str, float]  # by precision: of a large matrix product
    moved_bytes_per_s: float  # read and written on the device by the other operators of a step
    operator_s: float  # to start an operator
    to_device_bytes_per_s: float | None  # from the host's memory
    from_device_bytes_per_s: float | None
    written_bytes_per_s: float  # to the disk, synced
    read_bytes_per_s: float | None  # from the disk itself; None where the system does not let its cache be dropped
    cached_read_bytes_per_s: float  # from the system's cache of a file
    sync_s: float  # to make one small write durable
    free_device_bytes: int
    free_host_bytes: int
    free_disk_bytes: int
    warnings: list[str]

    def to_mapping(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return dataclasses.asdict(self) | {"machine": self.machine}

    @property
    def machine(self) -> str | None:
        """The machine as a text for `ffstream plan --machine`; None without a GPU, as such a text describes one."""
        if self.to_device_bytes_per_s is None:
            return None
        disk = self.read_bytes_per_s if self.read_bytes_per_s is not None else self.cached_read_bytes_per_s
        moved, link, read = (
            f"{each / 1e9:.1f}GB/s" for each in (self.moved_bytes_per_s, self.to_device_bytes_per_s, disk)
        )
        free = (self.free_device_bytes, self.free_host_bytes, self.free_disk_bytes)
        on_device, on_host, on_disk = (format_bytes(each).replace(" ", "") for each in free)
        flops = f"{self.product_flops_per_s[self.precision] / 1e12:.2f}TFLOP/s"
        return f"device={on_device},{flops},{moved};h2d={link};host={on_host};disk={on_disk},{read}"


def examine_machine(device: torch.device, folder: Path) -> MachineSpeeds:
    """Measure a device, and the disk that `folder` is or would be on, in half a minute. Raises StorageError."""
    precision = resolve_precision("auto", device)
    rates = measure_rates(Config(precision=precision, batch=512), device, folder)
    has_memory, warnings = find_accelerator(device) is not None, []
    link = back = None
    if has_memory:
        link, back = measure_link(device), measure_link(device, back=True)
        if not allocate_host(_PAGE_BYTES, find_accelerator(device)).is_pinned():
            warnings.append(unpinned_reason())
    place = find_place(folder)
    if is_in_memory(place):
        warnings.append(f"{place} lies in memory: what a run writes there takes memory, and is gone with the machine")
    with storage_errors(place):
        disk = _measure_disk(place)
    return MachineSpeeds(
        device_name=device_name(str(device)),
        device_type=device.type,
        num_threads=torch.get_num_threads(),
        precision=precision,
        product_flops_per_s={
            name: _measure_product(operand_dtype(name), device) for name in dict.fromkeys(("fp32", "bf16", precision))
        },
        moved_bytes_per_s=rates.moved_bytes_per_s,
        operator_s=rates.operator_s,
        to_device_bytes_per_s=link,
        from_device_bytes_per_s=back,
        free_device_bytes=device_free_bytes(device) if has_memory else host_free_bytes(),
        free_host_bytes=host_free_bytes(),
        free_disk_bytes=shutil.disk_usage(place).free,
        warnings=warnings,
        **disk,
    )


def _measure_product(dtype: torch.dtype, device: torch.device) -> float:
    rows, features, units = _PRODUCT
    left = torch.ones(rows, features, dtype=dtype, device=device)
    right = torch.ones(units, features, dtype=dtype, device=device)
    out = torch.empty(rows, units, dtype=dtype, device=device)
    return 2 * rows * features * units / best_s(lambda: torch.mm(left, right.t(), out=out), device)


def _measure_disk(place: Path) -> dict[str, Any]:
    """Speeds of a disk, for a file larger than the disk's own buffers, in parts as large as a shard may be."""
    part = memoryview(os.urandom(_PART_BYTES))  # random, so that no file system can compress it
    num_parts = _FILE_BYTES // _PART_BYTES
    with tempfile.TemporaryFile(dir=place, buffering=0) as file:
        start_s = time.perf_counter()
        for _ in range(num_parts):
            file.write(part)
        os.fsync(file.fileno())
        written_s = time.perf_counter() - start_s
        syncs_s = []
        for _ in range(_NUM_SYNCS):
            start_s = time.perf_counter()
            file.write(part[:_PAGE_BYTES])
            os.fsync(file.fileno())
            syncs_s.append(time.perf_counter() - start_s)
        target = memoryview(bytearray(_PART_BYTES))

        def read() -> None:
            file.seek(0)
            for _ in range(num_parts):
                file.readinto(target)

        read_s = None
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            start_s = time.perf_counter()
            read()
            read_s = time.perf_counter() - start_s
        cached_s = best_s(read, torch.device("cpu"))
    return {
        "written_bytes_per_s": _FILE_BYTES / written_s,
        "read_bytes_per_s": _FILE_BYTES / read_s if read_s is not None else None,
        "cached_read_bytes_per_s": _FILE_BYTES / cached_s,
        "sync_s": sorted(syncs_s)[_NUM_SYNCS // 2],
    }


@dataclass(frozen=True)
class TimeAccount:
    """Where the time of a run went, and what would help."""

    seconds: dict[str, float]  # by what the computing thread was doing, the most first
    training: dict[str, float]  # shares of training time: products, memory, operators, by a plan for this machine
    advice: list[str]

    def to_mapping(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return dataclasses.asdict(self)


def sum_seconds(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Seconds of all layers by what they went to, the most first, from metrics.jsonl. Raises RunError for none."""
    total: dict[str, float] = {}
    for record in records:
        found = record.get("seconds")
        for noun, seconds in found.items() if isinstance(found, dict) else ():
            total[noun] = total.get(noun, 0.0) + float(seconds)
    if not total:
        raise RunError("no line of metrics.jsonl tells where time went: no layer is finished, or the file is gone")
    return dict(sorted(total.items(), key=lambda item: -item[1]))


def examine_run(run_dir: Path, device: str | None = None) -> TimeAccount:
    """The account of a run's finished layers, with a plan for this machine. Raises RunError, CorruptFileError."""
    run = Run(run_dir)
    run.restore_parts()
    records = run.directory.metrics.read(run.directory.read_seal())
    seconds = sum_seconds(records)
    num_samples = {"train": max(record.get("num_samples", 0) for record in records)}
    held_out = run.directory.load_validation_labels()
    if held_out is not None:
        num_samples["validation"] = len(held_out)
    shape = run.directory.read_data().shape(num_samples)
    # The parts are registered by now. Modules that the run merely names are not imported, as it may be somebody else's.
    run_config = run.config.override({"plugins": ()})
    config = run_config.override({"cache.tier": run.layers[-1].cache_tier} | ({"device": device} if device else {}))
    return account_for(seconds, make_plan(config, data=shape))


def account_for(seconds: Mapping[str, float], plan: Plan) -> TimeAccount:
    """The account of a run. `plan`, for the same run on the machine where it ran, tells how training time divides."""
    of_plan: dict[str, float] = {}
    for layer in plan.layers:
        for noun, each_s in (layer.seconds or {}).items():
            if noun != "loading":
                of_plan[noun] = of_plan.get(noun, 0.0) + each_s * len(layer.numbers)
    whole_s = sum(of_plan.values())
    training = {noun: each_s / whole_s for noun, each_s in of_plan.items()} if whole_s else {}
    return TimeAccount(dict(seconds), training, advise(seconds, training, plan.config, plan.tier))


def advise(seconds: Mapping[str, float], training: Mapping[str, float], config: Config, tier: str) -> list[str]:
    """What to change, the most important first; empty if nothing stands out."""
    total_s = sum(seconds.values())
    share = {noun: each_s / total_s for noun, each_s in seconds.items()}
    for noun, part in training.items():
        share[noun] = part * share.get("training", 0.0)
    found: list[tuple[float, str]] = []

    def add(noun: str, least: float, text: str) -> None:
        if share.get(noun, 0.0) >= least:
            found.append((share[noun], f"{100 * share[noun]:.0f} % went to {noun}: {text}"))

    halved = "" if config.cache.dtype == CODED else "; --cache-dtype int8 reads half the bytes that bf16 does"
    if tier == "disk":
        add(READING, _SOME, f"--cache host keeps the cache in memory, where there is room; else a faster disk{halved}")
    else:
        add(READING, _SOME, f"wider layers or larger batches hide it (--width, --batch){halved}")
    add(WRITING, _SOME, "a faster disk for the run directory, or --cache host")
    add(SYNCING, _SOME, "a faster disk for the run directory, or longer epochs: a checkpoint is saved after each")
    add("saving", _SOME, "fewer epochs save fewer checkpoints (--epochs)")
    add("operators", _MUCH, "larger batches start fewer of them (--batch)")
    if config.precision == "fp32":
        add("products", _MUCH, "bf16 is faster where the device has it (--precision bf16)")
    if config.restreams:
        add(
            "writing images",
            _SOME,
            "rounds write images once for all layers (--order rounds), and cached views not in every epoch (--views "
            "in place of --restream)",
        )
    add("measuring", _MUCH, "a smaller validation split takes less time to measure (--set validation_fraction=0.02)")
    return [text for _, text in sorted(found, reverse=True)]
