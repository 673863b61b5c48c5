"""The top level of a run directory: the marker that makes it a run, its configuration, data and environment."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import math
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ffstream.data.facts import DataFacts
from ffstream.errors import CorruptFileError, RunError, RunMismatchError, StorageError, say_no_run
from ffstream.ground.files import storage_errors, to_absolute
from ffstream.ground.folder import TEMPORARY, Folder
from ffstream.ground.lock import RunLock
from ffstream.settings.config import LATER_SETTINGS, Config, parse_toml
from ffstream.storage.identity import (
    CACHE,
    CONFIG,
    CONFIG_SEAL,
    DATA_FILE,
    ENVIRONMENT_FILE,
    LABELS_FILE,
    MARKER,
    FolderState,
    Survey,
    describe_run,
    draw_identity,
    read_marker,
    survey,
    write_marker,
)
from ffstream.storage.manifest import (
    DATA,
    ENVIRONMENT,
    PARTS,
    content_digest,
    find_misfit,
    read_manifest,
    write_manifest,
)
from ffstream.storage.run_names import SHARD_NAMES, find_run, is_run
from ffstream.storage.tensor_file import RESTORE, digest_tensors, load_tensor, write_tensors

MANIFEST = "manifest.json"
_CACHES = re.compile(r"\d{3,18}-\w+")
_DIGEST_ONLY = "digest"  # the only key of an environment whose record was lost


class RunRoot:
    """Reads and writes the top level of one run directory; only the holder of its lock writes."""

    def __init__(self, path: str | Path, lock: RunLock | None = None) -> None:
        self.path = Path(path)
        self.folder = lock.folder if lock is not None else Folder(self.path)
        self._marker: dict[str, Any] | None = None
        self._known_environments: set[str] = set()  # digests that were found in environment.json

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
        self, config: Config, facts: DataFacts, environment: Mapping[str, Any], labels: Tensor | None = None
    ) -> None:
        """Start a run: write everything at the top level, the configuration last. `labels` (n,) are for validation.

        Files of a process that was killed while starting a run are replaced, under a new identity.
        """
        self.folder.identity = self.survey().identity
        self.remove_temporaries()
        for name in (
            ENVIRONMENT_FILE,
            LABELS_FILE,
            DATA_FILE,
            MARKER,
        ):  # in this order: each is recognised by files that come after it
            self.folder.remove(name)
        self.folder.identity, self._marker = draw_identity(), None
        data = dict(facts.content)
        labels_file = {"labels": labels} if labels is not None else {}
        if labels_file:
            data = data | {"validation_labels_digest": digest_tensors(labels_file)}
        run = write_marker(self.folder, describe_run(self.folder.identity, config.identity(), data))
        write_manifest(self.folder, DATA_FILE, data)
        if labels_file:
            write_tensors(self.folder, LABELS_FILE, labels_file)()
        write_manifest(self.folder, ENVIRONMENT_FILE, {"run": run, "environments": [dict(environment)]})
        self.write_config(config)

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
            for name in filter(_CACHES.fullmatch, self.folder.names(CACHE)):
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
        config = Config.from_mapping(parse_toml(content, f"config file {path}"))
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

    # --- environment

    def read_environments(self, *, accepts_missing: bool = False) -> list[dict[str, Any]]:
        """What decided the bits of the run, in order since its start; empty if unknown, as in earlier versions' runs.

        Raises CorruptFileError, also for a missing record unless `accepts_missing`.
        """
        if self.marker is None:
            return []
        try:
            found = read_manifest(self.folder, ENVIRONMENT_FILE, ENVIRONMENT)
        except FileNotFoundError:
            if accepts_missing or self.folder.find_kind(CONFIG) is None:  # without that, the run was never started
                return []
            raise CorruptFileError(
                f"run {self.path}: has no {ENVIRONMENT_FILE}, which records torch, the processor and the parts that it "
                "was trained with; restore it from a copy, or go on unchecked with --accept-environment"
            ) from None
        self.check_names_this_run(found, ENVIRONMENT_FILE, "restore it from a copy")
        return list(found["environments"])

    def read_parts(self, *, accepts_missing: bool = False) -> dict[str, Any]:
        """The run's record of the parts that do not come with this package. Raises CorruptFileError."""
        environments = self.read_environments(accepts_missing=accepts_missing)
        found = environments[-1].get("parts", {}) if environments else {}
        misfit = find_misfit(found, PARTS, "parts")
        if misfit is not None:
            raise CorruptFileError(f"manifest {self.path / ENVIRONMENT_FILE}: {misfit}; restore it from a copy")
        return dict(found)

    def record_environment(self, environment: Mapping[str, Any], earlier: Sequence[str] = ()) -> None:
        """Record the environment in which the run is trained from here on.

        `earlier` are digests of environments in which it was trained so far, for those whose record was lost.
        """
        environments = self.read_environments(accepts_missing=True)
        lost = set(earlier) - {_name_environment(each) for each in environments}
        environments = [{_DIGEST_ONLY: each} for each in sorted(lost)] + environments + [dict(environment)]
        write_manifest(self.folder, ENVIRONMENT_FILE, {"run": self.run_digest, "environments": environments})

    def name_environment(self) -> dict[str, str]:
        """The digest of the run's environment, as manifests of layers and of the progress name it."""
        environments = self.read_environments(accepts_missing=True)
        return {"environment": _name_environment(environments[-1])} if environments else {}

    def check_names_environment(self, manifest: dict[str, Any], name: str, remedy: str) -> None:
        """Raise CorruptFileError for a manifest that names an environment which the run does not record.

        A record that is missing as a whole is reported elsewhere.
        """
        found = manifest.get("environment")
        if found is None or found in self._known_environments:  # earlier versions named none
            return
        environments = self.read_environments(accepts_missing=True)
        self._known_environments |= {_name_environment(each) for each in environments}
        if environments and found not in self._known_environments:
            raise CorruptFileError(
                f"manifest {self.path / name}: trained in an environment that {ENVIRONMENT_FILE} does not record, as "
                f"layers and records of two copies of a run are; restore both from one copy, or {remedy}"
            )

    # --- caches

    def open_cache(self, cache_dir: str = "", *, make: bool = False) -> tuple[Folder, str]:
        """The folder, and the name below it, under which the caches of this run lie: in the run or on another disk."""
        own = f"ffstream-{self.read_identity()}" if self.marker is not None else ""
        kind = None if cache_dir else self.folder.find_kind(CACHE)
        if kind == "a folder" or (kind is None and not cache_dir):
            if make and kind is None:
                self.folder.make_folder(CACHE)
            return self.folder, f"{CACHE}/{own}" if own else CACHE
        if make:
            self.check_cache_base(cache_dir)
        return Folder(self.cache_base(cache_dir), self.folder.identity), own

    def check_cache_base(self, cache_dir: str) -> None:
        """Raise StorageError when the folder for caches is missing, or is part of a run."""
        base = self.cache_base(cache_dir)
        target, own = to_absolute(base).resolve(), to_absolute(self.path).resolve()
        is_own = target == own / CACHE
        other = None if is_own else target if is_run(target) else find_run(target)
        if not is_own and own in (target, *target.parents):  # also while there is no run in this folder yet
            other = self.path
        if other is not None:
            raise StorageError(f"cache {base}: is a part of the run {other}; choose another --cache-dir, or link")
        if not base.is_dir() and (cache_dir or self.folder.find_kind(CACHE) is not None):
            raise StorageError(f"cache {base}: is no folder; make it, or choose another --cache-dir")
        if base.is_dir() and not os.access(base, os.W_OK | os.X_OK):
            raise StorageError(f"cache {base}: cannot be written; mend its permissions, or choose another --cache-dir")

    @contextlib.contextmanager
    def cache_locked(self, cache_dir: str = "", *, make: bool = False) -> Iterator[None]:
        """Lock caches that lie on another disk: a copy of the run has the same identity and would use them too."""
        folder, name = self.open_cache(cache_dir, make=make)
        if folder is self.folder or not name or not (make or folder.find_kind(name)):
            yield
            return
        with storage_errors(folder.path / name):
            folder.make_folder(name)
        with contextlib.ExitStack() as stack:
            stack.callback(folder.remove_if_empty, name)
            lock = stack.enter_context(RunLock(folder.path / name, noun="cache", needs_room=make))
            stack.callback(lock.remove)
            yield

    def cache_base(self, cache_dir: str = "") -> Path:
        """The folder in which caches lie."""
        return Path(cache_dir) if cache_dir else self.path / CACHE

    def list_caches(self, cache_dir: str = "") -> list[str]:
        """The names of the existing caches, below the folder that `open_cache` returns."""
        folder, prefix = self.open_cache(cache_dir)
        names = folder.names(prefix) if prefix else []
        return [f"{prefix}/{name}" for name in names if _CACHES.fullmatch(name)]

    def drop_caches(self, cache_dir: str = "", kept: Sequence[str] | None = None) -> int:
        """Remove all caches and their folder, or only those that are not in `kept`. Returns the bytes removed."""
        folder, prefix = self.open_cache(cache_dir)
        if self.marker is None:
            return 0
        names = [name for name in self.list_caches(cache_dir) if name not in (kept or ())]
        num_bytes = sum(folder.remove_matching(name, *SHARD_NAMES) for name in names)
        if kept is not None:
            return num_bytes
        folder.remove_if_empty(prefix)
        if not cache_dir and self.folder.find_kind(CACHE) == "a folder":
            self.folder.remove_if_empty(CACHE)
        return num_bytes

    # --- tidying up

    def remove_temporaries(self) -> int:
        """Remove what processes of this run left half-written, except in its caches. Returns the bytes removed."""
        if not self.folder.identity:
            return 0
        prefix = f"{TEMPORARY}{self.folder.identity}-"
        folders = ("", "layers", "progress", "readout")
        num_bytes = sum(self.folder.remove_matching(each, re.escape(prefix) + ".*") for each in folders)
        for name in self.folder.names("layers"):
            if name.startswith(prefix):
                num_bytes += self.remove_staged(f"layers/{name}")
        return num_bytes

    def remove_half_shards(self, cache_dir: str = "") -> int:
        """Remove the half-written shards of the run's caches. Returns the bytes removed.

        Only the holder of the caches may call this: a copy of the run has the same identity, and may be using them.
        """
        folder, _ = self.open_cache(cache_dir)
        names = self.list_caches(cache_dir) if self.marker is not None else []
        return sum(folder.remove_matching(name, SHARD_NAMES[1]) for name in names)

    def remove_staged(self, name: str) -> int:
        """Remove the temporary folder of a layer that was not committed. Returns the bytes removed."""
        own = re.escape(f"{TEMPORARY}{self.folder.identity}-") + ".*"
        return self.folder.remove_matching(name, r"(weights|validation)\.safetensors", re.escape(MANIFEST), own)

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


def _name_environment(environment: dict[str, Any]) -> str:
    """The digest by which layers name an environment."""
    return str(environment[_DIGEST_ONLY]) if environment.keys() == {_DIGEST_ONLY} else content_digest(environment)
