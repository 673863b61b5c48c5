"""Sums over rows, in runs: the same sums, whatever does not divide into runs or labels."""

from __future__ import annotations

import pytest
import torch

from ffstream.device.row_sums import sum_by_label, sum_rows


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("num_rows", [0, 1, 3, 4, 7, 64, 129])
def test_rows_are_all_summed(num_rows):
    rows = draw(num_rows, 5)
    torch.testing.assert_close(sum_rows(rows), rows.sum(dim=0))


@pytest.mark.parametrize("num_candidates", [1, 2, 4])
@pytest.mark.parametrize(("num_samples", "num_labels"), [(1, 3), (2, 7), (12, 3), (13, 3), (50, 1), (65, 10)])
def test_rows_are_summed_by_their_labels(num_candidates, num_samples, num_labels):
    rows = draw(num_candidates, num_samples, 5)
    labels = torch.randint(0, num_labels, (num_samples, num_candidates), generator=torch.Generator().manual_seed(1))
    expected = rows.new_zeros(num_labels, 5).index_add_(0, labels.t().flatten(), rows.flatten(0, 1))
    torch.testing.assert_close(sum_by_label(rows, labels, num_labels), expected)


def test_a_label_that_no_row_has_sums_to_zero():
    found = sum_by_label(draw(2, 16, 3), torch.full((16, 2), 2), 4)
    assert torch.equal(found.abs().sum(1) > 0, torch.tensor([False, False, True, False]))
