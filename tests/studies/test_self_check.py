"""The check of a device: every line is said, what fails makes the command fail, and the rest is still checked."""

from __future__ import annotations

import json

import pytest
import torch

from ffstream.cache.transfer import Transfer
from ffstream.device.accelerator import ACCELERATORS, TorchAccelerator
from ffstream.studies import self_check
from ffstream.studies.self_check import FAILS, HOLDS, UNCHECKED, check_device
from tests.helpers import run_cli

NAMES = [
    "device",
    "pinned memory",
    "blocks read while the device is busy",
    "tiers",
    "resume",
    "planned memory",
    "steps",
    "speed",
]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    for name, value in (("_WIDTH", 64), ("_BATCH", 64), ("_BUSY_UNITS", 16)):
        monkeypatch.setattr(self_check, name, value)


def test_a_cpu_keeps_what_is_promised_and_says_what_it_cannot_show(tmp_path):
    found = list(check_device("cpu", tmp_path))
    assert [each.name for each in found] == NAMES
    assert {each.name for each in found if each.outcome == UNCHECKED} == {"pinned memory", "planned memory"}
    assert {each.outcome for each in found} == {HOLDS, UNCHECKED}
    assert list(tmp_path.iterdir()) == []


def give_other_bits(device, tier, folder):
    return [tier]


def end(*_):
    raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered\nmore lines")


def mix_up(transfer, cache, order):
    for shard in order:
        yield shard, torch.zeros(2, 1, 512)


BROKEN = {
    "tiers": (self_check, "_train", give_other_bits, "layers have other bits than on"),
    "resume": (self_check, "_train", give_other_bits, "interrupted and resumed has other bits"),
    "blocks read while the device is busy": (Transfer, "blocks", mix_up, "48 of 48 blocks are others"),
    "steps": (self_check, "epochs_of_one_layer", end, "AcceleratorError: CUDA error: an illegal memory access"),
    "speed": (self_check, "best_s", end, "AcceleratorError: CUDA error: an illegal memory access"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_does_not_hold_is_said_and_the_command_fails(name, monkeypatch):
    owner, attribute, broken, words = BROKEN[name]
    monkeypatch.setattr(owner, attribute, broken)
    code, text, _ = run_cli("doctor", "--check", "--device", "cpu", "--json")
    assert code == 1
    found = {each["name"]: each for each in json.loads(text)}
    assert list(found) == NAMES
    assert found[name]["outcome"] == FAILS
    assert words in found[name]["text"]
    assert "\n" not in found[name]["text"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_without_the_device_that_is_asked_for_the_rest_is_checked():
    code, text, _ = run_cli("doctor", "--check", "--device", "cuda")
    assert code == 0
    lines = text.splitlines()
    assert lines[0].startswith("not checked  device: device 'cuda'")
    assert "the CPU is checked instead" in lines[0]
    assert len(lines) == len(NAMES)


def test_a_card_that_is_here_and_cannot_be_used_fails(monkeypatch, tmp_path):
    cuda = TorchAccelerator("cuda")
    monkeypatch.setattr(cuda, "count_devices", lambda: 1)
    monkeypatch.setattr(cuda, "find_misfit", lambda _: "a card has compute capability 6.1")
    monkeypatch.setitem(ACCELERATORS, "cuda", cuda)
    for asked in ("auto", "cuda"):
        first = next(check_device(asked, tmp_path))
        assert (first.name, first.outcome) == ("device", FAILS)
        assert "a card has compute capability 6.1" in first.text


def test_a_device_of_no_kind_is_refused():
    code, _, error = run_cli("doctor", "--check", "--device", "tpu")
    assert code == 1
    assert "device 'tpu': unknown; allowed: auto, cpu, cuda" in str(error)


def test_a_run_is_not_checked_in_this_way(tmp_path):
    code, _, error = run_cli("doctor", tmp_path, "--check")
    assert code == 1
    assert "ffstream inspect RUN --verify" in str(error)
