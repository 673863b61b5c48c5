"""A run as its user sees it: a directory that can be evaluated, used for predictions, exported and verified."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ffstream.data import Dataset, Split, as_dataset, fit_images, holds_pictures, load_dataset, split_validation
from ffstream.data.classes import find_renamed
from ffstream.data.facts import DataFacts
from ffstream.data.stream_source import can_be_read_again
from ffstream.device.device import explain_fallback, resolve_device
from ffstream.device.environment import plain_torch
from ffstream.device.memory import naming_lack_of_memory
from ffstream.errors import ConfigError, CorruptFileError, DataError, RunError
from ffstream.field.parts import restore_parts
from ffstream.ground.files import expand_home
from ffstream.ground.interrupts import Interrupts
from ffstream.ground.plugins import Untrusted, load_plugins
from ffstream.infer.combination import fit_weights, plain_sum
from ffstream.infer.committed import CommittedLayers
from ffstream.infer.evaluation import (
    Evaluation,
    calibrate,
    evaluate_fitted,
    evaluate_goodness,
    objective_temperature,
    read_validation_goodness,
)
from ffstream.infer.model import FFNetwork, export_network, load_network
from ffstream.infer.predictions import Predictions, predict, predict_softmax
from ffstream.infer.readout import evaluate_softmax
from ffstream.run.cache_set import verify_cache
from ffstream.run.judgement import judge_evaluation
from ffstream.run.same_data import check_same_data, check_same_test
from ffstream.settings.config import Config
from ffstream.settings.names import METHODS, SPLITS, check_word
from ffstream.storage.run_directory import RunDirectory
from ffstream.training.observer import LayerFigures

if TYPE_CHECKING:
    from ffstream.data.images import NamedImages


_MORE_MEMORY = "free some, or use another --device, such as cpu; nothing of the run is changed"


@dataclass(frozen=True)
class _Source:
    """Where the data of a run are now; an empty field means that the run's own setting is used."""

    data: Any  # a name, or the samples themselves
    data_root: str
    download: bool  # whether to fetch missing data

    @property
    def is_as_before(self) -> bool:
        """Whether the run's own setting is used."""
        return isinstance(self.data, str) and not self.data


@dataclass(frozen=True)
class Run:
    """One run directory. Raises RunError when no run was started there."""

    path: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", expand_home(self.path))
        self.directory.check_is_run()

    @property
    def directory(self) -> RunDirectory:
        return RunDirectory(self.path)

    @property
    def config(self) -> Config:
        """The resolved configuration."""
        return self.directory.read_config()

    @property
    def num_layers_done(self) -> int:
        return self.directory.count_layers()

    @property
    def layers(self) -> list[LayerFigures]:
        """Figures of the finished layers."""
        return read_layer_figures(self.directory)

    @property
    def validation_errors_by_depth(self) -> list[float]:
        """Validation errors, from training, of the goodness summed to each depth. Raises RunError if there are none."""
        found = [figures.validation_error_to_here for figures in self.layers]
        errors = [error for error in found if error is not None]
        if not errors:
            why = (
                "no layer is finished yet; resume it first" if not found else "it was trained without validation split"
            )
            raise RunError(f"run {self.path}: has no validation errors: {why}")
        return errors

    @plain_torch()
    def evaluate(
        self,
        method: str = "auto",
        split: str = "test",
        *,
        first_layer: int = 2,
        device: str = "auto",
        data: Any = "",
        data_root: str = "",
        download: bool = False,
        accept_environment: bool = False,
    ) -> Evaluation:
        """Error on a split, streamed: never more than one layer is on the device.

        `method` is "goodness" (argmax over labels of the goodness summed over layers `first_layer` and above, from 1),
        "fitted" (the same with weights that are fitted on the validation split) or "softmax" (a linear readout of the
        same layers, fitted on the training split the first time). "auto" is goodness, or softmax for layers that were
        trained without labels and therefore have no goodness of a label. `data` and `data_root` say where the run's
        data are now, if they were moved, or are the samples themselves, as for `train`; they are checked. Nothing is
        fetched without `download`. A user's own part whose source has changed since the run was trained is refused,
        unless `accept_environment` accepts it. Raises ConfigError, DataError, RunError, DeviceError.
        """
        self.restore_parts(accept=accept_environment)
        _check_words(first_layer, ("method", method, METHODS), ("split", split, SPLITS))
        config, facts = self.config, self.directory.read_data()
        if method == "auto":
            method = "softmax" if config.labels.method == "none" else "goodness"
        if method != "softmax":
            self._check_labels_were_shown(method, "softmax, or auto")
        splits, renamed = self._load_splits(facts, _Source(data, data_root, download), split)
        if split not in splits:
            raise DataError(f"data {config.data}: has no {split} split; found {', '.join(sorted(splits))}")
        layers = CommittedLayers(self.directory, config, facts, resolve_device(device))
        common = (layers, split, splits[split])
        labels = splits["validation"].labels if "validation" in splits else None
        with Interrupts(defers=True), naming_lack_of_memory(layers.device, _MORE_MEMORY):
            if method == "softmax":
                found = evaluate_softmax(*common, splits["train"], first_layer)
            elif method == "goodness":
                found = evaluate_goodness(*common, first_layer, validation_labels=labels)
            elif labels is None:
                raise self._no_validation("fit weights", "use --method goodness, which has none to fit")
            else:
                found = evaluate_fitted(*common, labels, first_layer)
            is_finished = self.num_layers_done >= config.layers  # those of an interrupted run may still lack the rest
            judged = judge_evaluation(found, layers, splits, first_layer) if is_finished else None
        warnings = [
            explain_fallback(device),
            found.warning,
            judged,
            renamed,
            facts.find_other_units(splits[split].images, f"{split} images", splits[split].labels),
            None
            if split == "train"
            else facts.find_repeats(splits[split].images, f"{split} images", splits[split].labels),
        ]
        return replace(found, warning="; ".join(filter(None, warnings)) or None)

    @plain_torch()
    def predict(
        self,
        images: Tensor,
        method: str = "auto",
        *,
        first_layer: int = 2,
        calibrated: bool = True,
        device: str = "auto",
        data: Any = "",
        data_root: str = "",
        download: bool = False,
        accept_environment: bool = False,
    ) -> Predictions:
        """Labels and their probabilities for images (n, *image_shape), in the units of the training data, streamed.

        `method` is "goodness" (the sum over layers `first_layer` and above, from 1, at the temperature that fits the
        validation split best), "fitted" (with weights that are fitted on that split too) or "softmax" (the readout that
        an evaluation has fitted). "auto" is goodness, or softmax for layers that were trained without labels. Without
        `calibrated`, the temperature is that of the training objective, or 1 for softmax. The data set is read only to
        calibrate the softmax, whose logits on the validation split are not kept, or if the run is from before
        validation labels were kept. `data` and `data_root` say where it is now, if it was moved. `accept_environment`
        is as in `evaluate`. Raises ConfigError, DataError, RunError, DeviceError.
        """
        self.restore_parts(accept=accept_environment)
        _check_words(first_layer, ("method", method, METHODS))
        if method == "fitted" and not calibrated:
            raise ConfigError("method 'fitted': its weights are calibrated by themselves; leave --uncalibrated out")
        directory, config, facts = self.directory, self.config, self.directory.read_data()
        source = _Source(data, data_root, download)
        if method == "auto":
            method = "softmax" if config.labels.method == "none" else "goodness"
        images = fit_images(images, facts.image_shape, f"run {self.path}")
        warnings = [
            explain_fallback(device),
            facts.find_other_units(images, "images"),
            facts.find_repeats(images, "images"),
        ]
        warning = "; ".join(filter(None, warnings)) or None
        layers = CommittedLayers(directory, config, facts, resolve_device(device))
        if method == "softmax":
            held_out = self._load_held_out(facts, source) if calibrated else None
            with Interrupts(defers=True), naming_lack_of_memory(layers.device, _MORE_MEMORY):
                found = predict_softmax(layers, images, held_out, first_layer)
            return replace(found, warning=warning)
        self._check_labels_were_shown(method, "softmax, or auto")
        num_layers, stack_layers = layers.count_usable(first_layer), config.network.stack_layers
        if not calibrated:
            combination = plain_sum(num_layers, first_layer, objective_temperature(config), stack_layers)
        else:
            labels = self._load_validation_labels(facts, source)
            if method == "goodness":
                combination = calibrate(layers, num_layers, labels, first_layer)
            else:
                goodness = list(read_validation_goodness(directory, num_layers))
                combination = fit_weights(goodness, labels, first_layer, None, stack_layers)
        with Interrupts(defers=True), naming_lack_of_memory(layers.device, _MORE_MEMORY):
            found = predict(layers, images, method, combination, is_calibrated=calibrated)
        return replace(found, warning=warning)

    def load_images(self, paths: str | Path | Sequence[str | Path]) -> NamedImages:
        """Images for `predict`: image files, folders of them, and .npy, .npz and .safetensors files of arrays.

        White in an image file becomes the largest training value, or 255 where the training data are kept on that
        scale. Black becomes 0, or the least training value where that is less. Raises DataError naming the first file
        that does not fit.
        """
        from ffstream.data.images import load_images

        paths = [paths] if isinstance(paths, (str, Path)) else paths
        from ffstream.data.colours import WHITE

        facts = self.directory.read_data()
        high = facts.white
        if high is None:  # a run of an earlier version, which did not record it
            in_bytes = holds_pictures(self.config.data) or WHITE / 2 < facts.scale <= WHITE
            high = WHITE if in_bytes else facts.scale
        low = 0.0
        if high != WHITE and facts.values.low < 0:
            low, high = facts.values.low, facts.values.high
        return load_images([Path(path) for path in paths], facts.image_shape, high, low)

    def _load_splits(
        self, facts: DataFacts, source: _Source, split: str = "validation"
    ) -> tuple[dict[str, Split], str | None]:
        """All splits, and a note if classes have been renamed, else None.

        Raises RunMismatchError unless the training data and, if `split` is "test", the test data are those of the run.
        """
        config = self.config
        skips_bad = config.bad_images == "skip"
        if facts.is_stream and source.is_as_before and not can_be_read_again(config.data):
            raise RunError(
                f"run {self.path}: has learnt from a stream, {config.data}, that is no data set; name one of the same "
                "shape and classes by --data"
            )
        if isinstance(source.data, str):
            root = source.data_root or config.data_root
            dataset = load_dataset(
                source.data or config.data, root, skips_bad=skips_bad, download=source.download, is_held=False
            )
        else:
            dataset = as_dataset(source.data)
        check_same_data(self.path, facts, dataset)
        if split == "test":
            check_same_test(self.path, facts, dataset)
        return make_splits(dataset, config), find_renamed(dataset.class_names, facts.class_names)

    def _load_validation_labels(self, facts: DataFacts, source: _Source) -> Tensor:
        if self.config.validation_fraction == 0:
            raise self._no_validation("calibrate probabilities", "add --uncalibrated to take them as they are")
        labels = self.directory.load_validation_labels()
        if labels is not None:
            return labels
        return self._load_splits(facts, source)[0]["validation"].labels

    def _load_held_out(self, facts: DataFacts, source: _Source) -> Split:
        if self.config.validation_fraction == 0:
            raise self._no_validation("calibrate probabilities", "add --uncalibrated to take them as they are")
        return self._load_splits(facts, source)[0]["validation"]

    def _check_labels_were_shown(self, method: str, allowed: str) -> None:
        if self.config.labels.method == "none":
            raise ConfigError(
                f"method {method!r}: run {self.path} was trained without labels (labels.method none), so that its "
                f"layers cannot score labels by goodness; allowed {allowed}"
            )

    def _no_validation(self, purpose: str, remedy: str) -> RunError:
        return RunError(
            f"run {self.path}: has no validation split to {purpose} on (validation_fraction is 0); {remedy}, or train "
            "a run that has one"
        )

    @plain_torch()
    def load(self, *, accept_environment: bool = False) -> FFNetwork:
        """The finished layers as a torch module, on the CPU."""
        return load_network(self.path, accept_environment=accept_environment)

    def export(self, path: str | Path, *, force: bool = False, accept_environment: bool = False) -> int:
        """Write the finished layers to one safetensors file. Returns their number.

        It replaces a file that was exported from this run, and any other file only with `force`. Raises OutputError.
        """
        return export_network(self.directory, path, force=force, accept_environment=accept_environment)

    def restore_parts(self, *, accept: bool = False) -> None:
        """Register the parts that the run was trained with. Raises RunError for a part that is missing.

        Raises RunMismatchError for a part whose source has changed, unless `accept` accepts it.
        """
        load_plugins(())
        parts = self.directory.read_parts(accepts_missing=accept)
        restore_parts(parts, f"run {self.path}", Untrusted(self.path), accept=accept)

    @plain_torch()
    def verify(self) -> int:
        """Check every digest of what is committed. Returns the number of layers; raises CorruptFileError."""
        directory, config = self.directory, self.config
        directory.read_environments()
        directory.load_validation_labels()
        directory.check_metrics()
        directory.check_metrics_end(config.layers)
        num_layers = directory.count_layers()
        for index in range(num_layers):
            directory.verify_layer(index)
        directory.verify_next_round()
        directory.verify_progress()
        directory.verify_readout()
        directory.stream.verify()
        for each in directory.initial.list_from(self.num_layers_done):
            directory.initial.verify(each)
        for name in directory.caches(config.cache.folder).names():
            self.verify_cache(name)
        return num_layers

    def verify_cache(self, name: str) -> None:
        """Check every shard of a cache, named as `RunCaches.names` does. Raises CorruptFileError."""
        folder, _ = self.directory.caches(self.config.cache.folder).open()
        verify_cache(folder, name, self.config, self.directory.read_data().digest)


def _check_words(first_layer: int, *words: tuple[str, str, tuple[str, ...]]) -> None:
    for noun, word, allowed in words:
        check_word(noun, word, allowed)
    if first_layer < 1:
        raise ConfigError(f"first layer {first_layer}: allowed an integer >= 1")


def make_splits(dataset: Dataset, config: Config) -> dict[str, Split]:
    """The train split, and the validation and test splits if there are any.

    A validation split that comes with the data is used instead of one that is cut off the training data. With
    validation_fraction 0, there is no validation split.
    """
    own = dataset.validation if config.validation_fraction else None
    train, cut = split_validation(dataset, config.validation_fraction if own is None else 0.0, config.seed)
    splits = {"train": train}
    if own is not None or len(cut):
        splits["validation"] = cut if own is None else own
    if dataset.test is not None:
        splits["test"] = dataset.test
    return splits


def read_layer_figures(directory: RunDirectory) -> list[LayerFigures]:
    """Figures of the finished layers, from their manifests."""
    figures = []
    for index in range(directory.count_layers()):
        manifest = directory.read_layer_manifest(index)
        try:
            figures.append(LayerFigures.from_mapping(manifest["figures"]))
        except (TypeError, ValueError) as error:
            raise CorruptFileError(
                f"manifest {directory.layer_folder(index)}: figures of another version of ffstream ({error}); "
                "read it with the version that wrote it"
            ) from error
    return figures
