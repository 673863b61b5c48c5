"""Starting and resuming a run: resolves the configuration, takes the lock and refuses what does not fit."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ffstream.data import SOURCES, Dataset, Split, check_classes, load_dataset
from ffstream.data.augmentation import check_augmentation
from ffstream.data.classes import find_renamed
from ffstream.data.facts import DataFacts
from ffstream.data.shape import DataShape
from ffstream.device.device import resolve_device, resolve_precision
from ffstream.device.environment import describe_environment, find_differences, plain_torch
from ffstream.device.memory import is_out_of_memory
from ffstream.device.reservations import planning, reserved
from ffstream.errors import DeviceError, RunError, RunMismatchError, StorageError, to_command
from ffstream.field.blueprint import Blueprint
from ffstream.field.labels import make_label_method
from ffstream.field.network import count_distinct
from ffstream.field.parts import complete_parts, describe_parts, restore_parts
from ffstream.ground.files import exists, expand_home, storage_errors, take_notes
from ffstream.ground.interrupts import Interrupts
from ffstream.ground.plugins import Untrusted, load_plugins
from ffstream.plan.fitting import compute_plan
from ffstream.plan.footprint import KernelBytes
from ffstream.plan.machine import parse_machine
from ffstream.plan.plan import Plan
from ffstream.plan.probe import measure_kernels, measure_rates, survey_resources
from ffstream.plan.trial import try_steps
from ffstream.run.claim import claim_folder
from ffstream.run.executor import Runner
from ffstream.run.run import Run, check_same_data, make_splits
from ffstream.settings.config import Config
from ffstream.storage.checkpoint import RunDirectory
from ffstream.storage.identity import FolderState
from ffstream.training.input_rows import check_negatives
from ffstream.training.observer import Observer, WarningObserver
from ffstream.training.visibility import find_hidden, find_overlaid

# Settings that a resumed run takes from its saved configuration where they are "auto".
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

_MOST_LETTERS = 80  # of the data's name, in the default name of a run
_MIN_BATCH, _MAX_BATCH = 64, 512
_UPDATES_AN_EPOCH = 64  # aimed at by batch = "auto"


def train(
    config: Config,
    run_dir: str | Path | None = None,
    *,
    resume: bool = False,
    accept_environment: bool = False,
    observer: Observer | None = None,
) -> Run:
    """Train a network layer by layer into `run_dir` (runs/<data>-<layers>x<width>-<time> by default).

    The folder is missing or empty, or holds a run. With `resume`, an existing run is resumed, provided that it has this
    configuration; layers are added if it has fewer than are asked for. With `accept_environment`, it is resumed even
    where something that decides bits differs from what it was trained with. Raises an FFStreamError; nothing that was
    committed is lost. An interrupt ends training between two shards of a cache, a second one at once.
    """
    load_plugins(config.plugins)
    with Interrupts(), plain_torch():
        config = _with_absolute_paths(config)
        candidates = [expand_home(run_dir)] if run_dir is not None else default_run_dirs(config)
        with claim_folder(candidates, is_new=run_dir is None) as directory:
            if directory.exists():
                if not resume:
                    raise _already_there(directory)
                config = _merge_with_saved(config, directory, accept_environment=accept_environment)
            return _execute(
                directory, config, observer or WarningObserver(), accept_environment=accept_environment, download=True
            )


def make_plan(
    config: Config,
    run_dir: str | Path | None = None,
    *,
    resume: bool = False,
    machine: str | None = None,
    data: DataShape | None = None,
) -> Plan:
    """The plan of what `train` with the same arguments would do and need. Nothing is written.

    It is made for this machine, or for a described `machine` (see `machine.parse_machine`), and for the data of the
    configuration, or for any `data` of a given shape. A described machine or data need not exist, and the run then need
    not fit. Raises an FFStreamError where `train` would, a BudgetError where the run does not fit on this machine.
    """
    load_plugins(config.plugins)
    with plain_torch():
        return _make_plan(config, run_dir, resume=resume, machine=machine, data=data)


def _make_plan(
    config: Config, run_dir: str | Path | None, *, resume: bool, machine: str | None, data: DataShape | None
) -> Plan:
    config = _with_absolute_paths(config)
    directory = RunDirectory(expand_home(run_dir) if run_dir is not None else next(default_run_dirs(config)))
    directory.check_is_free()
    if directory.exists():
        if not resume:
            raise _already_there(directory)
        config = _merge_with_saved(config, directory, accept_environment=False)
    config = complete_parts(config)
    if machine is None and data is None:
        prepared = _prepare(directory, config, measure=True)
        warnings = [text for text in (prepared.plan.warning, prepared.dataset.warning) if text is not None]
        return dataclasses.replace(prepared.plan, warning="; ".join(warnings) or None)
    if data is None:
        dataset = load_dataset(config.data, config.data_root, skips_bad=config.bad_images == "skip")
        data, data_bytes = shape_of(dataset, make_splits(dataset, config)), dataset.num_bytes
    else:
        data_bytes = data.num_features * sum(data.num_samples.values())  # one byte per feature
    check_augmentation(config.augmentation, data.image_shape)
    if machine is not None:
        resources = parse_machine(machine)
        precision = "bf16" if config.precision == "auto" else config.precision
        config = dataclasses.replace(config, device=resources.device_type, precision=precision)
    else:
        device = resolve_device(config.device)
        config = dataclasses.replace(config, precision=resolve_precision(config.precision, device))
        place = directory.cache_base(config.cache.folder)
        resources = survey_resources(config.memory, device, place)
        resources = dataclasses.replace(resources, rates=measure_rates(config, device, place))
    config = dataclasses.replace(config, batch=resolve_batch(config.batch, data.num_samples["train"]))
    return compute_plan(config, data, data_bytes, resources, must_fit=False)


def resume(
    run_dir: str | Path,
    *,
    layers: int | None = None,
    device: str | None = None,
    cache: str | None = None,
    cache_dir: str | None = None,
    budget: str | None = None,
    data: str | None = None,
    data_root: str | None = None,
    accept_environment: bool = False,
    download: bool = False,
    observer: Observer | None = None,
) -> Run:
    """Resume a run after any interruption; with more `layers` than it has, grow it. Raises an FFStreamError.

    If torch, the processor or anything else that decides bits has changed, the run is refused, unless
    `accept_environment` is true; the run then records the change. Missing data are fetched only with `download`. `data`
    and `data_root` say where the data are now; the run remembers that if they are the same data.
    """
    given = {"layers": layers, "device": device, "cache.tier": cache, "memory.budget": budget}
    given |= {"data": data, "data_root": _absolute(data_root), "cache.folder": _absolute(cache_dir)}
    with Interrupts(), plain_torch():
        load_plugins(())
        path = Run(Path(run_dir)).path  # raises a RunError if there is no run
        with claim_folder([path], is_new=False) as directory:
            saved = directory.read_config()
            config = saved.override({key: value for key, value in given.items() if value is not None})
            config = _with_absolute_paths(config)
            return _execute(
                directory,
                config,
                observer or WarningObserver(),
                accept_environment=accept_environment,
                download=download,
            )


def default_run_dirs(config: Config) -> Iterator[Path]:
    """Yield runs/<data>-<layers>x<width>-<time>, then the same with -2, -3 ... appended; existing paths are skipped."""
    data = Path(config.data).stem[:_MOST_LETTERS] or "data"
    name = f"{data}-{config.layers}x{config.width}-{time.strftime('%Y%m%d-%H%M%S')}"
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return (path for path in map(Path("runs").joinpath, names) if not exists(path))


def _already_there(directory: RunDirectory) -> RunError:
    path = directory.path
    return RunError(
        f"run {path}: exists already ({directory.count_layers()} layers done); go on with "
        f"{to_command('resume', path)}, or choose another --run-dir"
    )


def resolve_batch(batch: int | str, num_samples: int) -> int:
    """Resolve "auto" to the power of two that gives about 64 updates per epoch, between 64 and 512."""
    if not isinstance(batch, str):
        return batch
    wanted = max(num_samples // _UPDATES_AN_EPOCH, 1)
    return min(max(1 << (wanted.bit_length() - 1), _MIN_BATCH), _MAX_BATCH)


def _with_absolute_paths(config: Config) -> Config:
    """Make paths absolute, so that a run can be resumed from another folder."""
    path = expand_home(config.data)
    data = config.data
    with contextlib.suppress(OSError):  # a name that no file can have; loading the data reports it
        if config.data not in SOURCES and path.exists():
            data = str(path.absolute())
    config = config.override({"cache.folder": _absolute(config.cache.folder) or ""})
    return dataclasses.replace(config, data=data, data_root=_absolute(config.data_root) or "")


def _absolute(folder: str | None) -> str | None:
    return str(expand_home(folder).absolute()) if folder else folder


def _restore(directory: RunDirectory, *, accept_environment: bool) -> None:
    """Have the parts of a run registered that are a user's own. Raises RunError, RunMismatchError."""
    parts = directory.read_parts(accepts_missing=accept_environment)
    restore_parts(parts, f"run {directory.path}", Untrusted(directory.path), accept=accept_environment)


def _merge_with_saved(asked: Config, directory: RunDirectory, *, accept_environment: bool) -> Config:
    """The requested configuration with "auto" filled in from the saved one. Raises RunMismatchError if they differ."""
    _restore(directory, accept_environment=accept_environment)  # before the settings of its parts are asked for
    asked, saved, path = complete_parts(asked), directory.read_config(), directory.path
    wanted, found = asked.to_flat(), saved.to_flat()
    asked = asked.override({name: found[name] for name in _RESOLVED if wanted[name] == "auto"})
    asked = asked.override({} if asked.cache.folder else {"cache.folder": saved.cache.folder})
    different = asked.differences(saved)
    if different:
        raise RunMismatchError(
            f"run {path}: belongs to another configuration; asked and found differ in {'; '.join(different)}; "
            "ask for the same, or choose another --run-dir"
        )
    return asked


def shape_of(dataset: Dataset, splits: dict[str, Split]) -> DataShape:
    """The shape of a data set and its splits, as a plan needs it."""
    num_samples = {name: len(split) for name, split in splits.items() if name != "test"}
    brings_negatives = dataset.train.negatives is not None
    return DataShape(dataset.num_features, dataset.num_classes, num_samples, dataset.image_shape, brings_negatives)


@dataclass(frozen=True)
class _Prepared:
    """What a run starts from. All checks that can refuse the run have passed, and nothing has been written yet."""

    plan: Plan
    dataset: Dataset
    splits: dict[str, Split]
    device: torch.device


def _prepare(
    directory: RunDirectory,
    config: Config,
    *,
    measure: bool,
    reservation: contextlib.ExitStack | None = None,
    download: bool = False,
) -> _Prepared:
    """Resolve the configuration and make the plan. Raises an FFStreamError for a run that is not possible here.

    With `measure`, and always on CUDA, the memory that matrix products take beside their operands is measured, and
    steps are tried; on a CPU that takes a second or two. Data are fetched only with `download`. Closing `reservation`
    releases the memory reserved for the run; without it no run follows, and times are measured instead of trying steps.
    """
    config = complete_parts(config)
    num_done = directory.count_layers()
    if config.layers < num_done:
        raise RunMismatchError(
            f"run {directory.path}: has {num_done} finished layers, asked for {config.layers}; allowed {num_done} or "
            "more (a new --run-dir starts a shallower one)"
        )
    device = resolve_device(config.device)
    place = directory.cache_base(config.cache.folder)
    resources = survey_resources(config.memory, device, place, directory.passing_bytes(config.cache.folder))
    # The splits are copies, so the data themselves may take half of the memory that is left.
    room_bytes = (resources.host_bytes - resources.host_used_bytes) // 2
    skips_bad = config.bad_images == "skip"
    dataset = load_dataset(config.data, config.data_root, skips_bad=skips_bad, room_bytes=room_bytes, download=download)
    splits = make_splits(dataset, config)
    data = shape_of(dataset, splits)
    method = make_label_method(config, data)
    check_negatives(config.data, dataset.train, method.rows)
    check_augmentation(config.augmentation, dataset.image_shape)
    check_classes(config.data, splits["train"], dataset.class_names)
    config = dataclasses.replace(
        config,
        device=str(device),
        precision=resolve_precision(config.precision, device),
        batch=resolve_batch(config.batch, len(splits["train"])),
    )
    if reservation is None:
        resources = dataclasses.replace(resources, rates=measure_rates(config, device, place))

    def kernels(sized: Blueprint) -> list[KernelBytes]:
        if not measure and device.type != "cuda":
            return []
        return [measure_kernels(sized, spec, device) for spec in sized.specs[: count_distinct(sized.config)]]

    with planning() if reservation is not None else contextlib.nullcontext():
        if reservation is not None:  # other processes may have reserved memory while the data were read
            resources = survey_resources(config.memory, device, place, directory.passing_bytes(config.cache.folder))
        plan = compute_plan(config, data, dataset.num_bytes, resources, num_done, kernels)
        if reservation is not None:
            reservation.enter_context(reserved(plan.host.num_bytes))
    if (measure or device.type == "cuda") and reservation is not None and num_done < config.layers:
        try_steps(plan, Blueprint.of(plan.config, data, method), device)
    return _Prepared(plan, dataset, splits, device)


def _execute(
    directory: RunDirectory, config: Config, observer: Observer, *, accept_environment: bool, download: bool
) -> Run:
    """Start or resume a run and train it. All checks that can refuse it come before anything is written."""
    environments = directory.read_environments(accepts_missing=accept_environment)
    _restore(directory, accept_environment=accept_environment)
    num_threads = environments[-1].get("threads") if environments and not accept_environment else None
    with plain_torch(num_threads), contextlib.ExitStack() as reservation:
        measure = config.memory.budget != "auto"
        prepared = _prepare(directory, config, measure=measure, reservation=reservation, download=download)
        environment = describe_environment(prepared.device, prepared.plan.config.precision)
        parts = describe_parts(prepared.plan.config)
        environment |= {"parts": parts} if parts else {}
        sizes = environments[-1].get("memory") if environments else prepared.plan.sizes_by_free
        environment |= {"memory": sizes} if sizes is not None else {}
        if directory.exists():
            facts = directory.read_data()
            directory.load_validation_labels()  # raises CorruptFileError where they are not what they were
            check_same_data(directory.path, facts, prepared.dataset)
            renamed = find_renamed(prepared.dataset.class_names, facts.class_names)
            if renamed is not None:
                observer.on_warning(renamed)
            if directory.count_layers() < prepared.plan.config.layers and not accept_environment:
                _check_environment(directory, environments, environment)
            if directory.count_layers() == prepared.plan.config.layers:  # nothing to train: no layer would be read
                for index in range(directory.count_layers()):
                    directory.verify_layer(index)
        if prepared.plan.tier == "disk":
            directory.check_cache_base(prepared.plan.config.cache.folder)
        if prepared.plan.sizes_by_free is not None:
            observer.on_warning(
                "too little memory is free for the sizes that this machine would use otherwise; the run takes "
                f"{prepared.plan.sizes_by_free}, which gives other weights, and keeps these sizes; free some memory "
                "and "
                "start a new run, or set --budget and --host-budget to what is always available"
            )
        if prepared.dataset.warning is not None:
            observer.on_warning(prepared.dataset.warning)
        # From here on, removing old files included, an OSError becomes a StorageError, and an interrupt is deferred.
        with Interrupts(defers=True), storage_errors(directory.path):
            _write_start(directory, prepared, environments, environment, observer)
            config, splits, device = prepared.plan.config, prepared.splits, prepared.device
            on_disk = prepared.plan.tier == "disk"
            try:
                with directory.cache_locked(config.cache.folder, make=True) if on_disk else contextlib.nullcontext():
                    runner = Runner(directory, prepared.plan, directory.read_data(), splits, device, observer)
                    del prepared, splits  # the runner frees the images once no more caches are written from them
                    try:
                        runner.run()
                    finally:
                        with contextlib.suppress(StorageError):
                            directory.remove_half_shards(config.cache.folder)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                reason = str(error).partition("\n")[0] or type(error).__name__  # a MemoryError may have no message
                raise DeviceError(
                    f"device {device}: out of memory ({reason}); free some, lower --batch or --width, or use "
                    f"--cache disk; what is committed is kept, go on with " + to_command("resume", directory.path)
                ) from error
            finally:
                with contextlib.suppress(StorageError):  # from a failing disk, which has been reported by now
                    directory.remove_temporaries()
                for note in take_notes():
                    observer.on_warning(note)
    return _open_again(directory)


def _open_again(directory: RunDirectory) -> Run:
    """Open the run that was trained. Raises RunError if its folder was moved meanwhile."""
    if RunDirectory(directory.path).read_identity() == directory.read_identity():
        return Run(directory.path)
    raise RunError(
        f"run {directory.path}: was moved while it was trained; everything was written to the folder that was moved, "
        "and what is here now is not that run; use the moved folder from now on"
    )


def _write_start(
    directory: RunDirectory,
    prepared: _Prepared,
    environments: Sequence[Mapping[str, Any]],
    environment: Mapping[str, Any],
    observer: Observer,
) -> None:
    """Start the run, or bring an existing one in line with the requested configuration."""
    config, path = prepared.plan.config, directory.path
    state = directory.survey().state
    if state is FolderState.FREE:
        validation = prepared.splits.get("validation")
        labels = None if validation is None else validation.labels
        facts = DataFacts.of(prepared.dataset, prepared.splits["train"], config.standardise)
        directory.create(config, facts, environment, labels)
        whole = prepared.dataset.train  # not the split, so that images are numbered as in their file
        hidden = find_hidden(whole.images, whole.labels, facts.scaling, config.standardise)
        overlaid = None
        if config.labels.method == "overlay":
            overlaid = find_overlaid(whole.images, facts.num_classes, facts.scaling)
        for found in (hidden, overlaid):
            if found is not None:
                observer.on_warning(found)
        return
    if state is FolderState.OLDER_RUN:
        num_layers = directory.count_layers()
        directory.adopt(config, environment)
        observer.on_warning(
            f"run {path} was started by a version that gave runs no identity: it is assumed that its {num_layers} "
            "layers are its own, trained with this version of torch on this machine; from here on that is checked"
        )
    elif directory.count_layers() < config.layers and (not environments or environment != environments[-1]):
        directory.record_environment(environment, directory.list_environments())
    directory.folder.identity = directory.read_identity() or ""
    directory.remove_temporaries()
    saved = directory.read_config()
    if saved.cache.folder != config.cache.folder:  # the caches in the old folder are made again in the new one
        with directory.cache_locked(saved.cache.folder):
            directory.drop_caches(saved.cache.folder)
    if saved != config:
        directory.write_config(config)
    following = f"layers/{directory.count_layers():03d}"
    if directory.folder.find_kind(following) is not None:
        aside = directory.put_aside([following])
        observer.on_warning(f"{path / following} is no layer of this run; it was moved to {aside}")


def _check_environment(
    directory: RunDirectory, environments: Sequence[Mapping[str, Any]], environment: Mapping[str, Any]
) -> None:
    """Raise RunMismatchError where the run would get other bits here than where it was trained so far."""
    remedy = "go on there, or, if other bits do no harm, here with --accept-environment (the run remembers it)"
    if directory.marker is None:  # a run of an earlier version: its environment is assumed to be this one
        return
    different = find_differences(environment, environments[-1])
    if different:
        raise RunMismatchError(
            f"run {directory.path}: this environment would not give the same bits; here and in the run differ "
            f"{'; '.join(different)}; {remedy}"
        )
