"""Numbers and files of settings that are given: what is none, or has no end, is a user's error."""

from __future__ import annotations

import os

import pytest

import ffstream as ff
from ffstream.ground.units import parse_integer
from tests.helpers import run_cli

DIGITS = "1" * 5000


@pytest.mark.parametrize("text", ["", "-", "--5", "²", "٣", "1.5", "1_000", "0x10", "1 2", "nan"])
def test_what_is_no_whole_number_is_none(text):
    assert parse_integer(text) is None


def test_whole_numbers_are_read_and_those_of_many_digits_refused():
    assert [parse_integer(text) for text in ("12", "-12", "+3", " 4 ")] == [12, -12, 3, 4]
    with pytest.raises(ValueError, match="has 5,000 digits"):
        parse_integer(DIGITS)


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--negatives-per-sample=²"],
        ["train", "--negatives-per-sample=--5"],
        ["train", f"--negatives-per-sample={DIGITS}"],
        ["train", "--set", f"seed={DIGITS}"],
        ["train", "--set", f"seed=0x{DIGITS}"],
        ["train", "--set", f"seed=[{DIGITS}]"],
        ["train", "--set", "seed=" + "[" * 5000],
        ["train", "--set", f"objective.scale={DIGITS}.0"],
        ["train", "--budget", f"{DIGITS}GiB"],
        ["train", "--budget", "²GiB"],
        ["profile", "--depths", "²"],
        ["profile", "--depths", DIGITS],
        ["plan", "--machine", f"device={DIGITS}GiB,30TFLOP/s;h2d=12GB/s;host=32GiB;disk=1TiB,3GB/s"],
    ],
    ids=lambda arguments: " ".join(arguments)[:40],
)
def test_numbers_that_are_none_or_have_no_end_are_users_errors(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, error = run_cli(*arguments)
    assert code == 1
    assert isinstance(error, ff.ConfigError), error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "text", [f"seed = {DIGITS}", f"seed = 0x{DIGITS}", f"[network]\ntile_units = {DIGITS}", "\udcff"]
)
def test_so_are_those_of_a_file(text, tmp_path):
    (tmp_path / "a.toml").write_text(text, errors="surrogateescape")
    code, _, error = run_cli("train", "--config", tmp_path / "a.toml", "--run-dir", tmp_path / "run")
    assert code == 1
    assert isinstance(error, ff.ConfigError), error


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.mkdir(), lambda path: path.symlink_to("/dev/zero")])
def test_settings_are_read_from_regular_files_alone(make, tmp_path):
    make(tmp_path / "a.toml")
    code, _, error = run_cli("train", "--config", tmp_path / "a.toml")
    assert code == 1
    assert isinstance(error, ff.ConfigError)


def test_settings_of_no_plausible_size_are_not_read(tmp_path):
    with (tmp_path / "a.toml").open("wb") as file:
        file.truncate(1 << 40)
    assert isinstance(run_cli("train", "--config", tmp_path / "a.toml")[2], ff.ConfigError)
