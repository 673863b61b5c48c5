"""metrics.jsonl: nothing is trusted but what was sealed, and whoever adds to it or takes it away harms nothing."""

from __future__ import annotations

import json
import shutil

import pytest

import ffstream as ff
from ffstream.ground.folder import Folder
from ffstream.storage.manifest import write_manifest
from ffstream.storage.metrics import MetricsFile
from tests.helpers import InterruptAt, layer_digests, metrics_without_times


@pytest.fixture
def whole(small_config, tmp_path):
    return ff.train(small_config(), tmp_path / "whole").path


@pytest.fixture
def stopped(small_config, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        ff.train(small_config(), tmp_path / "run", observer=InterruptAt("on_epoch", 4))
    return tmp_path / "run"


LINES = ['{"note": "hi"}', '{"kind": "epoch", "layer": "1", "epoch": 1}', '{"kind": "epoch", "layer": 2}', "torn", "[]"]
LINES += ['{"kind": "epoch", "layer": 1, "epoch": 1, "loss": 0.0}', '{"kind": "layer", "layer": 1}', "1" * 5000]


@pytest.mark.parametrize("line", LINES)
def test_lines_that_nothing_seals_are_dropped_and_never_sealed(line, stopped, whole):
    with (stopped / "metrics.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ff.CorruptFileError, match="belong to nothing that was saved; ffstream resume removes them"):
        ff.Run(stopped).verify()
    ff.resume(stopped)
    assert metrics_without_times(stopped) == metrics_without_times(whole)
    assert layer_digests(stopped) == layer_digests(whole)
    ff.Run(stopped).verify()


def test_a_finished_run_is_verified_to_the_last_byte_and_grows_without_false_lines(whole, small_config, tmp_path):
    right = ff.train(small_config(layers=4), tmp_path / "right").path
    lines = (whole / "metrics.jsonl").read_text().splitlines(keepends=True)
    with (whole / "metrics.jsonl").open("a") as file:
        file.write(lines[0].replace('"loss": ', '"loss": 1'))
    with pytest.raises(ff.CorruptFileError):
        ff.Run(whole).verify()
    ff.resume(whole, layers=4)
    assert metrics_without_times(whole) == metrics_without_times(right)
    ff.Run(whole).verify()


def test_lines_of_epochs_that_were_not_saved_are_those_of_a_killed_process_and_no_damage(stopped):
    record = {"kind": "epoch", "layer": 2, "epoch": 3, "loss": 0.1}
    with (stopped / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(record) + '\n{"kind": "ep')
    ff.Run(stopped).verify()
    ff.resume(stopped)
    ff.Run(stopped).verify()


@pytest.mark.parametrize("num_bytes", [(1 << 42) - 1, 1 << 33, 100_000])
def test_a_seal_of_more_than_there_is_takes_no_memory(num_bytes, whole, tmp_path):
    path = whole / "layers/002/manifest.json"
    content = json.loads(path.read_text())
    del content["manifest_sha256"]
    content["metrics"]["num_bytes"] = num_bytes
    write_manifest(Folder(path.parent), path.name, content)
    with pytest.raises(ff.CorruptFileError, match="metrics.*altered or cut short"):
        ff.Run(whole).verify()


def test_metrics_that_are_another_runs_are_refused(stopped, small_config, tmp_path):
    other = ff.train(small_config(seed=1), tmp_path / "other").path
    shutil.copy(other / "metrics.jsonl", stopped / "metrics.jsonl")
    for use in (ff.Run(stopped).verify, lambda: ff.resume(stopped)):
        with pytest.raises(ff.CorruptFileError, match="metrics.*delete the file to go on without"):
            use()
    (stopped / "metrics.jsonl").unlink()
    ff.resume(stopped)
    ff.Run(stopped).verify()


def test_the_name_of_a_new_file_is_durable_before_what_its_lines_describe_is_committed(tmp_path, monkeypatch):
    synced, sync = [], Folder._sync
    monkeypatch.setattr(Folder, "_sync", lambda folder, *of: (synced.append(folder.path), sync(folder, *of)))
    for expected in ([tmp_path], []):  # the second process finds the file there
        synced.clear()
        metrics = MetricsFile(Folder(tmp_path))
        for layer in (1, 1):
            metrics.append({"layer": layer, "kind": "epoch", "epoch": 1})
            metrics.sync()
        metrics.close()
        assert synced == expected
