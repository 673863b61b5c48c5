"""Devices that are here and that torch was not built for: said by name, with what would serve them."""

from __future__ import annotations

import contextlib

import pytest
import torch

import ffstream as ff
from ffstream.device import accelerator
from ffstream.device.accelerator import ACCELERATORS, TorchAccelerator, find_process_bytes, is_served
from ffstream.device.device import explain_fallback, resolve_device, resolve_precision

OF_CUDA_13 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]
OF_CUDA_12 = ["sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90", "compute_90"]


@pytest.mark.parametrize(
    ("capability", "built", "expected"),
    [
        ((7, 5), OF_CUDA_13, True),  # Turing
        ((8, 9), OF_CUDA_13, True),  # Ada, by code for 8.6
        ((12, 1), OF_CUDA_13, True),
        ((7, 0), OF_CUDA_13, False),  # Volta
        ((6, 1), OF_CUDA_13, False),  # Pascal
        ((11, 0), OF_CUDA_13, False),
        ((6, 1), OF_CUDA_12, True),
        ((12, 0), OF_CUDA_12, True),  # compiled when it is first used
        ((3, 5), OF_CUDA_12, False),
        ((9, 0), ["sm_90a"], True),
        ((9, 1), ["sm_90a"], False),  # code for exactly one device
        ((10, 3), ["sm_100f"], True),  # code for a family
        ((8, 0), ["compute_80"], True),
        ((7, 5), ["compute_80"], False),
        ((8, 6), [], False),
        ((8, 6), ["gfx90a", "?"], False),
    ],
)
def test_code_for_an_architecture_runs_where_it_is_said_to(capability, built, expected):
    assert is_served(capability, built) is expected


@pytest.fixture
def card(monkeypatch):
    """A card of any compute capability, with torch built for any architectures."""

    def put(capability, built=OF_CUDA_13):
        cuda = TorchAccelerator("cuda")
        monkeypatch.setattr(cuda, "count_devices", lambda: 1)
        monkeypatch.setattr(cuda, "name", lambda _: "NVIDIA Card")
        monkeypatch.setitem(ACCELERATORS, "cuda", cuda)
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _=None: capability)
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: built)

    return put


@pytest.mark.parametrize(
    ("capability", "what_helps"),
    [((6, 1), "torch 2.14 or older for CUDA 12.6 \\(pip install 'torch<2.15'"), ((13, 0), "a newer torch would")],
)
def test_a_card_that_torch_has_no_code_for_is_named_with_what_serves_it(capability, what_helps, card):
    card(capability)
    number = rf"{capability[0]}\.{capability[1]}"
    with pytest.raises(
        ff.DeviceError, match=f"NVIDIA Card has compute capability {number}.*{what_helps}.*--device cpu"
    ):
        resolve_device("cuda")
    assert resolve_device("auto").type == "cpu"
    said = explain_fallback("auto")
    assert said.startswith(f"the CPU computes: NVIDIA Card has compute capability {capability[0]}.{capability[1]}")
    assert "\n" not in said
    assert explain_fallback("cpu") is None


def test_a_card_that_torch_has_code_for_is_taken_without_a_word(card):
    card((8, 9))
    assert resolve_device("auto") == torch.device("cuda")
    assert resolve_device("cuda:0") == torch.device("cuda:0")
    assert explain_fallback("auto") is None
    with pytest.raises(ff.DeviceError, match="found 1 CUDA devices, allowed cuda:0 to cuda:0"):
        resolve_device("cuda:1")


def test_a_run_on_the_cpu_says_why_once(card, small_config, tmp_path):
    card((6, 1))
    said = []

    class Listener(ff.Observer):
        def on_warning(self, text):
            said.append(text)

    run = ff.train(small_config(layers=2, device="auto"), tmp_path / "run", observer=Listener())
    assert [text for text in said if "compute capability" in text] == [explain_fallback("auto")]
    assert run.config.device == "cpu"
    assert "compute capability 6.1" in run.evaluate().warning
    assert "compute capability" not in (run.evaluate(device="cpu").warning or "")


@pytest.mark.parametrize("name", ["tpu", "cuda:", "cuda:x", "CUDA", "", "cpu:0", "mps:99999"])
def test_other_words_for_devices_are_refused_with_those_that_are_known(name):
    with pytest.raises(ff.DeviceError, match="allowed: auto, cpu, cuda, cuda:N, xpu, xpu:N, mps, mps:N"):
        resolve_device(name)


def test_no_accelerator_is_no_fallback(monkeypatch):
    for each in accelerator.ACCELERATORS.values():
        monkeypatch.setattr(each, "count_devices", lambda: 0)
    assert explain_fallback("auto") is None
    assert resolve_device("auto").type == "cpu"


@pytest.mark.parametrize(
    ("capability", "has_bf16", "expected"),
    [
        ((8, 6), True, "bf16"),  # Ampere
        ((7, 5), False, "fp16"),  # Turing
        ((7, 0), False, "fp16"),  # Volta
        ((6, 1), False, "fp32"),  # Pascal
        ((5, 2), False, "fp32"),  # Maxwell
    ],
)
def test_products_are_of_the_narrowest_type_that_a_card_multiplies(capability, has_bf16, expected, card, monkeypatch):
    card(capability, OF_CUDA_12)
    monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: has_bf16 or including_emulation
    )
    assert resolve_precision("auto", torch.device("cuda:0")) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("GPU-aa, 7, 510\n", 510 << 20),
        ("GPU-bb, 7, 90\nGPU-aa, 70, 80\nGPU-aa, 7, 510\n", 510 << 20),
        ("GPU-aa, 7, [N/A]\n", None),
        ("GPU-aa, 70, 80\n", None),
        ("GPU-bb, 7, 90\n", None),
        ("No devices were found\n", None),
        ("", None),
    ],
)
def test_what_the_driver_tells_of_a_process_is_read_or_not_known(text, expected):
    for uuid in ("aa", "GPU-aa"):  # torch leaves the prefix out
        assert find_process_bytes(uuid, 7, text) == expected
