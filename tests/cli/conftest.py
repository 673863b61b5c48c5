"""What the tests of the command line share: a small finished run, and a run of odd names."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

import ffstream as ff
from tests.cli.finished_run import SMALL
from tests.cli.odd_names import NAMES
from tests.helpers import run_cli, write_pictures


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """Of classes whose folders are called so."""
    folder = tmp_path_factory.mktemp("odd") / "[" / "] da\x1bta"
    shades = np.random.default_rng(0).integers(0, 256, (len(NAMES), 8, 6, 6), dtype=np.uint8)
    write_pictures(folder, dict(zip(NAMES, shades, strict=True)), "={}.png")
    config = ff.Config(data=str(folder), layers=2, width=16, epochs=1, batch=16, device="cpu", validation_fraction=0.25)
    return ff.train(config, folder.parent / "run [/] \x1b:cat:é")


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("cli") / "run"
    code, output, _ = run_cli("train", *SMALL, "--run-dir", path)
    assert code == 0, output
    return path


@pytest.fixture
def copy(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "copy")
    return tmp_path / "copy"
