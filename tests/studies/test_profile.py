"""Peak memory against depth: ours is flat, the rivals are real and grow, and a profile that was stopped goes on."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import pytest
import torch

import ffstream as ff
from ffstream.cli.tables import format_point
from ffstream.device.memory import PeakMeter
from ffstream.errors import OutputError
from ffstream.studies import memory_profile
from ffstream.studies.charts import draw_profile
from ffstream.studies.memory_profile import METHODS, Point, Profile, ProfileSettings, measure_profile
from ffstream.studies.rivals import Backprop, ResidentFF
from tests.helpers import run_cli, run_process

CPU = torch.device("cpu")
SETTINGS = ProfileSettings(width=96, batch=256, micro_batch=16, device="cpu", precision="fp32", num_features=64)
WEIGHTS = SETTINGS.width * (SETTINGS.width + 1)  # of a layer, biases too


def peaks(method, num_layers, tmp_path, settings=SETTINGS):
    folder = tmp_path / f"{method}-{num_layers}-{settings.micro_batch}"
    folder.mkdir()
    return memory_profile._measure(settings, method, num_layers, folder)


# --- what is measured


def test_a_run_of_ours_takes_as_much_at_any_depth_and_less_when_it_is_evaluated(tmp_path):
    wide = dataclasses.replace(SETTINGS, width=256)  # so that figures on their way to the disk, a few kB, do not count
    found = [peaks("ffstream", depth, tmp_path, wide) for depth in (2, 7)]
    training = [point["training_bytes"] for point in found]
    assert max(training) <= 1.01 * min(training)
    assert all(0 < point["evaluation_bytes"] <= point["training_bytes"] for point in found)


@pytest.mark.parametrize(
    ("method", "layer_bytes"),
    [
        ("resident", 12 * WEIGHTS),  # weights and Adam's state
        (
            "backprop",
            12 * WEIGHTS + 4 * SETTINGS.batch * SETTINGS.width,
        ),  # and activities, at the end of a forward pass
        ("checkpointing", 16 * WEIGHTS),  # and gradients, at the end of a backward pass
        ("accumulation", 16 * WEIGHTS),
    ],
)
def test_a_rival_grows_with_every_layer(method, layer_bytes, tmp_path):
    shallow, deep = (peaks(method, depth, tmp_path)["training_bytes"] for depth in (4, 9))
    assert 5 * layer_bytes <= deep - shallow <= 1.2 * 5 * layer_bytes


def test_rivals_that_save_memory_do(tmp_path):
    found = {method: peaks(method, 9, tmp_path)["training_bytes"] for method in METHODS}
    assert found["checkpointing"] < found["backprop"]
    assert found["accumulation"] < found["backprop"]
    assert found["ffstream"] < min(peak for method, peak in found.items() if method != "ffstream")


@pytest.mark.parametrize("method", ["ffstream", "resident", "accumulation"])
def test_a_method_that_takes_micro_batches_takes_less_with_smaller_ones(method, tmp_path):
    whole = dataclasses.replace(SETTINGS, micro_batch=SETTINGS.batch)
    small, large = (peaks(method, 2, tmp_path, settings)["training_bytes"] for settings in (SETTINGS, whole))
    assert small + 4 * SETTINGS.batch * SETTINGS.width < large


def test_a_peak_in_laps_is_the_peak_of_all():
    with PeakMeter(CPU) as meter:
        meter.start()
        kept = torch.empty(1000, dtype=torch.uint8)
        torch.empty(5000, dtype=torch.uint8)
        laps = [meter.lap()]
        torch.empty(2000, dtype=torch.uint8)
        laps.append(meter.lap())
        del kept
        torch.empty(4000, dtype=torch.uint8)
        assert [*laps, meter.stop()] == [6000, 3000, 4000]


# --- rivals


RIVALS = [
    ResidentFF,
    Backprop,
    lambda *shape: Backprop(*shape, checkpointed=True),
    lambda *shape: Backprop(*shape, accumulated=True),
]


def images_of(digits, num_samples):
    """As the profile makes them: up to 255."""
    images = (digits.train.images[:num_samples].flatten(1).float() * 255 / 16).to(torch.uint8)
    return images, digits.train.labels[:num_samples]


@pytest.mark.parametrize("make", RIVALS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_rival_learns(make, precision, digits):
    torch.manual_seed(0)
    config = ff.Config(layers=3, width=64, batch=256, precision=precision, device="cpu")
    rival = make(config.override({"micro_batch": 64, "cache.shard_samples": 256}), 64, 10, CPU)
    images, labels = images_of(digits, 256)
    for _ in range(100):
        rival.train_batch(images, labels)
    assert (rival.predict(images).argmax(dim=1) == labels).float().mean() > 0.9


@pytest.mark.parametrize("way", ["checkpointed", "accumulated"])
def test_a_rival_that_saves_memory_learns_the_same(way, digits):
    config = ff.Config(layers=5, width=32, batch=64, micro_batch=10, precision="fp32", device="cpu")
    config = config.override({"cache.shard_samples": 64})
    found = []
    for options in ({}, {way: True}):
        torch.manual_seed(0)
        rival = Backprop(config, 64, 10, CPU, **options)
        for _ in range(3):
            rival.train_batch(*images_of(digits, 64))
        found.append(rival.predict(images_of(digits, 64)[0]))
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-4)


# --- the command


OPTIONS = ["--width", 32, "--batch", 64, "--micro-batch", 16, "--device", "cpu", "--precision", "fp32"]


def test_a_profile_is_measured_shown_drawn_and_extended(tmp_path):
    command = ["profile", *OPTIONS, "--output", "p"]
    first = run_process(*command, "--depths", "2", "--methods", "ffstream", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert "ffstream, 2 layers" in first.stdout
    before = json.loads((tmp_path / "p/profile.json").read_text())["points"]
    assert [(point["method"], point["num_layers"]) for point in before] == [("ffstream", 2)]
    second = run_process(*command, "--depths", "2", "--methods", "ffstream,accumulation", "--json", cwd=tmp_path)
    assert second.returncode == 0, second.stderr
    points = json.loads(second.stdout)["points"]
    assert points[:1] == before  # kept, and not measured again
    assert [(point["method"], point["num_layers"]) for point in points[1:]] == [("accumulation", 2)]
    assert (tmp_path / "p/profile.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "p/scratch").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--depths", "2,x"], "--depths 2,x: allowed whole numbers from 1"),
        (["--depths", "0"], "--depths 0: allowed whole numbers from 1"),
        (["--depths", ""], "allowed whole numbers from 1"),
        (["--methods", "ffstream,backpropp"], "unknown method 'backpropp'; did you mean 'backprop'"),
        (["--methods", ""], "--methods: found none; allowed: accumulation, backprop"),
        (["--width", "0"], "config width: found 0"),
        (["--micro-batch", "0"], "found 0, allowed an integer >= 1"),
        (["--device", "tpu"], "device 'tpu': unknown"),
        (["--precision", "fp8"], "config precision: found 'fp8'"),
    ],
)
def test_nonsense_is_refused_in_one_line(options, message, tmp_path):
    code, _, error = run_cli("profile", "--output", tmp_path / "p", *options)
    assert code == 1
    assert isinstance(error, ff.FFStreamError)
    assert message in str(error)
    assert "\n" not in str(error)
    assert not (tmp_path / "p").exists()


@pytest.fixture
def measured(monkeypatch):
    """The points that were asked for, none of them measured in truth."""
    asked = []

    def measure(_settings, method, num_layers, _folder):
        asked.append((method, num_layers))
        return Point(method, num_layers, 100 << 20, 60 << 20, 1.0)

    monkeypatch.setattr(memory_profile, "_measure_apart", measure)
    return asked


def test_a_profile_that_was_stopped_goes_on_where_it_was(measured, tmp_path):
    def stop(point):
        if point.num_layers == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_profile(SETTINGS, ["ffstream", "backprop"], [2, 4], tmp_path, stop)
    measure_profile(SETTINGS, ["ffstream", "backprop"], [2, 4], tmp_path)
    assert measured == [("ffstream", 2), ("backprop", 2), ("ffstream", 4), ("backprop", 4)]


def test_a_profile_of_other_settings_is_not_gone_on_with(measured, tmp_path):
    measure_profile(SETTINGS, ["ffstream"], [2], tmp_path)
    with pytest.raises(ff.RunMismatchError, match="batch: 32, 256; ask for the same"):
        measure_profile(dataclasses.replace(SETTINGS, batch=32), ["ffstream"], [2], tmp_path)


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"points": [{}], "settings": {}, "machine": {}}', "\udcff", "1" * 5000]
)
def test_a_damaged_profile_is_named(content, measured, tmp_path):
    (tmp_path / "profile.json").write_text(content, errors="surrogateescape")
    with pytest.raises(ff.CorruptFileError, match="cannot be read"):
        measure_profile(SETTINGS, ["ffstream"], [2], tmp_path)


def test_a_profile_is_put_beside_what_is_there_and_over_nothing(measured, tmp_path):
    for name in ("scratch/mine/x", "ffstream-scratch-mine/x", "profile.json.bak"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("precious")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    measure_profile(SETTINGS, ["ffstream"], [2], tmp_path)
    assert before.items() <= {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}.items()


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [("profile.json", "theirs", ff.CorruptFileError), ("profile.png", "theirs", OutputError)],
)
def test_a_file_of_somebody_is_replaced_by_force_alone(name, content, kind, measured, tmp_path):
    pytest.importorskip("matplotlib")
    (tmp_path / name).write_text(content)
    command = ["profile", *OPTIONS, "--depths", "2", "--methods", "ffstream", "--output", tmp_path]
    code, _, error = run_cli(*command)
    assert (code, type(error)) == (1, kind)
    assert "--force" in str(error)
    assert measured == []  # it is said before the work
    assert (tmp_path / name).read_text() == content
    assert run_cli(*command, "--force")[0] == 0
    assert run_cli(*command)[0] == 0  # its own by now
    assert measured == [("ffstream", 2)]


def test_by_force_a_profile_of_other_settings_is_measured_anew(measured, tmp_path):
    measure_profile(SETTINGS, ["ffstream"], [2, 4], tmp_path)
    other = dataclasses.replace(SETTINGS, batch=32)
    found = measure_profile(other, ["ffstream"], [4], tmp_path, force=True)
    assert [point.num_layers for point in found.points] == [4]


def test_a_run_is_no_folder_for_a_profile(measured, small_config, tmp_path):
    run = ff.train(small_config(layers=1), tmp_path / "run")
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    for folder in (run.path, run.path / "layers", run.path / "cache"):
        with pytest.raises(OutputError, match="run"):
            measure_profile(SETTINGS, ["ffstream"], [2], folder, force=True)
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("number", [2, 15])
def test_a_point_whose_process_is_ended_by_a_signal_is_one_line(number, monkeypatch, tmp_path):
    done = subprocess.CompletedProcess([], -number, stdout="", stderr="")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    with pytest.raises(ff.FFStreamError, match="its process was ended by a signal"):
        measure_profile(SETTINGS, ["backprop"], [2], tmp_path)


@pytest.mark.parametrize("return_code", [-9, 0])
def test_a_method_that_runs_out_of_memory_is_a_point(return_code, monkeypatch, tmp_path):
    done = subprocess.CompletedProcess([], return_code, stdout="{}\n" if return_code == 0 else "", stderr="")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    profile = measure_profile(SETTINGS, ["backprop", "ffstream"], [2], tmp_path)
    assert [format_point(point) for point in profile.points] == ["out of memory", "out of memory"]
    draw_profile(profile, tmp_path / "profile.png")


def test_out_of_memory_and_errors_are_answers_and_a_bug_is_not(monkeypatch, capsys, tmp_path):
    request = {"settings": dataclasses.asdict(SETTINGS), "method": "backprop", "num_layers": 2, "folder": "."}
    monkeypatch.setattr(sys, "argv", ["memory_profile", json.dumps(request)])

    def failing(error):
        def measure(*_):
            raise error

        monkeypatch.setattr(memory_profile, "_measure", measure)
        memory_profile.main()
        return json.loads(capsys.readouterr().out)

    assert failing(torch.OutOfMemoryError("CUDA out of memory")) == {}
    assert failing(ff.StorageError("cannot write")) == {"error": "cannot write"}
    with pytest.raises(ZeroDivisionError):
        failing(ZeroDivisionError())


def test_without_matplotlib_the_figures_are_there_and_it_says_how_to_get_the_picture(measured, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, output, error = run_cli("profile", *OPTIONS, "--depths", "2", "--output", tmp_path)
    assert (code, error) == (0, None)
    assert "pip install 'ffstream[plot]'" in output
    assert (tmp_path / "profile.json").is_file()


def test_points_of_a_method_are_in_the_order_of_depth():
    points = [Point("ffstream", depth, 1, 1, 0.0) for depth in (7, 2, 12)]
    profile = Profile(SETTINGS, {}, points)
    assert [point.num_layers for point in profile.curve("ffstream")] == [2, 7, 12]
    assert profile.find("ffstream", 3) is None


def test_nothing_is_imported_from_the_current_folder(tmp_path, monkeypatch):
    for name in ("torch", "secrets", "random", "ffstream"):
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('imported {name} of the current folder')")
    monkeypatch.chdir(tmp_path)
    settings = dataclasses.replace(SETTINGS, width=8, batch=16)
    (tmp_path / "out").mkdir()
    point = memory_profile._measure_apart(settings, "resident", 1, tmp_path / "out")
    assert point.training_bytes
