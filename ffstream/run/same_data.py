"""Whether data are those of a run."""

from __future__ import annotations

from pathlib import Path

from ffstream.data import Dataset
from ffstream.data.facts import DataFacts
from ffstream.errors import CorruptFileError, RunMismatchError


def check_same_data(run_dir: Path, facts: DataFacts, dataset: Dataset) -> None:
    """Raise RunMismatchError when the training data are not those that the run was started with.

    A run that learns from a stream has no such data: any are its own that are of its shape, with classes that it knows.
    """
    if facts.is_stream:
        _check_alike(run_dir, facts, dataset)
        return
    digest = dataset.digest()
    found = (dataset.image_shape, dataset.num_classes, dataset.scale())
    if digest == facts.digest and (facts.image_shape, facts.num_classes, facts.scale) != found:
        raise CorruptFileError(
            f"manifest {run_dir / 'data.json'}: is not what it was: the training data of its digest have another "
            "shape, scale or number of classes; restore it from a copy"
        )
    if digest != facts.digest:
        raise RunMismatchError(
            f"run {run_dir}: was started on other training data (digest {facts.digest[:12]}, found {digest[:12]} in "
            f"{dataset.name}); restore those data, or start a new run"
        )


def check_same_test(run_dir: Path, facts: DataFacts, dataset: Dataset) -> None:
    """Raise RunMismatchError when the test data are not those that were there when the run was started.

    Nothing is checked in runs of earlier versions, or where there are no test data.
    """
    wanted, found = facts.test_digest, dataset.test_digest()
    if wanted is not None and found is not None and found != wanted:
        raise RunMismatchError(
            f"run {run_dir}: the test data have changed since it was started (digest {wanted[:12]}, found "
            f"{found[:12]} in {dataset.name}); restore those data"
        )


def _check_alike(run_dir: Path, facts: DataFacts, dataset: Dataset) -> None:
    found, allowed = dataset.image_shape, facts.image_shape
    if found != allowed:
        raise RunMismatchError(
            f"run {run_dir}: learns images of shape {allowed}, found {found} in {dataset.name}; bring them to that"
        )
    if dataset.num_classes > facts.num_classes:
        raise RunMismatchError(
            f"run {run_dir}: learns {facts.num_classes} classes, found {dataset.num_classes} in {dataset.name}; name "
            "data of no other classes"
        )
