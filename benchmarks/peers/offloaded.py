"""Backprop whose parameters, gradients and optimiser state live on the host, and visit the device layer by layer."""

from __future__ import annotations

import itertools
import socket

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard


class OffloadedBackprop:
    """torch's FSDP2 with its CPU offload, each layer a unit of its own, on one device. Adam runs on the host.

    `images` are (n, features) float32 in [0, 1], `labels` (n,) int64, on the device.
    """

    def __init__(
        self, num_features: int, width: int, num_layers: int, learning_rate: float, device: torch.device
    ) -> None:
        if not dist.is_initialized():
            with socket.socket() as found:
                found.bind(("127.0.0.1", 0))
                port = found.getsockname()[1]
            backend = "nccl" if device.type == "cuda" else "gloo"
            dist.init_process_group(backend, init_method=f"tcp://127.0.0.1:{port}", rank=0, world_size=1)
        mesh = init_device_mesh(device.type, (1,))
        widths = [num_features] + num_layers * [width]
        layers = [nn.Sequential(nn.Linear(*pair), nn.ReLU()) for pair in itertools.pairwise(widths)]
        self._network = nn.Sequential(*layers, nn.Linear(width, 10))
        mixed = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
        offload = CPUOffloadPolicy(pin_memory=device.type == "cuda")
        for module in (*self._network, self._network):  # the whole after its parts, which it leaves alone then
            fully_shard(module, mesh=mesh, mp_policy=mixed, offload_policy=offload)
        self._optimiser = torch.optim.Adam(self._network.parameters(), learning_rate)

    def train_batch(self, images: Tensor, labels: Tensor) -> None:
        """A step."""
        loss = nn.functional.cross_entropy(self._network(images).float(), labels)
        loss.backward()
        self._optimiser.step()
        self._optimiser.zero_grad()
