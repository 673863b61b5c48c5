"""The command line: the main job from two commands, and one clear line for everything that a user can get wrong."""

from __future__ import annotations

import inspect
import json
import os
import shlex
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

import ffstream as ff
from ffstream.cli import training
from ffstream.cli.options import DATA_SETS, RENAMED
from ffstream.data.sources import SOURCES
from tests.helpers import InterruptAt, layer_digests, run_cli, run_process
from tests.warm import run_python

SMALL = ["--layers", "2", "--width", "32", "--epochs", "4", "--device", "cpu"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("cli") / "run"
    code, output, _ = run_cli("train", *SMALL, "--run-dir", path)
    assert code == 0, output
    return path


@pytest.fixture
def copy(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "copy")
    return tmp_path / "copy"


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
        if name in flat and name not in ("augmentation.restream", "plugins", "recipe"):
            option = f"--{parameter.replace('_', '-')} "
            line = next(line for line in output.splitlines() if option in line)
            assert "Default: " in line, line
            shown = line.partition("Default: ")[2].split()[0].strip(".,")
            assert flat[name] == "" or shown == str(flat[name]), line
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


BAD_SETTINGS = {
    "no layers": (["--layers", "0"], r"layers: found 0, allowed an integer >= 1"),
    "negative width": (["--width", "-5"], r"width: found -5"),
    "no epochs": (["--epochs", "0"], r"epochs: found 0"),
    "negative rate": (["--lr", "-0.1"], r"learning_rate: found -0.1, allowed a number > 0"),
    "rate nan": (["--lr", "nan"], r"learning_rate: found nan"),
    "no batch": (["--batch", "0"], r"batch: found 0"),
    "unknown device": (["--device", "gpu"], r"device 'gpu': unknown; allowed: auto, cpu, cuda"),
    "unknown data": (["--data", "minst"], r"data minst: .*did you mean 'mnist'"),
    "unknown recipe": (["--recipe", "injekt"], r"unknown recipe 'injekt'; did you mean 'inject'"),
    "unknown objective": (
        ["--set", "objective.name=logistik"],
        r"unknown objective 'logistik'; did you mean 'logistic'",
    ),
    "unknown goodness": (["--set", "objective.goodness=sum_square"], r"did you mean 'sum_squares'"),
    "unknown kind": (["--set", "network.kind=linera"], r"unknown layer kind 'linera'; did you mean 'linear'"),
    "unknown sampler": (["--set", "negatives.sampler=unifrom"], r"did you mean 'uniform'"),
    "unknown key": (["--set", "objective.scal=3"], r"objective.scal: unknown setting; did you mean 'objective.scale'"),
    "no value": (["--set", "objective.scale"], r"found no '='"),
    "no name": (["--set", "=3"], r"found no name before '='"),
    "cache tier": (["--cache", "ram"], r"cache.tier: found 'ram', allowed auto, device, disk, host"),
    "too many negatives": (["--set", "negatives.per_step=10"], r"per_step: found 10, allowed at most 9"),
    "too many cached": (["--recipe", "hinton", "--negatives-per-sample", "12"], r"per_sample: found 12, allowed 1"),
    "absent config": (["--config", "none.toml"], r"config file none.toml: cannot be read"),
    "absent file": (["--data", "none.npz"], r"data none.npz: no such file"),
}


@pytest.mark.parametrize("name", BAD_SETTINGS)
def test_bad_settings_are_one_line_and_write_nothing(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments, expected = BAD_SETTINGS[name]
    code, _, error = run_cli("train", *arguments, "--run-dir", tmp_path / "run")
    assert code != 0
    assert isinstance(error, ff.FFStreamError)
    with pytest.raises(ff.FFStreamError, match=expected):
        raise error
    assert "\n" not in str(error)
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here, so asking for it is no error")
def test_cuda_asked_for_and_absent_says_to_use_the_cpu(tmp_path):
    result = run_process("train", "--layers", "40", "--device", "cuda", cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "use --device cpu" in result.stderr
    assert "Traceback" not in result.stderr


def refused(path, *arguments):
    """The error of going on with a run; nothing that was committed may change."""
    before = layer_digests(path)
    code, _, error = run_cli(*(arguments or ("resume", path, "--layers", "3")))
    assert code != 0
    assert isinstance(error, ff.FFStreamError), error
    assert layer_digests(path)[: len(before)] == before
    return str(error)


def test_a_run_that_exists_is_not_overwritten(copy):
    assert "ffstream resume" in refused(copy, "train", *SMALL, "--run-dir", copy)


def test_another_configuration_is_refused_naming_the_fields(copy):
    message = refused(copy, "train", *SMALL, "--lr", "0.5", "--run-dir", copy, "--resume")
    assert "optimiser.learning_rate: 0.5, 0.002" in message
    assert "width" not in message


def test_fewer_layers_than_are_done_is_refused(copy):
    assert "has 2 finished layers, asked for 1" in refused(copy, "resume", copy, "--layers", "1")


def test_a_folder_without_a_run_is_refused(tmp_path):
    for command in (["resume", tmp_path], ["evaluate", tmp_path], ["inspect", tmp_path]):
        code, _, error = run_cli(*command)
        assert code != 0
        assert "no run there" in str(error)


def test_other_data_under_the_same_name_are_refused(tmp_path, small_data):
    arrays = load_file(small_data)
    save_file(arrays, tmp_path / "d.safetensors")
    run_cli("train", *SMALL, "--data", tmp_path / "d.safetensors", "--run-dir", tmp_path / "run")
    arrays["train.labels"] = arrays["train.labels"].flip(0)
    save_file(arrays, tmp_path / "d.safetensors")
    assert "other training data" in refused(tmp_path / "run")
    assert "other training data" in refused(tmp_path / "run", "evaluate", tmp_path / "run")


@pytest.mark.parametrize("name", ["weights.safetensors", "manifest.json", "validation.safetensors"])
@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "remove"])
def test_a_damaged_layer_is_named_and_never_used(name, damage, copy):
    path = copy / "layers" / "000" / name
    data = path.read_bytes()
    if damage == "remove":
        path.unlink()
    else:
        middle = len(data) // 2
        flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        path.write_bytes({"truncate": data[:middle], "flip": flipped, "empty": b""}[damage])
    for command in (["inspect", copy, "--verify"], ["resume", copy, "--layers", "3"]):
        code, _, error = run_cli(*command)
        assert code != 0
        assert isinstance(error, ff.CorruptFileError), error
        assert "000" in str(error) or "layer 1" in str(error)


def test_swapped_layers_are_detected(copy):
    layers = copy / "layers"
    (layers / "000").rename(layers / "x")
    (layers / "001").rename(layers / "000")
    (layers / "x").rename(layers / "001")
    assert isinstance(run_cli("inspect", copy)[2], ff.CorruptFileError)


def test_another_runs_layer_is_detected(copy, tmp_path):
    run_cli("train", *SMALL, "--seed", "1", "--run-dir", tmp_path / "other")
    shutil.rmtree(copy / "layers" / "000")
    shutil.copytree(tmp_path / "other" / "layers" / "000", copy / "layers" / "000")
    assert "belongs to another run" in str(run_cli("evaluate", copy)[2])


@pytest.fixture
def interrupted(small_config, tmp_path):
    """A run on the disk tier that was stopped in its second layer, with caches and progress."""
    with pytest.raises(KeyboardInterrupt):
        ff.train(small_config(cache__tier="disk"), tmp_path / "run", observer=InterruptAt("on_epoch", 4))
    return tmp_path / "run"


@pytest.mark.parametrize("damage", ["truncate", "flip"])
@pytest.mark.parametrize(
    "pattern",
    ["cache/*/001-train/shard-*", "progress/layer-*", "progress/manifest.json"],
)
def test_damaged_progress_and_caches_are_refused_and_mended_as_the_message_says(
    pattern, damage, interrupted, small_config, tmp_path
):
    path = sorted(interrupted.glob(pattern))[0]
    data = path.read_bytes()
    path.write_bytes(data[:-9] if damage == "truncate" else data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    message = refused(interrupted, "resume", interrupted)
    assert str(path) in message
    if "ffstream repair" in message:
        assert run_cli("repair", interrupted, "--apply")[0] == 0
    else:
        assert "delete" in message
        shutil.rmtree(path.parent)
    whole = ff.train(small_config(cache__tier="disk"), tmp_path / "whole")
    assert layer_digests(ff.resume(interrupted).path) == layer_digests(whole.path)


def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_room(
    interrupted, small_config, tmp_path, monkeypatch
):
    import ffstream.ground.files

    def no_room(*_args, **_options):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(ffstream.ground.files.os, "fsync", no_room)
        message = refused(interrupted, "resume", interrupted)
    assert "No space left on device" in message
    assert "nothing that was committed is lost" in message
    assert not list(interrupted.rglob(".tmp-*"))
    whole = ff.train(small_config(cache__tier="disk"), tmp_path / "whole")
    assert layer_digests(ff.resume(interrupted).path) == layer_digests(whole.path)


@pytest.mark.parametrize(("width", "kind"), [(10**5, ff.BudgetError), (10**12, ff.ConfigError)])
def test_a_layer_larger_than_memory_is_refused_in_one_line_before_anything_is_written(width, kind, tmp_path):
    code, _, error = run_cli("train", "--width", width, "--run-dir", tmp_path / "run", "--device", "cpu")
    assert code != 0
    assert isinstance(error, kind)
    assert "\n" not in str(error)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "raised",
    [
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes\nand more"),
        MemoryError(),  # of Python itself, without a word
    ],
)
def test_running_out_of_memory_all_the_same_is_one_line(raised, tmp_path, monkeypatch):
    def fail(*_args):
        raise raised

    monkeypatch.setattr("ffstream.run.executor.Runner.run", fail)
    code, _, error = run_cli("train", "--width", 16, "--run-dir", tmp_path / "run", "--device", "cpu")
    assert code != 0
    assert isinstance(error, ff.DeviceError)
    assert "out of memory" in str(error)
    assert "\n" not in str(error)


def test_no_file_of_a_run_can_hold_a_pickle(interrupted):
    files = [path for path in interrupted.rglob("*") if path.is_file()]
    assert len(files) > 8
    for path in files:
        assert path.suffix in (".safetensors", ".json", ".jsonl", ".toml", ""), path
        assert not path.read_bytes().startswith((b"\x80", b"PK")), path


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
