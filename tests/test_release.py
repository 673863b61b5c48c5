"""What is released: a wheel and an sdist that hold the package whole, and an editable install that finds itself."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import ffstream

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder of a wheel and an sdist, built from this checkout without fetching anything."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-d", folder], cwd=ROOT, check=True, capture_output=True
    )
    return folder


def test_a_wheel_trains_and_evaluates_by_itself(built, tmp_path):
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    code = "import ffstream, sys; from ffstream.entry import main; print(ffstream.__file__); sys.exit(main())"
    for command in (
        ["train", "--layers", "2", "--width", "32", "--epochs", "1", "--device", "cpu", "--run-dir", "run"],
        ["evaluate", "run"],
    ):
        done = subprocess.run(
            [sys.executable, "-c", code, *command],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert str(tmp_path / "site") in done.stdout.splitlines()[0]
    assert "test error" in done.stdout


def test_archives_hold_every_file_of_the_package(built):
    files = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "ffstream").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    (wheel,), (sdist,) = built.glob("*.whl"), built.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert files <= names
    assert "ffstream/py.typed" in names
    assert not [name for name in names if name.startswith("tests")]
    with tarfile.open(sdist) as archive:
        sources = {name.partition("/")[2] for name in archive.getnames()}
    assert files | {"README.md", "LICENSE", "tests/test_release.py"} <= sources


def test_the_version_stands_in_one_place(built):
    (wheel,) = built.glob("*.whl")
    assert wheel.name.split("-")[1] == ffstream.__version__
    for name in ("pyproject.toml", "README.md"):
        assert not re.search(rf"\b{re.escape(ffstream.__version__)}\b", (ROOT / name).read_text())


def test_a_python_above_a_clone_imports_the_package_and_not_the_clone(tmp_path):
    (tmp_path / "ffstream" / "docs").mkdir(parents=True)  # a clone's folder, which has no __init__.py
    code = "import ffstream; ffstream.Config(); print(ffstream.__file__)"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "__init__.py" in done.stdout
