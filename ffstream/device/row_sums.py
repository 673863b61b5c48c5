"""Sums over the rows of a step, one run of rows at a time. Pure.

Elementwise operators split rows among a CPU's cores, and each core gets the same rows every time. A sum that is split
by columns would read what other cores have just written. That takes several times as long if the cores share no cache,
and so does the next write there. A run of rows is read by the core that has it in its cache.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

_NUM_RUNS = 4  # the same on every machine, so that the number of cores does not change a bit


def sum_rows(rows: Tensor) -> Tensor:
    """The sum of all rows: (n, features) -> (features,)."""
    length = len(rows) // _NUM_RUNS
    runs = rows[: length * _NUM_RUNS].unflatten(0, (_NUM_RUNS, length))
    total: Tensor = runs.sum(dim=1).sum(dim=0)
    return total + rows[length * _NUM_RUNS :].sum(dim=0) if len(rows) % _NUM_RUNS else total


def sum_by_label(rows: Tensor, labels: Tensor, num_labels: int) -> Tensor:
    """For each label the sum of all rows that have it: (K, n, features), (n, K) int64 -> (num_labels, features).

    Rows are added in the order of the samples on every device, which index_add_ does not do on CUDA. A product with
    one-hot rows takes several times as long.
    """
    num_samples, device = rows.shape[1], labels.device
    num_runs = min(_NUM_RUNS, max(1, num_samples // num_labels))  # each run has a sum for every label
    run = torch.arange(num_samples, device=device) * num_runs // num_samples
    bag = (labels + run.unsqueeze(1) * num_labels).t().flatten()
    by_bag = bag.argsort(stable=True)
    starts = torch.searchsorted(bag[by_bag], torch.arange(num_runs * num_labels, device=device))
    sums: Tensor = embedding_bag(by_bag, rows.flatten(0, 1), starts, mode="sum")
    return sums.view(num_runs, num_labels, -1).sum(dim=0)
