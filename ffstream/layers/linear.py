"""The dense layer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ffstream.layers.base import Layer
from ffstream.workspace import Workspace


class Linear(Layer):
    """preactivations = x W^T + b, with W (num_units, in_features) ~ N(0, 1/in_features) and b zero.

    The two matrix products of a step run in `compute_dtype`; weights and their gradient are float32.
    """

    def __init__(self, in_features: int, num_units: int, compute_dtype: torch.dtype = torch.float32) -> None:
        super().__init__(in_features, num_units, compute_dtype)
        self.weight = nn.Parameter(torch.empty(num_units, in_features))
        self.bias = nn.Parameter(torch.zeros(num_units))

    def initialise(self, generator: torch.Generator) -> None:
        """W ~ N(0, 1/in_features), as in Hinton's program."""
        with torch.no_grad():
            self.weight.normal_(0.0, self.in_features**-0.5, generator=generator)

    def preactivations(self, rows: Tensor) -> Tensor:
        """(n, in_features) -> (n, num_units) float32."""
        if self.workspace is None:
            products = F.linear(rows.to(self.compute_dtype), self.weight.to(self.compute_dtype))
            return products.float().add_(self.bias)
        left, right = self._cast("cast rows", rows, self.workspace), self._cast("weight", self.weight, self.workspace)
        shape = (len(rows), self.num_units)
        products = torch.mm(left, right.t(), out=self.workspace.take("products", shape, self.compute_dtype))
        if self.compute_dtype != torch.float32:
            products = self.workspace.take("preactivations", shape, torch.float32).copy_(products)
        return products.add_(self.bias)

    def backpropagate(self, rows: Tensor, gradient: Tensor) -> None:
        """dW = gradient^T x and db = sum(gradient): one matrix product, no graph, into buffers that are kept."""
        if self.weight.grad is None or self.bias.grad is None:
            self.weight.grad = torch.empty_like(self.weight)
            self.bias.grad = torch.empty_like(self.bias)
        room = self.workspace or Workspace(gradient.device)
        left, right = self._cast("cast gradient", gradient, room), self._cast("cast rows", rows, room)
        if self.compute_dtype == torch.float32:
            torch.mm(left.t(), right, out=self.weight.grad)
        else:
            product = room.take("weight", tuple(self.weight.shape), self.compute_dtype)  # the weights' turn is over
            self.weight.grad.copy_(torch.mm(left.t(), right, out=product))
        torch.sum(gradient, dim=0, out=self.bias.grad)

    def _cast(self, name: str, tensor: Tensor, room: Workspace) -> Tensor:
        tensor = tensor.detach()
        if tensor.dtype == self.compute_dtype:
            return tensor
        return room.take(name, tuple(tensor.shape), self.compute_dtype).copy_(tensor)
