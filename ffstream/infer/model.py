"""A finished network as a plain torch module, from a run directory or from one exported file."""

from __future__ import annotations

import io
import itertools
import json
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ffstream.cache import as_cached
from ffstream.data import as_tensor
from ffstream.data.facts import DataFacts
from ffstream.device.environment import plain_torch
from ffstream.device.memory import is_out_of_memory
from ffstream.errors import ConfigError, CorruptFileError, DataError, FFStreamError, RunError
from ffstream.field.blueprint import Blueprint
from ffstream.field.layers import Layer, Mode
from ffstream.field.network import LayerSpec, hand_on, keep_outputs
from ffstream.field.parts import restore_parts
from ffstream.ground.files import expand_home, open_regular
from ffstream.ground.plugins import Untrusted, load_plugins
from ffstream.ground.units import count
from ffstream.infer.combination import plain_sum
from ffstream.settings.config import Config
from ffstream.storage.earlier_output import DIGEST, digest_tensors_and_text, is_earlier_tensors, read_metadata
from ffstream.storage.manifest import DATA, PARTS, find_misfit
from ffstream.storage.outputs import Output
from ffstream.storage.run_directory import RunDirectory
from ffstream.storage.tensor_file import read_tensors, save_tensors

_FORMAT, _OLDER_FORMAT = "ffstream-2", "ffstream-1"  # the older format has no digest
_READOUT = "readout."  # begins the names of a readout's tensors; the number of its layer follows


class FFNetwork(nn.Module):
    """All layers of a run in memory at once, for inference.

    `forward` maps images (n, *image_shape), in the units of the training data, to the goodness of every label summed
    over all but the first layer of each stack, (n, num_classes). `class_names` names the columns. Layers that were
    trained without labels have no such goodness: there, `forward` gives the logits of the softmax readout that the run
    holds. What `load_network` gives multiplies by linear modules and convolutions of torch's own alone.
    """

    def __init__(self, config: Config, facts: DataFacts) -> None:
        super().__init__()
        self.config = config
        self.image_shape = facts.image_shape
        self.class_names = facts.class_names
        self._facts = facts
        self._scaling = facts.scaling
        blueprint = Blueprint.of(config, facts.shape())
        self._specs, self._method, self._goodness = keep_outputs(blueprint.specs), blueprint.method, blueprint.goodness
        whole = [blueprint.make_layer(spec) for spec in self._specs]
        self.layers = nn.ModuleList(whole)  # in memory that is not touched until weights are assigned
        self._has_warned = False
        self.readout = nn.ModuleDict()  # by the number of the layer, from 0

    def make_plain(self) -> FFNetwork:
        """Make every layer, once it has its weights, of modules of torch's own. Returns the network."""
        for module in self.layers:
            layer = cast(Layer, module)
            layer.make_plain()
            self._method.reading.make_plain(layer)
        return self

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As of any module; tensors may have the names that they have in an exported file, too."""
        if state_dict.keys() != self.state_dict().keys():
            with plain_torch():
                exported = FFNetwork(self.config, self._facts)
            exported.readout = self.readout
            if state_dict.keys() == exported.state_dict().keys():
                exported.load_state_dict(state_dict)
                state_dict = exported.make_plain().state_dict()
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

    def goodness_by_layer(self, images: Tensor) -> list[Tensor]:
        """Goodness of every label in each layer: one (n, num_classes) per layer.

        Layers that were trained without labels give the goodness of the image, (n, 1).
        """
        images = as_tensor(images, "images", on_paper=True)
        rows = self._make_rows(images, self._method.rows.sweep_rows)
        return [
            self._method.reading.sweep(layer, self._goodness, preactivations, images.shape[0])
            for layer, preactivations, _ in self._pass(rows)
        ]

    def features(self, images: Tensor) -> list[Tensor]:
        """What each layer hands on of images without a label: (n, features) per layer, in its dtype."""
        rows = self._make_rows(images, self._method.rows.neutral_rows)
        return [
            spec.next_row.find(handed_on, spec.number).to(preactivations.dtype)
            for spec, (_, preactivations, handed_on) in zip(self._specs, self._pass(rows), strict=True)
        ]

    def add_readout(self, tensors: Mapping[str, Tensor]) -> None:
        """Give the network the softmax readout of a run: weights (C, features) and biases (C,) by layer."""
        for name in tensors:
            index, _, part = name.partition(".")
            if part == "weight":
                readout = nn.Linear(tensors[name].shape[1], self._facts.num_classes, dtype=torch.float32)
                readout.load_state_dict({key: tensors[f"{index}.{key}"] for key in ("weight", "bias")}, assign=True)
                self.readout[index] = readout

    def forward(self, images: Tensor) -> Tensor:
        """(n, *image_shape) -> (n, num_classes). Raises RunError for unlabelled layers without a readout."""
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
        """The rows that `make` makes of images, rounded to the dtype of the cache, as for training."""
        images = as_tensor(images, "images", on_paper=True)
        if tuple(images.shape[1:]) != self.image_shape:
            raise ValueError(f"images have shape {tuple(images.shape)}, this network reads {('n', *self.image_shape)}")
        rows = make(self._scaling.apply(images)).flatten(0, 1)
        return as_cached(rows, self.config.cache.dtype)

    def _pass(self, rows: Tensor) -> Iterator[tuple[Layer, Tensor, Tensor]]:
        """Yield each layer, its preactivations, and the rows that it hands on."""
        images = rows
        for spec, module in zip(self._specs, self.layers, strict=True):
            layer = cast(Layer, module)
            rows = rows if spec.place else images
            _check_traceable(layer, spec)
            if Mode.HANDING_ON in layer.noisy_modes:
                layer.begin(Mode.HANDING_ON)  # the same noise in every call
            preactivations = layer(spec.row.read(rows))
            layer.generator = None  # which can be neither copied nor saved
            handed_on = hand_on(layer, spec, rows, preactivations)
            rows = as_cached(handed_on, self.config.cache.dtype, spec.next_row.carried_features)
            yield layer, preactivations, rows

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """The label of each image: (n, *image_shape) -> (n,) int64. Raises DataError if scores are not finite.

        Warns, as Python does, where images are not in the units of the training images; once.
        """
        images = as_tensor(images, "images")
        if not self._has_warned and len(images) and tuple(images.shape[1:]) == self.image_shape:
            with plain_torch():  # whatever default type and device the calling program has set
                oddity = self._facts.find_other_units(images.detach().cpu(), "images")
            if oddity is not None:
                self._has_warned = True
                warnings.warn(oddity, UserWarning, stacklevel=2)
        scores = self.forward(images)
        check_finite_rows(scores)
        return scores.argmax(dim=1)


def _check_traceable(layer: Layer, spec: LayerSpec) -> None:
    """Raise RunError where a layer is traced whose work torch does not see, or whose noise it would freeze."""
    is_traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    if is_traced and (layer.is_black_box or Mode.HANDING_ON in layer.noisy_modes):
        reason = "works outside of torch" if layer.is_black_box else "draws random numbers in every call"
        raise RunError(
            f"layer {spec.index + 1}: is of kind {spec.kind!r}, which {reason}, so that it cannot be traced or "
            "exported to another format; call the module itself, or write it with ffstream export"
        )


def check_finite_rows(scores: Tensor) -> None:
    """Raise DataError for the first image whose scores (n, C) are not finite: no label is the largest of them."""
    finite = torch.isfinite(scores).all(dim=1)
    if not bool(finite.all()):
        row = int((~finite).nonzero()[0])
        raise DataError(
            f"images: image {row}, counted from 0, gets scores that are not finite, and so no label; its values are "
            "not "
            "finite, or too large for float32; bring them to the units of the training data, or leave it out"
        )


def load_network(path: str | Path, *, accept_environment: bool = False) -> FFNetwork:
    """Load a run directory (its finished layers) or a file written by `export_network`, on the CPU.

    A part that does not come with this package is imported if its source is the one that was recorded; otherwise it is
    refused, unless `accept_environment` accepts its source of today.

    The network has the very bytes that were checked, and does not change when its files do. Raises RunError when there
    is nothing to load, CorruptFileError when a file is truncated or altered.
    """
    path = expand_home(path)
    try:
        is_folder = path.is_dir()
    except (OSError, ValueError) as error:  # a name that no file can have, or a folder that denies access
        raise _unreadable(path, error) from error
    load_plugins(())
    with plain_torch():
        if is_folder:
            network = _load_run(RunDirectory(path), accept_environment=accept_environment)
        else:
            network = _load_file(path, accept_environment=accept_environment)
        return network.make_plain()


@plain_torch()
def export_network(
    directory: RunDirectory, path: str | Path, *, force: bool = False, accept_environment: bool = False
) -> int:
    """Write the finished layers of a run to one safetensors file that `load_network` reads. Returns their number.

    A file of that name is replaced if it was exported from the same run, or with `force`. Raises ConfigError for a name
    that does not end in .safetensors, OutputError, StorageError.
    """
    suffix = Path(path).suffix
    if suffix.lower() != ".safetensors":
        raise ConfigError(
            f"file {path}: found {suffix or 'no suffix'!r}, allowed .safetensors, which is what is written; for "
            "another format, take the module that ffstream.load gives: torch.save(network.state_dict(), ...), or "
            "torch.onnx.export(network, ...)"
        )
    directory.check_is_run()
    identity = directory.read_identity()
    of_run = {"format": _FORMAT, "run": identity or ""}

    def is_own(file: io.FileIO) -> bool:  # a network that was changed since, as by fine-tuning, is somebody's work
        return bool(identity) and is_earlier_tensors(file, of_run)

    def name_owner(file: io.FileIO) -> str | None:
        found = read_metadata(file)
        if found.get("format") != _FORMAT or found.get("run") == of_run["run"]:
            return None
        return f"the export of another run, {_describe_origin(found)}"

    output = Output(path, [directory.path], force=force, is_own=is_own, name_owner=name_owner)
    network = _load_run(directory, accept_environment=accept_environment)
    parts = directory.read_parts(accepts_missing=accept_environment)
    metadata = {
        "format": _FORMAT,
        "config": json.dumps(network.config.to_mapping()),
        "data": json.dumps(network._facts.content),
        "run": identity or "",
    }
    metadata |= {"parts": json.dumps(parts)} if parts else {}
    state = {key: value.contiguous() for key, value in network.state_dict().items()}
    metadata[DIGEST] = digest_tensors_and_text(metadata, state)
    with output.writing() as file:
        save_tensors(file, state, metadata)
    return len(network.layers)


def _describe_origin(metadata: Mapping[str, str]) -> str:
    """Which run an exported file is of: its identity, which is in its run.json, its layers and its data."""
    known = f"whose identity is {metadata.get('run') or 'not known'}"
    try:
        config, data = (json.loads(metadata[key]) for key in ("config", "data"))
        return f"{known}, of {count(int(config['layers']), 'layer')} trained on {data['name']}"
    except (ValueError, KeyError, TypeError, RecursionError):
        return known


def _load_run(directory: RunDirectory, *, accept_environment: bool) -> FFNetwork:
    directory.check_is_run()
    parts = directory.read_parts(accepts_missing=accept_environment)
    restore_parts(parts, f"run {directory.path}", Untrusted(directory.path), accept=accept_environment)
    num_layers = directory.count_layers()
    if num_layers == 0:
        raise RunError(f"run {directory.path}: no layer is finished yet; resume it first")
    config = directory.read_config().shorten(num_layers)
    try:
        network = FFNetwork(config, directory.read_data())
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise RunError(
            f"run {directory.path}: its network does not fit into memory whole; evaluate it instead"
        ) from error
    for index, layer in enumerate(network.layers):
        directory.load_layer(index, cast(Layer, layer))
    readout = directory.load_fitted_readout(num_layers) if config.labels.method == "none" else None
    try:
        network.add_readout(readout or {})
    except (KeyError, RuntimeError) as error:
        raise CorruptFileError(
            f"run {directory.path}: the readout does not fit the layers ({_one_line(error)}); put it "
            "aside with ffstream repair --apply, and evaluate again"
        ) from error
    return network.eval()


def _load_file(path: Path, *, accept_environment: bool) -> FFNetwork:
    metadata, tensors = _read_file(path)
    misfit = _find_content_misfit(metadata, tensors)
    if misfit is not None:
        raise CorruptFileError(f"file {path}: {misfit}; export it again")
    parts = json.loads(metadata.get("parts", "{}"))
    restore_parts(parts, f"file {path}", Untrusted(path.parent, is_of_file=True), accept=accept_environment)
    try:
        network = FFNetwork(Config.from_saved(json.loads(metadata["config"])), DataFacts(json.loads(metadata["data"])))
        network.add_readout({k.removeprefix(_READOUT): v for k, v in tensors.items() if k.startswith(_READOUT)})
        own = {key: tuple(value.shape) for key, value in network.state_dict().items()}
        found = {key: tuple(value.shape) for key, value in tensors.items()}
        if own != found:
            different = sorted(key for key in own.keys() | found.keys() if own.get(key) != found.get(key))
            key = different[0]
            raise ValueError(f"{key[:80]}: found {found.get(key)}, allowed {own.get(key)}")
        network.load_state_dict(tensors, assign=True)
    except (KeyError, ValueError, TypeError, RuntimeError, MemoryError, RecursionError, FFStreamError) as error:
        raise CorruptFileError(
            f"file {path}: its tensors do not fit its configuration ({_one_line(error)}); export it again"
        ) from error
    return network.eval()


def _read_file(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of an exported file, read once, with its digest checked. Raises RunError."""
    try:
        with open_regular(path) as file:
            metadata, tensors = read_tensors(file, path)
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    except CorruptFileError as error:
        raise CorruptFileError(
            f"file {path}: cannot be read as a safetensors file ({error.__cause__ or error}); export it again"
        ) from error
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise RunError(f"file {path}: its network does not fit into memory; free some") from error
    given = metadata.get("format")
    if given not in (_FORMAT, _OLDER_FORMAT):
        raise RunError(
            f"file {path}: not exported by ffstream (format {given if given is None else given[:40]!r}, allowed "
            f"{_FORMAT!r} or {_OLDER_FORMAT!r}); give a file that ffstream export has written"
        )
    digest = metadata.pop(DIGEST, None)
    if given == _FORMAT or digest is not None:
        found = digest_tensors_and_text(metadata, tensors)
        if found != digest:
            raise CorruptFileError(
                f"file {path}: altered since it was exported (sha256 is {found[:12]}, recorded {str(digest)[:12]}); "
                "restore "
                "it from a copy, or export it again"
            )
    return metadata, tensors


def _find_content_misfit(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str | None:
    """What is wrong with an exported file even though its digest is right; None if nothing is."""
    try:
        config, data = json.loads(metadata["config"]), json.loads(metadata["data"])
        parts = json.loads(metadata.get("parts", "{}"))
    except (KeyError, ValueError, RecursionError) as error:
        return f"its configuration and data do not parse ({_one_line(error)})"
    misfit = find_misfit(config, {}, "configuration") or find_misfit(data, DATA, "data")
    misfit = misfit or find_misfit(parts, PARTS, "parts")
    if misfit is not None:
        return misfit
    if len(data["class_names"]) != data["num_classes"]:
        return f"data: found {len(data['class_names'])} names of classes, allowed {data['num_classes']}"
    if math.prod(data["image_shape"]) != data["num_features"]:
        return f"data: found images of shape {tuple(data['image_shape'])}, allowed of {data['num_features']} features"
    num_layers = config.get("layers")
    found = {name.split(".")[1] for name in tensors if name.startswith("layers.") and name.count(".") > 1}
    if type(num_layers) is not int or num_layers != len(found) or found != {str(i) for i in range(len(found))}:
        return f"found tensors of {len(found)} layers, allowed those of the {num_layers} of its configuration"
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32:
            return f"{name[:80]}: found {tensor.dtype}, allowed torch.float32"
        if not all(map(math.isfinite, torch.aminmax(tensor) if tensor.numel() else ())):
            return f"{name[:80]}: holds numbers that are not finite"
        place = name.removeprefix(_READOUT).partition(".")[0]
        if name.startswith(_READOUT) and not (re.fullmatch("[0-9]{3,7}", place) and int(place) < num_layers):
            return f"{name[:80]}: found a readout of layer {place[:20]!r}, allowed 000 to {num_layers - 1:03d}"
    return None


def _unreadable(path: Path, error: Exception) -> RunError:
    reason = error.strerror if isinstance(error, OSError) else error
    return RunError(f"file {path}: cannot be read ({reason}); give a run, or a file that ffstream has exported")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
