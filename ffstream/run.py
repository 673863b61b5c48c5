"""A run as its user sees it: a directory, what is done in it, and what can be asked of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ffstream.checkpoint import RunDirectory
from ffstream.config import Config
from ffstream.data import Dataset, Split, load_dataset, split_validation
from ffstream.device import resolve_device
from ffstream.errors import ConfigError, CorruptFileError, DataError, RunError, RunMismatchError, nearest
from ffstream.evaluate import Evaluation, evaluate_fitted, evaluate_goodness
from ffstream.model import FFNetwork, export_network, load_network
from ffstream.observer import LayerFigures
from ffstream.readout import evaluate_softmax

_METHODS = ("goodness", "fitted", "softmax")
_SPLITS = ("test", "validation", "train")


@dataclass(frozen=True)
class Run:
    """One run directory. Raises RunError when no run was started there."""

    path: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))
        if not self.directory.exists():
            raise RunError(f"run {self.path}: no run there (no config.toml); start one with ffstream train --run-dir")

    @property
    def directory(self) -> RunDirectory:
        return RunDirectory(self.path)

    @property
    def config(self) -> Config:
        """The resolved configuration."""
        return Config.from_toml(self.path / "config.toml")

    @property
    def num_layers_done(self) -> int:
        return self.directory.count_layers()

    @property
    def layers(self) -> list[LayerFigures]:
        """Figures of the finished layers."""
        return read_layer_figures(self.directory)

    def evaluate(
        self,
        method: str = "goodness",
        split: str = "test",
        *,
        first_layer: int = 2,
        device: str = "auto",
        data_root: str = "",
    ) -> Evaluation:
        """Error on a split, streamed: never more than one layer is on the device.

        `method` is "goodness" (argmax over labels of the goodness summed over layers `first_layer` and above, from 1),
        "fitted" (of their sum with weights that are fitted on the validation split) or "softmax" (a linear readout of
        the same layers, fitted on the training split the first time). Raises ConfigError, DataError, RunError,
        DeviceError.
        """
        _check_words(first_layer, ("method", method, _METHODS), ("split", split, _SPLITS))
        config, data = self.config, self.directory.read_data()
        splits = self._load_splits(data, data_root)
        if split not in splits:
            raise DataError(f"data {config.data}: has no {split} split; found {', '.join(sorted(splits))}")
        common = (self.directory, config, split, splits[split])
        target = resolve_device(device)
        if method == "softmax":
            return evaluate_softmax(*common, splits["train"], data, target, first_layer)
        labels = splits["validation"].labels if "validation" in splits else None
        if method == "goodness":
            return evaluate_goodness(*common, data, target, first_layer, validation_labels=labels)
        if labels is None:
            raise self._no_validation("fit weights", "use --method goodness, which has none to fit")
        return evaluate_fitted(*common, data, target, labels, first_layer)

    def _load_splits(self, data: dict[str, Any], data_root: str) -> dict[str, Split]:
        config = self.config
        dataset = load_dataset(config.data, data_root or config.data_root)
        check_same_data(self.path, data, dataset)
        return make_splits(dataset, config)

    def _no_validation(self, purpose: str, remedy: str) -> RunError:
        return RunError(
            f"run {self.path}: has no validation split to {purpose} on (validation_fraction is 0); {remedy}, or train "
            "a run that has one"
        )

    def load(self) -> FFNetwork:
        """The finished layers as a torch module, on the CPU."""
        return load_network(self.path)

    def export(self, path: str | Path) -> int:
        """Write the finished layers to one safetensors file. Returns their number."""
        return export_network(self.directory, Path(path))

    def verify(self) -> int:
        """Check every digest of the finished layers. Returns their number; raises CorruptFileError."""
        for index in range(self.num_layers_done):
            self.directory.verify_layer(index)
        return self.num_layers_done


def _check_words(first_layer: int, *words: tuple[str, str, tuple[str, ...]]) -> None:
    for noun, word, allowed in words:
        if word not in allowed:
            raise ConfigError(f"{noun} {word!r}: unknown; {nearest(word, allowed)}")
    if first_layer < 1:
        raise ConfigError(f"first layer {first_layer}: allowed an integer >= 1")


def make_splits(dataset: Dataset, config: Config) -> dict[str, Split]:
    """The train split, and validation and test where there are any."""
    train, validation = split_validation(dataset, config.validation_fraction, config.seed)
    splits = {"train": train}
    if len(validation):
        splits["validation"] = validation
    if dataset.test is not None:
        splits["test"] = dataset.test
    return splits


def describe_data(dataset: Dataset) -> dict[str, Any]:
    """What a network must know of its data, for data.json."""
    return {
        "name": dataset.name,
        "digest": dataset.digest(),
        "num_classes": dataset.num_classes,
        "class_names": list(dataset.class_names),
        "image_shape": list(dataset.image_shape),
        "num_features": dataset.num_features,
        "scale": dataset.scale(),
    }


def check_same_data(run_dir: Path, data: dict[str, Any], dataset: Dataset) -> None:
    """Raise RunMismatchError when the training data are not those the run was started with."""
    digest = dataset.digest()
    if digest != data["digest"]:
        raise RunMismatchError(
            f"run {run_dir}: was started on other training data (digest {data['digest'][:12]}, found {digest[:12]} in "
            f"{dataset.name}); restore those data, or start a new run"
        )


def read_layer_figures(directory: RunDirectory) -> list[LayerFigures]:
    """Figures of the finished layers, from their manifests."""
    figures = []
    for index in range(directory.count_layers()):
        manifest = directory.read_layer_manifest(index)
        try:
            figures.append(LayerFigures(**manifest["figures"]))
        except TypeError as error:
            raise CorruptFileError(
                f"manifest {directory.layer_folder(index)}: figures of another version of ffstream ({error}); "
                "read it with the version that wrote it"
            ) from error
    return figures
