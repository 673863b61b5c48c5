"""Peak memory against depth: a run of ffstream beside its rivals, each point measured in a process of its own.

`main` is what such a process runs: it reads a request in JSON from its first argument, measures the point, and prints
it in JSON.
"""

from __future__ import annotations

import dataclasses
import io
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ffstream.data import Split
from ffstream.device.device import device_name, resolve_device, resolve_precision
from ffstream.device.memory import PeakMeter, is_out_of_memory
from ffstream.errors import ConfigError, CorruptFileError, FFStreamError, OutputError, RunMismatchError, nearest
from ffstream.ground.files import expand_home, make_folder, open_regular, storage_errors
from ffstream.ground.lock import RunLock
from ffstream.ground.scratch import make_scratch
from ffstream.ground.units import count
from ffstream.infer.committed import CommittedLayers
from ffstream.infer.evaluation import evaluate_goodness
from ffstream.run.launch import train
from ffstream.settings.config import Config
from ffstream.storage.earlier_output import read_json, to_json
from ffstream.storage.manifest import ANYTHING, NUMBER, SIZE, TEXT, Kind, Shape, find_misfit
from ffstream.storage.outputs import Output
from ffstream.storage.run_names import is_run
from ffstream.storage.tensor_file import save_tensors
from ffstream.studies.rivals import Backprop, ResidentFF, Rival
from ffstream.training.observer import LayerFigures, Observer, RunOutline

# The methods that are measured: the name that a user gives, and the name that is shown.
METHODS = {
    "ffstream": "ffstream",
    "resident": "resident FF",
    "backprop": "backprop",
    "checkpointing": "backprop, checkpointing",
    "accumulation": "backprop, accumulation",
}

_RIVALS: dict[str, Callable[..., Rival]] = {
    "resident": ResidentFF,
    "backprop": Backprop,
    "checkpointing": lambda *shape: Backprop(*shape, checkpointed=True),
    "accumulation": lambda *shape: Backprop(*shape, accumulated=True),
}

_NUM_CLASSES = 10
_NUM_STEPS = 2  # per epoch; from the second on, the optimiser's state exists
_KILLED = -9  # exit code of a process that the system killed, as it does when memory runs out
_PEAK = Kind("a number of bytes, or null", lambda value: value is None or (type(value) is int and 0 <= value < 1 << 62))
_CONTENT: Shape = {
    "settings": {TEXT: ANYTHING},
    "machine": {TEXT: ANYTHING},
    "points": [
        {"method": TEXT, "num_layers": SIZE, "training_bytes": _PEAK, "evaluation_bytes": _PEAK, "elapsed_s": NUMBER}
    ],
}


@dataclass(frozen=True)
class ProfileSettings:
    """The settings that all points of a profile have in common."""

    width: int
    batch: int
    micro_batch: int  # of ffstream, resident FF and backprop with accumulation
    device: str
    precision: str
    num_features: int = 784

    @classmethod
    def here(
        cls, *, device: str, precision: str, width: int = 2000, batch: int = 5000, micro_batch: int | None = None
    ) -> ProfileSettings:
        """Settings with device and precision resolved for this machine; by default a tenth of the batch at once.

        Raises ConfigError, DeviceError.
        """
        found = resolve_device(device)
        Config(precision=precision)  # raises ConfigError for one that is not allowed
        if micro_batch is None:
            micro_batch = max(batch // 10, 1)
        return cls(width, batch, micro_batch, device=str(found), precision=resolve_precision(precision, found))

    def configure(self, num_layers: int) -> Config:
        """The configuration of a run of `num_layers` layers. Raises ConfigError."""
        names = ("width", "batch", "micro_batch", "device", "precision")
        sizes = {name: getattr(self, name) for name in names}
        settings = {"cache.tier": "disk", "cache.shard_samples": self.micro_batch, "network.stack_layers": 0}
        return Config(layers=num_layers, epochs=2, **sizes).override(settings)


@dataclass(frozen=True)
class Point:
    """Peak bytes of one method at one depth; None where the device or the host ran out of memory."""

    method: str
    num_layers: int
    training_bytes: int | None
    evaluation_bytes: int | None
    elapsed_s: float


@dataclass(frozen=True)
class Profile:
    """The points that were measured, with the settings and the machine they were measured with."""

    settings: ProfileSettings
    machine: dict[str, str]
    points: list[Point]

    def find(self, method: str, num_layers: int) -> Point | None:
        """The point of a method at a depth; None if it has not been measured."""
        return next((point for point in self.curve(method) if point.num_layers == num_layers), None)

    def curve(self, method: str) -> list[Point]:
        """The points of a method, by depth."""
        found = [point for point in self.points if point.method == method]
        return sorted(found, key=lambda point: point.num_layers)

    def to_mapping(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return dataclasses.asdict(self)


def measure_profile(
    settings: ProfileSettings,
    methods: Sequence[str],
    depths: Sequence[int],
    folder: Path,
    on_point: Callable[[Point], None] = lambda _: None,
    *,
    force: bool = False,
) -> Profile:
    """Measure the points that are missing in FOLDER/profile.json, which is written anew after each point.

    Raises ConfigError for methods and sizes that cannot be. Raises RunMismatchError if the profile there has other
    settings or is of another machine, CorruptFileError if the file is no profile; with `force`, a new profile replaces
    either. Raises OutputError for a folder that is a run's, RunLockedError while another process measures there.
    """
    if not methods:
        raise ConfigError(f"--methods: found none; allowed: {', '.join(sorted(METHODS))}")
    for method in methods:
        if method not in METHODS:
            raise ConfigError(f"--methods: unknown method {method!r}; {nearest(method, METHODS)}")
    for depth in depths:
        settings.configure(depth)
    folder = expand_home(folder)
    path = folder / "profile.json"
    if is_run(folder):
        raise OutputError(
            f"output {folder}: is a run, and a profile needs a folder of its own; choose another --output"
        )
    output = Output(path, is_own=lambda _: True)  # `_open` decides what becomes of an earlier one
    machine = {"device_name": device_name(settings.device), "torch": torch.__version__}
    with storage_errors(folder):
        make_folder(folder)
    with RunLock(folder):
        profile = _open(Profile(settings, machine, []), path, force=force)
        for depth in depths:
            for method in methods:
                if profile.find(method, depth) is None:
                    point = _measure_apart(settings, method, depth, folder)
                    profile.points.append(point)
                    output.write(to_json(profile.to_mapping()).encode())
                    on_point(point)
    return profile


def _open(profile: Profile, path: Path, *, force: bool) -> Profile:
    """The profile with the points that the file has of it already. Raises RunMismatchError, CorruptFileError."""
    try:
        with open_regular(path) as file:
            content = read_json(file)
        if content is None:
            raise ValueError("it is no profile, or was edited since it was written")
        misfit = find_misfit(content, _CONTENT)
        if misfit is not None:
            raise ValueError(misfit)
        points = [Point(**point) for point in content["points"]]
    except FileNotFoundError:
        return profile
    except (OSError, ValueError, TypeError, RecursionError) as error:
        if force:
            return profile
        raise CorruptFileError(
            f"profile {path}: cannot be read ({error}); choose another --output, or add --force to replace it"
        ) from error
    saved = content["settings"] | content["machine"]
    asked = dataclasses.asdict(profile.settings) | profile.machine
    different = [f"{name}: {asked[name]!r}, {saved.get(name)!r}" for name in asked if asked[name] != saved.get(name)]
    if not different:
        return dataclasses.replace(profile, points=points)
    if force:
        return profile
    raise RunMismatchError(
        f"profile {path}: belongs to other settings; asked and found differ in {'; '.join(different)}; ask for the "
        "same, choose another --output, or add --force to replace it"
    )


def _measure_apart(settings: ProfileSettings, method: str, num_layers: int, folder: Path) -> Point:
    """Measure a point in a process of its own. An FFStreamError of that process is raised here."""
    start_s = time.perf_counter()
    noun = f"{METHODS[method]} of {count(num_layers, 'layer')}"
    with make_scratch(folder) as scratch:
        request = {"settings": dataclasses.asdict(settings), "method": method, "num_layers": num_layers}
        request["folder"] = str(scratch.path)
        # With -m, Python would first import modules from the current folder, whoever put them there.
        code = f"import sys; sys.path[:] = {sys.path!r}; from ffstream.studies.memory_profile import main; main()"
        command = [sys.executable, "-c", code, json.dumps(request)]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode < 0 and done.returncode != _KILLED:
        name = signal.strsignal(-done.returncode) or -done.returncode
        raise FFStreamError(f"{noun}: its process was ended by a signal ({name}); run the same command again")
    if done.returncode not in (0, _KILLED):
        raise RuntimeError(f"{noun}: {done.stderr}")
    answer = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {}
    if "error" in answer:
        raise FFStreamError(f"{noun}: {answer['error']}")
    peaks = (answer.get("training_bytes"), answer.get("evaluation_bytes"))
    return Point(method, num_layers, *peaks, time.perf_counter() - start_s)


def _measure(settings: ProfileSettings, method: str, num_layers: int, folder: Path) -> dict[str, int]:
    """Peak bytes of training and of evaluation, without the data set."""
    config = settings.configure(num_layers)
    device = torch.device(settings.device)
    generator = torch.Generator().manual_seed(0)
    num_samples = round(_NUM_STEPS * settings.batch / (1 - config.validation_fraction))
    shape = (num_samples, settings.num_features)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    labels = torch.arange(num_samples) % _NUM_CLASSES
    if method == "ffstream":
        return _measure_run(config, images, labels, device, folder)
    return _measure_rival(_RIVALS[method], config, images, labels, device)


class Metering(Observer):
    """Measures a run from its first step to its last, in laps."""

    def __init__(self, meter: PeakMeter) -> None:
        self._meter = meter
        self.peak_bytes = 0

    def on_start(self, outline: RunOutline) -> None:
        """Start to measure: so far only the data are in memory."""
        self._meter.start()

    def on_step(self, description: str) -> None:
        """Begin a lap with each step of the schedule."""
        self.peak_bytes = max(self.peak_bytes, self._meter.lap())

    def on_finish(self, layers: list[LayerFigures]) -> None:
        """End the last lap."""
        self.peak_bytes = max(self.peak_bytes, self._meter.stop())


def _measure_run(config: Config, images: Tensor, labels: Tensor, device: torch.device, folder: Path) -> dict[str, int]:
    """Measure a run of ffstream, and its evaluation of one batch by goodness."""
    path = folder / "data.safetensors"
    with storage_errors(path), io.FileIO(path, "w") as file:
        save_tensors(file, {"train.images": images, "train.labels": labels}, {})
    config, peaks = dataclasses.replace(config, data=str(folder / "data.safetensors")), []
    with PeakMeter(device) as meter:
        training = Metering(meter)
        run = train(config, folder / "run", observer=training)
        split = Split(images[: config.batch], labels[: config.batch])
        layers = CommittedLayers(run.directory, run.config, run.directory.read_data(), device)
        meter.start()
        evaluate_goodness(layers, "test", split, on_layer=lambda: peaks.append(meter.lap()))
        peaks.append(meter.stop())
    return {"training_bytes": training.peak_bytes, "evaluation_bytes": max(peaks)}


def _measure_rival(
    make: Callable[..., Rival], config: Config, images: Tensor, labels: Tensor, device: torch.device
) -> dict[str, int]:
    """Measure a rival that is trained on a few batches and then predicts one."""
    with PeakMeter(device) as meter:
        meter.start()
        rival = make(config, images.shape[1], _NUM_CLASSES, device)
        for part, wanted in zip(
            images.split(config.batch)[:_NUM_STEPS], labels.split(config.batch)[:_NUM_STEPS], strict=True
        ):
            rival.train_batch(part, wanted)
        training_bytes = meter.lap()
        rival.predict(images[: config.batch])
        return {"training_bytes": training_bytes, "evaluation_bytes": meter.stop()}


def main() -> None:
    """Measure one point and print it. An error that a user can mend is printed as an answer too."""
    request = json.loads(sys.argv[1])
    settings = ProfileSettings(**request["settings"])
    answer: dict[str, Any]
    try:
        answer = _measure(settings, request["method"], request["num_layers"], Path(request["folder"]))
    except Exception as error:
        if is_out_of_memory(error) or is_out_of_memory(error.__cause__ or error):
            answer = {}
        elif isinstance(error, FFStreamError):
            answer = {"error": str(error)}
        else:
            raise
    sys.stdout.write(json.dumps(answer) + "\n")
