"""Starting a run and going on with one: resolves the configuration, takes the lock, refuses what does not fit."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ffstream.augmentation import check_augmentation
from ffstream.checkpoint import RunDirectory
from ffstream.config import Config
from ffstream.data import SOURCES, Dataset, Split, check_classes, load_dataset
from ffstream.device import resolve_device, resolve_precision
from ffstream.errors import DeviceError, RunError, RunMismatchError
from ffstream.files import remove_temporaries, storage_errors
from ffstream.footprint import DataShape, KernelBytes
from ffstream.goodness import GOODNESSES
from ffstream.input_rows import check_negatives
from ffstream.interrupts import Interrupts
from ffstream.labels import make_label_method
from ffstream.layers import LAYER_KINDS
from ffstream.lock import RunLock
from ffstream.machine import parse_machine
from ffstream.memory import is_out_of_memory
from ffstream.network import compute_layer_specs, count_distinct
from ffstream.objectives import OBJECTIVES
from ffstream.observer import Observer
from ffstream.plan import Plan
from ffstream.planner import compute_plan
from ffstream.probe import measure_kernels, measure_rates, survey_resources
from ffstream.registry import Registry
from ffstream.run import Run, check_same_data, describe_data, make_splits
from ffstream.runner import Runner
from ffstream.similarity import SIMILARITIES
from ffstream.trial import try_steps

# Settings whose "auto" is filled in when a run starts, or that a resumed run keeps.
_RESOLVED = (
    "batch",
    "micro_batch",
    "precision",
    "device",
    "cache.shard_samples",
    "network.tile_units",
    "memory.budget",
    "memory.host_budget",
    "memory.disk_budget",
)

_MIN_BATCH, _MAX_BATCH = 64, 512
_UPDATES_AN_EPOCH = 64  # aimed at by batch = "auto"


def train(
    config: Config,
    run_dir: str | Path | None = None,
    *,
    resume: bool = False,
    observer: Observer | None = None,
) -> Run:
    """Train a network layer by layer into `run_dir` (runs/<data>-<layers>x<width>-<time> by default).

    With `resume`, a run that is there already is gone on with, provided that it has this configuration; more layers
    than it has are added. Raises an FFStreamError; nothing that was committed is lost. An interrupt ends it between two
    shards of a cache, the next one at once.
    """
    with Interrupts():
        directory, config = _open(config, run_dir, resume=resume)
        return _execute(directory, config, observer or Observer())


def make_plan(
    config: Config,
    run_dir: str | Path | None = None,
    *,
    resume: bool = False,
    machine: str | None = None,
    data: DataShape | None = None,
) -> Plan:
    """What `train` with the same arguments would do and take. Nothing is written.

    On this machine, or on the `machine` that is described (see `machine.parse_machine`), and for the data of the
    configuration or any of the given shape; what was described need not be there, and need not fit. Raises an
    FFStreamError where `train` would, a BudgetError where the run does not fit on this machine.
    """
    directory, config = _open(config, run_dir, resume=resume)
    if machine is None and data is None:
        prepared = _prepare(directory, config, measure=True, for_plan=True)
        warnings = [text for text in (prepared.plan.warning, prepared.dataset.warning) if text is not None]
        return dataclasses.replace(prepared.plan, warning="; ".join(warnings) or None)
    if data is None:
        dataset = load_dataset(config.data, config.data_root, skips_bad=config.bad_images == "skip")
        data, data_bytes = _shape(dataset, make_splits(dataset, config)), dataset.num_bytes
    else:
        data_bytes = data.num_features * sum(data.num_samples.values())  # a byte a feature
    check_augmentation(config.augmentation, data.image_shape)
    if machine is not None:
        resources = parse_machine(machine)
        precision = "bf16" if config.precision == "auto" else config.precision
        config = dataclasses.replace(config, device=resources.device_type, precision=precision)
    else:
        device = resolve_device(config.device)
        config = dataclasses.replace(config, precision=resolve_precision(config.precision, device))
        resources = survey_resources(config.memory, device, directory.path)
        resources = dataclasses.replace(resources, rates=measure_rates(config, device, directory.path))
    config = dataclasses.replace(config, batch=resolve_batch(config.batch, data.num_samples["train"]))
    method = make_label_method(config, data.num_classes, data.num_features, data.mixed_shape)
    return compute_plan(config, method, data, data_bytes, resources, must_fit=False)


def resume(
    run_dir: str | Path,
    *,
    layers: int | None = None,
    device: str | None = None,
    cache: str | None = None,
    budget: str | None = None,
    data_root: str | None = None,
    observer: Observer | None = None,
) -> Run:
    """Go on with a run after any interruption; with more `layers` than it has, grow it. Raises an FFStreamError."""
    if data_root is not None:
        data_root = str(Path(data_root).expanduser().absolute())
    given = {"layers": layers, "device": device, "cache.tier": cache, "memory.budget": budget, "data_root": data_root}
    with Interrupts():
        run = Run(Path(run_dir))
        config = run.config.override({key: value for key, value in given.items() if value is not None})
        return _execute(run.directory, config, observer or Observer())


def _open(config: Config, run_dir: str | Path | None, *, resume: bool) -> tuple[RunDirectory, Config]:
    """The run directory, and the configuration with what is saved there. Raises RunError, RunMismatchError."""
    config = _with_absolute_paths(config)
    path = Path(run_dir) if run_dir is not None else default_run_dir(config)
    directory = RunDirectory(path)
    if directory.exists():
        if not resume:
            raise RunError(
                f"run {path}: exists already ({directory.count_layers()} layers done); go on with "
                f"ffstream resume {path}, or choose another --run-dir"
            )
        config = _merge_with_saved(config, Run(path).config, path)
    return directory, config


def default_run_dir(config: Config) -> Path:
    """runs/<data>-<layers>x<width>-<time>, and -2, -3 ... behind it where a run of the same second has the name."""
    name = f"{Path(config.data).stem or 'data'}-{config.layers}x{config.width}-{time.strftime('%Y%m%d-%H%M%S')}"
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(path for path in map(Path("runs").joinpath, names) if not path.exists())


def resolve_batch(batch: int | str, num_samples: int) -> int:
    """ "auto" to the power of two that gives about 64 updates an epoch, within 64 and 512."""
    if not isinstance(batch, str):
        return batch
    wanted = max(num_samples // _UPDATES_AN_EPOCH, 1)
    return min(max(1 << (wanted.bit_length() - 1), _MIN_BATCH), _MAX_BATCH)


def _with_absolute_paths(config: Config) -> Config:
    """So that a run can be resumed from another folder."""
    path = Path(config.data).expanduser()
    data = config.data
    with contextlib.suppress(OSError):  # a name that no file can have; loading it says so
        if config.data not in SOURCES and path.exists():
            data = str(path.absolute())
    data_root = str(Path(config.data_root).expanduser().absolute()) if config.data_root else ""
    return dataclasses.replace(config, data=data, data_root=data_root)


def _merge_with_saved(asked: Config, saved: Config, path: Path) -> Config:
    """The asked configuration with "auto" filled in from the saved one. Raises RunMismatchError when they differ."""
    wanted, found = asked.to_flat(), saved.to_flat()
    asked = asked.override({name: found[name] for name in _RESOLVED if wanted[name] == "auto"})
    different = asked.differences(saved)
    if different:
        raise RunMismatchError(
            f"run {path}: belongs to another configuration; asked and found differ in {'; '.join(different)}; "
            "ask for the same, or choose another --run-dir"
        )
    return asked


def _shape(dataset: Dataset, splits: dict[str, Split]) -> DataShape:
    num_samples = {name: len(split) for name, split in splits.items() if name != "test"}
    brings_negatives = dataset.train.negatives is not None
    return DataShape(dataset.num_features, dataset.num_classes, num_samples, dataset.image_shape, brings_negatives)


@dataclass(frozen=True)
class _Prepared:
    """What a run starts from: everything that can be refused has been refused, and nothing is written."""

    plan: Plan
    dataset: Dataset
    splits: dict[str, Split]
    device: torch.device


def _prepare(directory: RunDirectory, config: Config, *, measure: bool, for_plan: bool = False) -> _Prepared:
    """Resolve and plan. Raises an FFStreamError for what cannot be run here.

    With `measure`, and on CUDA, what the matrix products take beside their operands is measured, and steps are tried;
    on a CPU that takes a second or two. `for_plan`: times are measured in place of trying steps.
    """
    parts: tuple[tuple[Registry[Any], str], ...] = (
        (LAYER_KINDS, config.network.kind),
        (OBJECTIVES, config.objective.name),
        (GOODNESSES, config.objective.goodness),
        (SIMILARITIES, config.objective.similarity),
    )
    for registry, name in parts:
        if registry is SIMILARITIES and name == "none":
            continue
        registry[name]  # raises ConfigError when nothing is registered under it
    num_done = directory.count_layers()
    if config.layers < num_done:
        raise RunMismatchError(
            f"run {directory.path}: has {num_done} finished layers, asked for {config.layers}; allowed {num_done} or "
            "more (a new --run-dir starts a shallower one)"
        )
    device = resolve_device(config.device)
    resources = survey_resources(config.memory, device, directory.path, directory.passing_bytes())
    dataset = load_dataset(config.data, config.data_root, skips_bad=config.bad_images == "skip")
    splits = make_splits(dataset, config)
    data = _shape(dataset, splits)
    method = make_label_method(config, data.num_classes, data.num_features, data.mixed_shape)
    check_negatives(config.data, dataset.train, method)
    check_augmentation(config.augmentation, dataset.image_shape)
    check_classes(config.data, splits["train"], dataset.class_names)
    config = dataclasses.replace(
        config,
        device=str(device),
        precision=resolve_precision(config.precision, device),
        batch=resolve_batch(config.batch, len(splits["train"])),
    )
    if for_plan:
        resources = dataclasses.replace(resources, rates=measure_rates(config, device, directory.path))

    def kernels(sized: Config) -> list[KernelBytes]:
        specs = compute_layer_specs(sized, data.num_features, data.image_shape)[: count_distinct(sized)]
        return (
            [measure_kernels(sized, spec, method, data, device) for spec in specs]
            if measure or device.type == "cuda"
            else []
        )

    plan = compute_plan(config, method, data, dataset.num_bytes, resources, num_done, kernels)
    if (measure or device.type == "cuda") and not for_plan and num_done < config.layers:
        try_steps(plan, method, data, device)
    return _Prepared(plan, dataset, splits, device)


def _execute(directory: RunDirectory, config: Config, observer: Observer) -> Run:
    """Everything that can be refused is refused before anything is written."""
    prepared = _prepare(directory, config, measure=config.memory.budget != "auto")
    if prepared.dataset.warning is not None:
        observer.on_warning(prepared.dataset.warning)
    config, dataset, splits, device = prepared.plan.config, prepared.dataset, prepared.splits, prepared.device
    # An error is told as storage's wherever it comes, in removing what is old too; an interrupt waits for its place.
    with Interrupts(defers=True), storage_errors(directory.path), RunLock(directory.path):
        remove_temporaries(directory.path)
        if not directory.exists():
            validation = splits.get("validation")
            labels = None if validation is None else validation.labels
            directory.create(config.to_toml(), describe_data(dataset), labels)
        data = directory.read_data()
        check_same_data(directory.path, data, dataset)
        if Run(directory.path).config != config:
            directory.write_config(config.to_toml())
        try:
            runner = Runner(directory, prepared.plan, data, splits, device, observer)
            del prepared, dataset, splits  # the runner lets the images go when the first cache is there
            runner.run()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            reason = str(error).partition("\n")[0] or type(error).__name__  # Python's own has nothing to say
            raise DeviceError(
                f"device {device}: out of memory ({reason}); free some, lower --batch or --width, or use "
                f"--cache disk; what is committed is kept, go on with ffstream resume {directory.path}"
            ) from error
        finally:
            remove_temporaries(directory.path)
    return Run(directory.path)
