"""What the command line refuses: one clear line for everything that a user can get wrong."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import ffstream as ff
from tests.cli.finished_run import SMALL
from tests.helpers import InterruptAt, layer_digests, run_cli, run_process

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
