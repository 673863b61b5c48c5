"""Data that were moved since a run was trained on them."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

import ffstream as ff
from tests.helpers import run_cli, write_pictures


@pytest.fixture(params=["arrays", "folder"])
def moved(request, small_data, tmp_path):
    """A run, and where its data are by now."""
    if request.param == "arrays":
        name = "d.safetensors"
        (tmp_path / "old").mkdir()
        shutil.copy(small_data, tmp_path / "old" / name)
    else:
        name, images = "pictures", np.random.default_rng(0).integers(0, 256, (40, 6, 5), dtype=np.uint8)
        for part, of_part in (("train", images[:30]), ("test", images[30:])):
            write_pictures(tmp_path / "old" / name / part, {"a": of_part[::2], "b": of_part[1::2]})
    config = ff.Config(data=str(tmp_path / "old" / name), layers=2, width=8, epochs=1, device="cpu")
    run = ff.train(config, tmp_path / "run")
    (tmp_path / "old").rename(tmp_path / "new")
    return run, tmp_path / "new" / name


def test_data_that_were_moved_are_found_where_they_are_said_to_be(moved):
    run, path = moved
    for arguments in (["evaluate", run.path], ["evaluate", run.path, "--method", "softmax"], ["resume", run.path]):
        code, _, error = run_cli(*arguments)
        assert code == 1
        assert "no such file or folder; if it was moved, say by --data where it is now" in str(error)
        for place in (["--data-root", path.parent], ["--data", path]):
            if arguments[0] == "evaluate":
                assert run_cli(*arguments, *place)[2] is None
    assert run_cli("resume", run.path, "--layers", "3", "--data", path)[0] == 0
    assert run.config.data == str(path)
    assert run_cli("evaluate", run.path)[0] == 0  # from here on it is known


def test_an_output_goes_onto_no_data_that_were_moved(moved, tmp_path):
    run, path = moved
    own = path if path.is_file() else next(path.rglob("*.png"))
    before = own.read_bytes()
    (tmp_path / "out.csv").symlink_to(own)
    np.save(tmp_path / "x.npy", np.zeros((2, *run.directory.read_data().image_shape)))
    place = ["--data-root", path.parent, "--output", tmp_path / "out.csv", "--force"]
    assert isinstance(run_cli("predict", run.path, tmp_path / "x.npy", *place)[2], ff.OutputError)
    assert own.read_bytes() == before


def test_other_data_are_not_taken_for_those_that_were_moved(moved, tmp_path):
    run, _ = moved
    for use in (lambda data: run.evaluate(data=data), lambda data: ff.resume(run.path, layers=3, data=data)):
        with pytest.raises(ff.RunMismatchError, match="other training data"):
            use("digits")
    assert run.config.data != "digits"
