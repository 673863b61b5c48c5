"""Manifests: JSON files that carry the digest of their own content, which is also checked to have the right form."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ffstream.errors import CorruptFileError
from ffstream.ground.folder import Folder

_DIGEST = "manifest_sha256"
_MOST = 1 << 42  # upper limit of any count: bytes of a file, units, samples


@dataclass(frozen=True)
class Kind:
    """A kind of value: a description for messages, and a test."""

    words: str
    holds: Callable[[Any], bool]


COUNT = Kind("an integer >= 0", lambda value: type(value) is int and 0 <= value < _MOST)
SIZE = Kind("an integer >= 1", lambda value: type(value) is int and 1 <= value < _MOST)
NUMBER = Kind("a number", lambda value: type(value) in (int, float) and abs(value) < 1e300)
FLAG = Kind("true or false", lambda value: isinstance(value, bool))
TEXT = Kind("a string", lambda value: isinstance(value, str))
DIGEST = Kind("a sha256", lambda value: isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None)
POSITIVE = Kind("a number > 0", lambda value: NUMBER.holds(value) and value > 0)
IDENTITY = Kind(
    "16 digits of base 16", lambda value: isinstance(value, str) and bool(re.fullmatch("[0-9a-f]{16}", value))
)
NAME = Kind("a file name", lambda value: isinstance(value, str) and re.fullmatch(r"\w[\w.-]*", value) is not None)
ANYTHING = Kind("anything", lambda _: True)

# The form that content must have: a Kind, a list of any length with the form of its items, or a mapping by name. A name
# that ends with "?" may be missing. A Kind in place of a name applies to all further names; without one, these are
# ignored.
Shape = Kind | list["Shape"] | Mapping[str | Kind, "Shape"]

# The manifests of a run directory.
_SEAL: Shape = {"num_bytes": COUNT, "sha256": DIGEST}
DATA: Shape = {
    "num_classes": SIZE,
    "class_names": [TEXT],
    "image_shape": [SIZE],
    "num_features": SIZE,
    "scale": POSITIVE,
    "digest": DIGEST,
    "test_digest?": DIGEST,  # if there are test data; not in runs of earlier versions
    "validation_labels_digest?": DIGEST,
    "brings_negatives?": FLAG,
    **dict.fromkeys(
        ("standardised_classes?", "standardised_images?"),
        dict.fromkeys(("shift", "least_spread", "most_spread"), NUMBER),
    ),
    "white?": POSITIVE,  # the value of a picture's white; not in runs of earlier versions
    # One mean and spread per feature or channel, if the data are standardised.
    "standardised?": {"mean": [NUMBER], "spread": [NUMBER], "by_plane?": FLAG},
    "values?": {
        "num_images": SIZE,
        **dict.fromkeys(("low", "high", "mean", "spread"), NUMBER),
        "classes?": [[NUMBER]],  # mean and spread of each
        "class_labels?": [COUNT],
        # Shares of the images of all classes, and of the class with the smallest, where they have three channels.
        **dict.fromkeys(("coloured?", "least_coloured?"), NUMBER),
        **dict.fromkeys(("dark?", "usual_largest?", "usual_low?", "usual_mean?", "usual_spread?"), NUMBER),
    },  # of the training images
    # What the means of features are in training, for each class.
    "mixtures?": {
        "features": [COUNT],
        "class_labels": [COUNT],
        **{name: [NUMBER] for name in ("mean", "spread", "cut_spread")},
        "class_means": [[NUMBER]],
        "kind_means?": [[NUMBER]],  # of groups of images that are alike
        **dict.fromkeys(("common?", "kind_distance?", "whole_images?"), NUMBER),
        "whole_share": NUMBER,
    },
    # Range, mean and spread of each feature of a table, and its values where these are few.
    "feature_values?": {
        "num_rows": SIZE,
        **{name: [NUMBER] for name in ("low", "high", "mean", "spread")},
        "values": [[NUMBER]],
        "are_all": [FLAG],
    },
}
RUN: Shape = {
    "format": TEXT,
    "identity": IDENTITY,
    "settings": {TEXT: ANYTHING},
    "data": DIGEST,  # of the training data
    "description": DIGEST,  # of the manifest that describes all data
    # What layers start from, if it is another run's: see `initial`.
    "initial?": {
        "run": TEXT,
        "summary": TEXT,
        "layers": [{"layer": COUNT, "digest": DIGEST, "num_bytes": COUNT, "left_out": [TEXT]}],
    },
    "adopted?": [DIGEST],  # of the manifests of layers that were there when an earlier version's run got its identity
}
ENVIRONMENT: Shape = {"run": DIGEST, "environments": [{TEXT: ANYTHING}]}
PARTS: Shape = {TEXT: {"module": TEXT, "sources": {TEXT: TEXT}}}
LAYER: Shape = {
    "layer": COUNT,
    "run?": DIGEST,  # of the run's marker; not in layers of earlier versions
    "environment?": DIGEST,  # of the environment in which it was trained; not in layers of earlier versions
    "digests": {"weights": DIGEST, NAME: DIGEST},
    "digest_below": TEXT,
    "round?": SIZE,  # in which it was trained so far; not in sequential runs
    "digest_before?": TEXT,  # of the manifest of the round before
    "figures": {TEXT: ANYTHING},
    "metrics?": _SEAL,
}
PROGRESS: Shape = {
    "layer": COUNT,
    "run?": DIGEST,
    "environment?": DIGEST,
    "num_epochs": COUNT,
    "part?": {"num_groups": SIZE, "num_samples": SIZE, "elapsed_s": NUMBER},  # of the next epoch
    # Of the round, if it was saved between two windows: then there is a file for each layer, and `layer` is 0.
    "window?": {"num_done": SIZE, "num": SIZE, "courses": [{TEXT: NUMBER}]},
    "digests": {NAME: DIGEST},
    "digest_below?": TEXT,  # not in runs of earlier versions
    "round?": SIZE,
    "digest_before?": TEXT,
    "metrics?": _SEAL,
}
ROUND: Shape = {
    "round": SIZE,
    "run": DIGEST,
    "environment?": DIGEST,
    "layers": [DIGEST],  # of the manifests of its layers
    # The rounds over which the learning rate falls to zero, and the network's validation error after each so far.
    "cycle": {"start": COUNT, "stop": SIZE, "errors": [NUMBER], "place?": {TEXT: ANYTHING}},
    "metrics": _SEAL,
}
_PLACE: Shape = {"cursor": {TEXT: ANYTHING}, "num_skipped": COUNT, "num_before": COUNT}
# The last window of a stream; each file that it names is there or was put aside.
STREAM_WINDOW: Shape = {
    "run": DIGEST,
    "number": SIZE,
    "start": _PLACE,
    "end": _PLACE,
    "digests": {NAME: DIGEST},
    "cursor": {TEXT: ANYTHING},
}
READOUT: Shape = {"run?": DIGEST, "identity": {"layers": [DIGEST]}, "digest_file": DIGEST}


def write_manifest(folder: Folder, name: str, content: dict[str, Any]) -> str:
    """Write a JSON manifest that carries the digest of its own content, durably. Returns that digest."""
    digest = content_digest(content)
    sealed = {**content, _DIGEST: digest}
    folder.write(name, (json.dumps(sealed, indent=1, sort_keys=True) + "\n").encode())
    return digest


def read_manifest(folder: Folder, name: str, shape: Shape, remedy: str = "restore it from a copy") -> dict[str, Any]:
    """Read a manifest once, and check its digest and its form. `remedy` ends the message of a CorruptFileError.

    Raises CorruptFileError, FileNotFoundError if it is missing, StorageError if it cannot be read.
    """
    path = folder.path / name
    try:
        content = json.loads(folder.read(name))
        digest = content.pop(_DIGEST)
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise CorruptFileError(f"manifest {path}: not a manifest of ffstream ({error}); {remedy}") from error
    if digest != content_digest(content):
        raise CorruptFileError(f"manifest {path}: altered since it was written (its digest differs); {remedy}")
    misfit = find_misfit(content, shape)
    if misfit is not None:
        raise CorruptFileError(f"manifest {path}: {misfit}; {remedy}")
    return dict(content)


def content_digest(content: dict[str, Any]) -> str:
    """The digest of a manifest's content, by which other manifests name it."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def find_misfit(value: Any, shape: Shape, name: str = "content") -> str | None:
    """Where a value does not have its form, what was found there and what is allowed; None if it has the form."""
    if isinstance(shape, Kind):
        return None if shape.holds(value) else f"{name}: found {_shorten(value)}, allowed {shape.words}"
    if isinstance(shape, list):
        if not isinstance(value, list):
            return f"{name}: found {_shorten(value)}, allowed a list"
        if isinstance(shape[0], Kind):  # of numbers there may be thousands
            odd = next((number for number, item in enumerate(value) if not shape[0].holds(item)), None)
            return None if odd is None else find_misfit(value[odd], shape[0], f"{name}[{odd}]")
        return _first(find_misfit(item, shape[0], f"{name}[{number}]") for number, item in enumerate(value))
    if not isinstance(value, dict):
        return f"{name}: found {_shorten(value)}, allowed a mapping"
    named = {key.removesuffix("?"): part for key, part in shape.items() if isinstance(key, str)}
    missing = [key for key in shape if isinstance(key, str) and not key.endswith("?") and key not in value]
    if missing:
        return f"{name}: found no {missing[0]}"
    found = [find_misfit(value[key], part, key) for key, part in named.items() if key in value]
    for kind, part in shape.items():
        if isinstance(kind, Kind):
            others = [key for key in value if key not in named]
            found += [find_misfit(key, kind, f"a name in {name}") for key in others]
            found += [find_misfit(value[key], part, _shorten(key)) for key in others]
    return _first(found)


def _first(found: Any) -> str | None:
    return next((misfit for misfit in found if misfit is not None), None)


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
