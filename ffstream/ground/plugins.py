"""Finds, checks and imports modules outside of this package that register parts.

A module that the user names is imported. A run names modules too, but the run may be somebody else's. So its modules
are imported only if they are found on the user's own path with exactly the source that the run recorded, and exactly
that source is executed.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.machinery
import importlib.metadata
import importlib.util
import os
import sys
import threading
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from ffstream.errors import ConfigError, RunError, RunMismatchError
from ffstream.ground.files import find_current

VARIABLE = "FFSTREAM_PLUGINS"  # names of modules, separated by commas
ENTRY_POINTS = "ffstream.plugins"
_PACKAGE = __name__.partition(".")[0]
_NO_SOURCE = "no source"  # stands for the digest of a package without an __init__.py
# Held while `sys.path`, which is one for all threads, is exchanged; a module that is imported may load others.
_path_lock = threading.RLock()
_loaded: set[str] = set()  # names of modules that `load_plugins` has imported


def load_plugins(names: Iterable[str], *, search_here: bool = False) -> None:
    """Import the modules in `names` and in $FFSTREAM_PLUGINS, and those that installed packages offer.

    With `search_here`, modules in `names` are also searched for in the current folder, after all other folders. Modules
    of the variable and of installed packages are not, because that folder may be somebody else's. Raises ConfigError
    for a module that is missing or cannot be imported.
    """
    with _path_lock:
        trusted, here = _trusted_path(), find_current()
        for name in os.environ.get(VARIABLE, "").split(","):
            if name.strip():
                _load(name.strip(), f"plugin {name.strip()}", trusted)
        for name in names:
            _load(name, f"plugin {name}", [*sys.path, str(here)] if search_here and here is not None else sys.path)
        for distribution in importlib.metadata.distributions(path=trusted):
            for point in distribution.entry_points:
                if point.group == ENTRY_POINTS:
                    _load(point.module, f"plugin {point.name} of an installed package", trusted)


def has_loaded() -> bool:
    """Whether `load_plugins` has imported any module, which may have registered parts."""
    return bool(_loaded)


def _load(name: str, noun: str, path: list[str]) -> None:
    if name in _loaded:
        return
    if not all(part.isidentifier() for part in name.split(".")):
        raise ConfigError(f"{noun}: is no name of a module, allowed a name such as my_package.my_module")
    before = list(sys.path)
    try:
        sys.path[:] = path
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
            raise ConfigError(f"{noun}: imports {error.name}, which is not there; install it") from error
        raise ConfigError(
            f"{noun}: found no module of that name on the path, allowed a name such as my_package.my_module; put its "
            "folder into PYTHONPATH, or install it"
        ) from error
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{noun}: {_describe_failure(error)}; mend the module") from error
    finally:
        sys.path[:] = before
    _loaded.add(name)


def _describe_failure(error: BaseException) -> str:
    """In one line, with the line of the module that failed."""
    places = [place for place in traceback.extract_tb(error.__traceback__) if "importlib" not in place.filename]
    where = f", {places[-1].filename} line {places[-1].lineno}" if places and places[-1].filename != __file__ else ""
    return f"cannot be imported ({type(error).__name__}: {' '.join(str(error).split())}{where})"


def digest_sources(module_name: str) -> dict[str, str]:
    """Digests of the sources of an imported module and of its parent packages, by name."""
    digests = {}
    for name in _with_parents(module_name):
        path = getattr(sys.modules.get(name), "__file__", None)
        try:
            digests[name] = _NO_SOURCE if path is None else _digest(Path(path).read_bytes())
        except OSError:
            digests[name] = _NO_SOURCE
    return digests


@dataclass(frozen=True)
class Untrusted:
    """The folder of a run, or of an exported file, which may be somebody else's: no module in it is imported for it.

    In the folder of a file, modules are still trusted that lie in a folder that the user named (`_named_folders`).
    """

    folder: Path
    is_of_file: bool = False

    def holds(self, place: Path) -> bool:
        """Whether `place` is a path in the untrusted folder."""
        folder, place = self.folder.resolve(), place.resolve()
        if not place.is_relative_to(folder):
            return False
        named = [entry for entry in _named_folders() if entry.is_relative_to(folder)] if self.is_of_file else []
        return not any(place.is_relative_to(entry) for entry in named)


def import_recorded(
    module_name: str, sources: Mapping[str, str], noun: str, *, accept: bool, untrusted: Untrusted
) -> None:
    """Import a module that a run names. It is executed only if its sources are those that the run recorded.

    `noun` begins errors. `accept` allows other sources too. Raises RunError for a module that is not on the user's path
    or cannot be imported, and RunMismatchError for one whose source has changed.
    """
    specs = _find_specs(module_name, untrusted)
    if specs is None or set(specs) != set(_with_parents(module_name)) or not set(specs) <= set(sources):
        raise RunError(
            f"{noun}, which module {module_name} registers; found no such module on Python's path; put its "
            f"folder into PYTHONPATH, or run the command in that folder with --plugin {module_name}"
        )
    contents = {name: _read(spec) for name, spec in specs.items()}
    changed = [name for name, content in contents.items() if _digest_or_none(content) != sources[name]]
    if changed and not accept:
        raise RunMismatchError(
            f"{noun}, which module {module_name} registers; the source of module {changed[0]} has changed since; "
            "restore it, or take it as it is with --accept-environment"
        )
    try:
        for name, spec in specs.items():
            if name not in sys.modules:
                _execute(name, spec, contents[name])
    except (Exception, SystemExit) as error:
        raise RunError(f"{noun}, of which module {module_name} {_describe_failure(error)}; mend that") from error


def _with_parents(module_name: str) -> list[str]:
    """The names of a module and its parent packages, the outermost first."""
    parts = module_name.split(".")
    return [".".join(parts[: length + 1]) for length in range(len(parts))]


def _find_specs(module_name: str, untrusted: Untrusted) -> dict[str, importlib.machinery.ModuleSpec] | None:
    """The specs of a module and its packages, without executing anything; None if they are not on the user's path."""
    path: Sequence[str] | None = None
    found: dict[str, importlib.machinery.ModuleSpec] = {}
    for name in _with_parents(module_name):
        if name.partition(".")[0] in sys.stdlib_module_names:  # the standard library registers no parts
            return None
        spec = _find_spec(name, path)
        if spec is None or not _is_source(spec) or any(map(untrusted.holds, _list_places(spec))):
            return None
        found[name] = spec
        path = None if spec.submodule_search_locations is None else list(spec.submodule_search_locations)
        if path is None and name != module_name:
            return None
    return found


def _find_spec(name: str, path: Sequence[str] | None) -> importlib.machinery.ModuleSpec | None:
    if path is not None:
        try:
            return importlib.machinery.PathFinder.find_spec(name, path)
        except KeyError:  # a nested package without __init__.py, for which Python expects its parent to be imported
            folder = importlib.machinery.ModuleSpec(name, None, is_package=True)
            places = [str(Path(entry) / name.rpartition(".")[2]) for entry in path]
            folder.submodule_search_locations = [place for place in places if Path(place).is_dir()]
            return folder
    spec = importlib.machinery.PathFinder.find_spec(name, _trusted_path())
    for finder in sys.meta_path:  # the finders of packages that are installed in editable mode
        if spec is None and finder is not importlib.machinery.PathFinder:
            spec = finder.find_spec(name, None) if hasattr(finder, "find_spec") else None
    return spec


def _is_source(spec: importlib.machinery.ModuleSpec) -> bool:
    """Whether a module is a .py file or a package without __init__.py: of other kinds, what runs cannot be checked."""
    if spec.origin is None:
        return spec.submodule_search_locations is not None
    return isinstance(spec.loader, importlib.machinery.SourceFileLoader) and spec.origin.endswith(".py")


def _list_places(spec: importlib.machinery.ModuleSpec) -> list[Path]:
    origin = [] if spec.origin is None else [spec.origin]
    return [Path(place) for place in [*origin, *(spec.submodule_search_locations or [])]]


def _named_folders() -> set[Path]:
    """The folders that the user named for modules: those in PYTHONPATH, and that of the program that was started."""
    own = [_resolve(entry) for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    main = getattr(sys.modules.get("__main__"), "__file__", None)
    if main is not None and Path(main).parent.name != _PACKAGE and (file := _resolve(main)) is not None:
        own.append(file.parent)
    return {folder for folder in own if folder is not None}


def _trusted_path() -> list[str]:
    """`sys.path` without the current folder, in which a command may merely happen to run, unless the user named it."""
    own, here = _named_folders(), find_current()
    return [entry for entry in filter(None, sys.path) if (place := _resolve(entry)) and (place != here or place in own)]


def _resolve(entry: str) -> Path | None:
    """The place that a path leads to; None for one that begins at a current folder that is gone."""
    try:
        return Path(entry).resolve()
    except OSError:
        return None


def _read(spec: importlib.machinery.ModuleSpec) -> bytes | None:
    """The source of a module; None for a package without an __init__.py."""
    return None if spec.origin is None else Path(spec.origin).read_bytes()


def _execute(name: str, spec: importlib.machinery.ModuleSpec, source: bytes | None) -> None:
    """Import a module from exactly the bytes that were checked."""
    module: ModuleType = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        if source is not None:
            exec(compile(source, str(spec.origin), "exec", dont_inherit=True), module.__dict__)
    except BaseException:
        del sys.modules[name]
        raise
    parent, _, child = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], child, module)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _digest_or_none(content: bytes | None) -> str:
    return _NO_SOURCE if content is None else _digest(content)
