"""What of a damaged run can be kept, and putting the rest aside, so that the run goes on from there."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ffstream.checkpoint import RunDirectory
from ffstream.errors import CorruptFileError, RunError
from ffstream.files import make_folder, storage_errors, sync_folder
from ffstream.lock import RunLock
from ffstream.run import Run


@dataclass(frozen=True)
class Diagnosis:
    """What is wrong with a run, and what would be put aside: all that is damaged, and all that was built on it."""

    num_committed: int  # layers
    num_valid: int  # the longest prefix of them without damage
    problems: list[str]  # a line each
    damaged: list[Path]  # files and folders of the run


def diagnose(directory: RunDirectory) -> Diagnosis:
    """Check everything that a run has committed. Raises CorruptFileError, RunError for what no layers make up for."""
    run = Run(directory.path)
    _ = run.config  # it and the description of the data are the run itself: they are restored, or nothing is
    directory.load_validation_labels()
    folders = sorted(path.parent for path in directory.path.glob("layers/*/manifest.json"))
    problems: list[str] = []
    num_valid = 0
    for folder in folders:
        if folder == directory.layer_folder(num_valid):
            problem = _problem(partial(directory.verify_layer, num_valid))
        else:
            problem = f"layer {num_valid + 1} is missing although there are layers above it"
        if problem is not None:
            problems.append(problem)
            break
        num_valid += 1
    damaged = folders[num_valid:]
    if damaged:  # all that is there for a time only was made through those layers
        damaged += [path for path in (directory.path / "progress", directory.cache_root) if path.exists()]
    else:
        places: dict[Path, Callable[[], object]] = {
            directory.path / "progress": directory.verify_progress,
            directory.metrics_path: directory.check_metrics,
            directory.path / "readout": partial(directory.load_fitted_readout, num_valid),
            **{folder: partial(run.verify_cache, folder) for folder in run.cache_folders()},
        }
        for place, check in places.items():
            problem = _problem(check) if place.exists() else None
            if problem is not None and problem not in problems:  # the metrics are sealed by the progress
                problems.append(problem)
                damaged.append(place)
    return Diagnosis(len(folders), num_valid, problems, damaged)


def put_aside(directory: RunDirectory, diagnosis: Diagnosis) -> Path | None:
    """Move what is damaged into a folder of its own in the run, which is returned; None if there is nothing.

    Raises RunLockedError while the run is being trained, StorageError.
    """
    if not diagnosis.damaged:
        return None
    with storage_errors(directory.path), RunLock(directory.path):
        names = (f"damaged-{number}" for number in itertools.count(1))
        aside = next(path for path in map(directory.path.joinpath, names) if not path.exists())
        for place in reversed(diagnosis.damaged):  # the layers above first, so that at no time one is missing
            target = aside / place.relative_to(directory.path)
            make_folder(target.parent)
            place.rename(target)
            sync_folder(target.parent)
            sync_folder(place.parent)
    return aside


def _problem(check: Callable[[], object]) -> str | None:
    """What a check says in its error."""
    try:
        check()
    except (CorruptFileError, RunError) as error:
        return str(error)
    except FileNotFoundError as error:
        return f"file {error.filename}: is missing"
    return None
