"""The command line: the main job from two commands, and what the other commands show."""

from __future__ import annotations

import inspect
import json
import os
import shlex
import shutil
import sys

import pytest
import torch

import ffstream as ff
from ffstream.cli import app, training
from ffstream.cli.options import DATA_SETS, RENAMED
from ffstream.data.sources import SOURCES
from tests.cli.finished_run import SMALL
from tests.helpers import layer_digests, run_cli
from tests.warm import run_python


def test_train_says_first_and_last_where_the_run_is(tmp_path):
    _, output, _ = run_cli("train", *SMALL, "--run-dir", tmp_path / "run")
    lines = [line for line in output.splitlines() if line.strip()]
    assert str(tmp_path / "run") in lines[0]
    assert str(tmp_path / "run") in lines[-1]


def test_train_without_a_run_dir_makes_one_under_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_cli("train", *SMALL)[0] == 0
    (made,) = (tmp_path / "runs").iterdir()
    assert made.name.startswith("digits-2x32-")
    assert ff.Run(made).num_layers_done == 2


def test_two_runs_of_one_second_get_directories_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.strftime", lambda form: "20261121-202626")
    for _ in range(3):
        assert run_cli("train", *SMALL, "--layers", "1")[0] == 0
    names = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert names == [f"digits-1x32-20261121-202626{end}" for end in ("", "-2", "-3")]


def test_evaluate_by_goodness_and_by_softmax(finished):
    for method in ("goodness", "softmax"):
        code, output, _ = run_cli("evaluate", finished, "--method", method, "--json")
        found = json.loads(output)
        assert code == 0
        assert found["num_samples"] == 1797
        assert 0 < found["error"] < 0.5
        assert found["error"] == found["errors_by_depth"][-1]


def test_evaluate_prints_each_depth_and_the_error(finished):
    _, output, _ = run_cli("evaluate", finished)
    assert "layer 1:" in output
    assert "layer 2:" in output
    assert "test error" in output


def test_softmax_is_fitted_once_and_then_read_back(copy):
    shutil.rmtree(copy / "readout", ignore_errors=True)
    first = run_cli("evaluate", copy, "--method", "softmax")[1]
    written = (copy / "readout" / "weights.safetensors").stat().st_mtime_ns
    assert run_cli("evaluate", copy, "--method", "softmax")[1] == first
    assert (copy / "readout" / "weights.safetensors").stat().st_mtime_ns == written


def test_inspect_reports_layers_and_digests(finished):
    found = json.loads(run_cli("inspect", finished, "--verify", "--json")[1])
    assert found["num_layers_done"] == 2
    assert found["verified"]
    assert [layer["layer"] for layer in found["layers"]] == [1, 2]
    assert "every digest of what is committed is right" in run_cli("inspect", finished, "--verify")[1]


def test_export_loads_as_a_plain_module_with_the_same_predictions(finished, tmp_path, digits):
    assert run_cli("export", finished, tmp_path / "model.safetensors")[0] == 0
    model, resident = ff.load(tmp_path / "model.safetensors"), ff.load(finished)
    images = digits.test.images
    assert isinstance(model, torch.nn.Module)
    assert torch.equal(model(images), resident(images))
    error = float((model.predict(images) != digits.test.labels).double().mean())
    assert error == pytest.approx(ff.Run(finished).evaluate().error, abs=2 / 1797)


def test_resume_grows_a_finished_run(copy):
    assert run_cli("resume", copy, "--layers", "3")[0] == 0
    assert ff.Run(copy).num_layers_done == 3
    assert ff.Run(copy).config.layers == 3


def test_resuming_a_finished_run_changes_nothing(copy):
    before = layer_digests(copy)
    assert run_cli("resume", copy)[0] == 0
    assert layer_digests(copy) == before


def test_config_file_then_set_then_options(tmp_path):
    (tmp_path / "c.toml").write_text("layers = 1\nwidth = 8\nepochs = 1\n[objective]\nscale = 5.0\n")
    run_cli(
        "train", "--config", tmp_path / "c.toml", "--set", "width=12", "--set", "objective.scale=7", "--width", "16",
        "--run-dir", tmp_path / "run",
    )  # fmt: skip
    config = ff.Run(tmp_path / "run").config
    assert (config.layers, config.width, config.objective.scale) == (1, 16, 7.0)


def test_resume_without_a_run_dir_says_what_is_missing():
    assert "found no --run-dir" in str(run_cli("train", "--resume")[2])


@pytest.mark.parametrize("name", [None, *(command.callback.__name__ for command in app.registered_commands)])
def test_an_option_without_a_value_is_shown_without_one(name, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    code, output, _ = run_cli(*([name] if name else []), "--help")
    assert code == 0
    assert "bool" not in output


def test_every_command_is_described():
    output = run_cli("--help")[1]
    for command in ("train", "resume", "evaluate", "inspect", "export"):
        assert command in output
        assert run_cli(command, "--help")[0] == 0


def test_help_shows_the_default_of_every_setting_and_offers_what_there_is(monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    output = run_cli("train", "--help")[1]
    flat = ff.Config().to_flat()
    for parameter in inspect.signature(training.train).parameters:
        name = RENAMED.get(parameter, parameter)
        if name in flat and name not in ("augmentation.restream", "plugins", "recipe", "standardise"):
            option = f"--{parameter.replace('_', '-')} "
            line = next(line for line in output.splitlines() if option in line)
            assert "Default: " in line, line
            shown = line.partition("Default: ")[2].split()[0].strip(".,")
            assert flat[name] in ("", ()) or shown == str(flat[name]), line
    assert {name for name in SOURCES if SOURCES.is_built_in(name)} == set(DATA_SETS)


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("train --recipe de", "deep"),
        ("train --cache ", "auto device host disk"),
        ("plan --data mn", "mnist"),
        ("resume run --de", "--device"),
        ("exp", "export"),
    ],
)
def test_a_shell_completes_words(words, offered, tmp_path):
    words = f"ffstream {words}"
    asked = {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)}
    environment = os.environ | asked | {"_FFSTREAM_COMPLETE": "complete_bash"}
    code = "import sys; sys.argv[0] = 'ffstream'; from ffstream.entry import main; main()"
    done = run_python("-c", code, cwd=tmp_path, environment=environment)
    assert done.stdout.split() == offered.split(), done.stderr


def test_plot_draws_a_curve_for_each_run(small_config, tmp_path):
    pytest.importorskip("matplotlib")
    paths = [ff.train(small_config(seed=seed), tmp_path / f"run{seed}").path for seed in (0, 1)]
    code, output, _ = run_cli("plot", *paths, "--output", tmp_path / "errors.png")
    assert code == 0
    assert str(tmp_path / "errors.png") in output
    assert (tmp_path / "errors.png").read_bytes().startswith(b"\x89PNG")
    assert ff.Run(paths[0]).validation_errors_by_depth == [f.validation_error_to_here for f in ff.Run(paths[0]).layers]


def test_plot_says_what_is_missing(small_config, tmp_path, monkeypatch):
    run = ff.train(small_config(validation_fraction=0.0), tmp_path / "run")
    _, _, error = run_cli("plot", run.path)
    assert isinstance(error, ff.RunError)
    assert "without validation split" in str(error)
    _, _, error = run_cli("plot", tmp_path / "nowhere")
    assert isinstance(error, ff.RunError)
    run = ff.train(small_config(), tmp_path / "validated")
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    _, _, error = run_cli("plot", run.path, "--output", tmp_path / "errors.png")
    assert isinstance(error, ff.ConfigError)
    assert "ffstream[plot]" in str(error)
    assert not (tmp_path / "errors.png").exists()


def test_home_is_expanded_wherever_a_run_or_an_output_is_named(small_config, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    run = ff.train(small_config(layers=1), "~/run")
    assert (run.path, ff.Run("~/run").path) == (tmp_path / "run", tmp_path / "run")
    ff.resume("~/run", layers=2)
    assert ff.load("~/run").config.layers == 2
    assert run_cli("export", "~/run", "~/model.safetensors")[0] == 0
    assert run_cli("train", "--resume", "--config", run.path / "config.toml", "--run-dir", "~/run")[0] == 0
    assert not (tmp_path / "~").exists()
    assert (tmp_path / "model.safetensors").exists()


def test_commands_that_are_told_can_be_pasted(small_config, tmp_path):
    path = tmp_path / "my $run"
    ff.train(small_config(layers=1), path)
    said = run_cli("resume", path, "--layers", "2")[1]
    words = shlex.split(said.partition("Next: ")[2])
    assert words == ["ffstream", "evaluate", str(path)]
    assert run_cli(*words[1:])[0] == 0
