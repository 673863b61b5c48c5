"""Files of predictions: no cell is a formula, none replaces others, and no image without a label has one."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
import torch
from PIL import Image

import ffstream as ff
from ffstream.errors import OutputError
from ffstream.infer import predictions
from ffstream.infer.predictions import to_cell
from tests.cli.odd_names import NAMES
from tests.helpers import run_cli

# --- spreadsheets


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("=1+1", "'=1+1"),
        ("@sum", "'@sum"),
        ("-cmd", "'-cmd"),
        ("+a", "'+a"),
        ("\t=1", "'\\t=1"),
        ("\rx", "'\\rx"),
        (" =1", "' =1"),
        ("\uff1d1", "'\uff1d1"),
        ("-1", "-1"),
        ("+1.5e3", "+1.5e3"),
        ("-1+1", "'-1+1"),
        ("-²", "'-²"),
        ("cat", "cat"),
        ("a=b", "a=b"),
        ("a\nb\x1b", "a\\nb\\x1b"),
    ],
)
def test_no_name_is_a_formula(text, cell):
    assert to_cell(text) == cell


def test_no_cell_of_predictions_is_a_formula(run, tmp_path, monkeypatch):
    monkeypatch.chdir(Path(run.config.data) / NAMES[0])
    code, output, error = run_cli("predict", run.path, "=0.png", "=1.png", "--output", tmp_path / "a.csv")
    assert (code, error) == (0, None), output
    rows = list(csv.DictReader(io.StringIO((tmp_path / "a.csv").read_text())))
    assert [row["image"] for row in rows] == ["'=0.png", "'=1.png"]
    assert {row["label"] for row in rows} <= {to_cell(name) for name in NAMES}


# --- what predictions are written over


def test_predictions_of_the_same_images_are_replaced_and_others_by_force_alone(run, tmp_path):
    image, other = (Path(run.config.data) / NAMES[1] / f"={number}.png" for number in range(2))
    for name in ("a.csv", "a.json"):
        command = ["predict", run.path, image, "--output", tmp_path / name]
        for _ in range(2):
            assert run_cli(*command)[0] == 0
        for changed in ([*command, other], [*command, "--force", other], command):
            code, _, error = run_cli(*changed)
            assert (code == 0) is ("--force" in changed), error
        (tmp_path / name).write_text("image,theirs\n" if name == "a.csv" else "[]")
        assert isinstance(run_cli(*command)[2], OutputError)
        assert run_cli(*command, "--force")[0] == 0


@pytest.mark.parametrize("name", ["x.csv", "x.json"])
def test_predictions_are_never_written_onto_what_is_predicted(name, run, tmp_path):
    image = tmp_path / "image.png"
    Image.new("L", (6, 6)).save(image)
    (tmp_path / name).symlink_to(image)
    assert "is an input" in str(run_cli("predict", run.path, image, "--output", tmp_path / name, "--force")[2])


# --- what has no label


def test_an_image_that_leads_to_no_number_has_no_label(run, monkeypatch):
    images = torch.zeros(3, 6, 6)
    monkeypatch.setattr(
        predictions, "stream_goodness", lambda *_: iter([torch.tensor([[0.0] * 8, [float("nan")] * 8, [0.0] * 8])] * 2)
    )
    with pytest.raises(ff.DataError, match="image 1, counted from 0, gets scores that are not finite"):
        run.predict(images)
    images[2, 0, 0] = float("nan")
    with pytest.raises(ff.DataError, match="image 2, counted from 0, gets scores"):
        run.load().predict(images)
