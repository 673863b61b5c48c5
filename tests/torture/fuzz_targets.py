"""What the fuzz puts nonsense into: each file and word of a user that is read, and what is done with it."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

import ffstream as ff
from ffstream.cli import app
from ffstream.data import load_dataset
from ffstream.data.picture_file import read_picture
from ffstream.data.shape import DataShape
from ffstream.ground.folder import Folder
from ffstream.plan.machine import parse_machine
from ffstream.run.preparation import make_plan
from ffstream.run.repair import diagnose
from ffstream.settings.toml import parse_assignment
from ffstream.storage.manifest import write_manifest
from tests.helpers import SMALL, InterruptAt
from tests.torture.nonsense import CHANGES, EDITS, NUMBERS, VALUES, WORDS, alter, change

_MACHINE = "device=8GiB,30TFLOP/s;h2d=12GB/s;host=32GiB;disk=1TiB,3GB/s"


@dataclass(frozen=True)
class Target:
    """Where nonsense is put in. `share` is of all cases; `meet` raises an FFStreamError for what it refuses."""

    name: str
    share: float
    cases: st.SearchStrategy[Any]
    meet: Callable[[Any], object]


def make_targets(place: Path) -> list[Target]:
    """All of them, with their files in a folder."""
    run = _make_runs(place)
    words = st.sampled_from(WORDS)
    keys = st.sampled_from([*ff.Config().to_flat(), "width.height", "", "objective"])
    configs = [ff.Config(recipe=recipe) for recipe in ("inject", "unsupervised")]
    files = {path.name: path.read_bytes() for path in sorted((place / "data").iterdir())}
    pictures = {path.name: path.read_bytes() for path in sorted((place / "pictures").iterdir())}
    suffixes = (".json", ".safetensors", ".toml")
    in_run = sorted(path.relative_to(run) for path in run.rglob("*") if path.suffix in suffixes)
    manifests = [path for path in in_run if path.suffix == ".json"]
    return [
        Target("text of a configuration", 20, st.tuples(st.sampled_from(configs), EDITS), _Text(place)),
        Target("values of a configuration", 20, st.tuples(st.sampled_from(configs), CHANGES), _Values(place)),
        Target("--set", 15, st.tuples(keys, st.one_of(words, VALUES.map(repr), st.text(max_size=12))), _assign),
        Target("--machine", 15, EDITS, lambda edits: parse_machine(alter(_MACHINE.encode(), edits).decode("latin1"))),
        Target("arrays", 12, st.tuples(st.sampled_from(sorted(files.items())), EDITS), _Arrays(place)),
        Target("pictures", 12, st.tuples(st.sampled_from(sorted(pictures.items())), EDITS), _Pictures(place)),
        Target("manifests", 1, st.tuples(st.sampled_from(manifests), CHANGES, st.booleans()), _Manifests(run)),
        Target("files of a run", 0.8, st.tuples(st.sampled_from(in_run), EDITS, st.booleans()), _Files(run)),
        Target("commands", 0.3, _commands(run), _call),
        Target("plans", 0.1, st.dictionaries(st.sampled_from(_SIZES), st.sampled_from(NUMBERS), max_size=3), _plan),
    ]


def _make_runs(place: Path) -> Path:
    """A run that was stopped in its last layer, and data and pictures in all formats."""
    digits = load_dataset("digits").train
    images, labels = digits.images[:60].clone(), digits.labels[:60].clone()
    (place / "data").mkdir()
    arrays = {"train.images": images, "train.labels": labels, "test.images": images, "test.labels": labels}
    save_file({name: tensor.clone() for name, tensor in arrays.items()}, place / "data" / "data.safetensors")
    plain = {name.replace(".", "_"): tensor.numpy() for name, tensor in arrays.items()}
    np.savez(place / "data" / "stored.npz", **plain)
    np.savez_compressed(place / "data" / "compressed.npz", **plain)
    (place / "pictures").mkdir()
    picture = Image.fromarray((images[0] * 15).numpy())
    for suffix in ("png", "jpg", "bmp", "ppm", "tiff", "webp", "gif"):
        picture.convert("RGB").save(place / "pictures" / f"colour.{suffix}")
        picture.save(place / "pictures" / f"grey.{suffix}")
    config = ff.Config(data=str(place / "data" / "data.safetensors"))
    config = config.override(SMALL | {"cache.tier": "disk", "width": 8})
    run = place / "run"
    with contextlib.suppress(KeyboardInterrupt):
        ff.train(config, run, observer=InterruptAt("on_epoch", 8))
    return run


@dataclass(frozen=True)
class _Text:
    """A configuration's text with some edits."""

    place: Path

    def __call__(self, case: tuple[ff.Config, Any]) -> None:
        config, edits = case
        path = self.place / "config.toml"
        path.write_bytes(alter(config.to_toml().encode(), edits))
        _round_trip(ff.Config.from_toml(path), path)


@dataclass(frozen=True)
class _Values:
    """A configuration with some values replaced."""

    place: Path

    def __call__(self, case: tuple[ff.Config, Any]) -> None:
        config, changes = case
        changed = change(config.to_mapping(), changes)
        if isinstance(changed, dict):
            _round_trip(ff.Config.from_mapping(changed), self.place / "config.toml")


def _round_trip(config: ff.Config, path: Path) -> None:
    path.write_text(config.to_toml(), encoding="utf-8")
    assert ff.Config.from_toml(path) == config


def _assign(case: tuple[str, str]) -> None:
    key, value = parse_assignment("=".join(case))
    ff.Config().override({key: value})


@dataclass(frozen=True)
class _Arrays:
    """A file of arrays with some edits: as training data, and as images to be predicted."""

    place: Path

    def __call__(self, case: tuple[tuple[str, bytes], Any]) -> None:
        (name, data), edits = case
        path = self.place / f"altered-{name}"
        path.write_bytes(alter(data, edits))
        try:
            ff.Run(self.place / "run").load_images([path])
        finally:
            load_dataset(str(path))


@dataclass(frozen=True)
class _Pictures:
    """A picture with some edits."""

    place: Path

    def __call__(self, case: tuple[tuple[str, bytes], Any]) -> None:
        (name, data), edits = case
        path = self.place / f"altered-{name}"
        path.write_bytes(alter(data, edits, reach=200))  # heads matter more than pixels
        mode, picture = read_picture(path)
        assert picture.dtype == np.uint8
        assert picture.ndim == (2 if mode == "L" else 3)


@dataclass(frozen=True)
class _Files:
    """A file of a run with some edits; if it is sealed, so that all digests are right."""

    run: Path

    def __call__(self, case: tuple[Path, Any, bool]) -> None:
        file, edits, is_sealed = case
        data = (self.run / file).read_bytes()
        reach = 8 + int.from_bytes(data[:8], "little") if file.suffix == ".safetensors" else len(data)
        with _altered(self.run, file, alter(data, edits, reach), is_sealed=is_sealed):
            _use(self.run)


@dataclass(frozen=True)
class _Manifests:
    """A manifest of a run with some values replaced; if it is sealed, so that all digests are right."""

    run: Path

    def __call__(self, case: tuple[Path, Any, bool]) -> None:
        file, changes, is_sealed = case
        changed = json.dumps(change(json.loads((self.run / file).read_bytes()), changes)).encode()
        with _altered(self.run, file, changed, is_sealed=is_sealed):
            _use(self.run)


@contextlib.contextmanager
def _altered(run: Path, file: Path, data: bytes, *, is_sealed: bool) -> Iterator[None]:
    """A run with another content of a file, as long as it is looked at."""
    kept = {path: path.read_bytes() for path in [run / file, *run.rglob("manifest.json")]}
    (run / file).write_bytes(data)
    try:
        if is_sealed:
            _seal(run)
        yield
    finally:
        for path, content in kept.items():
            path.write_bytes(content)


def _seal(run: Path) -> None:
    """Make all digests right, as somebody would who wants to be believed."""
    named = None  # by which manifests name the run
    for path in sorted(run.rglob("*.json"), key=lambda path: (path.name != "run.json", path)):
        with contextlib.suppress(Exception):
            content = json.loads(path.read_bytes())
            if named is not None and "run" in content:
                content["run"] = named
            for name in content.get("digests", {}):
                file = next(path.parent.glob(f"{name}*"))
                content["digests"][name] = hashlib.sha256(file.read_bytes()).hexdigest()
            content.pop("manifest_sha256")
            digest = write_manifest(Folder(path.parent), path.name, content)
            named = digest if path.name == "run.json" else named
    with contextlib.suppress(Exception):
        digest = json.loads((run / "layers/000/manifest.json").read_bytes())["digests"]["weights"]
        for path in (run / "layers/001/manifest.json", run / "progress/manifest.json"):
            content = json.loads(path.read_bytes())
            del content["manifest_sha256"]
            if content["layer"] == 1:
                write_manifest(Folder(path.parent), path.name, content | {"digest_below": digest})
            digest = content["digests"].get("weights", digest)


def _use(run: Path) -> None:
    """All that only reads a run; each is tried, and the first refusal is raised."""
    found = ff.Run(run)
    refusals = []
    for use in (
        found.verify,
        lambda: found.layers,
        lambda: found.validation_errors_by_depth,
        lambda: diagnose(found.directory),
        found.load,
        lambda: found.evaluate("goodness", "validation"),
    ):
        try:
            use()
        except ff.FFStreamError as error:
            refusals.append(error)
    if refusals:
        raise refusals[0]


_OPTIONS = {
    "train": "--data --layers --width --epochs --batch --lr --recipe --seed --device --precision --cache --views --set "
    "--budget --config --negatives-per-sample --stack-layers --bad-images --max-shift --disk-budget --data-root",
    "plan": "--layers --width --epochs --batch --lr --recipe --samples --features --classes --budget --set --machine",
    "evaluate": "--method --split --first-layer --device --data-root --json",
    "predict": "--method --first-layer --uncalibrated --output --device --json",
    "inspect": "--json --verify",
    "export": "--output",
    "repair": "--json",
    "recipes": "--json",
    "resume": "--layers --device --cache --budget --data-root",
}


def _commands(run: Path) -> st.SearchStrategy[list[str]]:
    """Of `train` with a run that is there already, and of `plan` for a described machine, so that none takes long."""
    base = {name: [name, str(run)] for name in _OPTIONS} | {
        "train": ["train", "--run-dir", str(run)],
        "plan": ["plan", "--machine", _MACHINE, "--samples", "1000"],
        "predict": ["predict", str(run), "data/data.safetensors"],
        "recipes": ["recipes"],
        "resume": ["resume", "run-that-is-not-there"],
    }
    words = st.sampled_from([*WORDS, "data/stored.npz", "pictures", "1", "8", "goodness", "validation", "out.csv"])

    def of(name: str) -> st.SearchStrategy[list[str]]:
        given = st.lists(st.tuples(st.sampled_from(_OPTIONS[name].split()), words), max_size=4)
        return given.map(lambda pairs: [*base[name], *(word for pair in pairs for word in pair)])

    return st.one_of([of(name) for name in _OPTIONS])


def _call(arguments: list[str]) -> None:
    code = 0
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            app(arguments, standalone_mode=True)
        except SystemExit as stop:
            code = int(stop.code or 0)
    assert code in (0, 1, 2), code
    assert "Traceback" not in said.getvalue()


_SIZES = ["layers", "width", "epochs", "batch", "micro_batch", "samples", "features", "classes", "network.tile_units"]
_SIZES += ["cache.shard_samples", "augmentation.views", "negatives.per_step", "network.stack_layers", "memory.budget"]


def _plan(sizes: dict[str, Any]) -> None:
    shape = {"samples": 1000, "features": 784, "classes": 10} | sizes
    data = DataShape.of(shape.pop("samples"), shape.pop("features"), shape.pop("classes"), 0.1)
    make_plan(ff.Config(width=64).override(shape), machine=_MACHINE, data=data)
