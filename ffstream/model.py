"""A finished network as a plain torch module, from a run directory or from one exported file."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ffstream.cache import as_cached
from ffstream.checkpoint import RunDirectory
from ffstream.combination import plain_sum
from ffstream.config import Config
from ffstream.data import scale_images
from ffstream.errors import CorruptFileError, RunError
from ffstream.files import atomic_path
from ffstream.goodness import GOODNESSES
from ffstream.labels import make_label_method
from ffstream.layers import Layer
from ffstream.memory import is_out_of_memory
from ffstream.network import compute_layer_specs, hand_on, make_layer
from ffstream.tensor_file import save_tensors

_FORMAT = "ffstream-1"


class FFNetwork(nn.Module):
    """All layers of a run, resident, for inference.

    `forward` maps images (n, *image_shape), in the units of the training data, to the goodness of every label summed
    over all but the first layer of each stack, (n, num_classes). `class_names` names the columns. Layers that were
    trained without labels have no such goodness: there, `forward` gives the logits of the softmax readout that the run
    holds.
    """

    def __init__(self, config: Config, data: dict[str, Any]) -> None:
        super().__init__()
        self.config = config
        self.image_shape: tuple[int, ...] = tuple(data["image_shape"])
        self.class_names: tuple[str, ...] = tuple(data["class_names"])
        self._data = data
        self._specs = compute_layer_specs(config, data["num_features"], data["image_shape"])
        self._method = make_label_method(config, data["num_classes"], data["num_features"])
        self._goodness = GOODNESSES[config.objective.goodness]
        whole = [make_layer(config, spec, data["num_classes"], slice(0, spec.num_units)) for spec in self._specs]
        self.layers = nn.ModuleList(whole)  # of memory that is not touched until there is content to be assigned
        self.readout = nn.ModuleDict()  # by layer, counted from 0

    def goodness_by_layer(self, images: Tensor) -> list[Tensor]:
        """Goodness of every label in each layer: one (n, num_classes) a layer. Without labels, of the image: (n, 1)."""
        rows = self._make_rows(images, self._method.sweep_rows)
        return [
            self._method.sweep(layer, self._goodness, preactivations, len(images))
            for layer, preactivations, _ in self._pass(rows)
        ]

    def features(self, images: Tensor) -> list[Tensor]:
        """What each layer makes of images without a label, normalised: one (n, num_units) float32 a layer."""
        rows = self._make_rows(images, self._method.neutral_rows)
        return [handed_on[:, : layer.num_units].float() for layer, _, handed_on in self._pass(rows)]

    def add_readout(self, tensors: Mapping[str, Tensor]) -> None:
        """Give the network the softmax readout of a run: weights (C, num_units) and biases (C,) by layer."""
        for name in tensors:
            index, _, part = name.partition(".")
            if part == "weight":
                readout = nn.Linear(self.config.width, self._data["num_classes"])
                readout.load_state_dict({key: tensors[f"{index}.{key}"] for key in ("weight", "bias")}, assign=True)
                self.readout[index] = readout

    def forward(self, images: Tensor) -> Tensor:
        """(n, *image_shape) -> (n, num_classes). Raises RunError where there is neither label nor readout."""
        if self.config.labels.method == "none":
            if not len(self.readout):
                raise RunError(
                    "network: was trained without labels, and its run holds no softmax readout; fit one by ffstream "
                    "evaluate RUN and load it again, or ask for features(images)"
                )
            found = self.features(images)
            return torch.stack([readout(found[int(index)]) for index, readout in self.readout.items()]).sum(dim=0)
        by_layer = self.goodness_by_layer(images)
        plain = plain_sum(len(by_layer), 2, 1.0, self.config.network.stack_layers)
        return torch.stack(list(itertools.compress(by_layer, plain.weights))).sum(dim=0)

    def _make_rows(self, images: Tensor, make: Callable[[Tensor], Tensor]) -> Tensor:
        """On the host, and rounded to the cache's type, as they were for training."""
        if tuple(images.shape[1:]) != self.image_shape:
            raise ValueError(f"images have shape {tuple(images.shape)}, this network reads (n, *{self.image_shape})")
        rows = make(scale_images(images.cpu(), self._data["scale"])).flatten(0, 1)
        return as_cached(rows, self.config.cache.dtype).to(images.device)

    def _pass(self, rows: Tensor) -> Iterator[tuple[Layer, Tensor, Tensor]]:
        """Each layer, its preactivations, and what it hands on."""
        images = rows
        for spec, module in zip(self._specs, self.layers, strict=True):
            layer = cast(Layer, module)
            rows = rows if spec.place else images
            preactivations = layer.preactivations(rows)
            rows = as_cached(hand_on(spec, rows, preactivations), self.config.cache.dtype)
            yield layer, preactivations, rows

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """The label of each image: (n, *image_shape) -> (n,) int64."""
        return self.forward(images).argmax(dim=1)


def load_network(path: str | Path) -> FFNetwork:
    """Load a run directory (its finished layers) or a file written by `export_network`, on the CPU.

    Raises RunError when there is nothing to load, CorruptFileError when a file is truncated or altered.
    """
    path = Path(path)
    return _load_run(RunDirectory(path)) if path.is_dir() else _load_file(path)


def export_network(directory: RunDirectory, path: Path) -> int:
    """Write the finished layers of a run to one safetensors file that `load_network` reads. Returns their number."""
    network = _load_run(directory)
    metadata = {
        "format": _FORMAT,
        "config": json.dumps(network.config.to_mapping()),
        "data": json.dumps(directory.read_data()),
    }
    with atomic_path(path) as temporary:
        state = {key: value.contiguous() for key, value in network.state_dict().items()}
        save_tensors(temporary, state, metadata)
    return len(network.layers)


def _load_run(directory: RunDirectory) -> FFNetwork:
    if not directory.exists():
        raise RunError(f"run {directory.path}: no run there")
    num_layers = directory.count_layers()
    if num_layers == 0:
        raise RunError(f"run {directory.path}: no layer is finished yet; resume it first")
    config = Config.from_toml(directory.find_config()).override({"layers": num_layers})
    try:
        network = FFNetwork(config, directory.read_data())
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise RunError(
            f"run {directory.path}: its network does not fit into memory whole; evaluate it instead"
        ) from error
    for index, layer in enumerate(network.layers):
        directory.load_layer(index, cast(Layer, layer), assign=True)
    readout = directory.load_fitted_readout(num_layers) if config.labels.method == "none" else None
    try:
        network.add_readout(readout or {})
    except (KeyError, RuntimeError) as error:
        raise CorruptFileError(
            f"run {directory.path}: the readout does not fit the layers ({error}); delete its folder and evaluate again"
        ) from error
    return network.eval()


def _load_file(path: Path) -> FFNetwork:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dictionary
    except (OSError, SafetensorError) as error:
        raise RunError(f"file {path}: cannot be read as a safetensors file ({error})") from error
    if metadata.get("format") != _FORMAT:
        raise RunError(
            f"file {path}: not exported by ffstream (format {metadata.get('format')!r}, allowed {_FORMAT!r})"
        )
    try:
        network = FFNetwork(Config.from_mapping(json.loads(metadata["config"])), json.loads(metadata["data"]))
        network.add_readout({k.removeprefix("readout."): v for k, v in tensors.items() if k.startswith("readout.")})
        network.load_state_dict(tensors)
    except (KeyError, ValueError, TypeError, RuntimeError, RecursionError) as error:
        raise CorruptFileError(
            f"file {path}: its tensors do not fit its configuration ({error}); export it again"
        ) from error
    return network.eval()
