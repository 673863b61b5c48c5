"""When the layer in training is saved, and what an earlier process has saved of it."""

from __future__ import annotations

import time
from functools import partial

from ffstream.cache import ActivationCache
from ffstream.errors import CorruptFileError, to_command
from ffstream.field.blueprint import Blueprint
from ffstream.field.network import LayerSpec
from ffstream.ground.units import parse_seconds
from ffstream.run.commits import Commits
from ffstream.run.layer_store import LayerStore
from ffstream.storage.epoch_part import EpochPart
from ffstream.storage.metrics import MetricsFile
from ffstream.storage.run_directory import RunDirectory
from ffstream.training.layer_trainer import LayerTrainer

_SAVE_WINDOWS_S = 300.0  # between windows, unless save_every says another time


class ProgressSaver:
    """Saves the layer in training after each epoch or, with `save_every`, whenever that time has passed."""

    def __init__(self, directory: RunDirectory, blueprint: Blueprint, commits: Commits, store: LayerStore) -> None:
        self.directory, self._blueprint, self._commits, self._store = directory, blueprint, commits, store
        save_every = blueprint.config.save_every
        self._save_every_s = None if save_every == "auto" else parse_seconds(save_every)
        self._saved_s = _now_s()
        self._epochs_taken: dict[int, int] = {}  # by layer, if an earlier process left its progress
        self._is_within_epoch = False  # whether that progress was saved within an epoch
        self.validation_errors: list[float] = []  # of those epochs, where there is a validation split

    def rewind(self, num_done: int, metrics: MetricsFile) -> None:
        """Bring progress and metrics in line with what is committed.

        Metrics that this process has written itself up to there are not read again: a stream has ever more of them.
        """
        progress = self.directory.read_progress()
        if progress is not None and self.directory.has_stale_progress():  # a process was killed before cleaning up
            self.directory.drop_progress()
            progress = None
        own_round = self.directory.read_progress_round()
        if progress is not None and (own_round, progress[0]) > (self.directory.round, num_done):
            of_rounds = f" of round {own_round}" if own_round else ""
            done = f" of round {self.directory.round}" if own_round else ""
            raise CorruptFileError(
                f"run {self.directory.path}: the saved progress is of layer {progress[0] + 1}{of_rounds}, but only "
                f"{num_done} layers{done} are finished; restore the missing ones from a copy, or put the progress "
                "aside with " + to_command("repair --apply", self.directory.path)
            )
        self.directory.initial.drop(num_done)  # in case that a process was killed before it did
        self._is_within_epoch = progress is not None and self.directory.is_within_epoch()
        self._epochs_taken = {progress[0]: progress[1]} if progress else {}
        seal = self.directory.read_seal()
        # Of a file that was not read yet, no bytes are known either, whatever a killed process left in it.
        if seal is None or not seal.num_bytes or seal != metrics.seal():
            self.directory.check_metrics()
            metrics.rewind(seal, num_done, self._epochs_taken.get(num_done, 0))
        if progress is not None:
            records = (record for record in metrics.read(seal) if record.get("kind") == "epoch")
            errors = [record.get("validation_error") for record in records if record.get("layer") == num_done + 1]
            self.validation_errors = [float(error) for error in errors if error is not None]

    def count_epochs(self, layer: int) -> int:
        """How many epochs of a layer an earlier process has saved, in all tiles."""
        return self._epochs_taken.get(layer, 0)

    def take_epochs(self, layer: int) -> int:
        """How many epochs of a layer an earlier process took, in all tiles. They are counted once."""
        return self._epochs_taken.pop(layer, 0)

    def restore(self, trainer: LayerTrainer, spec: LayerSpec, epoch: int, cache: ActivationCache) -> EpochPart | None:
        """Fill a new trainer with what was saved of its layer before an epoch or within it, if anything was.

        A layer of which nothing was saved is filled with the weights of another run, if it starts from any. In rounds,
        a layer goes on from the round before. Returns what is done of the epoch, if it was saved within one. Raises
        CorruptFileError, also for a part that the epoch on this cache does not have.
        """
        if self._store.fill(spec.index, trainer):
            return None
        self._saved_s = _now_s()
        if self._is_within_epoch:
            part = self.directory.load_progress(trainer.layer, trainer.optimiser, trainer.start_part())
            self._is_within_epoch = False
            if part is not None and not trainer.batches_of(cache, epoch).fits(part):
                raise CorruptFileError(
                    f"progress {self.directory.path / 'progress'}: was saved within an epoch of other shards, after "
                    f"{part.num_groups} groups of them and {part.num_samples} samples; restore it from a copy"
                )
            return part
        if self.directory.round > 1:
            before = self.directory.at_round(self.directory.round - 1)
            before.load_layer(spec.index, trainer.layer)
            before.load_optimiser(spec.index, trainer.optimiser)
        elif epoch % spec.num_epochs:
            self.directory.load_progress(trainer.layer, trainer.optimiser)
        elif self.directory.initial.fill(trainer.layer, spec.index):
            self._blueprint.hide(trainer.layer, spec)  # other features may be hidden here than there
        return None

    def is_due(self) -> bool:
        """Whether the layer is saved by time, and that time has passed."""
        return self._save_every_s is not None and _now_s() - self._saved_s >= self._save_every_s

    def is_due_after_epoch(self) -> bool:
        """Whether the layer is saved now that an epoch is over."""
        return self._save_every_s is None or self.is_due()

    def save_windows(self, num_done: int, num: int) -> None:
        """Save all layers after so many of `num` windows, if the last one comes next or it is time."""
        is_due = self.is_due() or (self._save_every_s is None and _now_s() - self._saved_s >= _SAVE_WINDOWS_S)
        if num_done + 1 == num or is_due:
            self._commits.add(self._store.save(num_done, num))
            self._saved_s = _now_s()

    def save(self, spec: LayerSpec, num_epochs: int, trainer: LayerTrainer, part: EpochPart | None = None) -> None:
        """Save the layer, or its tile, after so many epochs and maybe a part of the next one."""
        write = partial(self.directory.write_progress, spec.index, num_epochs, trainer.layer, trainer.optimiser)
        self._commits.add(lambda seal: write(seal, part))
        self._saved_s = _now_s()


def _now_s() -> float:
    """The clock by which progress is saved."""
    return time.perf_counter()
