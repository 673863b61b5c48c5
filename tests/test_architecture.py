"""The house: imports run downward, only the face prints, and the public names are these."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import ffstream

PACKAGE = Path(ffstream.__file__).parent

# From the ground up; a module may import from those before it only. A package counts as one floor.
ORDER = """
errors recipes seeding schedule normalisation workspace
config registry files device
lock metrics goodness objectives negatives layers data cache
labels network transfer checkpoint
memory layer_trainer propagation
observer cache_set frozen
evaluate model
readout
run
runner
session
reporting
__init__
cli
__main__
""".split()

PUBLIC = """
Config ConfigError CorruptFileError DataError Dataset DeviceError DivergedError Evaluation FFNetwork FFStreamError
GOODNESSES Goodness LAYER_KINDS Layer LayerFigures NEGATIVE_SAMPLERS OBJECTIVES Objective Observer Run RunError
RunLockedError RunMismatchError SOURCES Split StorageError __version__ load register_recipe resume train
""".split()


def files():
    return sorted(path for path in PACKAGE.rglob("*.py"))


def floor_name(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_modules(tree):
    """The modules of ours that a file imports, anywhere in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "ffstream":
            parts = node.module.split(".")[1:]
            yield from [parts[0]] if parts else [a.name if a.name in ORDER else "__init__" for a in node.names]
        elif isinstance(node, ast.Import):
            yield from (a.name.split(".")[1] for a in node.names if a.name.startswith("ffstream."))


def test_every_module_has_its_floor():
    assert {floor_name(path) for path in files()} == set(ORDER)


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_downward(path):
    own = floor_name(path)
    if own == "__init__":  # names on what it lists, when it is asked for
        return
    for name in imported_modules(ast.parse(path.read_text())):
        assert name == own or ORDER.index(name) < ORDER.index(own), f"{path.name} imports {name}, which stands above it"


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_the_face_prints(path):
    if floor_name(path) in ("cli", "reporting"):
        return
    calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    assert not [call for call in calls if isinstance(call, ast.Name) and call.id == "print"]


def test_only_transfer_knows_streams_and_pinned_memory():
    words = ("cuda.Stream", "cuda.Event", "pin_memory", "non_blocking")
    knowing = {path.name for path in files() if any(word in path.read_text() for word in words)}
    assert knowing == {"transfer.py"}


def test_help_needs_no_torch():
    code = "import sys, ffstream.cli, ffstream.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_public_names_are_these_and_each_is_there():
    assert sorted(ffstream.__all__) == sorted(PUBLIC)
    for name in PUBLIC:
        assert getattr(ffstream, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = ffstream.nothing
