"""Starting and resuming a run: the lock is taken, what does not fit is refused, and the schedule is executed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ffstream.data import GIVEN, Dataset, as_dataset
from ffstream.data.classes import find_renamed
from ffstream.data.facts import DataFacts
from ffstream.data.stream_source import PIPE, DatasetSource, IteratorSource, StreamSource
from ffstream.device.device import explain_fallback
from ffstream.device.environment import describe_environment, find_differences, plain_torch
from ffstream.device.memory import limiting, naming_lack_of_memory
from ffstream.errors import ConfigError, RunError, RunMismatchError, StorageError, to_command
from ffstream.field.parts import describe_parts
from ffstream.ground.files import expand_home, storage_errors, take_notes
from ffstream.ground.interrupts import Interrupts
from ffstream.ground.plugins import load_plugins
from ffstream.infer.committed import CommittedLayers
from ffstream.run.claim import claim_folder, default_run_dirs
from ffstream.run.configuration import make_absolute, merge_with_saved, restore_own_parts, with_absolute_paths
from ffstream.run.executor import Runner
from ffstream.run.initial import check_is_other
from ffstream.run.judgement import Judgement
from ffstream.run.preparation import Prepared, find_idle, prepare
from ffstream.run.remainder import check_rounds, find_next_cycle, is_open, make_endless
from ffstream.run.run import Run
from ffstream.run.same_data import check_same_data
from ffstream.run.stream import Stream, learn
from ffstream.settings.config import Config
from ffstream.storage.identity import FolderState
from ffstream.storage.run_directory import RunDirectory
from ffstream.training.observer import Observer, WarningObserver
from ffstream.training.visibility import find_hidden, find_overlaid


def train(
    config: Config,
    run_dir: str | Path | None = None,
    *,
    data: Any = None,
    init_from: str | Path | None = None,
    resume: bool = False,
    accept_environment: bool = False,
    observer: Observer | None = None,
) -> Run:
    """Train a network layer by layer into `run_dir` (runs/<data>-<layers>x<width>-<time> by default).

    `data` are the samples themselves, in place of those that `config.data` names: a pair (x, y) of arrays or tensors, a
    torch Dataset or an iterable of batches, such as a generator, of such pairs, or a `Dataset`, such as
    `Dataset.from_arrays(x, y, x_val=..., y_val=...)`. They have to be given again to go on with the run.

    With `init_from`, another run, a layer starts from the one of the same number there if its kind, and the names and
    shapes of its parameters, are the same; `Observer.on_note` tells which do. This is the setting of that name.

    The folder is missing or empty, or holds a run. With `resume`, an existing run is resumed, provided that it has this
    configuration; layers are added if it has fewer than are asked for. With `accept_environment`, it is resumed even
    where something that decides bits differs from what it was trained with. Raises an FFStreamError; nothing that was
    committed is lost. An interrupt ends training between two shards of a cache, a second one at once.
    """
    load_plugins(config.plugins)
    with Interrupts(), plain_torch():
        config = config if init_from is None else config.override({"init_from": str(init_from)})
        config = with_absolute_paths(config)
        config = config if data is None else config.override({"data": GIVEN})
        candidates = [expand_home(run_dir)] if run_dir is not None else default_run_dirs(config)
        with claim_folder(candidates, is_new=run_dir is None) as directory:
            check_is_other(config.init_from, directory)
            config = merge_with_saved(config, directory, resume=resume, accept_environment=accept_environment)
            return _execute(
                *(directory, config, observer or WarningObserver()),
                accept_environment=accept_environment,
                download=True,
                dataset=None if data is None else as_dataset(data),
            )


def stream(
    config: Config,
    source: str | os.PathLike[str] | Iterable[Any],
    run_dir: str | Path | None = None,
    *,
    num_classes: int | None = None,
    resume: bool = False,
    accept_environment: bool = False,
    observer: Observer | None = None,
) -> Run:
    """Learn from a stream, window after window, until it ends or `config.epochs` windows of it are learnt.

    A window has `schedule.window_samples` samples, which pass through all layers `schedule.replays` times; the learning
    rate is constant, and no sample is held out. `source` is an iterable of pairs of images (n, *shape) and labels (n,),
    or the name of a folder of files of arrays, of a pipe of .npy records ("-" is standard input), or of a data set. All
    classes that may ever come are numbered below `num_classes`; by default, they are those of the source or, where it
    does not know them, of the first window. `Observer.on_window` tells how often the network was wrong in each window
    before it learnt it.

    The other arguments are those of `train`. An interrupted run goes on after the last window that was taken. Raises an
    FFStreamError.
    """
    load_plugins(config.plugins)
    with Interrupts(), plain_torch():
        name = os.fspath(source) if isinstance(source, (str, os.PathLike)) else None
        config = with_absolute_paths(make_endless(config).override({"data": PIPE if name is None else name}))
        candidates = [expand_home(run_dir)] if run_dir is not None else default_run_dirs(config)
        with claim_folder(candidates, is_new=run_dir is None) as directory:
            config = merge_with_saved(config, directory, resume=resume, accept_environment=accept_environment)
            return _execute(
                *(directory, config, observer or WarningObserver()),
                accept_environment=accept_environment,
                download=True,
                source=None if isinstance(source, (str, os.PathLike)) else IteratorSource(source),
                num_classes=num_classes,
            )


def resume(
    run_dir: str | Path,
    *,
    layers: int | None = None,
    epochs: int | None = None,
    device: str | None = None,
    cache: str | None = None,
    cache_dir: str | None = None,
    budget: str | None = None,
    save_every: str | None = None,
    data: Any = None,
    data_root: str | None = None,
    accept_environment: bool = False,
    download: bool = False,
    observer: Observer | None = None,
) -> Run:
    """Resume a run after any interruption; with more `layers` than it has, grow it. Raises an FFStreamError.

    A run in rounds takes more of them with more `epochs`. If it was finished, the learning rate, which had fallen to
    zero, starts anew with the added rounds and falls again; else it falls as if so many had been asked for at first.

    If torch, the processor or anything else that decides bits has changed, the run is refused, unless
    `accept_environment` is true; the run then records the change. Missing data are fetched only with `download`. `data`
    and `data_root` say where the data are now; the run remembers that if they are the same data. `data` may also be the
    samples themselves, as for `train`.
    """
    given = {"layers": layers, "device": device, "cache.tier": cache, "memory.budget": budget}
    given |= {"save_every": save_every, "epochs": epochs}
    given |= {"data_root": make_absolute(data_root), "cache.folder": make_absolute(cache_dir)}
    given |= {"data": data if isinstance(data, str) else None}
    with Interrupts(), plain_torch():
        load_plugins(())
        path = Run(Path(run_dir)).path  # raises a RunError if there is no run
        with claim_folder([path], is_new=False) as directory:
            saved = directory.read_config()
            config = saved.override({key: value for key, value in given.items() if value is not None})
            if epochs is not None and not saved.in_rounds:
                raise ConfigError(
                    f"--epochs: found {epochs} for run {path}, whose layers are trained one after the other, each to "
                    "its end; allowed for a run in rounds (--order rounds); leave it out"
                )
            config = with_absolute_paths(config)
            return _execute(
                *(directory, config, observer or WarningObserver()),
                accept_environment=accept_environment,
                download=download,
                dataset=None if data is None or isinstance(data, str) else as_dataset(data),
            )


def _execute(
    directory: RunDirectory,
    config: Config,
    observer: Observer,
    *,
    accept_environment: bool,
    download: bool,
    dataset: Dataset | None = None,
    source: StreamSource | None = None,
    num_classes: int | None = None,
) -> Run:
    """Start or resume a run and train it. All checks that can refuse it come before anything is written.

    The samples are those of `dataset`, by default of the one that the configuration names. A stream learns from
    `source` in the same way.
    """
    environments = directory.read_environments(accepts_missing=accept_environment)
    restore_own_parts(directory, accept_environment=accept_environment)
    num_threads = environments[-1].get("threads") if environments and not accept_environment else None
    with plain_torch(num_threads), contextlib.ExitStack() as reservation:
        measure = config.memory.budget != "auto"
        check_rounds(config)
        if source is None and dataset is not None and config.schedule.is_stream:
            source = DatasetSource(dataset, config.seed)
        stream = (
            Stream.open(directory, config, source, num_classes, download=download)
            if config.schedule.is_stream
            else None
        )
        window = None if stream is None else stream.describe()
        prepared = prepare(
            directory,
            config,
            measure=measure,
            reservation=reservation,
            download=download,
            window=window,
            dataset=dataset,
        )
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
            is_finished = not is_open(directory, prepared.plan.config)
            if not is_finished and not accept_environment:
                _check_environment(directory, environments, environment)
            if is_finished:  # nothing to train: no layer would be read
                for index in range(directory.count_layers()):
                    directory.verify_layer(index)
        if prepared.plan.tier == "disk":
            directory.caches(prepared.plan.config.cache.folder).check_base()
        if prepared.plan.sizes_by_free is not None:
            observer.on_warning(
                "too little memory is free for the sizes that this machine would use otherwise; the run takes "
                f"{prepared.plan.sizes_by_free}, which gives other weights, and keeps these sizes; free some memory "
                "and "
                "start a new run, or set --budget and --host-budget to what is always available"
            )
        fallback = explain_fallback(config.device)
        if fallback is not None:
            observer.on_warning(fallback)
        of_data = prepared.dataset.warning if stream is None or not directory.exists() else stream.warning
        for warning in (of_data, find_idle(prepared.plan.config)):
            if warning is not None:
                observer.on_warning(warning)
        # From here on, removing old files included, an OSError becomes a StorageError, and an interrupt is deferred.
        with Interrupts(defers=True), storage_errors(directory.path):
            _write_start(directory, prepared, environments, environment, observer)
            config, splits, device = prepared.plan.config, prepared.splits, prepared.device
            judgement: Judgement | None = None
            is_judged = (
                "validation" in splits and config.labels.method != "none"
            )  # without labels, nothing is predicted
            if is_judged and is_open(directory, config):  # before the images are freed
                judgement = Judgement.of(prepared.dataset, config, splits["validation"])
            caches = directory.caches(config.cache.folder)
            on_disk = prepared.plan.tier == "disk"
            needed, limit_bytes = prepared.plan.device, None
            if config.memory.budget != "auto":
                limit_bytes = needed.allowed_bytes - needed.terms.get("context", 0)
            remedy = (
                "free some; what is committed is kept, go on with "
                f"{to_command('resume', directory.path)}, and if need be with --cache disk or a smaller --budget"
            )
            try:
                with (
                    naming_lack_of_memory(device, remedy),
                    limiting(device, limit_bytes),
                    caches.locked(make=True) if on_disk else contextlib.nullcontext(),
                ):
                    facts, plan = directory.read_data(), prepared.plan
                    cycle = find_next_cycle(directory, config)
                    if stream is None:
                        runner = Runner(directory, plan, facts, splits, device, observer, judgement, cycle)
                    # The runner frees the images once no caches are written from them.
                    del prepared, splits, window, dataset
                    try:
                        if stream is None:
                            runner.run()
                            del runner  # so that its memory is free
                        else:
                            learn(stream, directory, plan, device, observer)
                    finally:
                        with contextlib.suppress(StorageError):
                            caches.remove_half_shards()
                    if judgement is not None:
                        # In the host's memory: the plan has no room elsewhere, and it is little work.
                        in_memory = config.override({"cache.tier": "host"})
                        layers = CommittedLayers(
                            directory.newest(), in_memory, directory.read_data(), torch.device("cpu")
                        )
                        found = judgement.look_again(layers)
                        if found is not None:
                            observer.on_warning(found)
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
    prepared: Prepared,
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
        if config.schedule.is_stream:
            facts = DataFacts({**facts.content, "is_stream": True})
        directory.create(config, facts, environment, labels, prepared.origin)
        whole = prepared.dataset.train  # not the split, so that images are numbered as in their file
        hidden = find_hidden(whole.images, whole.labels, facts.scaling, config.standardise)
        overlaid = None
        if config.labels.method == "overlay":
            overlaid = find_overlaid(whole.images, facts.num_classes, facts.scaling)
        for found in (hidden, overlaid):
            if found is not None:
                observer.on_warning(found)
        if prepared.origin is not None:
            observer.on_note(prepared.origin.summary)
        return
    if state is FolderState.OLDER_RUN:
        num_layers = directory.count_layers()
        directory.adopt(config, environment)
        observer.on_warning(
            f"run {path} was started by a version that gave runs no identity: it is assumed that its {num_layers} "
            "layers are its own, trained with this version of torch on this machine; from here on that is checked"
        )
    elif not environments or (is_open(directory, config) and environment != environments[-1]):
        directory.record_environment(environment, directory.list_environments())
    directory.folder.identity = directory.read_identity() or ""
    directory.remove_temporaries()
    saved = directory.read_config()
    if saved.cache.folder != config.cache.folder:  # the caches in the old folder are made again in the new one
        caches = directory.caches(saved.cache.folder)
        with caches.locked():
            caches.drop()
    if saved != config:
        directory.write_config(config)
    directory.initial.take(directory.initial.list_missing(directory.count_layers()))
    written = directory.under_way()
    following = written.layer_name(written.count_layers())
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
