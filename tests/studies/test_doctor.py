"""How fast a machine is, where the time of a run went, and what is said of it."""

from __future__ import annotations

import dataclasses
import itertools
import json
import time

import pytest

import ffstream as ff
from ffstream.ground.stopwatch import Stopwatch
from ffstream.plan.machine import parse_machine
from ffstream.studies.doctor import MachineSpeeds, advise, examine_run
from tests.helpers import run_cli

SPEEDS = MachineSpeeds(
    device_name="a card",
    device_type="cuda",
    num_threads=4,
    precision="bf16",
    product_flops_per_s={"fp32": 15e12, "bf16": 30e12},
    moved_bytes_per_s=400e9,
    operator_s=5e-6,
    to_device_bytes_per_s=12e9,
    from_device_bytes_per_s=11e9,
    written_bytes_per_s=1e9,
    read_bytes_per_s=3e9,
    cached_read_bytes_per_s=9e9,
    sync_s=1e-3,
    free_device_bytes=8 << 30,
    free_host_bytes=32 << 30,
    free_disk_bytes=1 << 40,
    warnings=[],
)


@pytest.fixture
def run(small_config, tmp_path):
    """Five layers: a stack of four, and the first of another."""
    return ff.train(small_config(layers=5, cache__tier="disk"), tmp_path / "whole")


def test_laps_within_laps_add_up_to_what_passed(monkeypatch):
    clock = itertools.count()
    monkeypatch.setattr("time.perf_counter", lambda: float(next(clock)))  # a second at every glance
    stopwatch = Stopwatch()
    with stopwatch.lap("outer"):
        with stopwatch.lap("inner"):
            pass
        with pytest.raises(KeyError), stopwatch.lap("inner"):
            raise KeyError
        halfway = stopwatch.take()
        with stopwatch.lap("outer"):
            pass
    assert halfway == {"outer": 3.0, "inner": 2.0}
    assert stopwatch.take() == {"outer": 3.0}
    assert stopwatch.take() == {}


def test_a_run_tells_where_its_time_went(run):
    records = [json.loads(line) for line in run.directory.metrics_path.read_text().splitlines()]
    for number in range(1, 6):
        epochs = [record for record in records if record["kind"] == "epoch" and record["layer"] == number]
        (seconds,) = (record["seconds"] for record in records if (record["kind"], record["layer"]) == ("layer", number))
        assert min(seconds.values()) >= 0
        assert seconds["training"] + seconds["waiting for data"] >= sum(epoch["elapsed_s"] for epoch in epochs)
        assert ("writing images" in seconds) == (number in (1, 5))
        assert ("handing on" in seconds) == (number not in (1, 5))


def test_an_account_is_of_all_layers_and_divides_training(run):
    account = examine_run(run.path)
    records = [json.loads(line) for line in run.directory.metrics_path.read_text().splitlines()]
    told = sum(sum(record["seconds"].values()) for record in records if record["kind"] == "layer")
    assert sum(account.seconds.values()) == pytest.approx(told)
    assert list(account.seconds.values()) == sorted(account.seconds.values(), reverse=True)
    assert set(account.training) == {"products", "memory", "operators"}
    assert sum(account.training.values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("seconds", "settings", "tier", "words"),
    [
        ({"training": 9.0, "waiting for data": 1.1}, {}, "disk", ["11 % went to waiting for data: --cache host"]),
        ({"training": 9.0, "waiting for data": 1.1}, {}, "host", ["wider layers"]),
        ({"training": 9.0, "waiting for data": 1.1}, {}, "disk", ["--cache-dtype int8"]),
        ({"training": 9.0, "waiting for data": 1.1}, {"cache.dtype": "int8"}, "disk", ["else a faster disk"]),
        ({"training": 9.0, "waiting for data": 0.9}, {}, "disk", []),
        ({"training": 1.0, "waiting for the disk": 9.0}, {}, "disk", ["90 % went to waiting for the disk: a faster"]),
        ({"training": 5.0, "saving": 2.0, "waiting to store": 3.0}, {}, "disk", ["30 % went to waiting", "20 %"]),
        ({"training": 9.0}, {"precision": "fp32"}, "device", ["60 % went to products: bf16"]),
        ({"training": 9.0}, {"precision": "bf16"}, "device", []),
        ({"training": 5.0, "writing images": 5.0}, {"augmentation.restream": True}, "device", ["--views"]),
        ({"training": 5.0, "writing images": 5.0}, {}, "device", []),
    ],
)
def test_advice_names_what_takes_long_and_what_would_help(seconds, settings, tier, words):
    config = ff.Config(precision="bf16").override(settings)
    found = advise(seconds, {"products": 0.6, "memory": 0.2, "operators": 0.2}, config, tier)
    assert len(found) == len(words)
    for text, word in zip(found, words, strict=True):
        assert word in text


def test_a_card_is_described_as_a_plan_reads_it():
    assert SPEEDS.machine is not None
    resources = parse_machine(SPEEDS.machine)
    assert (resources.device_bytes, resources.host_bytes, resources.disk_bytes) == (8 << 30, 32 << 30, 1 << 40)
    assert resources.rates.flops_per_s == 30e12
    assert resources.rates.moved_bytes_per_s == 400e9
    assert resources.rates.loaded_bytes_per_s == {"host": 12e9, "disk": 3e9}
    assert dataclasses.replace(SPEEDS, to_device_bytes_per_s=None).machine is None


def test_the_command_measures_this_machine_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ffstream.studies.doctor._FILE_BYTES", 16 << 20)
    start_s = time.perf_counter()
    code, output, _ = run_cli("doctor", "--device", "cpu", "--json")
    found = json.loads(output)
    assert code == 0
    for name in (
        "moved_bytes_per_s",
        "operator_s",
        "written_bytes_per_s",
        "cached_read_bytes_per_s",
        "sync_s",
        "free_host_bytes",
    ):
        assert 0 < found[name] < float("inf")
    assert set(found["product_flops_per_s"]) == {"fp32", "bf16"}
    assert found["machine"] is None
    assert found["sync_s"] < time.perf_counter() - start_s
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"recipe": "unsupervised"},
        {"recipe": "deep"},
        {"network__kind": "local", "width": 144},
        {"augmentation__restream": True, "validation_fraction": 0.0},
    ],
    ids=lambda settings: " ".join(map(str, settings.values())),
)
def test_the_command_shows_a_run(settings, small_config, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    run = ff.train(small_config(layers=2, cache__tier="disk", **settings), tmp_path / "run")
    code, output, _ = run_cli("doctor", run.path)
    assert code == 0
    for word in ("training", "operators, about", "waiting for data", "measuring", "%"):
        assert word in output


def test_a_run_without_a_finished_layer_has_no_account(run, small_config, tmp_path):
    class Stop(ff.Observer):
        def on_epoch(self, *_):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ff.train(small_config(), tmp_path / "run", observer=Stop())
    code, _, error = run_cli("doctor", tmp_path / "run")
    assert code != 0
    assert isinstance(error, ff.RunError)
    assert "no layer is finished" in str(error)
