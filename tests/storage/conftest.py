"""What the tests of storage share: small runs, and a copy of one."""

from __future__ import annotations

import shutil

import pytest

import ffstream as ff
from tests.helpers import SMALL


@pytest.fixture(scope="session")
def runs(small_data, tmp_path_factory):
    """The same training twice, and one of another seed."""
    config = ff.Config(data=str(small_data)).override(SMALL | {"layers": 2, "epochs": 2})
    folder = tmp_path_factory.mktemp("identity")
    for name, seed in (("one", 0), ("twin", 0), ("other", 1)):
        ff.train(config.override({"seed": seed}), folder / name)
        ff.Run(folder / name).evaluate("softmax")
    return folder


@pytest.fixture
def copy(runs, tmp_path):
    return shutil.copytree(runs / "one", tmp_path / "copy")
