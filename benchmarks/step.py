"""What a step makes of the machine: the arithmetic of an epoch a second, beside that of the plain matrix product."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

import ffstream as ff
from ffstream.cache import CacheLayout, MemoryCache
from ffstream.cache.transfer import Transfer
from ffstream.data.shape import DataShape
from ffstream.device.accelerator import find_accelerator
from ffstream.device.device import resolve_device
from ffstream.field.blueprint import Blueprint
from ffstream.training.layer_trainer import LayerTrainer

NUM_CLASSES, NUM_BATCHES, NUM_ROUNDS = 10, 8, 7
PLAIN = {"objective.perturbation": 0.0, "network.dropout": 0.0, "negatives.sampler": "uniform"}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "inject": ("inject", {}),
    "inject, two products": ("inject", PLAIN),
    "mono": ("mono", {}),
    "grouped": ("grouped", {}),
    "hinton": ("hinton", {"negatives.per_sample": 1}),
}


def measure_step(device: str) -> dict[str, Any]:
    """By recipe, at 2000 x 2000 in batches of 1024, on a GPU 4096 x 4096 in batches of 4096; interleaved, medians."""
    on = resolve_device(device)
    width, batch = (4096, 4096) if on.type == "cuda" else (2000, 1024)
    left, right = (torch.randn(num, width, device=on).bfloat16() for num in (batch, width))
    out = left @ right.t()
    product_flops, rows, shares = 2 * batch * width * width, [], []
    for name, (recipe, changes) in VARIANTS.items():
        settings = {"precision": "bf16", "cache.shard_samples": NUM_BATCHES * batch // 2} | changes
        config = ff.Config(recipe=recipe, layers=2, width=width, batch=batch, epochs=1000, device=device)
        epoch, epoch_flops = make_epoch(config.override(settings), on)
        rate, product_rate = measure_rates(
            epoch, epoch_flops, lambda: torch.mm(left, right.t(), out=out), product_flops, on
        )
        shares.append(rate / product_rate)
        rows.append(
            {
                "recipe": name,
                "share": shares[-1],
                "products_a_step": epoch_flops / product_flops / NUM_BATCHES,
                "tflop_per_s": rate / 1e12,
                "tflop_per_s_of_products": product_rate / 1e12,
            }
        )
    return {
        "config": f"{width} x {width}, batch {batch}, {NUM_BATCHES} batches an epoch, bf16, cache on the device",
        "num_threads": torch.get_num_threads(),
        "lowest_share": min(shares),
        "highest_share": max(shares),
        "recipes": rows,
    }


def measure_rates(
    epoch: Callable[[], object],
    epoch_flops: int,
    multiply: Callable[[], object],
    product_flops: int,
    device: torch.device,
) -> tuple[float, float]:
    """FLOP/s of an epoch, and of a plain product that is repeated for as much arithmetic; interleaved, medians."""
    num_products = max(round(epoch_flops / product_flops), 1)
    epoch_s, products_s = [], []
    for _ in range(NUM_ROUNDS):
        epoch_s.append(time_s(epoch, device))
        products_s.append(time_s(multiply, device, num_products))
    rate = epoch_flops / statistics.median(epoch_s)
    return rate, num_products * product_flops / statistics.median(products_s)


def make_epoch(
    config: ff.Config, device: torch.device, *, is_streamed: bool = False
) -> tuple[Callable[[], object], int]:
    """An epoch of a second layer on rows of noise, and the floating-point operations of its products.

    The rows lie on the device, or, if they are streamed, in the memory of the host.
    """
    blueprint = Blueprint.of(config, DataShape(config.width, NUM_CLASSES))
    spec, sizes = blueprint.specs[1], blueprint.sizes
    trainer = LayerTrainer(blueprint.build_layer(spec), spec.index, blueprint, device)
    num_samples, rows_a_sample = NUM_BATCHES * sizes.batch, blueprint.method.rows.num_training_rows
    layout = CacheLayout(num_samples, rows_a_sample, spec.in_features, config.cache.dtype, sizes.shard_samples)
    cache = MemoryCache(layout, torch.device("cpu") if is_streamed else device)
    for shard in range(layout.num_shards):
        cache.store(shard, torch.randn(layout.shard_shape(shard)).relu_().to(layout.dtype))
    labels = torch.arange(num_samples) % NUM_CLASSES
    transfer, epochs = Transfer(device), iter(range(config.epochs))

    def epoch() -> None:
        trainer.train_epoch(transfer, cache, labels, next(epochs))

    epoch()  # makes the buffers
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: _count_addmm}) as counter:
        epoch()
    return epoch, counter.get_total_flops()


def _count_addmm(_: Any, left: Sequence[int], right: Sequence[int], **__: Any) -> int:
    """Of shapes; torch counts the product that is not in place alone."""
    return 2 * prod(left) * right[1]


def time_s(action: Callable[[], object], device: torch.device, num_repeats: int = 1) -> float:
    """Seconds until all is done that some calls of `action` queue on a device."""
    start_s = time.perf_counter()
    for _ in range(num_repeats):
        action()
    accelerator = find_accelerator(device)
    if accelerator is not None:
        accelerator.synchronise(device)
    return time.perf_counter() - start_s
