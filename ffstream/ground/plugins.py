"""Modules of other people that register parts: found, checked and imported.

A user names a module, and it is imported. A run names a module too, but may be somebody else's: then it is imported
only where it is found on the user's own path with the very source that the run recorded, and that source is run.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.machinery
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType

from ffstream.errors import ConfigError, RunError, RunMismatchError

VARIABLE = "FFSTREAM_PLUGINS"  # names of modules, separated by commas
ENTRY_POINTS = "ffstream.plugins"
_PACKAGE = __name__.partition(".")[0]
_NO_SOURCE = "no source"  # of a folder that is a package without an __init__.py
_loaded: set[str] = set()  # names that a user gave, and that were imported


def load_plugins(names: Iterable[str], *, search_here: bool = False) -> None:
    """Import the modules that a user names, $FFSTREAM_PLUGINS names, and that installed packages offer.

    With `search_here`, the current folder is searched too. Raises ConfigError for a module that is not there, or fails.
    """
    named = [name.strip() for name in os.environ.get(VARIABLE, "").split(",") if name.strip()]
    here = str(Path.cwd()) if search_here else None
    for name in dict.fromkeys([*named, *names]):
        _load(name, f"plugin {name}", here)
    for point in importlib.metadata.entry_points(group=ENTRY_POINTS):
        _load(point.module, f"plugin {point.name} of an installed package", None)


def _load(name: str, noun: str, here: str | None) -> None:
    if name in _loaded:
        return
    before = list(sys.path)
    try:
        if here is not None and here not in sys.path:
            sys.path.insert(0, here)
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
            raise ConfigError(f"{noun}: imports {error.name}, which is not there; install it") from error
        raise ConfigError(
            f"{noun}: found no module of that name on the path, allowed a name such as my_package.my_module; put its "
            "folder into PYTHONPATH, or install it"
        ) from error
    except (ImportError, SyntaxError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{noun}: cannot be imported ({type(error).__name__}: {reason}); mend the module") from error
    finally:
        sys.path[:] = before
    _loaded.add(name)


def digest_sources(module_name: str) -> dict[str, str]:
    """The digest of the source of an imported module, and of the packages that it lies in, by name."""
    digests = {}
    for name in _with_parents(module_name):
        path = getattr(sys.modules.get(name), "__file__", None)
        try:
            digests[name] = _NO_SOURCE if path is None else _digest(Path(path).read_bytes())
        except OSError:
            digests[name] = _NO_SOURCE
    return digests


def import_recorded(
    module_name: str, sources: Mapping[str, str], noun: str, *, accept: bool, kept_out: Path | None
) -> None:
    """Import a module that a run names, of which nothing is executed unless its sources are those that it recorded.

    `accept` takes other sources too. `kept_out` is a folder in which no module is looked for, the run's own. Raises
    RunError for a module that is not on the user's path, RunMismatchError for one with another source.
    """
    specs = _find_specs(module_name, kept_out)
    if specs is None or set(specs) != set(_with_parents(module_name)) or not set(specs) <= set(sources):
        raise RunError(
            f"{noun}, which module {module_name} registers; found no such module on the path; put its folder into "
            f"PYTHONPATH, or give --plugin {module_name} in that folder"
        )
    contents = {name: _read(spec) for name, spec in specs.items()}
    changed = [name for name, content in contents.items() if _digest_or_none(content) != sources[name]]
    if changed and not accept:
        raise RunMismatchError(
            f"{noun}, which module {module_name} registers; the source of {changed[0]} is not what it was; restore it, "
            "or take it as it is with --accept-environment"
        )
    for name, spec in specs.items():
        if name not in sys.modules:
            _execute(name, spec, contents[name])


def _with_parents(module_name: str) -> list[str]:
    """A module and the packages that it lies in, the outermost first."""
    parts = module_name.split(".")
    return [".".join(parts[: length + 1]) for length in range(len(parts))]


def _find_specs(module_name: str, kept_out: Path | None) -> dict[str, importlib.machinery.ModuleSpec] | None:
    """Where a module and its packages lie, without executing anything; None where they are not on the user's path."""
    path: Sequence[str] | None = None
    found: dict[str, importlib.machinery.ModuleSpec] = {}
    for name in _with_parents(module_name):
        if name.partition(".")[0] in sys.stdlib_module_names:  # which registers no part
            return None
        spec = _find_spec(name, path, kept_out)
        if spec is None:
            return None
        found[name] = spec
        path = spec.submodule_search_locations
        if path is None and name != module_name:
            return None
    return found


def _find_spec(name: str, path: Sequence[str] | None, kept_out: Path | None) -> importlib.machinery.ModuleSpec | None:
    if path is not None:
        return importlib.machinery.PathFinder.find_spec(name, list(path))
    spec = importlib.machinery.PathFinder.find_spec(name, _trusted_path(kept_out))
    for finder in sys.meta_path:  # those of packages that are installed for editing
        if spec is None and finder is not importlib.machinery.PathFinder:
            spec = finder.find_spec(name, None) if hasattr(finder, "find_spec") else None
    is_source = spec is not None and (spec.origin is None or spec.origin.endswith(".py"))
    return spec if is_source else None


def _trusted_path(kept_out: Path | None) -> list[str]:
    """Where a user's modules lie: not in the folder of the run, nor in the one that a command happens to be started in.

    That folder is the user's own only where it is named in PYTHONPATH, or holds the program that was started.
    """
    own = {Path(entry).resolve() for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry}
    main = getattr(sys.modules.get("__main__"), "__file__", None)
    if main is not None and Path(main).parent.name != _PACKAGE:
        own.add(Path(main).resolve().parent)
    here = Path.cwd()
    return [
        entry
        for entry in filter(None, sys.path)
        if (place := Path(entry).resolve()) != here or here in own
        if kept_out is None or not place.is_relative_to(kept_out.resolve())
    ]


def _read(spec: importlib.machinery.ModuleSpec) -> bytes | None:
    """The source of a module; None where there is none, as of a package that is a folder alone."""
    return None if spec.origin is None else Path(spec.origin).read_bytes()


def _execute(name: str, spec: importlib.machinery.ModuleSpec, source: bytes | None) -> None:
    """Import a module from the very bytes that were checked."""
    module: ModuleType = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        if source is not None:
            exec(compile(source, str(spec.origin), "exec"), module.__dict__)
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
