"""The preparation of a run: its data, its device and its plan, and every check that can refuse it."""

from __future__ import annotations

import contextlib
import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch

from ffstream.data import Dataset, Split, check_classes, load_dataset
from ffstream.data.augmentation import check_augmentation
from ffstream.data.shape import DataShape
from ffstream.device.device import resolve_device, resolve_precision
from ffstream.device.environment import plain_torch
from ffstream.device.reservations import planning, reserved
from ffstream.errors import ConfigError
from ffstream.field.blueprint import Blueprint
from ffstream.field.labels import make_label_method
from ffstream.field.parts import complete_parts
from ffstream.ground.files import expand_home
from ffstream.ground.plugins import load_plugins
from ffstream.infer.combination import find_uncounted
from ffstream.plan.fitting import compute_plan
from ffstream.plan.footprint import Kernels
from ffstream.plan.machine import parse_machine
from ffstream.plan.plan import Plan
from ffstream.plan.probe import measure_kernels, measure_rates, survey_resources
from ffstream.plan.trial import try_steps
from ffstream.run.claim import default_run_dirs
from ffstream.run.configuration import merge_with_saved, with_absolute_paths
from ffstream.run.initial import check_is_other, find_origin
from ffstream.run.remainder import check_extension, check_rounds, is_open
from ffstream.run.run import make_splits
from ffstream.settings.config import Config
from ffstream.settings.sizes import Sizes
from ffstream.storage.initial import Origin
from ffstream.storage.run_directory import RunDirectory
from ffstream.training.input_rows import check_negatives

_MIN_BATCH, _MAX_BATCH = 64, 512
_UPDATES_AN_EPOCH = 64  # aimed at by batch = "auto"


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
    config = with_absolute_paths(config)
    directory = RunDirectory(expand_home(run_dir) if run_dir is not None else next(default_run_dirs(config)))
    directory.check_is_free()
    check_is_other(config.init_from, directory)
    config = complete_parts(merge_with_saved(config, directory, resume=resume, accept_environment=False))
    check_rounds(config)
    if machine is None and data is None:
        prepared = prepare(directory, config, measure=True)
        dataset = prepared.dataset
        of_data = [dataset.warning] if dataset.is_held else dataset.list_notes()
        return _with_warnings(prepared.plan, *of_data, find_idle(config))
    if data is None:
        dataset = load_dataset(config.data, config.data_root, skips_bad=config.bad_images == "skip", is_held=False)
        data, data_bytes = shape_of(dataset, make_splits(dataset, config)), dataset.num_bytes
    else:
        data_bytes = data.num_features * sum(data.num_samples.values())  # one byte per feature
    data = _cut(data, config)
    check_augmentation(config.augmentation, data.image_shape)
    if machine is not None:
        resources = parse_machine(machine)
        precision = "bf16" if config.precision == "auto" else config.precision
        config = dataclasses.replace(config, device=resources.device_type, precision=precision)
    else:
        device = resolve_device(config.device)
        config = dataclasses.replace(config, precision=resolve_precision(config.precision, device))
        place = directory.caches(config.cache.folder).base
        resources = survey_resources(config.memory, device, place)
        resources = dataclasses.replace(resources, rates=measure_rates(config, device, place))
    config = dataclasses.replace(config, batch=resolve_batch(config.batch, data.num_samples["train"]))
    origin = find_origin(config, data, make_label_method(config, data))
    plan = compute_plan(config, data, data_bytes, resources, must_fit=False, copied_bytes=_list_copies(origin))
    return _with_warnings(dataclasses.replace(plan, note=None if origin is None else origin.summary), find_idle(config))


def find_idle(config: Config) -> str | None:
    """A warning if layers of this configuration count for nothing in what is predicted; None otherwise."""
    return find_uncounted(config.layers, config.network.stack_layers)


def _with_warnings(plan: Plan, *warnings: str | None) -> Plan:
    """The plan with more warnings, of which those that are None are left out."""
    return dataclasses.replace(plan, warning="; ".join(filter(None, (plan.warning, *warnings))) or None)


@dataclass(frozen=True)
class Prepared:
    """What a run starts from. All checks that can refuse the run have passed, and nothing has been written yet."""

    plan: Plan
    dataset: Dataset
    splits: dict[str, Split]
    device: torch.device
    origin: Origin | None  # what layers start from that do not start anew


def _list_copies(origin: Origin | None) -> dict[int, int]:
    """The bytes of what is copied of another run, by the index of the layer."""
    return {} if origin is None else {each.layer: each.num_bytes for each in origin.layers}


def prepare(
    directory: RunDirectory,
    config: Config,
    *,
    measure: bool,
    reservation: contextlib.ExitStack | None = None,
    download: bool = False,
    window: Dataset | None = None,
    dataset: Dataset | None = None,
) -> Prepared:
    """Resolve the configuration and make the plan. Raises an FFStreamError for a run that is not possible here.

    With `measure`, and always on CUDA, the memory that matrix products take beside their operands is measured, and
    steps are tried; on a CPU that takes a second or two. Data are fetched only with `download`. Closing `reservation`
    releases the memory reserved for the run; without it no run follows, and times are measured instead of trying steps.
    `dataset`, or `window` with the samples of a stream that come next, stand in place of the data that the
    configuration names.
    """
    config = complete_parts(config)
    check_rounds(config)
    check_extension(directory, config)
    num_done = 0 if config.in_rounds else directory.count_layers()
    device = resolve_device(config.device)
    place = directory.caches(config.cache.folder).base
    resources = survey_resources(config.memory, device, place, directory.passing_bytes(config.cache.folder))
    room_bytes = resources.host_bytes - resources.host_used_bytes
    skips_bad = config.bad_images == "skip"
    dataset = window or dataset
    if dataset is None:
        dataset = load_dataset(
            *(config.data, config.data_root),
            skips_bad=skips_bad,
            room_bytes=room_bytes,
            download=download,
            is_held=False,
        )
    if reservation is not None:  # else no run follows, and of what is not in memory nothing but its shape is needed
        dataset.check_values()
    splits = make_splits(dataset, config)
    data = shape_of(dataset, splits)
    data = _cut(data, config)
    method = make_label_method(config, data)
    check_negatives(config.data, dataset.train, method.rows)
    check_augmentation(config.augmentation, dataset.image_shape, dataset.train.images.dtype)
    if window is None:
        check_classes(config.data, splits["train"], dataset.class_names)
    config = dataclasses.replace(
        config,
        device=str(device),
        precision=resolve_precision(config.precision, device),
        batch=resolve_batch(config.batch, data.num_samples["train"]),
    )
    if directory.exists():
        origin = directory.initial.origin
        directory.initial.list_missing(num_done)  # raises a RunError where one is lost
    else:
        origin = find_origin(config, data, method, dataset.class_names)
    if reservation is None:
        resources = dataclasses.replace(resources, rates=measure_rates(config, device, place))

    def kernels(sized: Blueprint) -> Kernels:
        return measure_kernels(sized, device) if measure or device.type != "cpu" else Kernels()

    with planning() if reservation is not None else contextlib.nullcontext():
        if reservation is not None:  # other processes may have reserved memory while the data were read
            resources = survey_resources(config.memory, device, place, directory.passing_bytes(config.cache.folder))
        plan = compute_plan(
            *(config, data, dataset.num_bytes, resources, num_done, kernels),
            is_started=directory.exists(),
            copied_bytes=_list_copies(origin),
        )
        plan = dataclasses.replace(plan, note=None if origin is None else origin.summary)
        if reservation is not None:
            reservation.enter_context(reserved(plan.host.num_bytes))
    _check_patience(plan.config, data)
    if (measure or device.type != "cpu") and reservation is not None and is_open(directory, config):
        try_steps(plan, Blueprint.of(plan.config, data, method), device)
    return Prepared(plan, dataset, splits, device, origin)


def _check_patience(config: Config, data: DataShape) -> None:
    """Raise ConfigError where a layer cannot be done early: there is nothing to tell by, or more depends on its end."""
    if not config.optimiser.patience:
        return
    noun = f"config optimiser.patience: found {config.optimiser.patience}, allowed 0"
    if "validation" not in data.num_samples:
        raise ConfigError(
            f"{noun} without a validation split, whose error it goes by; add --set validation_fraction=0.1"
        )
    if config.optimiser.decay_start == 0:
        raise ConfigError(f"{noun} with optimiser.decay_start=0, as the learning rate then falls from the start")
    if config.augmentation.views > 1:
        raise ConfigError(f"{noun} with --views, as the last epoch, which reads the images themselves, is set before")
    if Sizes.of(config).num_tiles > 1:
        raise ConfigError(f"{noun} with layers in tiles, each of which sees the whole of those before it; use --budget")


def shape_of(dataset: Dataset, splits: dict[str, Split]) -> DataShape:
    """The shape of a data set and its splits, as a plan needs it."""
    num_samples = {name: len(split) for name, split in splits.items() if name != "test"}
    brings_negatives = dataset.train.negatives is not None
    return DataShape(dataset.num_features, dataset.num_classes, num_samples, dataset.image_shape, brings_negatives)


def _cut(data: DataShape, config: Config) -> DataShape:
    """What is planned for: of a stream one window, as the next one may be the last, and smaller than the others."""
    if not config.schedule.is_stream:
        return data
    return dataclasses.replace(data, num_samples={"train": int(config.schedule.window_samples)})


def resolve_batch(batch: int | str, num_samples: int) -> int:
    """Resolve "auto" to the power of two that gives about 64 updates per epoch, between 64 and 512."""
    if not isinstance(batch, str):
        return batch
    wanted = max(num_samples // _UPDATES_AN_EPOCH, 1)
    return min(max(1 << (wanted.bit_length() - 1), _MIN_BATCH), _MAX_BATCH)
