"""Runs of the last version that gave them no identity are read, and gone on with; what is assumed is said."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

import ffstream as ff
from ffstream.storage.identity import FolderState
from tests.helpers import layer_digests

OLDER = Path(__file__).parents[1] / "older"


class Hearing(ff.Observer):
    def __init__(self):
        self.said = []

    def on_warning(self, text):
        self.said.append(text)


@pytest.fixture(params=["finished", "stopped"])
def older(request, tmp_path):
    return Path(shutil.copytree(OLDER / request.param, tmp_path / request.param))


def test_an_older_run_is_read_as_it_is_and_nothing_is_written(older):
    before = {path: path.read_bytes() for path in older.rglob("*") if path.is_file()}
    run = ff.Run(older)
    assert run.directory.survey().state is FolderState.OLDER_RUN
    num_layers = 2 if older.name == "finished" else 1
    assert run.verify() == num_layers
    assert run.evaluate().error < 0.95
    assert run.load()(torch.zeros(3, 8, 8)).shape == (3, 10)
    if older.name == "finished":
        assert run.evaluate("softmax").error < 0.6  # by the readout that it holds
    assert {path: path.read_bytes() for path in older.rglob("*") if path.is_file() and path.name != "lock"} == before


def test_an_older_run_is_gone_on_with_and_from_there_on_it_has_an_identity(older):
    before, hearing = layer_digests(older), Hearing()
    run = ff.resume(older, layers=3, observer=hearing, accept_environment=True)
    assert "it is assumed that its" in hearing.said[0]
    assert layer_digests(older)[: len(before)] == before
    assert run.verify() == 3
    assert run.directory.survey().state is FolderState.RUN
    again = Hearing()
    ff.resume(older, layers=4, observer=again)
    assert [text for text in again.said if "no better than chance" not in text] == []  # it was trained for too short
    assert run.verify() == 4


def test_older_layers_stay_those_that_were_there(older):
    """They are named in what gives the run its identity: others do not pass for them, though they have none either."""
    ff.resume(older, layers=3)
    other = OLDER / ("stopped" if older.name == "finished" else "finished")
    manifest = older / "layers/000/manifest.json"
    text = manifest.read_text().replace('"elapsed_s": 0', '"elapsed_s": 1')
    manifest.write_text(text)
    with pytest.raises(ff.CorruptFileError):
        ff.Run(older).verify()
    shutil.copy(other / "layers/000/manifest.json", manifest)
    with pytest.raises(ff.CorruptFileError, match="belongs to another run"):
        ff.Run(older).verify()


def test_a_layer_of_a_newer_run_does_not_pass_in_an_older_one(older, tmp_path):
    newer = ff.train(ff.Run(older).config.override({"layers": 1}), tmp_path / "newer").path
    shutil.rmtree(older / "layers/000")
    shutil.copytree(newer / "layers/000", older / "layers/000")
    with pytest.raises(ff.RunError, match=r"has no run\.json"):
        ff.Run(older)


def test_caches_of_an_older_run_go_when_it_is_gone_on_with_and_what_else_is_there_stays(older):
    for name in ("000-train/shard-00000.safetensors", "000-train/mine", "mine/x"):
        (older / "cache" / name).parent.mkdir(parents=True, exist_ok=True)
        (older / "cache" / name).write_text("x")
    ff.resume(older, layers=3)
    left = sorted(str(path.relative_to(older / "cache")) for path in (older / "cache").rglob("*") if path.is_file())
    assert left == ["000-train/mine", "mine/x"]
