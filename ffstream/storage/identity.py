"""The marker that makes a folder a run, RUN/run.json, and whether a folder is a run or may become one.

The marker holds an identity. The manifest of each layer names the marker by its digest, so that a layer of one run is
never taken for another's. Runs of earlier versions have no marker: it is written when they are resumed, and names the
layers that were there.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from ffstream.errors import CorruptFileError
from ffstream.ground.folder import TEMPORARY, Folder
from ffstream.ground.lock import LOCK, is_holder_name
from ffstream.storage.manifest import DATA, ENVIRONMENT, RUN, Shape, content_digest, read_manifest, write_manifest

MARKER, CONFIG, DATA_FILE, ENVIRONMENT_FILE, LABELS_FILE = (
    "run.json",
    "config.toml",
    "data.json",
    "environment.json",
    "validation.safetensors",
)
CACHE = "cache"
INITIAL = "initial"
STREAM = "stream"
_LABELS_BYTES = 1 << 30  # upper limit of the labels file, at eight bytes per sample
CONFIG_SEAL = b"# sha256 "
_FORMAT = "ffstream run 1"
_TEMPORARY = re.compile(re.escape(TEMPORARY) + r"([0-9a-f]{16})-[0-9a-f]{8}")
# Files that a process killed while starting a run may have left.
_OF_START = {MARKER, DATA_FILE, ENVIRONMENT_FILE, LABELS_FILE}


class FolderState(Enum):
    """How a folder may be used."""

    FREE = "free"  # missing, empty, or with only what a process left when killed while starting a run
    RUN = "run"
    OLDER_RUN = "older run"  # of a version that gave runs no identity
    BROKEN = "broken"  # a run whose marker or configuration is missing or cannot be used
    FOREIGN = "foreign"  # it holds somebody else's files


@dataclass(frozen=True)
class Survey:
    """The result of surveying a folder."""

    state: FolderState
    identity: str = ""  # of the run, or of the one that was being started
    problem: str = ""  # why it is not a run, if it is broken or foreign
    error: CorruptFileError | None = None  # from reading the marker, if it is damaged

    @property
    def is_run(self) -> bool:
        """Whether a run was started there."""
        return self.state in (FolderState.RUN, FolderState.OLDER_RUN)


def survey(folder: Folder) -> Survey:
    """Whether a folder is a run, may become one, or is somebody else's. Raises StorageError if it cannot be read."""
    names = set(folder.names())
    marker, error = _read(folder, MARKER, RUN) if MARKER in names else (None, None)
    has_config, is_ours = CONFIG in names, CONFIG in names and _is_sealed(folder)
    if marker is not None and marker["format"] == _FORMAT:
        identity = str(marker["identity"])
        if has_config:
            return Survey(FolderState.RUN, identity)
        own = {name for name in names & (_OF_START | {INITIAL}) if _is_of_start(folder, name, marker)}
        others = [name for name in names - own if not _may_be_there(folder, name, identity)]
        if not others:
            return Survey(FolderState.FREE, identity)
        problem = f"has no {CONFIG}, but {_list(others)}: restore {CONFIG} from a copy, or choose another folder"
        return Survey(FolderState.BROKEN, identity, problem)
    if has_config and not is_ours:
        is_ours = DATA_FILE in names and _read(folder, DATA_FILE, DATA)[0] is not None
    if marker is not None and (is_ours or marker["format"].startswith("ffstream run ")):
        problem = f"its {MARKER} is of another version of ffstream ({marker['format'][:40]!r}, allowed {_FORMAT!r})"
        return Survey(FolderState.BROKEN, "", problem)
    if is_ours and (error is not None or MARKER in names):
        return Survey(FolderState.BROKEN, "", f"its {MARKER} is damaged", error)
    if is_ours:
        if _holds_named_layers(folder):
            problem = f"has no {MARKER}, by which its layers name it: restore it from a copy, or choose another folder"
            return Survey(FolderState.BROKEN, "", problem)
        return Survey(FolderState.OLDER_RUN)
    identities = {found[1] for name in names if (found := _TEMPORARY.fullmatch(name))}
    identity = min(identities, default="")
    others = [name for name in names if not _may_be_there(folder, name, identity)]
    if not others:
        return Survey(FolderState.FREE, identity)
    return Survey(FolderState.FOREIGN, "", f"is neither empty nor a run (it holds {_list(others)})")


def draw_identity() -> str:
    """A random identity, which no other run has."""
    return secrets.token_hex(8)


def describe_run(
    identity: str,
    settings: Mapping[str, Any],
    data: dict[str, Any],
    adopted: list[str] | None = None,
    initial: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The content of the marker: the settings that decide what a layer learns, and the data it learns from.

    `data` is the content of data.json. `adopted` are the digests of the manifests of layers that a run of an earlier
    version had when it got its identity. `initial` describes the weights of another run that layers start from.
    """
    content = {"format": _FORMAT, "identity": identity, "settings": dict(settings), "data": data["digest"]}
    content["description"] = content_digest(data)
    content |= {} if initial is None else {"initial": initial}
    return content if adopted is None else content | {"adopted": adopted}


def write_marker(folder: Folder, content: dict[str, Any]) -> str:
    """Write the marker of a run, or of one that is being started. Returns the digest by which layers name it."""
    return write_manifest(folder, MARKER, content)


def read_marker(folder: Folder) -> dict[str, Any] | None:
    """The marker of a run; None in runs of earlier versions. Raises CorruptFileError."""
    try:
        return read_manifest(folder, MARKER, RUN)
    except FileNotFoundError:
        return None


def _read(folder: Folder, name: str, shape: Shape) -> tuple[dict[str, Any] | None, CorruptFileError | None]:
    """A manifest, or the error of reading a damaged one; (None, None) if there is no such file."""
    try:
        return read_manifest(folder, name, shape), None
    except FileNotFoundError:
        return None, None
    except CorruptFileError as error:
        return None, error


def _is_sealed(folder: Folder) -> bool:
    try:
        return folder.read(CONFIG).startswith(CONFIG_SEAL)
    except FileNotFoundError:
        return False


def _may_be_there(folder: Folder, name: str, identity: str) -> bool:
    """Whether a run may be started in a folder in spite of something that has this name there."""
    kind = folder.find_kind(name)
    if name == CACHE:
        return kind == "a link"  # for example to a larger disk
    found = _TEMPORARY.fullmatch(name)
    return kind in ("a regular file", None) and (
        is_holder_name(name) or (name == LOCK and not folder.size(name)) or (found is not None and found[1] == identity)
    )


def _is_of_start(folder: Folder, name: str, marker: dict[str, Any]) -> bool:
    """Whether a file was written while the run of this marker was started, and is not somebody else's of that name."""
    if name == MARKER:
        return True
    if name == INITIAL:
        own = rf"layer-\d+-{marker['identity']}\.safetensors|{re.escape(TEMPORARY)}{marker['identity']}-[0-9a-f]{{8}}"
        is_folder = folder.find_kind(name) == "a folder"
        return is_folder and all(re.fullmatch(own, each) for each in folder.names(name))
    data, _ = _read(folder, DATA_FILE, DATA)
    is_known = data is not None and content_digest(data) == marker["description"]
    if name == ENVIRONMENT_FILE:
        found, _ = _read(folder, name, ENVIRONMENT)
        return found is not None and found["run"] == content_digest(marker)
    if name == LABELS_FILE:
        is_known = is_known and data is not None and _digest(folder, name) == data.get("validation_labels_digest")
    return is_known


def _digest(folder: Folder, name: str) -> str:
    return hashlib.sha256(folder.read(name, _LABELS_BYTES)).hexdigest()


def _holds_named_layers(folder: Folder) -> bool:
    """Whether the manifest of some layer, or of the one in training, names the run that it belongs to."""
    names = [f"layers/{name}/manifest.json" for name in folder.names("layers")] + ["progress/manifest.json"]
    names += [f"rounds/{name}/manifest.json" for name in folder.names("rounds")]
    names += [f"rounds/{name}/000/manifest.json" for name in folder.names("rounds")]
    return any((found := _read(folder, name, {})[0]) is not None and "run" in found for name in names)


def _list(names: list[str]) -> str:
    shown = sorted(names)[:3]
    return ", ".join(shown) + (f" and {len(names) - len(shown)} more" if len(names) > len(shown) else "")
