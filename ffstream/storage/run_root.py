"""The top level of a run directory: the marker that makes it a run, its configuration and its data."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import math
import re
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ffstream.data.facts import DataFacts
from ffstream.errors import CorruptFileError, RunError, RunMismatchError, say_no_run
from ffstream.ground.files import storage_errors, to_absolute
from ffstream.ground.folder import TEMPORARY, Folder
from ffstream.ground.lock import RunLock
from ffstream.settings.config import LATER_SETTINGS, Config
from ffstream.settings.toml import parse_toml
from ffstream.storage.identity import (
    CACHE,
    CONFIG,
    CONFIG_SEAL,
    DATA_FILE,
    ENVIRONMENT_FILE,
    INITIAL,
    LABELS_FILE,
    MARKER,
    STREAM,
    FolderState,
    Survey,
    describe_run,
    draw_identity,
    read_marker,
    survey,
    write_marker,
)
from ffstream.storage.initial import InitialWeights, Origin
from ffstream.storage.manifest import (
    DATA,
    content_digest,
    read_manifest,
    write_manifest,
)
from ffstream.storage.run_names import CACHE_NAMES, SHARD_NAMES, find_run
from ffstream.storage.tensor_file import RESTORE, digest_tensors, load_tensor, write_tensors

MANIFEST = "manifest.json"


class RunRoot:
    """Reads and writes the top level of one run directory; only the holder of its lock writes."""

    def __init__(self, path: str | Path, lock: RunLock | None = None) -> None:
        self.path = Path(path)
        self.folder = lock.folder if lock is not None else Folder(self.path)
        self._marker: dict[str, Any] | None = None

    # --- the marker

    def survey(self) -> Survey:
        """Whether the folder is a run, may become one, or belongs to somebody else."""
        return survey(self.folder)

    def exists(self) -> bool:
        """Whether a run was started here."""
        return self.survey().is_run

    def check_is_run(self) -> None:
        """Raise RunError, or CorruptFileError, unless a run was started here."""
        self._check_no_file()
        found = self.survey()
        if found.error is not None:
            raise found.error
        if found.state is FolderState.FREE:
            raise RunError(say_no_run(self.path))
        if not found.is_run:
            raise RunError(f"run {self.path}: no run there: the folder {found.problem}")

    def check_is_free(self) -> None:
        """Raise RunError, or CorruptFileError, where a run can neither be started nor resumed."""
        other = find_run(to_absolute(self.path).resolve())
        if other is not None:
            raise RunError(
                f"run {self.path}: is a part of the run {other}, which would put it aside or remove it; choose another "
                "--run-dir"
            )
        found = self.survey()
        if found.error is not None:
            raise found.error
        if found.state is FolderState.FOREIGN:
            raise RunError(
                f"run {self.path}: {found.problem}, and ffstream puts a run into a folder of its own; choose another "
                "--run-dir"
            )
        if found.state is FolderState.BROKEN:
            raise RunError(f"run {self.path}: {found.problem}")

    def _check_no_file(self) -> None:
        try:
            mode = self.path.stat().st_mode
        except (OSError, ValueError):  # the survey reports a path that cannot be read
            return
        if not stat.S_ISDIR(mode):
            raise RunError(f"run {self.path}: is a file, allowed the folder of a run; name that folder")

    def create(
        self,
        config: Config,
        facts: DataFacts,
        environment: Mapping[str, Any],
        labels: Tensor | None = None,
        origin: Origin | None = None,
    ) -> None:
        """Start a run: write everything at the top level, the configuration last. `labels` (n,) are for validation.

        Files of a process that was killed while starting a run are replaced, under a new identity. The weights of
        another run, `origin`, are copied; where that fails or is interrupted, nothing is left.
        """
        self.folder.identity = self.survey().identity
        self._remove_start()
        self.folder.identity = draw_identity()
        data = dict(facts.content)
        labels_file = {"labels": labels} if labels is not None else {}
        if labels_file:
            data = data | {"validation_labels_digest": digest_tensors(labels_file)}
        initial = None if origin is None else origin.to_mapping()
        content = describe_run(self.folder.identity, config.identity(), data, initial=initial)
        run = write_marker(self.folder, content)
        write_manifest(self.folder, DATA_FILE, data)
        if labels_file:
            write_tensors(self.folder, LABELS_FILE, labels_file)()
        write_manifest(self.folder, ENVIRONMENT_FILE, {"run": run, "environments": [dict(environment)]})
        if origin is not None:
            try:
                self.initial.take(origin.layers)
            except BaseException:
                self._remove_start()
                raise
        self.write_config(config)

    def _remove_start(self) -> None:
        """Remove what was written of a run that was not started."""
        self.remove_temporaries()
        self.initial.remove()
        # In this order: each is recognised by files that come after it.
        for name in (ENVIRONMENT_FILE, LABELS_FILE, DATA_FILE, MARKER):
            self.folder.remove(name)
        self._marker = None

    @property
    def initial(self) -> InitialWeights:
        """The weights of another run that layers start from. Raises CorruptFileError."""
        marker = self.marker
        found = Origin.from_mapping(marker["initial"]) if marker is not None and "initial" in marker else None
        return InitialWeights(self.folder, str(marker["identity"]) if marker is not None else "", found)

    def adopt(self, config: Config, environment: Mapping[str, Any]) -> None:
        """Give a run of an earlier version an identity.

        The marker records the digests of the current manifests of its layers and of the layer in training.
        """
        names = [f"layers/{name}/{MANIFEST}" for name in self.folder.names("layers")] + [f"progress/{MANIFEST}"]
        adopted = []
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                adopted.append(content_digest(read_manifest(self.folder, name, {})))
        identity, data = draw_identity(), dict(self.read_data().content)
        self.folder.identity = identity
        content = describe_run(identity, config.identity(), data, adopted)
        environments = [dict(environment)]  # assumed to be the one in which its layers were trained
        write_manifest(self.folder, ENVIRONMENT_FILE, {"run": content_digest(content), "environments": environments})
        write_marker(self.folder, content)
        if self.folder.find_kind(CACHE) == "a folder":  # its caches are made again, in a folder named after the run
            for name in filter(CACHE_NAMES.fullmatch, self.folder.names(CACHE)):
                self.folder.remove_matching(f"{CACHE}/{name}", *SHARD_NAMES)

    @property
    def marker(self) -> dict[str, Any] | None:
        """The content of RUN/run.json, which never changes; None in earlier versions' runs. Raises CorruptFileError."""
        if self._marker is None:
            self._marker = read_marker(self.folder)
        return self._marker

    def read_identity(self) -> str | None:
        """The identity that tells the run from all others; None in runs of earlier versions."""
        return str(self.marker["identity"]) if self.marker is not None else None

    @property
    def run_digest(self) -> str | None:
        """The digest by which its layers name the run; None in runs of earlier versions."""
        return content_digest(self.marker) if self.marker is not None else None

    def check_names_this_run(self, manifest: dict[str, Any], name: str, remedy: str) -> None:
        """Raise CorruptFileError unless a manifest names this run, or was recorded by `adopt`."""
        wanted, found = self.run_digest, manifest.get("run")
        if found == wanted and (found is not None or wanted is None):
            return
        if self.marker is not None and found is None and content_digest(manifest) in self.marker.get("adopted", []):
            return
        raise CorruptFileError(
            f"manifest {self.path / name}: belongs to another run ({(found or 'none')[:12]}, this one is "
            f"{(wanted or 'of a version without identities')[:12]}); {remedy}"
        )

    def check_belongs(self, config: Config) -> None:
        """Raise CorruptFileError for data, RunMismatchError for settings that the run was not started with.

        Settings that only a later version has are not compared.
        """
        if self.marker is None:
            return
        facts = self.read_data()
        if facts.digest != self.marker["data"] or content_digest(dict(facts.content)) != self.marker["description"]:
            raise CorruptFileError(
                f"manifest {self.path / DATA_FILE}: does not belong to {MARKER}, which names other data; restore "
                "both from one copy"
            )
        settings, own = LATER_SETTINGS | self.marker["settings"], LATER_SETTINGS | config.identity()
        different = [
            f"{key}: {own[key]!r}, {settings[key]!r}" for key in own if key in settings and own[key] != settings[key]
        ]
        if different:
            raise RunMismatchError(
                f"config {self.path / CONFIG}: differs from the settings that the run was started with ({MARKER}) in "
                f"{'; '.join(different)}; restore it from a copy"
            )

    # --- configuration

    def write_config(self, config: Config) -> None:
        """Replace the configuration. Its first line is a comment with the digest of the lines below it."""
        text = config.to_toml().encode()
        seal = hashlib.sha256(text).hexdigest().encode()
        self.folder.write(CONFIG, CONFIG_SEAL + seal + b"\n" + text)

    def read_config(self) -> Config:
        """The resolved configuration. Raises CorruptFileError if it was altered, RunError if missing, ConfigError."""
        path = self.path / CONFIG
        try:
            content = self.folder.read(CONFIG)
        except FileNotFoundError:
            raise RunError(f"run {self.path}: no run there (no {CONFIG}); restore it from a copy") from None
        first, _, text = content.partition(b"\n")
        if first.startswith(CONFIG_SEAL):
            digest = first.removeprefix(CONFIG_SEAL).decode(errors="replace")
            if digest != hashlib.sha256(text).hexdigest():
                raise CorruptFileError(
                    f"config {path}: altered since it was written (its digest, in the first line, differs); "
                    "restore it from a copy; what may be changed is changed by the options of ffstream resume"
                )
        config = Config.from_saved(parse_toml(content, f"config file {path}"))
        self.check_belongs(config)
        return config

    # --- data

    def read_data(self) -> DataFacts:
        """The facts of the data that the run was started with. Raises RunError, CorruptFileError."""
        try:
            data = read_manifest(self.folder, DATA_FILE, DATA)
        except FileNotFoundError:
            raise RunError(f"run {self.path}: has no {DATA_FILE}; restore it from a copy") from None
        if math.prod(data["image_shape"]) != data["num_features"] or len(data["class_names"]) != data["num_classes"]:
            raise CorruptFileError(
                f"manifest {self.path / DATA_FILE}: {data['num_features']} features in images of shape "
                f"{tuple(data['image_shape'])}, {len(data['class_names'])} names of {data['num_classes']} classes; "
                "restore it from a copy"
            )
        return DataFacts(data)

    def load_validation_labels(self) -> Tensor | None:
        """The validation labels (n,) that `create` was given; None if there were none or they were not kept yet."""
        digest = self.read_data().validation_labels_digest
        if digest is None:
            return None
        try:
            return load_tensor(self.folder, LABELS_FILE, digest, "labels", torch.int64, 1)
        except CorruptFileError as error:  # a repair puts aside what is trained again, and labels are not
            raise CorruptFileError(str(error).replace(RESTORE, "restore it from a copy")) from error

    # --- tidying up

    def remove_temporaries(self) -> int:
        """Remove what processes of this run left half-written, except in its caches. Returns the bytes removed."""
        if not self.folder.identity:
            return 0
        prefix = f"{TEMPORARY}{self.folder.identity}-"
        of_layers = ["layers", *(f"rounds/{name}" for name in self.folder.names("rounds") if name.isdecimal())]
        folders = ("", "progress", "readout", INITIAL, STREAM, *of_layers)
        num_bytes = sum(self.folder.remove_matching(each, re.escape(prefix) + ".*") for each in folders)
        for above in of_layers:
            for name in self.folder.names(above):
                if name.startswith(prefix):
                    num_bytes += self.remove_layer_folder(f"{above}/{name}")
        return num_bytes

    def remove_layer_folder(self, name: str) -> int:
        """Remove the folder of a layer that was not committed, or is not needed any more. Returns the bytes removed."""
        own = re.escape(f"{TEMPORARY}{self.folder.identity}-") + ".*"
        files = r"(weights|validation|optimiser)\.safetensors"
        return self.folder.remove_matching(name, files, re.escape(MANIFEST), own)

    def put_aside(self, names: Sequence[str]) -> Path:
        """Move what is damaged, or not the run's, into a new folder in the run. Returns the path of that folder."""
        numbers = itertools.count(1)
        aside = next(name for name in (f"damaged-{each}" for each in numbers) if self.folder.find_kind(name) is None)
        with storage_errors(self.path / aside):
            for name in names:
                above, _, last = name.rpartition("/")
                self.folder.make_folder(f"{aside}/{above}" if above else aside)
                self._move(name, f"{aside}/{above}/{last}" if above else f"{aside}/{last}")
        return self.path / aside

    def _move(self, name: str, to: str) -> None:
        """Move something to another folder; file by file where a file system cannot move whole folders."""
        try:
            self.folder.move(name, to)
        except OSError as error:
            if error.errno != errno.EXDEV or self.folder.find_kind(name) != "a folder":
                raise
            self.folder.make_folder(to)
            for each in self.folder.names(name):
                self._move(f"{name}/{each}", f"{to}/{each}")
            self.folder.remove_if_empty(name)
