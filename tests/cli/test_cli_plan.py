"""Plans and budgets from the command line."""

from __future__ import annotations

import json

import pytest
from typer.main import get_command

import ffstream as ff
from ffstream.cli import app
from ffstream.ground.units import format_briefly
from tests.helpers import run_cli


def test_plan_takes_the_options_of_train():
    group = get_command(app)
    train, plan = (group.commands[name].params for name in ("train", "plan"))
    assert [(p.name, p.opts) for p in plan[: len(train)]] == [(p.name, p.opts) for p in train]
    assert {p.name for p in plan[len(train) :]} == {"machine", "samples", "shape", "features", "classes", "as_json"}


def test_plan_for_another_machine_and_no_data_in_particular():
    machine = "device=8GiB,30TFLOP/s;h2d=12GB/s;host=32GiB;disk=1TiB,3GB/s"
    common = ("plan", "--width", 2000, "--layers", 1000, "--stack-layers", 0, "--samples", 10**9, "--machine", machine)
    code, output, _ = run_cli(*common)
    assert code == 1
    for word in ("2-1000", "too much", "takes", "bottle-", "days", "does not fit: host memory lacks"):
        assert word in output
    found = json.loads(run_cli(*common, "--features", 100, "--json")[1])
    assert found["layers"][0]["in_features"] == 100
    assert found["total_s"] > 10**6
    assert found["peaks"]["disk"]["allowed_bytes"] == 1 << 40


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--machine", "device=8GiB"], "--machine 'device=8GiB': found 1 figures for device"),
        (["--machine", "gpu=8GiB"], "found 'gpu=8GiB'"),
        (["--machine", "device=8GiB,30TF;h2d=1GB/s;host=1GiB;disk=1GiB,3GB/s"], "'30TF' is not a speed of arithmetic"),
        (["--machine", "device=8GiB,3TFLOP/s;h2d=1GB;host=1GiB;disk=1GiB,3GB/s"], "'1GB' is not a speed, such as"),
        (["--machine", "device=8Gi,3TFLOP/s;h2d=1GB/s;host=1GiB;disk=1GiB,3GB/s"], "'8Gi' is not a size"),
        (["--machine", ""], "found ''"),
        (
            ["--samples", 2**31, "--batch", 2**31],
            "config batch: found 2147483648, allowed an integer >= 1 and <= 10000000",
        ),
        (["--samples", 1], "--samples 1: allowed an integer >= 2"),
        (["--samples", 10, "--classes", 1], "--classes 1: allowed"),
        (["--samples", 10, "--features", 0], "--features 0: allowed"),
        (["--samples", 10, "--features", 4, "--shape", "2x2"], "--features 4: found with --shape 2x2"),
        (["--shape", "2x2"], "--shape 2x2: found without --samples"),
        (["--classes", 2], "--classes 2: found without --samples"),
        *[
            (["--samples", 10, "--shape", each], f"--shape {each!r}: allowed one to three integers >= 1")
            for each in ("", "3x", "0x4", "2x2x2x2", "3,4", "99999999999")
        ],
    ],
)
def test_a_plan_for_nonsense_is_one_line(options, words):
    code, _, error = run_cli("plan", *options, "--device", "cpu")
    assert code != 0
    assert isinstance(error, ff.ConfigError)
    assert words in str(error)
    assert "\n" not in str(error)


def test_plan_shows_what_a_run_takes_and_writes_nothing(tmp_path):
    code, output, _ = run_cli(
        *("plan", "--layers", 40, "--stack-layers", 0, "--width", 64, "--device", "cpu", "--run-dir", tmp_path / "run")
    )
    assert code == 0
    for word in (
        "weights",
        "optimiser",
        "handing",
        "host memory",
        "the disk",
        "cache on host",
        "2-40",
        "for 3,504 training samples and 319 held out: images of 8 x 8, 10 classes",
        "batch 64",
    ):
        assert word in output
    assert not (tmp_path / "run").exists()


def test_plan_in_json_holds_every_term(tmp_path):
    code, output, _ = run_cli("plan", "--width", 64, "--device", "cpu", "--budget", "100MiB", "--json")
    found = json.loads(output)
    assert code == 0
    assert found["peaks"]["device"]["allowed_bytes"] == 100 << 20
    assert found["peaks"]["device"]["num_bytes"] == max(layer["footprint"]["peak"] for layer in found["layers"])


@pytest.mark.parametrize("command", ["plan", "train"])
def test_a_budget_that_is_too_small_is_refused_before_anything_is_written(command, tmp_path):
    run_dir = tmp_path / "run"
    code, _, error = run_cli(command, "--width", 64, "--device", "cpu", "--budget", "100KiB", "--run-dir", run_dir)
    assert code != 0
    assert isinstance(error, ff.BudgetError)
    assert "--budget" in str(error)
    assert "\n" not in str(error)
    assert not run_dir.exists()


def test_a_budget_is_kept_by_a_run_that_goes_on_and_may_be_changed(tmp_path):
    common = ("--width", 16, "--epochs", 1, "--device", "cpu", "--run-dir", tmp_path / "run")
    assert run_cli("train", "--layers", 1, "--budget", "50MiB", *common)[0] == 0
    assert run_cli("resume", tmp_path / "run", "--layers", 2)[0] == 0
    assert ff.Run(tmp_path / "run").config.memory.budget == "50MiB"
    code, _, error = run_cli("resume", tmp_path / "run", "--layers", 3, "--budget", "10KiB")
    assert isinstance(error, ff.BudgetError)
    assert code != 0
    assert run_cli("resume", tmp_path / "run", "--layers", 3, "--budget", "60MiB")[0] == 0
    assert ff.Run(tmp_path / "run").num_layers_done == 3


@pytest.mark.parametrize("options", [["--stack-layers", "2"], ["--restream"]])
@pytest.mark.parametrize("recipe", ["inject", "hinton", "unsupervised"])
def test_images_of_no_shape_in_particular_that_are_written_again_are_planned_for(recipe, options):
    machine = "device=8GiB,30TFLOP/s;h2d=12GB/s;host=32GiB;disk=1TiB,3GB/s"
    size = ["--layers", "6", "--width", "100", "--samples", "10000", "--features", "784", "--machine", machine]
    code, output, _ = run_cli("plan", "--recipe", recipe, *size, *options)
    assert code == 0, output
    assert "takes" in output
    assert "assumed" not in output


PLANNED = {
    "unlike": ("--network", "conv32 pool conv64x2 pool dense128", "--recipe", "mono"),
    "vgg8": ("--network", "vgg8", "--recipe", "mono", "--samples", "50000", "--shape", "3x32x32"),
    "40 convolutions": ("--recipe", "conv", "--layers", 40, "--samples", "50000", "--shape", "3x32x32"),
    "stacks in tiles": ("--layers", 40, "--width", 2000, "--stack-layers", 4, "--budget", "30MiB"),
    "epochs of its own": ("--network", "dense64(epochs=7) dense64x2 dense64(epochs=7)"),
}


@pytest.mark.parametrize("name", PLANNED)
def test_a_plan_has_a_row_for_each_shape_of_layer_in_80_columns(name, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    command = ("plan", *PLANNED[name], "--device", "cpu")
    code, output, _ = run_cli(*command)
    tables, plan = output.split("\n\n"), json.loads(run_cli(*command, "--json")[1])
    assert code == 0
    assert len(tables) == 4
    assert all(len(line) <= 80 for table in tables[:3] for line in table.splitlines())
    first_numbers = [layer["numbers"][0] for layer in plan["layers"]]
    for table, shown in zip(tables, ("reads and units", "weights"), strict=False):
        assert shown in table
        starts = [line.split()[0].partition("-")[0].strip(",") for line in table.splitlines() if line[:1].isdigit()]
        assert starts  # rows of layers whose figures are the same are one
        assert set(map(int, starts)) <= set(first_numbers)
    for layer in plan["layers"]:
        for term, size in layer["footprint"].items():
            assert term in ("handing_on", "peak") or format_briefly(size) in tables[1].split()
        assert layer["shape"] in tables[0]
        assert str(layer["num_epochs"]) in tables[0].split()


def test_data_of_any_number_of_samples_are_like_those_that_are_named(small_data):
    of_data, of_none, of_shape = (
        json.loads(run_cli("plan", "--samples", 1000, "--json", *options)[1])["data"]
        for options in (("--data", small_data), (), ("--shape", "3x4x5", "--classes", 7))
    )
    assert (of_data["image_shape"], of_data["num_classes"]) == ([8, 8], 10)
    assert (of_none["image_shape"], of_none["num_features"]) == ([28, 28], 784)
    assert (of_shape["image_shape"], of_shape["num_features"], of_shape["num_classes"]) == ([3, 4, 5], 60, 7)
    assert of_data["num_samples"] == of_shape["num_samples"] == {"train": 917, "validation": 83}
    assert "images of 28 x 28 are assumed" in run_cli("plan", "--samples", 1000)[1]
    assert "assumed" not in run_cli("plan", "--samples", 1000, "--data", small_data)[1]
