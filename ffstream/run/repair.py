"""Finding what can be kept of a damaged run, and putting the rest aside, so that the run can be resumed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ffstream.errors import CorruptFileError, RunError, StorageError
from ffstream.ground.files import exists, storage_errors
from ffstream.ground.lock import RunLock
from ffstream.run.run import Run
from ffstream.storage.rounds import round_name
from ffstream.storage.run_directory import RunDirectory


@dataclass(frozen=True)
class Diagnosis:
    """What is wrong with a run, and what would be put aside: all that is damaged, and all that was built on it."""

    num_committed: int  # layers
    num_valid: int  # the longest prefix of them without damage
    problems: list[str]  # a line each, including problems that a resume mends by itself
    damaged: list[Path]  # files and folders of the run, to be put aside


def diagnose(directory: RunDirectory) -> Diagnosis:
    """Check everything that a run has committed.

    Raises CorruptFileError or RunError for damage that putting layers aside does not mend. A file that cannot be read
    counts as neither missing nor damaged: it raises StorageError, and nothing is put aside.
    """
    run = Run(directory.path)
    config = run.config  # without the files at the top level there is no run: they must be restored from a copy
    problems: list[str] = []
    if not directory.read_environments(accepts_missing=True) and directory.marker is not None:
        missing = _problem(directory.read_environments)  # nothing has to be put aside for it
        problems += [missing] if missing is not None else []
    directory.load_validation_labels()
    damaged = _find_damaged_rounds(directory, problems)
    last_valid = max(
        (each for each in directory.list_rounds() if directory.path / round_name(each) not in damaged), default=0
    )
    written = directory.at_round(last_valid + 1) if directory.list_round_folders() else directory
    is_gone = written.round > 0 and written.path / written.layers_folder in damaged
    indices = [] if is_gone else written.list_layers()
    of_stream = directory.stream.list_damaged()
    problems += [problem for _, problem in of_stream]
    damaged += [directory.path / name for name, _ in of_stream]
    num_valid = 0
    for index in indices if not of_stream else ():  # the layers of the round under way learn from that window
        if index == num_valid:
            problem = _problem(partial(written.verify_layer, num_valid))
        else:
            problem = f"layer {num_valid + 1} is missing although there are layers above it"
        if problem is not None:
            problems.append(problem)
            break
        num_valid += 1
    initial = directory.initial
    copies = initial.list_from(num_valid)
    damaged += [written.layer_folder(index) for index in indices[num_valid:]]
    caches = directory.caches(config.cache.folder)
    where, _ = caches.open()
    places = {name: where.path / name for name in caches.names()}
    if damaged:  # progress and caches were made with those layers
        damaged += [path for path in (directory.path / "progress", *places.values()) if exists(path)]
    else:
        checks: dict[Path, Callable[[], object]] = {
            directory.path / "progress": directory.verify_progress,
            directory.metrics_path: directory.check_metrics,
            directory.path / "readout": directory.verify_readout,
            **{directory.path / initial.name(each.layer): partial(initial.verify, each) for each in copies},
            **{path: partial(run.verify_cache, name) for name, path in places.items()},
        }
        for place, check in checks.items():
            problem = _problem(check) if exists(place) else None
            if problem is not None and problem not in problems:  # checking metrics may repeat a problem of the progress
                problems.append(problem)
                damaged.append(place)
        if directory.metrics_path not in damaged:  # unsealed lines are no reason to put aside the sealed ones
            problem = _problem(partial(directory.check_metrics_end, config.layers))
            problems += [problem] if problem is not None else []
    if written.round:
        num_committed = len(directory.at_round(last_valid).list_layers()) if last_valid else 0
        lost = config.layers if damaged and not last_valid else 0
        return Diagnosis(max(num_committed, lost), num_committed, problems, damaged)
    return Diagnosis(len(indices), num_valid, problems, damaged)


def _find_damaged_rounds(directory: RunDirectory, problems: list[str]) -> list[Path]:
    """The folders of rounds that are damaged, and of all later ones; adds what is wrong to `problems`.

    The newest round that is whole is kept, if there is any, and the next one, which goes on from it.
    """
    for number in reversed(directory.list_rounds()):
        problem = _problem(directory.at_round(number).verify_round)
        if problem is None:
            kept = [each for each in directory.list_round_folders() if each <= number]
            break
        problems.append(problem)
    else:
        kept = []
    if not problems:
        return []
    return [directory.path / round_name(each) for each in directory.list_round_folders() if each not in kept]


def put_aside(directory: RunDirectory) -> tuple[Diagnosis, Path | None]:
    """Move what is damaged into a new folder in the run. Returns the diagnosis, and that folder if anything was moved.

    The diagnosis is made under the run's lock, because what was damaged before may have been trained again by then. A
    damaged cache outside the run is removed, with all other caches there: they are made again. Raises RunLockedError
    while the run is being trained, StorageError, and the errors of `diagnose`.
    """
    with storage_errors(directory.path), RunLock(directory.path) as lock:
        locked = RunDirectory(directory.path, lock)
        diagnosis = diagnose(locked)
        inside = [path for path in diagnosis.damaged if _is_inside(path, directory)]
        caches = locked.caches(locked.read_config().cache.folder)
        where, _ = caches.open()
        in_caches = {where.path / name for name in caches.names()}
        for path in diagnosis.damaged:
            if path not in in_caches and path not in inside:
                raise StorageError(
                    f"repair {directory.path}: {path} lies behind a link, through which nothing is moved; put what the "
                    "link leads to in its place, then do it again"
                )
        # The uppermost layers first, so that no layer is ever missing below another.
        names = [path.relative_to(directory.path).as_posix() for path in reversed(inside)]
        aside = locked.put_aside(names) if names else None
        if len(inside) < len(diagnosis.damaged):
            with caches.locked():
                caches.drop()
    return diagnosis, aside


def _is_inside(path: Path, directory: RunDirectory) -> bool:
    """Whether a path lies in the run, with no link on the way to it."""
    try:
        name = path.relative_to(directory.path).as_posix()
    except ValueError:
        return False
    above = name.split("/")[:-1]
    names = ("/".join(above[: number + 1]) for number in range(len(above)))
    return all(directory.folder.find_kind(each) == "a folder" for each in names)


def _problem(check: Callable[[], object]) -> str | None:
    """The message of the error that a check raises; None if it raises none."""
    try:
        check()
    except (CorruptFileError, RunError) as error:
        return str(error)
    return None
