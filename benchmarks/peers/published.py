"""Forward-Forward as the published PyTorch programs write it: all layers resident, autograd in each, float32.

From the description of Hinton (2022, sections 2 and 3.3) and what is known of his program: the label over the first
pixels, a wrong one at random, the sum of squares against as many as there are units by the logistic loss, rows divided
by their root mean square, Adam for each layer, prediction by trying every label.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn


class PublishedLayer(nn.Linear):
    """Trains itself on positive and negative rows, and passes both on."""

    def __init__(self, in_features: int, num_units: int, learning_rate: float, device: torch.device) -> None:
        super().__init__(in_features, num_units, device=device)
        nn.init.normal_(self.weight, std=in_features**-0.5)
        nn.init.zeros_(self.bias)
        self.optimiser = torch.optim.Adam(self.parameters(), learning_rate)

    def forward(self, rows: Tensor) -> Tensor:
        """(n, in_features) of any length -> (n, num_units)."""
        return torch.relu(super().forward(rows / (rows.pow(2).mean(1, keepdim=True).sqrt() + 1e-5)))

    def train_batch(self, positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
        """A step, and what the next layer reads."""
        positive_goodness = self.forward(positive).pow(2).sum(1) - self.out_features
        negative_goodness = self.forward(negative).pow(2).sum(1) - self.out_features
        loss = nn.functional.softplus(torch.cat([-positive_goodness, negative_goodness])).mean()
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        return self.forward(positive).detach(), self.forward(negative).detach()


class PublishedFF:
    """A network of such layers. `images` are (n, features) float32 in [0, 1], `labels` (n,) int64, on the device."""

    def __init__(
        self, num_features: int, width: int, num_layers: int, learning_rate: float, device: torch.device
    ) -> None:
        sizes = [num_features] + num_layers * [width]
        self.layers = [PublishedLayer(*pair, learning_rate, device) for pair in itertools.pairwise(sizes)]

    def train_batch(self, images: Tensor, labels: Tensor) -> None:
        """A step of every layer."""
        wrong = (labels + torch.randint(1, 10, labels.shape, device=labels.device)) % 10
        positive, negative = overlay(images, labels), overlay(images, wrong)
        for layer in self.layers:
            positive, negative = layer.train_batch(positive, negative)

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """The label of most goodness, summed over all layers: (n,)."""
        found = []
        for label in range(10):
            rows, goodness = overlay(images, images.new_full((len(images),), label).long()), []
            for layer in self.layers:
                rows = layer(rows)
                goodness.append(rows.pow(2).sum(1))
            found.append(torch.stack(goodness).sum(0))
        return torch.stack(found, 1).argmax(1)


def overlay(images: Tensor, labels: Tensor) -> Tensor:
    """A copy with the label in place of the first 10 pixels."""
    rows = images.clone()
    rows[:, :10] = nn.functional.one_hot(labels, 10).to(rows.dtype)
    return rows
