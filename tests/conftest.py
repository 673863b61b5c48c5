"""What the tests share: a small data set of real digits, and small configurations."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import tempfile
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported; of the processes that tests start as well

import pytest
import torch

import ffstream as ff
from ffstream.data import load_dataset
from ffstream.field.layers import LAYER_KINDS
from ffstream.plan import fitting
from ffstream.plan.plan import Rates
from ffstream.run import preparation
from ffstream.settings.recipes import RECIPES
from ffstream.settings.sections import MemoryConfig
from tests.helpers import SMALL, write_small_data

_ROOM_BYTES = 2 << 30  # of a file system for the files of tests, several times what they take
_IN_MEMORY = Path("/dev/shm")


def _has_room(folder: Path) -> bool:
    """Whether tests can write, and start programs that they built, in a folder that lies in memory."""
    if not os.access(folder, os.W_OK) or os.statvfs(folder).f_flag & os.ST_NOEXEC:
        return False
    return shutil.disk_usage(folder).free >= _ROOM_BYTES


# Every file of a run is written through to the disk: some hundred times in a training of a fifth of a second. The order
# of these writes is what is tested, and no disk is needed for it. Whoever names a place gets that one.
if not {"TMPDIR", "PYTEST_DEBUG_TEMPROOT"} & os.environ.keys() and _has_room(_IN_MEMORY):
    os.environ["PYTEST_DEBUG_TEMPROOT"] = tempfile.tempdir = str(_IN_MEMORY)

# Trainings of one user wait for each other while they plan. Those of other workers, and the user's own, have nothing to
# do with a test's.
_own = Path(tempfile.gettempdir()) / f"ffstream-tests-{os.getuid() if hasattr(os, 'getuid') else ''}"
_own /= os.environ.get("PYTEST_XDIST_WORKER", "alone")
_own.mkdir(parents=True, exist_ok=True)
os.environ["TMPDIR"] = tempfile.tempdir = str(_own)

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in what a shell starts in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which the processes that tests start inherit


_LONG = {"test_torture", "test_docs", "test_profile", "test_demo", "test_processes"}  # with tests of half a minute


def pytest_collection_modifyitems(items):
    """Long tests come first, so that no worker is left with one when the others have ended."""
    items.sort(key=lambda item: item.module.__name__.rpartition(".")[2] not in _LONG)


@pytest.fixture(scope="session")
def digits():
    return load_dataset("digits")


@pytest.fixture(scope="session")
def small_data(tmp_path_factory):
    """A file of 300 training and 100 test digits."""
    path = tmp_path_factory.mktemp("data") / "small.safetensors"
    write_small_data(path)
    return path


@pytest.fixture
def small_config(small_data):
    """A small run of any recipe, with other settings written `section__key`."""

    def make(recipe="inject", **settings):
        base = SMALL | {"data": str(small_data)} | {key.replace("__", "."): v for key, v in settings.items()}
        if "network.layers" in base or "network.layers" in RECIPES.get(recipe, {}):  # they say how wide each layer is
            del base["width"]
        if "network.layers" in base:
            base.pop("layers")
        return ff.Config(recipe=recipe).override(base)

    return make


_OF_PAPER = {"test_footprint", "test_memory", "test_profile"}
_papers = {}  # by all that they depend on


@pytest.fixture(autouse=True)
def _paper_is_kept(request, monkeypatch):
    """What a layer takes on paper takes longer to find than a small layer to train; some tests are of finding it."""
    if request.module.__name__.rpartition(".")[2] in _OF_PAPER:
        return
    do_on_paper = fitting.do_on_paper

    def do_once(blueprint, **options):
        apart = {"data": "", "data_root": "", "seed": 0, "save_every": "auto", "memory": MemoryConfig()}
        cache = dataclasses.replace(blueprint.config.cache, tier="auto", folder="")
        bare = dataclasses.replace(blueprint.config, cache=cache, **apart)
        kind = LAYER_KINDS[blueprint.config.network.kind]
        parts = (kind, blueprint.goodness, blueprint.objective, *map(type, vars(blueprint.method).values()))
        key = (repr((bare, blueprint.data, options)), parts)
        if key not in _papers:
            _papers[key] = do_on_paper(blueprint, **options)
        return _papers[key]

    monkeypatch.setattr(fitting, "do_on_paper", do_once)


@pytest.fixture(autouse=True, scope="session")
def _reservations_are_the_workers(tmp_path_factory):
    """Runs of other workers, and of whoever uses this machine, are no others: their plans would be waited for."""
    place = tmp_path_factory.mktemp("temporary")
    before, tempfile.tempdir = tempfile.tempdir, str(place)
    os.environ["TMPDIR"] = str(place)  # of the processes that tests start
    yield
    tempfile.tempdir = before


@pytest.fixture(autouse=True)
def _one_thread():
    """In every test, whichever ran before: tests run side by side, and two processes of two threads each on two cores
    slow each other many times.
    """
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _rates_are_given(monkeypatch):
    """They take seconds to measure, and decide nothing but the times that a plan shows; their own tests measure."""
    rates = Rates(1e11, 1e10, 1e-5, {"host": 1e10, "disk": 1e9})
    monkeypatch.setattr(preparation, "measure_rates", lambda *_: rates)
