"""Pictures by class, digests of a run, a way to interrupt one, and the command line as a user calls it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

import ffstream as ff
from ffstream.cache import DiskCache
from ffstream.cli import app
from ffstream.data import load_dataset
from ffstream.data.shape import DataShape
from ffstream.field.blueprint import Blueprint
from ffstream.field.layers import Activations, LayerShape, Linear
from ffstream.ground.folder import Folder
from ffstream.storage.manifest import write_manifest
from tests.warm import run_python

# Three layers of 24 units, three epochs, four shards: everything a large run has, in a tenth of a second.
SMALL = {
    "layers": 3,
    "width": 24,
    "epochs": 3,
    "batch": 32,
    "device": "cpu",
    "precision": "fp32",
    "cache.shard_samples": 80,
}


def write_small_data(path: Path) -> None:
    """300 training and 100 test digits."""
    digits = load_dataset("digits")
    assert digits.test is not None
    tensors = {
        "train.images": digits.train.images[:300],
        "train.labels": digits.train.labels[:300],
        "test.images": digits.test.images[:100],
        "test.labels": digits.test.labels[:100],
    }
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, path)


def write_pictures(folder, by_class, name="{}.png"):
    """Write arrays of pixels as folder/CLASS/NAME, where the name holds their number. Returns the folder."""
    for label, pictures in by_class.items():
        (folder / label).mkdir(parents=True, exist_ok=True)
        for number, pixels in enumerate(pictures):
            Image.fromarray(pixels).save(folder / label / name.format(number))
    return folder


def write_plain_pictures(folder, classes=("cat", "dog"), num_images=4, size=(6, 5), mode="L", first=0):
    """Write pictures of one colour each, numbered from `first` on, for each class. Returns the folder."""
    shape = size[::-1] if mode == "L" else (*size[::-1], 3)
    for column, label in enumerate(classes):
        numbers = range(first, first + num_images)
        colours = [40 * column + number if mode == "L" else (number, column, 70) for number in numbers]
        write_pictures(folder, {label: [np.full(shape, colour, np.uint8) for colour in colours]})
    return folder


def disk_cache(layout, path, identity="", **options):
    """The disk cache of that path."""
    return DiskCache(layout, Folder(Path(path).parent), Path(path).name, identity, **options)


def layer_digests(run_dir: Path) -> list[str]:
    """Digest of each finished layer's weights and validation goodness and, after the last round, optimiser's state."""
    rounds = sorted(path.parent for path in Path(run_dir).glob("rounds/*/manifest.json"))
    above = rounds[-1] if rounds else Path(run_dir) / "layers"
    folders = sorted(path.parent for path in above.glob("*/manifest.json"))
    return [
        hashlib.sha256(b"".join(sorted(p.read_bytes() for p in folder.glob("*.safetensors")))).hexdigest()
        for folder in folders
    ]


def make_older(run_dir):
    """Take from a run what versions before identities did not write."""
    for name in ("run.json", "environment.json"):
        (run_dir / name).unlink()
    for path in run_dir.rglob("manifest.json"):
        content = json.loads(path.read_text())
        write_manifest(Folder(path.parent), path.name, {k: content[k] for k in content if k not in _NEWER})


_NEWER = ("run", "manifest_sha256")


def metrics_without_times(run_dir: Path) -> list[dict]:
    """The lines of metrics.jsonl without what depends on the clock or on the process."""
    volatile = {"elapsed_s", "samples_per_s", "peak_memory_bytes", "cache_tier", "seconds"}
    lines = (Path(run_dir) / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in volatile} for line in lines]


def check_resumed_equals(whole: Path, resumed: Path) -> None:
    """The same bits, lines and nothing left over."""
    assert layer_digests(resumed) == layer_digests(whole)
    assert metrics_without_times(resumed) == metrics_without_times(whole)
    assert not (resumed / "cache").exists()
    assert not (resumed / "progress").exists()


def similarity_written_out(name: str, activities: torch.Tensor, labels: torch.Tensor, num_in_group: int):
    """The sum of a term over all samples, as its paper spells it, compared within groups."""
    total = activities.sum() * 0
    for group, classes in zip(activities.split(num_in_group), labels.split(num_in_group), strict=True):
        directions = torch.nn.functional.normalize(group, dim=1, eps=1e-6)
        cosines = directions @ directions.t()
        for i in range(len(classes)):
            others = [a for a in range(len(classes)) if a != i]
            alike = [p for p in others if classes[p] == classes[i]]
            if name == "matching" and others:
                total = total + sum((cosines[i, a] - float(a in alike)) ** 2 for a in others) / len(others)
            elif name == "contrastive" and alike:
                log_sum = torch.logsumexp(cosines[i, others] / 0.1, dim=0)
                total = total - sum(cosines[i, p] / 0.1 - log_sum for p in alike) / len(alike)
    return total


class InterruptAt(ff.Observer):
    """Stops a run, as Ctrl-C does, at the nth call of one of its methods."""

    def __init__(self, method: str, nth: int) -> None:
        self._left = nth

        def interrupt(*_args):
            self._left -= 1
            if self._left < 0:
                raise KeyboardInterrupt

        setattr(self, method, interrupt)


def check_resumed_on_every_tier(config: ff.Config, folder: Path) -> None:
    """A run that is interrupted in its fourth epoch ends with the same weights, wherever its cache lies."""
    whole = ff.train(config, folder / "whole")
    for tier in ("host", "disk"):
        path = folder / tier
        with pytest.raises(KeyboardInterrupt):
            ff.train(config.override({"cache.tier": tier}), path, observer=InterruptAt("on_epoch", 3))
        ff.resume(path)
        assert layer_digests(path) == layer_digests(whole.path)


class StopAtEach(ff.Observer):
    """Stops a run at every call of one of its methods that has not come yet, in this process or an earlier one."""

    def __init__(self, method: str) -> None:
        self.met: set[tuple[object, ...]] = set()  # what was finished then, and what the call said, but for figures
        self._num_done = 0
        itself = getattr(self, method)

        def stop(*arguments):
            itself(*arguments)
            met = (self._num_done, *(each for each in arguments if isinstance(each, (int, str))))
            if met not in self.met:
                self.met.add(met)
                raise KeyboardInterrupt

        setattr(self, method, stop)

    def on_start(self, outline: ff.RunOutline) -> None:
        self._num_done = outline.num_done

    def on_layer(self, figures: ff.LayerFigures) -> None:
        self._num_done += 1


def train_in_pieces(config: ff.Config, path: Path, method: str) -> int:
    """Train in as many processes as there are calls of an observer's method: each stops at one, the next goes on.

    Returns how many were stopped. They are no processes of their own, but share nothing except the observer.
    """
    stopper = StopAtEach(method)
    while True:
        try:
            if path.exists():
                ff.resume(path, observer=stopper)
            else:
                ff.train(config, path, observer=stopper)
        except KeyboardInterrupt:
            continue
        return len(stopper.met)


def run_cli(*arguments):
    """The exit code, standard output, and what escaped from the command."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, (SystemExit, ff.FFStreamError)):
        raise result.exception
    return result.exit_code, result.output, result.exception


def run_process(*arguments, cwd, environment=None):
    """The same through a process of its own."""
    return run_python("-m", "ffstream", *arguments, cwd=cwd, environment=environment)


def make_dense(in_features, num_units, compute_dtype=torch.float32, kind=Linear):
    """A dense layer whose parameters are undefined."""
    return kind(LayerShape(Activations(in_features), num_units), compute_dtype)


def describe(config, num_features=64, num_classes=10, image_shape=None, num_samples=None):
    """The blueprint of a configuration; what it leaves open of batch and shards is as large as need be."""
    sizes = {name: 512 for name in ("batch", "cache.shard_samples") if config.to_flat()[name] == "auto"}
    return Blueprint.of(config.override(sizes), DataShape(num_features, num_classes, num_samples or {}, image_shape))


class DenseLayer(ff.Layer):
    """What a user's own kind is at least: a dense layer without a bias, whose gradients are autograd's."""

    def __init__(self, shape, compute_dtype=torch.float32):
        super().__init__(shape, compute_dtype)
        self.weight = torch.nn.Parameter(torch.empty(self.num_units, self.in_features))

    def initialise(self, generator):
        with torch.no_grad():
            self.weight.normal_(0, self.in_features**-0.5, generator=generator)

    def preactivations(self, rows):
        return rows.float() @ self.weight.t()


def take_units(tensor, axis, units):
    """Some units of a tensor, of each run along its axis."""
    runs = tensor.unflatten(axis.index, (axis.num_runs, -1))
    found = runs.narrow(axis.index + 1, units.start, units.stop - units.start)
    return found.flatten(axis.index, axis.index + 1).clone()


def cut_layer(layer, tiles):
    """The tiles of a layer, as layers of their own with copies of its parameters."""
    made = []
    for units in tiles:
        tile = type(layer)(layer.shape.cut(units), layer.compute_dtype)
        if layer.label_embedding is not None:
            num_values = layer.count_unit_runs("label_embedding") * tile.width
            tile.label_embedding = torch.nn.Parameter(torch.empty(len(layer.label_embedding), num_values))
        axes = layer.list_unit_axes()
        state = {name: take_units(value, axes[name], units) for name, value in layer.state_dict().items()}
        tile.to(layer.weight.dtype).load_state_dict(state)
        made.append(tile)
    return made
