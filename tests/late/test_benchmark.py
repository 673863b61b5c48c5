"""The benchmark of a GPU runs on whatever device there is, so that it runs the first time on a GPU."""

from __future__ import annotations

import pytest
import torch

from benchmarks import step
from benchmarks.accelerator import measure_width, train_within
from benchmarks.figures import describe
from tests.late.accelerator import CONTEXT_BYTES, late_cuda
from tests.late.tensors import DEVICE

MIB = 1 << 20
SMALL = {"width": 64, "batch": 256}


@pytest.fixture(autouse=True)
def _few_rounds(monkeypatch):
    monkeypatch.setattr(step, "NUM_ROUNDS", 1)
    monkeypatch.setattr("benchmarks.accelerator.NUM_ROUNDS", 1)


def test_a_width_is_measured_on_a_device_and_on_a_cpu(tmp_path):
    with late_cuda("eager"):
        there = measure_width(64, 32, DEVICE)
        budget = train_within("30MiB", DEVICE, tmp_path / "there", **SMALL)
    here = measure_width(64, 32, torch.device("cpu"))
    assert there["waits_a_step"] <= 2 / step.NUM_BATCHES  # at the end of an epoch
    assert there["streamed_ratio"] > 0
    assert here["waits_a_step"] is here["streamed_ratio"] is None
    for row in (here, there):
        assert row["share"] > 0
        assert row["operators_a_step"] > 20
    text = describe("accelerator", {"widths": [there, here], "budget": budget})
    assert "64 units" in text
    assert "nvidia-smi tells nothing here" in text


def test_a_budget_is_kept_by_the_figure_of_the_driver(tmp_path):
    with late_cuda("eager") as late:
        late.driver_bytes = lambda: late.arena.reserved_bytes + CONTEXT_BYTES
        found = train_within("30MiB", DEVICE, tmp_path / "run", **SMALL)
    assert CONTEXT_BYTES <= found["shown_bytes"] <= found["budget_bytes"] == 30 * MIB
    assert found["reserved_bytes"] + found["context_bytes"] <= found["planned_bytes"] <= found["budget_bytes"]
    text = describe("accelerator", {"widths": [], "budget": found})
    assert f"{found['shown_bytes'] / MIB:.0f} shown by nvidia-smi" in text
