"""The demonstration: what it says is measured, and it goes on where it was interrupted."""

from __future__ import annotations

import dataclasses

import pytest

from ffstream.cli.tables import demonstration_report
from ffstream.studies import demo
from ffstream.training.observer import Observer
from tests.helpers import layer_digests, run_cli


@pytest.fixture
def short(monkeypatch):
    """The same in seconds."""
    whole = demo.make_config
    smaller = {"layers": 2, "epochs": 3, "augmentation.views": 2, "precision": "fp32", "batch": 256}
    monkeypatch.setattr(demo, "make_config", lambda device: whole(device).override(smaller))
    monkeypatch.setattr(demo, "_NUM_SAVED_EPOCHS", 1)
    monkeypatch.setattr(demo, "_MLP_EPOCHS", 1)


def test_it_shows_what_it_measured(short, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    shown, demonstrate = [], demo.demonstrate
    monkeypatch.setattr(demo, "demonstrate", lambda *arguments: shown.append(demonstrate(*arguments)) or shown[0])
    code, output, error = run_cli("demo", "--output", tmp_path / "demo", "--device", "cpu")
    assert code == 0, error
    assert "the same bits as the run that was not interrupted" in output
    assert "2 layers, one at a time" in output
    assert (tmp_path / "demo" / "demo.png").is_file()
    assert {path.name for path in (tmp_path / "demo").iterdir()} == {"run", "demo.png"}
    (found,) = shown
    assert found.is_same
    before = layer_digests(tmp_path / "demo" / "run")
    # What other processes do is shown by now.
    monkeypatch.setattr(demo, "_kill_and_resume", lambda *_: (found.killed_layer, found.killed_epoch))
    monkeypatch.setattr(demo, "_read_weights", lambda *_: b"")
    monkeypatch.setattr(demo, "_measure_apart", lambda *_: (found.training_bytes, found.backprop_bytes))
    again = demo.demonstrate(tmp_path / "demo", "cpu", Observer(), lambda _: None)
    assert layer_digests(tmp_path / "demo" / "run") == before
    assert again.errors_by_depth == found.errors_by_depth
    assert found.killed_layer == 2
    assert 0 < found.training_bytes < found.backprop_bytes
    assert found.errors_by_depth == pytest.approx(found.run.evaluate().errors_by_depth)
    said = [part for part in demonstration_report(dataclasses.replace(found, is_same=False)) if isinstance(part, str)]
    assert "other bits than the run" in said[-1]
    assert found.nearest_neighbour_error == pytest.approx(36 / 1797)
