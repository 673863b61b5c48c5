"""What kernels of a CPU take while they run is counted on paper as its allocator counts it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ffstream.device.ledger import PAPER, Ledger
from ffstream.device.memory import measure_peak_bytes
from ffstream.device.operator_meter import may_take

CPU = torch.device("cpu")
aten = torch.ops.aten


def multiply(device, dtype):
    left, right = torch.zeros(37, 301, dtype=dtype, device=device), torch.zeros(53, 301, dtype=dtype, device=device)
    product = torch.mm(left, right.t())
    torch.mm(product.t(), left, out=right)
    right.addmm_(product.t(), left)
    return torch.bmm(left.unsqueeze(0), right.t().unsqueeze(0))


def convolve(device, dtype):
    planes = torch.zeros(5, 12, 12, 7, dtype=dtype, device=device).permute(0, 3, 1, 2)
    weights = torch.zeros(9, 7, 3, 3, dtype=dtype, device=device, requires_grad=True)
    found = F.conv2d(planes, weights, padding=1).square()
    return torch.autograd.grad(found, [weights], torch.ones_like(found))


def normalise(device, dtype):
    planes = torch.zeros(5, 12, 12, 8, dtype=dtype, device=device).permute(0, 3, 1, 2)
    weights = torch.zeros(8, 8, 5, 5, dtype=dtype, device=device)
    normalised = F.group_norm(F.conv2d(planes, weights, padding=2), 2)
    return F.conv2d(normalised, weights)


def cast(device, dtype):
    rows = torch.zeros(50, 400, dtype=dtype, device=device)
    mean = rows.mean(dim=0, dtype=torch.float32)
    return rows.add_(mean)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("work", [multiply, convolve, normalise, cast])
def test_the_ledger_counts_what_kernels_take_while_they_run(work, dtype):
    with Ledger(counts_kernels=True) as ledger:
        work(PAPER, dtype)
    measured = measure_peak_bytes(lambda: work(CPU, dtype), CPU)
    assert abs(measured - ledger.peak_bytes) <= 64  # numbers among the operands may lie in memory


def test_an_operator_that_takes_nothing_is_not_measured():
    rows = torch.zeros(4, 6, device=PAPER)
    half = rows.to(torch.bfloat16)
    assert not may_take(aten.add.Tensor, (rows, rows), {})
    assert not may_take(aten.copy_.default, (half, rows), {})
    assert not may_take(aten.sum.dim_IntList, (rows, [0]), {})
    assert may_take(aten.add_.Tensor, (half, rows), {})
    assert may_take(aten.mean.dim, (half, [0]), {"dtype": torch.float32})
    assert may_take(aten.mm.default, (half, half.t()), {})


def test_results_on_paper_have_the_layout_of_the_device():
    def strides(device):
        planes = torch.zeros(2, 6, 6, 4, device=device).permute(0, 3, 1, 2)
        return [tensor.stride() for tensor in torch.native_group_norm(planes, None, None, 2, 4, 36, 1, 1e-5)]

    with Ledger(counts_kernels=True):
        on_paper = strides(PAPER)
    assert on_paper == strides(CPU)


def test_what_cannot_be_run_on_zeros_counts_as_nothing():
    with Ledger(counts_kernels=True) as ledger:
        found = torch.linalg.cholesky(torch.zeros(8, 8, device=PAPER))
    assert found.shape == (8, 8)
    assert ledger.peak_bytes >= 2 * 8 * 8 * 4
