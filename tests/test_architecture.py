"""The house: imports run downward, only the face prints, and the public names are these."""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ffstream

PACKAGE = Path(ffstream.__file__).parent

# The floors of the house, from the ground up: a folder, or a file at the top, imports from itself and those before it.
FLOORS = """
errors ground settings device data field storage cache training plan infer run testing studies __init__ cli entry
__main__
""".split()

PUBLIC = """
Activations BudgetError Config ConfigError CorruptFileError DataError Dataset DeviceError DivergedError Evaluation
FFNetwork FFStreamError GOODNESSES Goodness LABEL_METHODS LAYER_KINDS LabelMethod Layer LayerFigures LayerShape Mode
NEGATIVE_SAMPLERS OBJECTIVES OPTIMISERS Objective Observer Optimiser OutputError Plan Predictions Run RunError
RunLockedError RunMismatchError RunOutline SIMILARITIES SOURCES Split StorageError WindowFigures
__version__ draw_errors load
load_dataset load_images make_plan register_recipe resume setting stream train write_negatives
""".split()

NAME = re.compile(r"\{(?!task\.)[^\W\d][\w.]*(\[[^\]{}]*\]|\([^){}]*\))*(![rsa])?(:[^{}]*)?\}")  # in braces


def files():
    return sorted(path for path in PACKAGE.rglob("*.py"))


def floor_name(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_modules(tree):
    """The modules of ours that a file imports, anywhere in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "ffstream":
            parts = node.module.split(".")[1:]
            yield from [parts[0]] if parts else [a.name if a.name in FLOORS else "__init__" for a in node.names]
        elif isinstance(node, ast.Import):
            yield from (a.name.split(".")[1] for a in node.names if a.name.startswith("ffstream."))


def test_every_folder_is_a_floor_and_says_what_it_is():
    assert {floor_name(path) for path in files()} == set(FLOORS)
    for folder in (path for path in PACKAGE.rglob("*") if path.is_dir() and path.name != "__pycache__"):
        assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text())), folder.name


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_downward(path):
    own = floor_name(path)
    if own == "__init__":  # names on what it lists, when it is asked for
        return
    for name in imported_modules(ast.parse(path.read_text())):
        assert name == own or FLOORS.index(name) < FLOORS.index(own), (
            f"{path.name} imports {name}, which stands above it"
        )


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_the_face_prints(path):
    if floor_name(path) == "cli":
        return
    calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    assert not [call for call in calls if isinstance(call, ast.Name) and call.id == "print"]


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_names_in_braces_are_replaced_by_what_they_stand_for(path):
    """A part of a message that lacks its f would show them. Progress bars of rich have templates of their own."""
    tree = ast.parse(path.read_text())
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    docstrings = [node.body[0] for node in ast.walk(tree) if isinstance(node, documented) and node.body]
    described = {id(first.value) for first in docstrings if isinstance(first, ast.Expr)}
    texts = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    found = [
        f"line {text.lineno}: {text.value}" for text in texts if NAME.search(text.value) and id(text) not in described
    ]
    assert not found


def test_only_transfer_copies_beside_the_computation():
    words = ("make_stream", "make_event", "queueing_on", "allocate_pinned", "non_blocking")
    knowing = {path.name for path in files() if any(word in path.read_text() for word in words)}
    assert knowing == {"transfer.py", "pinned.py", "accelerator.py"}


KINDS = ("cuda", "xpu", "mps", "hip", "accelerator")  # of devices; torch has a module for each


def names_a_kind(node):
    """Whether code uses torch's module for a kind of device, or compares something with the name of a kind."""
    if isinstance(node, ast.Attribute):
        return node.attr in KINDS and ast.unparse(node.value) in ("torch", "torch.version", "torch.backends")
    if isinstance(node, ast.Compare):
        return any(isinstance(part, ast.Constant) and part.value in KINDS for part in (node.left, *node.comparators))
    return isinstance(node, ast.For) and any(f"'{kind}'" in ast.unparse(node.iter) for kind in KINDS)


def test_one_file_knows_kinds_of_accelerators():
    knowing = {path.name for path in files() if any(map(names_a_kind, ast.walk(ast.parse(path.read_text()))))}
    assert knowing == {"accelerator.py"}


def test_help_needs_no_torch():
    code = "import sys, ffstream.cli, ffstream.settings.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_public_names_are_these_and_each_is_there():
    assert sorted(ffstream.__all__) == sorted(PUBLIC)
    for name in PUBLIC:
        assert getattr(ffstream, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = ffstream.nothing


def dotted_name(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_between_files():
    """For each file but the root's, the files of ours that it imports."""
    names = {dotted_name(path): path for path in files()}
    graph = {}
    for name, path in names.items():
        found = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
        graph[name] = (found & set(names)) - {name, "ffstream"}
    return {name: found for name, found in graph.items() if name != "ffstream"}


def test_no_file_imports_itself_by_a_detour():
    graphlib.TopologicalSorter(imports_between_files()).prepare()  # raises CycleError


def test_imports_are_absolute():
    for path in files():
        nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
        assert not [node for node in nodes if node.level], path.name


@pytest.mark.parametrize(
    "path",
    [path for path in files() if floor_name(path) in ("errors", "settings", "__init__", "cli", "entry", "__main__")],
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_what_is_read_before_a_run_imports_no_torch_at_module_level(path):
    heavy = {"torch", "torchvision", "numpy", "safetensors", "matplotlib"}
    for node in ast.parse(path.read_text()).body:
        modules = [a.name for a in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", "") or ""]
        assert not heavy & {module.split(".")[0] for module in modules}


@pytest.mark.parametrize(
    "module", ["ffstream", "ffstream.settings.config", "ffstream.errors", "ffstream.settings.recipes", "ffstream.cli"]
)
def test_importing_what_is_read_before_a_run_loads_no_torch(module):
    code = f"import {module}, sys; assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_nothing_unpickles_or_reads_a_global_generator():
    forbidden = (
        "import pickle",
        "torch.load(",
        "allow_pickle=True",
        "manual_seed_all",
        "torch.manual_seed",
        "np.random.",
    )
    for path in files():
        assert not [word for word in forbidden if word in path.read_text()], path.name


def test_what_type_checkers_see_is_what_is_public():
    block = next(node for node in ast.parse((PACKAGE / "__init__.py").read_text()).body if isinstance(node, ast.If))
    seen = {a.asname or a.name for node in block.body if isinstance(node, ast.ImportFrom) for a in node.names}
    assert (seen - {"load_network"}) | {"load", "__version__"} == set(PUBLIC)
    assert set(dir(ffstream)) == set(PUBLIC)
