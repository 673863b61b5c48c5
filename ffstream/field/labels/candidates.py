"""What a step contrasts for a sample: one positive and some negatives, each a label or a cached row."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ffstream.device.workspace import Buffer, Workspace
from ffstream.errors import ConfigError
from ffstream.field.negatives import NEGATIVE_SAMPLERS, InformedSampler
from ffstream.settings.config import Config

_ROWS = Buffer("rows", "rows")


class Candidates(ABC):
    """Draws the candidates of a step, and takes the rows that show them from a block of the cache.

    A candidate is a number: the number of a label if all candidates share a sample's one label-free row
    (`shares_row`), else that of one of the sample's cached rows.
    """

    shares_row: bool
    num_candidates: int  # per sample and step, 1 + K
    num_values: int  # how many values a candidate may take
    num_in_pool: int | None = None  # how many of them, drawn at random, negatives are chosen from; None: all
    informed: InformedSampler | None = None  # the sampler, if it chooses negatives by their goodness

    @property
    def num_choices(self) -> int:
        """How many values negatives are chosen from; without a pool, the count includes the positive's."""
        return self.num_values if self.num_in_pool is None else self.num_in_pool

    @abstractmethod
    def draw(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        """The positive and K negatives of each sample: (n, 1 + K) int64.

        An informed sampler draws these negatives without knowing their goodness.
        """

    def draw_pool(self, labels: Tensor, generator: torch.Generator) -> Tensor | None:
        """The values that each sample's negatives are chosen from, (n, num_in_pool) int64; None means all values."""
        return None

    @abstractmethod
    def select(self, block: Tensor, index: Tensor, candidates: Tensor, workspace: Workspace) -> Tensor:
        """A copy of the rows that a step multiplies by the weights: (m, features), for the samples `index`."""


class LabelCandidates(Candidates):
    """Candidates are labels, and all candidates of a sample share its one label-free row."""

    shares_row = True

    def __init__(self, num_classes: int) -> None:
        self._num_classes = self.num_values = num_classes

    def select(self, block: Tensor, index: Tensor, candidates: Tensor, workspace: Workspace) -> Tensor:
        """One row per sample: (n, features)."""
        return take_rows(block, index, workspace)


class DrawnLabels(LabelCandidates):
    """The true label and some wrong ones, which a sampler draws."""

    def __init__(self, num_classes: int, config: Config) -> None:
        """Raises ConfigError for an unknown sampler, or more negatives than there are wrong labels."""
        super().__init__(num_classes)
        self._sampler = NEGATIVE_SAMPLERS.of(config)
        self._num_negatives = read_num_negatives(config, num_classes)
        self.informed = self._sampler if isinstance(self._sampler, InformedSampler) else None
        self.num_candidates = 1 + self._num_negatives

    def draw(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Labels, the true one first: (n, 1 + K)."""
        wrong = self._sampler(labels, self._num_classes, self._num_negatives, generator)
        return torch.cat([labels.unsqueeze(1), wrong], dim=1)


class AllLabels(LabelCandidates):
    """All labels, so that no negatives are drawn."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.num_candidates = num_classes

    def draw(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        """The true label, then all other labels in cyclic order: (n, num_classes)."""
        return (labels.unsqueeze(1) + torch.arange(self._num_classes)) % self._num_classes


class RowCandidates(Candidates):
    """Candidates are cached rows of the sample, each of which already shows what it stands for, such as a label."""

    shares_row = False

    def select(self, block: Tensor, index: Tensor, candidates: Tensor, workspace: Workspace) -> Tensor:
        """((1 + K) n, features): all positives, then all first negatives, and so on."""
        return take_rows(block, (index.unsqueeze(1) * block.shape[1] + candidates).t().reshape(-1), workspace)


def read_num_negatives(config: Config, num_classes: int) -> int:
    """How many wrong labels a step contrasts with the true one. Raises ConfigError for more than there are."""
    num_negatives, num_wrong = config.negatives.per_step, num_classes - 1
    if num_negatives > num_wrong:
        raise ConfigError(
            f"config negatives.per_step: found {num_negatives}, allowed at most {num_wrong}, "
            f"the wrong labels of {num_classes} classes"
        )
    return num_negatives


def take_rows(block: Tensor, rows: Tensor, workspace: Workspace) -> Tensor:
    """A copy of some rows of a block: (m, features). `rows` (m,) numbers them through all samples of the block."""
    taken = workspace.take(_ROWS, (len(rows), block.shape[2]), block.dtype)
    return torch.index_select(block.flatten(0, 1), 0, rows, out=taken)
