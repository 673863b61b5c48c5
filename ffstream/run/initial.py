"""Which layers of a new run start from those of another run, and why others do not."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ffstream.data.shape import DataShape
from ffstream.device.ledger import PAPER
from ffstream.errors import ConfigError, FFStreamError
from ffstream.field.blueprint import Blueprint
from ffstream.field.labels import LabelMethod
from ffstream.field.layers import LAYER_KINDS
from ffstream.field.network import LayerSpec, compute_layer_specs, read_lines
from ffstream.settings.config import Config
from ffstream.storage.initial import Origin, TakenLayer
from ffstream.storage.layers import WEIGHTS
from ffstream.storage.run_directory import RunDirectory
from ffstream.storage.tensor_file import read_entries

_SETTING = "config init_from"
_EMBEDDING, _HEAD = "label_embedding", "head"  # the parts of a layer that know the classes

_Entries = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]


def check_is_other(path: str, directory: RunDirectory) -> None:
    """Raise ConfigError where layers are to start from the very run that is to be trained."""
    if path and Path(path).resolve() == directory.path.resolve():
        raise ConfigError(
            f"{_SETTING}: found {path!r}, the run that is to be trained itself; name another run there, or go on with "
            "this one by ffstream resume"
        )


def find_origin(config: Config, data: DataShape, method: LabelMethod, class_names: Sequence[str] = ()) -> Origin | None:
    """What the layers of a new run start from; None if no other run is named. Nothing is written.

    A layer starts from the other run's layer of the same number if that is finished, and its kind and the names and
    shapes of its parameters and buffers are the same. What knows the classes starts anew where it does not fit. Raises
    ConfigError if no layer can start so, and the error of the other run if that, or a layer in question, is damaged.
    """
    if not config.init_from:
        return None
    sizes = {} if isinstance(config.cache.shard_samples, int) else {"cache.shard_samples": config.batch}
    blueprint = Blueprint.of(config.override(sizes), data, method)
    try:
        other = _OtherRun.open(Path(config.init_from))
        verdicts = [other.judge(blueprint, spec) for spec in blueprint.specs]
        taken = [each.taken for each in verdicts if each.taken is not None]
        summary = other.summarise(verdicts, class_names)
        origin = Origin(config.init_from, summary, tuple(taken))
        origin.check(taken)
    except FFStreamError as error:
        raise type(error)(f"{_SETTING}: {error}") from error
    if not taken:
        raise ConfigError(f"{_SETTING}: {summary}; name another run, or leave it out")
    return origin


@dataclass(frozen=True)
class _Verdict:
    """Whether a layer starts from another run's, and what there is to say of that."""

    taken: TakenLayer | None
    one: str = ""  # why it does not, or what starts anew of it
    many: str = ""  # the same of several layers


@dataclass(frozen=True)
class _OtherRun:
    directory: RunDirectory
    config: Config
    num_done: int
    specs: Sequence[LayerSpec]  # none if its parts are not known here
    class_names: Sequence[str]

    @classmethod
    def open(cls, path: Path) -> _OtherRun:
        """The other run, of which nothing is imported: its parts may be a user's own. Raises an FFStreamError."""
        directory = RunDirectory(path)
        directory.check_is_run()
        config, facts = directory.read_config(), directory.read_data()
        try:
            specs = compute_layer_specs(config, facts.num_features, facts.image_shape)
        except ConfigError:
            specs = []
        return cls(directory, config, directory.count_layers(), specs, facts.class_names)

    def judge(self, blueprint: Blueprint, spec: LayerSpec) -> _Verdict:
        """Whether a layer starts from the one of the same number here."""
        index, lines = spec.index, read_lines(self.config)
        if index >= self.num_done:
            is_unfinished = index < len(lines)
            found = f"that run has {self.num_done} {'finished ' if is_unfinished else ''}layers"
            return _Verdict(None, found, found)
        kind, width = lines[index].kind, lines[index].width
        if kind != spec.kind:
            return _refuse("is", "are", f"{kind} there and {spec.kind} here")
        if width != spec.width:
            noun = "channels" if spec.units.num_places > 1 else "units"
            return _refuse("has", "have", f"{width} {noun} there and {spec.width} here")
        manifest, name = self.directory.read_layer_manifest(index), f"{self.directory.layer_name(index)}/{WEIGHTS}"
        entries = read_entries(self.directory.folder, name)
        with PAPER:
            layer = blueprint.make_layer(spec)
            like = LAYER_KINDS[kind](self.specs[index].shape) if self.specs else layer
        own = {key: (value.dtype, tuple(value.shape)) for key, value in layer.state_dict().items()}
        of_classes = layer.summary_names | like.summary_names | {_EMBEDDING}
        here, there = ({key: found[key] for key in found if key not in of_classes} for found in (own, entries))
        if here != there:
            return self._explain(spec, here, there)
        left_out = self._find_left_out(blueprint.config, own, entries, layer.summary_names)
        names = [key for key in own if key in of_classes and (key in left_out or _HEAD in left_out)]
        num_bytes = self.directory.folder.size(name)
        taken = TakenLayer(index, str(manifest["digests"]["weights"]), num_bytes, tuple(names))
        text = " and ".join(left_out.values())
        return _Verdict(taken, text, text)

    def _explain(self, spec: LayerSpec, here: _Entries, there: _Entries) -> _Verdict:
        """Why a layer does not start from one whose parameters have other names or shapes."""
        reads = self.specs[spec.index].shape.reads if self.specs else spec.shape.reads
        if reads != spec.shape.reads and reads.num_features != spec.shape.reads.num_features:
            return _refuse("reads", "read", f"{reads} there and {spec.shape.reads} here")
        name = next(key for key in [*here, *there] if here.get(key) != there.get(key))
        return _refuse("has", "have", f"{name} {_describe(there.get(name))} there and {_describe(here.get(name))} here")

    def _find_left_out(
        self, config: Config, own: _Entries, entries: _Entries, of_head: frozenset[str]
    ) -> dict[str, str]:
        """What of a layer that knows the classes starts anew, and why."""
        found: dict[str, str] = {}
        if any(own[key] != entries.get(key) for key in of_head):
            found[_HEAD] = "the local classifier, which has other layers there"
        elif _EMBEDDING in own and own[_EMBEDDING] != entries.get(_EMBEDDING):
            found[_EMBEDDING] = f"the label embedding, {self._describe_labels(own, entries)}"
        elif _EMBEDDING in own and config.labels.method != self.config.labels.method:
            methods = f"{self.config.labels.method} there and {config.labels.method} here"
            found[_EMBEDDING] = f"the label embedding, as labels.method is {methods}"
        return found

    @staticmethod
    def _describe_labels(own: _Entries, entries: _Entries) -> str:
        if _EMBEDDING not in entries:
            return "of which there is none there"
        shapes = [each[_EMBEDDING][1] for each in (entries, own)]
        if shapes[0][1:] == shapes[1][1:]:
            return f"of {shapes[0][0]} classes there and {shapes[1][0]} here"
        return f"of shape {_describe(entries[_EMBEDDING])} there and {_describe(own[_EMBEDDING])} here"

    def summarise(self, verdicts: Sequence[_Verdict], class_names: Sequence[str]) -> str:
        """In one line, for each range of layers that are alike in this, whether they start from this run."""
        clauses: list[str] = []
        numbered = [(each.taken is not None, each.one, each.many) for each in verdicts]
        start = 0
        for (is_taken, one, many), group in itertools.groupby(numbered):
            stop = start + len(list(group))
            is_one = stop == start + 1
            noun = f"layer {stop}" if is_one else f"layers {start + 1}-{stop}"
            run = "it" if clauses else str(self.directory.path)
            if is_taken:
                clauses.append(f"{noun} start{'s' * is_one} from {run}{f', but for {one}' if one else ''}")
            else:
                verb = f"do{'es' * is_one} not"
                clauses.append(f"{noun} {verb}{'' if clauses else f' start from {run}'}: {one if is_one else many}")
            start = stop
        takes_labels = any(each.taken is not None and _EMBEDDING not in each.taken.left_out for each in verdicts)
        for number, (there, here) in enumerate(zip(self.class_names, class_names, strict=False)):
            if takes_labels and there != here:
                clauses.append(f"class {number} is {there!r} there and {here!r} here")
                break
        return "; ".join(clauses)


def _refuse(one: str, many: str, found: str) -> _Verdict:
    return _Verdict(None, f"it {one} {found}", f"they {many} {found}")


def _describe(entry: tuple[torch.dtype, tuple[int, ...]] | None) -> str:
    if entry is None:
        return "(none)"
    return " x ".join(map(str, entry[1])) or "of one number"
