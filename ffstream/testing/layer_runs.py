"""What each layer kind must fulfil in a run: memory as planned, going on within an epoch, export."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ffstream.cache import MemoryCache
from ffstream.cache.transfer import Transfer
from ffstream.data.shape import DataShape
from ffstream.device.workspace import Workspace
from ffstream.field.blueprint import Blueprint
from ffstream.field.network import LayerSpec, find_untileable
from ffstream.ground.units import format_bytes
from ffstream.infer.model import load_network
from ffstream.plan.dry_run import do_on_paper
from ffstream.plan.footprint import add_slots, cache_layouts
from ffstream.plan.probe import measure_kernels
from ffstream.plan.trial import measure_steps
from ffstream.run.launch import resume, train
from ffstream.run.run import Run
from ffstream.settings.config import Config
from ffstream.storage.epoch_part import EpochPart
from ffstream.testing.claims import claim
from ffstream.training.epoch_figures import EpochFigures
from ffstream.training.layer_trainer import LayerTrainer
from ffstream.training.observer import Observer

_CPU = torch.device("cpu")
_NUM_LAYERS, _NUM_SAMPLES, _SHARD_SAMPLES, _BATCH = 2, 256, 64, 32
_NUM_GROUPS = 2  # of shards, behind which an epoch is gone on with
# Planned may be more than a step takes by this share and these bytes: other phases of training are in it too.
_MOST_PLANNED, _MORE_BYTES = 1.5, 64 << 10
_SMALL_BYTES = 4 << 10  # of tensors that libraries make


def list_ways(config: Config) -> dict[str, Config]:
    """The ways in which steps may be taken: of a whole batch, from parts of it, and by tiles if the layer has any."""
    in_part = max(int(config.batch) // 3, 1)
    found = {"": config, " from parts of a batch": config.override({"micro_batch": in_part})}
    if find_untileable(config) is None:
        found[" by tiles"] = config.override({"network.tile_units": max(config.width // 2, 1)})
    return found


def check_steps(config: Config) -> None:
    """Check the memory of steps, and that an epoch which is gone on with ends with the same bits."""
    num_layers = min(config.layers, _NUM_LAYERS)
    small = config.override({"cache.shard_samples": _SHARD_SAMPLES, "batch": _BATCH, "layers": num_layers})
    for words, way in list_ways(small).items():
        blueprint = Blueprint.of(way, DataShape(64, 10, {"train": _NUM_SAMPLES}, (8, 8)))
        kernels = measure_kernels(blueprint, _CPU)
        layers = add_slots(do_on_paper(blueprint, draws_on_device=True, kernels=kernels), blueprint, staged=False)
        for spec, layer in zip(blueprint.distinct, layers, strict=True):
            _check_bytes(blueprint, spec, layer.footprint.training, words)
            _check_going_on(blueprint, spec, words)


def _check_bytes(blueprint: Blueprint, spec: LayerSpec, planned_bytes: int, words: str) -> None:
    layout = cache_layouts(blueprint, spec.row)["train"]
    measured_bytes = measure_steps(blueprint, spec, layout, _CPU)
    noun = f"a step of layer {spec.index + 1}{words} takes {format_bytes(measured_bytes)}, but"
    is_declared = blueprint.make_layer(spec).is_black_box
    words = "are planned with what is declared" if is_declared else "are planned"
    claim(measured_bytes <= planned_bytes + _SMALL_BYTES, f"{noun} {format_bytes(planned_bytes)} {words}")
    if not is_declared:
        most_bytes = _MOST_PLANNED * measured_bytes + _MORE_BYTES
        claim(planned_bytes <= most_bytes, f"{noun} {format_bytes(planned_bytes)} are planned, far more")


def _check_going_on(blueprint: Blueprint, spec: LayerSpec, words: str) -> None:
    """Check an epoch that a new trainer goes on with behind some shards, of what was saved then."""
    layout = cache_layouts(blueprint, spec.row)["train"]
    cache, generator = MemoryCache(layout, _CPU), torch.Generator().manual_seed(0)
    for shard in range(layout.num_shards):
        rows = cache.allocate(shard, _CPU)
        assert rows is not None, "the cache lies on this device"
        rows.copy_(torch.randn(rows.shape, generator=generator))
    labels = torch.randint(0, blueprint.data.num_classes, (layout.num_samples,), generator=generator)
    units = blueprint.tiles_of(spec)[0]
    saved: list[tuple[dict[str, Tensor], dict[str, Tensor], EpochPart]] = []

    def make() -> LayerTrainer:
        layer = blueprint.build_layer(spec, units)
        layer.workspace = Workspace(_CPU)
        return LayerTrainer(layer, spec.index, blueprint, _CPU, units)

    def save(describe: Callable[[], EpochPart]) -> None:
        part = describe()
        if part.num_groups == _NUM_GROUPS:
            states = whole.layer.state_dict(), whole.optimiser.state()
            layer_state, optimiser_state = ({key: value.clone() for key, value in each.items()} for each in states)
            saved.append((layer_state, optimiser_state, replace(part, totals=part.totals.clone())))

    with Transfer(_CPU) as transfer:
        whole, resumed = make(), make()
        figures = whole.train_epoch(transfer, cache, labels, 0, on_part=save)
        ((layer_state, optimiser_state, part),) = saved
        resumed.layer.load_state_dict(layer_state)
        resumed.optimiser.load_state(optimiser_state)
        again = resumed.train_epoch(transfer, cache, labels, 0, done=part)
    noun = f"an epoch of layer {spec.index + 1}{words} that is gone on with in its middle"
    for key, value in whole.layer.state_dict().items():
        claim(torch.equal(value, resumed.layer.state_dict()[key]), f"{noun} ends with another {key}")
    claim((figures.loss, figures.separation) == (again.loss, again.separation), f"{noun} ends with another loss")


class StopInLayer(Observer):
    """Interrupts a run when the first epoch of a layer ends, as a user would."""

    def __init__(self, layer: int) -> None:
        self._layer = layer

    def on_epoch(
        self, layer: int, epoch: int, num_epochs: int, figures: EpochFigures, validation_error: float | None
    ) -> None:
        """Stop in this layer."""
        if layer == self._layer:
            raise KeyboardInterrupt


def check_coded_run(config: Config, stopped_layer: int) -> None:
    """Train on int8 caches, with an interruption; then export what was trained, and load it."""
    coded = config.override({"cache.dtype": "int8", "cache.tier": "disk"})
    with tempfile.TemporaryDirectory() as folder:
        whole = train(coded, Path(folder) / "whole")
        with contextlib.suppress(KeyboardInterrupt):
            train(coded, Path(folder) / "stopped", observer=StopInLayer(stopped_layer))
        found, wanted = (_read_weights(run) for run in (resume(Path(folder) / "stopped"), whole))
        claim(found == wanted, "a run on int8 caches ends with other weights once it was interrupted")
        check_export(whole, Path(folder) / "network.safetensors")


def check_export(run: Run, file: Path) -> None:
    """Check that an exported network loads, and gives the very goodness of the network that the run gives."""
    run.export(file)
    images = torch.rand(5, 8, 8, generator=torch.Generator().manual_seed(0)) * 16
    with torch.no_grad():
        found, again, wanted = (load_network(path)(images) for path in (file, file, run.path))
    claim(torch.equal(found, wanted), "a network that was exported gives another goodness than its run")
    claim(torch.equal(found, again), "a network that is loaded twice gives two goodnesses of the same images")


def _read_weights(run: Run) -> list[bytes]:
    return [file.read_bytes() for file in sorted((run.path / "layers").rglob("weights.safetensors"))]
