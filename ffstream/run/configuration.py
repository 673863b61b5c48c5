"""The configuration that a run starts or goes on with: what is asked for, with what the run has saved."""

from __future__ import annotations

import contextlib
import dataclasses

from ffstream.data import SOURCES
from ffstream.errors import RunError, RunMismatchError, to_command
from ffstream.field.parts import complete_parts, restore_parts
from ffstream.ground.files import expand_home, to_absolute
from ffstream.ground.plugins import Untrusted
from ffstream.settings.config import Config
from ffstream.storage.run_directory import RunDirectory

# Settings that a resumed run takes from its saved configuration where they are "auto".
_RESOLVED = (
    "batch",
    "micro_batch",
    "precision",
    "device",
    "save_every",
    "cache.shard_samples",
    "network.tile_units",
    "memory.budget",
    "memory.host_budget",
    "memory.disk_budget",
)


def merge_with_saved(asked: Config, directory: RunDirectory, *, resume: bool, accept_environment: bool) -> Config:
    """The requested configuration with "auto" filled in from the saved one, if there is a run in the folder.

    Raises RunError if there is one and it is not to be resumed, RunMismatchError if the two configurations differ.
    """
    if not directory.exists():
        return asked
    if not resume:
        command = " ".join([to_command("resume", directory.path), *(f"--plugin {name}" for name in asked.plugins)])
        raise RunError(
            f"run {directory.path}: exists already ({directory.count_layers()} layers done); go on with {command}, or "
            "choose another --run-dir"
        )
    # Before the settings of its parts are asked for.
    restore_own_parts(directory, accept_environment=accept_environment)
    asked, saved, path = complete_parts(asked), directory.read_config(), directory.path
    wanted, found = asked.to_flat(), saved.to_flat()
    asked = asked.override({name: found[name] for name in _RESOLVED if wanted[name] == "auto"})
    for name in ("cache.folder", "init_from"):
        asked = asked.override({} if wanted[name] else {name: found[name]})
    different = asked.differences(saved)
    if different:
        raise RunMismatchError(
            f"run {path}: belongs to another configuration; asked and found differ in {'; '.join(different)}; "
            "ask for the same, or choose another --run-dir"
        )
    return asked


def restore_own_parts(directory: RunDirectory, *, accept_environment: bool) -> None:
    """Have the parts of a run registered that are a user's own. Raises RunError, RunMismatchError."""
    parts = directory.read_parts(accepts_missing=accept_environment)
    restore_parts(parts, f"run {directory.path}", Untrusted(directory.path), accept=accept_environment)


def with_absolute_paths(config: Config) -> Config:
    """Make paths absolute, so that a run can be resumed from another folder."""
    path = expand_home(config.data)
    data = config.data
    with contextlib.suppress(OSError):  # a name that no file can have; loading the data reports it
        if config.data not in SOURCES and path.exists():
            data = str(to_absolute(path))
    config = config.override({"cache.folder": make_absolute(config.cache.folder) or ""})
    config = config.override({"init_from": make_absolute(config.init_from) or ""})
    return dataclasses.replace(config, data=data, data_root=make_absolute(config.data_root) or "")


def make_absolute(folder: str | None) -> str | None:
    """Make the path of a folder absolute, if one is given."""
    return str(to_absolute(expand_home(folder))) if folder else folder
