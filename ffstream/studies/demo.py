"""Shows in a minute what ffstream is for: depth that pays, the memory of one layer, and an exact resume."""

from __future__ import annotations

import copy
import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ffstream.data import Dataset, load_dataset
from ffstream.device.environment import plain_torch
from ffstream.device.memory import PeakMeter
from ffstream.errors import FFStreamError, OutputError
from ffstream.ground.files import expand_home, to_absolute
from ffstream.ground.scratch import make_scratch
from ffstream.infer.model import load_network
from ffstream.run.launch import train
from ffstream.run.run import Run
from ffstream.settings.config import Config
from ffstream.storage.run_directory import RunDirectory
from ffstream.storage.run_names import is_run
from ffstream.studies.memory_profile import Metering
from ffstream.training.epoch_figures import EpochFigures
from ffstream.training.observer import Observer

_NUM_LAYERS = 12
_BUDGET = "3MiB"  # of the device; backpropagation takes about three times as much
_NUM_INTERRUPTED = 2  # layers of the run that is killed while it trains the last of them
_NUM_SAVED_EPOCHS = 5  # epochs of the last layer that are saved when the run is killed
_NUM_THREADS = 1  # layers so small are no faster with more, and on busy cores many times slower
_ARRIVED = "arrived\n"  # what the process prints then
_NUM_MEASURED = 5  # layers: a stack, and the first layer of the next one; all later layers are like these
_MLP_EPOCHS, _MLP_LEARNING_RATE = 20, 1e-3


def make_config(device: str) -> Config:
    """Layers that see images, in three stacks.

    Epochs and perturbation were chosen by the error on 30 % of the training images, which were held out. The recipe and
    the kind of layer come from a search that also showed test errors, so the demo's test error is not quite the error
    on unseen images.
    """
    return Config(recipe="mono", layers=_NUM_LAYERS, width=288, epochs=20, device=device).override(
        {
            "network.kind": "local",
            "network.dropout": 0.1,
            "objective.perturbation": 0.0,  # in the same time, more epochs without it give the lower error
            "augmentation.views": 9,
            "augmentation.max_shift": 1,
            "cache.tier": "disk",  # in memory it would count towards the budget if the device is the host
            "memory.budget": _BUDGET,
        }
    )


@dataclass(frozen=True)
class Demonstration:
    """The figures of the demo. Errors are shares of the test images; memory is that of the device."""

    run: Run
    errors_by_depth: list[float]  # of the goodness summed to each depth
    nearest_neighbour_error: float
    mlp_error: float  # two hidden layers of the same width, trained by backpropagation
    training_bytes: int
    backprop_bytes: int  # of the same network, trained by backpropagation
    killed_layer: int  # from 1
    killed_epoch: int
    is_same: bool  # whether the killed run ends with the weights of the run that was not interrupted


@plain_torch(_NUM_THREADS)
def demonstrate(folder: Path, device: str, observer: Observer, tell: Callable[[str], None]) -> Demonstration:
    """Train in FOLDER/run, then measure all the rest. `tell` is given a line before each step.

    A demonstration that was interrupted is resumed. Raises an FFStreamError as `train` does.
    """
    folder = to_absolute(expand_home(folder))
    if is_run(folder):
        raise OutputError(f"output {folder}: is a run, and the demo needs a folder of its own; choose another --output")
    config = make_config(device)
    tell(f"1. {config.layers} layers that see 8 x 8 digits, one at a time within {_BUDGET} of the device's memory")
    run = train(config, folder / "run", observer=observer, resume=True)
    tell("2. the same once more, in the same sizes: killed in its second layer, and resumed")
    with make_scratch(folder) as scratch:
        killed_layer, killed_epoch = _kill_and_resume(run.config.override({"layers": _NUM_INTERRUPTED}), scratch.path)
        is_same = all(
            _read_weights(run.directory, number) == _read_weights(RunDirectory(scratch.path / "killed"), number)
            for number in range(_NUM_INTERRUPTED)
        )
        tell("3. the memory of training, measured, and that of backpropagation through the same network")
        training_bytes, backprop_bytes = _measure_apart(run, scratch.path)
    tell("4. the test images, which nothing has read so far")
    dataset = load_dataset(config.data)
    return Demonstration(
        run=run,
        errors_by_depth=run.evaluate().errors_by_depth,
        nearest_neighbour_error=_find_nearest_neighbour_error(dataset),
        mlp_error=_train_mlp(dataset, config.width),
        training_bytes=training_bytes,
        backprop_bytes=backprop_bytes,
        killed_layer=killed_layer,
        killed_epoch=killed_epoch,
        is_same=is_same,
    )


def _kill_and_resume(config: Config, folder: Path) -> tuple[int, int]:
    """Kill a process that trains, and resume in another. Returns the saved layer (from 1) and its number of epochs."""
    file, path = folder / "config.toml", folder / "killed"
    file.write_text(config.to_toml())
    # An epoch that is reported may still be on its way to the disk; the one before it has been saved.
    process = subprocess.Popen(
        _to_process(["train", str(file), str(path), str(_NUM_SAVED_EPOCHS + 1)], __name__),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        has_arrived = process.stdout.readline() == _ARRIVED
    finally:
        process.kill()
        _, said = process.communicate()
    if not has_arrived:
        raise FFStreamError(f"demo: its second process ended before it could be killed: {said.strip()[-300:]}")
    saved = RunDirectory(path).read_progress()
    if saved is None:
        raise FFStreamError("demo: its second process was killed after an epoch, and nothing of that epoch is saved")
    done = subprocess.run(_to_process(["resume", str(path)]), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise FFStreamError(f"demo: the killed run could not be resumed: {done.stderr.strip()[-300:]}")
    return saved[0] + 1, saved[1]


def _to_process(words: Sequence[str], module: str = "ffstream.entry") -> list[str]:
    """The command of a process that calls `main` of a module of this package, with this process's import path."""
    code = f"import sys; sys.path[:] = {sys.path!r}; from {module} import main; sys.exit(main())"
    return [sys.executable, "-c", code, *words]


def _read_weights(directory: RunDirectory, index: int) -> bytes:
    return (directory.layer_folder(index) / "weights.safetensors").read_bytes()


def _measure_apart(run: Run, folder: Path) -> tuple[int, int]:
    """Peak bytes of training and of backpropagation, measured in another process, which has its own memory account."""
    command = _to_process(["measure", str(run.path), str(folder)], __name__)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise FFStreamError(f"demo: memory could not be measured: {done.stderr.strip()[-300:]}")
    training_bytes, backprop_bytes = json.loads(done.stdout.splitlines()[-1])
    return training_bytes, backprop_bytes


class _Halting(Observer):
    """Tells the parent process that an epoch of the last layer is over, and waits to be killed."""

    def __init__(self, epoch: int) -> None:
        self._epoch = epoch

    def on_epoch(
        self, layer: int, epoch: int, num_epochs: int, figures: EpochFigures, validation_error: float | None
    ) -> None:
        if (layer, epoch) == (_NUM_INTERRUPTED, self._epoch):
            sys.stdout.write(_ARRIVED)
            sys.stdout.flush()
            sys.stdin.read()  # returns when the parent process has died


def main() -> None:
    """One of the demo's own processes: `train CONFIG RUN EPOCH`, or `measure RUN FOLDER`, which prints JSON."""
    torch.set_num_threads(_NUM_THREADS)
    task, *words = sys.argv[1:]
    if task == "train":
        train(Config.from_toml(Path(words[0])), Path(words[1]), observer=_Halting(int(words[2])))
    else:
        run, folder = Run(Path(words[0])), Path(words[1])
        sys.stdout.write(json.dumps([_measure_training(run.config, folder), _measure_backprop(run)]) + "\n")


def _measure_training(config: Config, folder: Path) -> int:
    """Peak bytes on the device of training in the sizes of a run, for one epoch per layer, as all epochs are alike."""
    short = {"layers": min(config.layers, _NUM_MEASURED), "epochs": 1, "memory.budget": "auto"}
    with PeakMeter(torch.device(config.device)) as meter:
        metering = Metering(meter)
        train(config.override(short), folder / "measured", observer=metering)
    return metering.peak_bytes


def _measure_backprop(run: Run) -> int:
    """Peak bytes on the device of two steps of Adam on the cross-entropy of the whole network's output."""
    network, config = load_network(run.path), run.config
    device = torch.device(config.device)
    dataset = load_dataset(config.data)
    assert isinstance(config.batch, int), "the plan has decided it"
    images, labels = dataset.train.images[:], dataset.train.labels
    with PeakMeter(device) as meter:
        meter.start()
        whole = copy.deepcopy(network).train().to(device)
        optimiser = torch.optim.Adam(whole.parameters(), config.optimiser.learning_rate)
        for part, wanted in list(zip(images.split(config.batch), labels.split(config.batch), strict=True))[:2]:
            loss = nn.functional.cross_entropy(whole(part.to(device)), wanted.to(device))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        return meter.stop()


def _find_nearest_neighbour_error(dataset: Dataset) -> float:
    """The test error of the label of the nearest training image, by Euclidean distance."""
    assert dataset.test is not None
    nearest = torch.cdist(_flatten(dataset.test.images[:]), _flatten(dataset.train.images[:])).argmin(dim=1)
    return _compute_error(dataset.train.labels[nearest], dataset.test.labels)


def _train_mlp(dataset: Dataset, width: int) -> float:
    """The test error of two hidden layers, trained by backpropagation with Adam on all training images."""
    assert dataset.test is not None
    images, labels = _flatten(dataset.train.images[:]), dataset.train.labels
    generator = torch.Generator().manual_seed(0)
    layers: list[nn.Module] = []
    for num_inputs, num_units in itertools.pairwise((images.shape[1], width, width, dataset.num_classes)):
        linear = nn.utils.skip_init(nn.Linear, num_inputs, num_units)  # nn.Linear draws from the global generator
        nn.init.kaiming_uniform_(linear.weight, nonlinearity="relu", generator=generator)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.ReLU()]
    network = nn.Sequential(*layers[:-1])
    optimiser = torch.optim.Adam(network.parameters(), _MLP_LEARNING_RATE)
    for _ in range(_MLP_EPOCHS):
        for batch in torch.randperm(len(images), generator=generator).split(64):
            loss = nn.functional.cross_entropy(network(images[batch]), labels[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    with torch.no_grad():
        return _compute_error(network(_flatten(dataset.test.images[:])).argmax(dim=1), dataset.test.labels)


def _flatten(images: Tensor) -> Tensor:
    return images.flatten(1).float() / 16  # white is 16


def _compute_error(found: Tensor, labels: Tensor) -> float:
    return float((found != labels).double().mean())
