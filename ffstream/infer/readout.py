"""The softmax readout: a linear classifier on the normalised, label-free activities of all but the first layer.

It is streamed: the weights of layer k are fitted on its cached activities with the logits of the layers below held
fixed, so that no more than one layer's activities are read at a time. The layers learn nothing from it (Hinton 2022,
section 3.3).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ffstream.cache import ActivationCache, CacheLayout, compute_batches, compute_shard_order
from ffstream.cache.pinned import Gathering, all_to_device
from ffstream.cache.transfer import Transfer
from ffstream.data import Scaling, Split
from ffstream.data.image_access import Images, ReadAhead
from ffstream.errors import RunError, RunLockedError, StorageError
from ffstream.field.blueprint import Blueprint
from ffstream.field.labels import SampleRows
from ffstream.field.network import LayerSpec
from ffstream.ground import seeding
from ffstream.ground.lock import RunLock
from ffstream.infer.combination import is_counted
from ffstream.infer.committed import CommittedLayers
from ffstream.infer.evaluation import Evaluation, error_rate
from ffstream.infer.frozen import Stage, stream_committed_layers
from ffstream.settings.config import Config
from ffstream.storage.run_directory import RunDirectory
from ffstream.training.input_rows import RowsOf
from ffstream.training.rate_schedule import RateSchedule

# Weight decay "auto": the value for so many units. Fewer units memorise less and get less of it
# (docs/ablations/unlabelled.md).
_AUTO_DECAY, _AUTO_UNITS = 3.0, 2000


def evaluate_softmax(
    layers: CommittedLayers, split_name: str, split: Split, train: Split, first_layer: int = 2
) -> Evaluation:
    """Classify `split` by the softmax readout, fitting it on `train` first unless the run holds a fitted one."""
    directory, config, device = layers.directory, layers.config, layers.device
    num_layers = directory.count_layers()
    if num_layers < first_layer:
        otherwise = "" if config.labels.method == "none" else ", or use --method goodness"
        raise RunError(
            f"run {directory.path}: the softmax readout reads layers {first_layer} and above, found {num_layers}; "
            f"train more layers, or lower --first-layer{otherwise}"
        )
    identity = _identity(layers, num_layers, first_layer)
    saved = directory.load_readout(identity)
    logits = torch.zeros(len(split), layers.facts.num_classes)
    train_logits = torch.zeros(len(train), layers.facts.num_classes)
    tensors: dict[str, Tensor] = dict(saved or {})
    errors: list[float] = []
    for stage in _stream(layers, num_layers, [split] if saved else [split, train]):
        index = stage.layer.spec.index
        if not is_counted(index, first_layer, config.network.stack_layers):
            errors += errors[-1:]
            continue
        if saved is None:
            weight, bias = _fit(stage.transfer, stage.caches[1], stage.layer.spec, train.labels, train_logits, config)
            train_logits += _logits(stage.transfer, stage.caches[1], stage.layer.spec, weight, bias)
            tensors[f"{index:03d}.weight"], tensors[f"{index:03d}.bias"] = weight.cpu(), bias.cpu()
        weight, bias = tensors[f"{index:03d}.weight"].to(device), tensors[f"{index:03d}.bias"].to(device)
        logits += _logits(stage.transfer, stage.caches[0], stage.layer.spec, weight, bias)
        errors.append(error_rate(logits, split.labels))
    warning = None if saved is not None else _save(directory, tensors, identity)
    return Evaluation.of(
        "softmax",
        split_name,
        split.labels,
        layers.facts,
        first_depth=num_layers - len(errors) + 1,
        errors_by_depth=errors,
        layer_errors=[],
        uncalibrated_logits=logits,
        warning=warning,
    )


def _save(directory: RunDirectory, tensors: dict[str, Tensor], identity: dict[str, Any]) -> str | None:
    """Save a readout in its run. Returns a warning where that is not possible, as in a run that is read-only."""
    try:
        with RunLock(directory.path, directory.read_identity() or "") as lock:
            locked = RunDirectory(directory.path, lock)
            if identity["layers"] == locked.read_weight_digests(len(identity["layers"])):
                locked.commit_readout(tensors, identity)
    except (StorageError, RunLockedError) as error:
        return f"the readout is not kept, so that it has to be fitted again for each use ({error})"
    return None


def read_softmax(layers: CommittedLayers, images: Images, first_layer: int = 2) -> Tensor:
    """Logits (n, C) of images (n, *image_shape) by the softmax readout that the run holds, streamed.

    Raises RunError when none was fitted on the layers from `first_layer` on.
    """
    directory, device = layers.directory, layers.device
    num_layers = directory.count_layers()
    tensors = directory.load_readout(_identity(layers, num_layers, first_layer)) if num_layers else None
    if tensors is None:
        raise RunError(
            f"run {directory.path}: holds no softmax readout of its {num_layers} layers from layer {first_layer} on; "
            "fit one by ffstream evaluate RUN --method softmax with the same --first-layer"
        )
    part = Split(images, torch.zeros(len(images), dtype=torch.int64))
    logits = torch.zeros(len(images), layers.facts.num_classes)
    for stage in _stream(layers, num_layers, [part]):
        index = stage.layer.spec.index
        if f"{index:03d}.weight" in tensors:
            weight, bias = tensors[f"{index:03d}.weight"].to(device), tensors[f"{index:03d}.bias"].to(device)
            logits += _logits(stage.transfer, stage.caches[0], stage.layer.spec, weight, bias)
    return logits


def _stream(layers: CommittedLayers, num_layers: int, parts: Sequence[Split]) -> Iterator[Stage]:
    """The committed layers, each with caches of what it hands on for the label-free rows of every split in `parts`."""
    blueprint, scaling = layers.blueprint(num_layers), layers.facts.scaling
    sources = [(_layout(blueprint, part), _neutral_rows(blueprint.method.rows, part, scaling)) for part in parts]
    return stream_committed_layers(layers.directory, blueprint, sources, layers.device, outputs=True)


def _identity(layers: CommittedLayers, num_layers: int, first_layer: int) -> dict[str, Any]:
    """All that a fitted readout depends on."""
    return {
        "readout": layers.config.to_mapping()["readout"],
        "first_layer": first_layer,
        "layers": layers.directory.read_weight_digests(num_layers),
    }


def _layout(blueprint: Blueprint, part: Split) -> CacheLayout:
    dtype, num_in_shard = blueprint.config.cache.dtype, blueprint.sizes.shard_samples
    return CacheLayout(len(part), 1, blueprint.data.num_features, dtype, num_in_shard)


def _neutral_rows(rows: SampleRows, part: Split, scaling: Scaling) -> RowsOf:
    ahead = ReadAhead(part.images)
    return lambda samples: rows.neutral_rows(scaling.apply(ahead.read(samples.start, samples.stop)))


@torch.no_grad()
def _fit(
    transfer: Transfer, cache: ActivationCache, spec: LayerSpec, labels: Tensor, logits: Tensor, config: Config
) -> tuple[Tensor, Tensor]:
    """Weights (C, features) and biases (C,) of one layer, by cross-entropy, added to `logits` (n, C) from below."""
    settings, device = config.readout, transfer.device
    weight = torch.zeros(logits.shape[1], spec.handed_on.num_features, device=device)
    bias = torch.zeros(logits.shape[1], device=device)
    weight.grad, bias.grad = torch.empty_like(weight), torch.empty_like(bias)
    decay = settings.weight_decay
    if isinstance(decay, str):
        decay = _AUTO_DECAY * min(spec.handed_on.num_features / _AUTO_UNITS, 1.0) ** 2
    optimiser = torch.optim.AdamW([weight, bias], lr=settings.learning_rate, weight_decay=decay, fused=True)
    labels, logits = labels.to(device), logits.to(device)
    for epoch in range(settings.epochs):
        num_seen = 0
        generator = seeding.generator(config.seed, spec.index, epoch, "readout")
        order = compute_shard_order(cache.layout, config.seed, spec.index, epoch, settings.epochs)
        for shard, block in transfer.blocks(cache, order):
            samples = cache.layout.shard_range(shard)
            shard_labels, shard_logits = labels[samples], logits[samples]
            for index in all_to_device(compute_batches(len(block), settings.batch, generator), device):
                rows = spec.next_row.find(block[:, 0], spec.number).index_select(0, index).float()
                scores = shard_logits.index_select(0, index) + F.linear(rows, weight, bias)
                gradient = torch.softmax(scores, dim=1)
                gradient -= F.one_hot(shard_labels.index_select(0, index), logits.shape[1])
                gradient /= len(index)
                torch.mm(gradient.t(), rows, out=weight.grad)
                torch.sum(gradient, dim=0, out=bias.grad)
                progress = (epoch + num_seen / len(labels)) / settings.epochs
                optimiser.param_groups[0]["lr"] = settings.learning_rate * RateSchedule(1, 0.0).factor(progress)
                optimiser.step()
                num_seen += len(index)
    return weight, bias


@torch.no_grad()
def _logits(transfer: Transfer, cache: ActivationCache, spec: LayerSpec, weight: Tensor, bias: Tensor) -> Tensor:
    logits = Gathering(cache.layout.num_samples, transfer.device)
    for shard, block in transfer.blocks(cache, range(cache.layout.num_shards)):
        found = F.linear(spec.next_row.find(block[:, 0], spec.number).float(), weight, bias)
        logits.put(cache.layout.shard_range(shard).start, found)
    return logits.finish()
