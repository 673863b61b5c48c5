"""What only a CUDA device can show. Each is marked gpu and skips without one; `make test-gpu` runs them."""

from __future__ import annotations

import pytest
import torch

import ffstream as ff
from benchmarks.footprint import compare, draw_config
from ffstream.cache import CacheLayout, MemoryCache, as_cached
from ffstream.cache.transfer import Transfer
from ffstream.studies.memory_profile import METHODS, ProfileSettings, _measure
from tests.helpers import InterruptAt, disk_cache, layer_digests

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("recipe", ["inject", "hinton"])
@pytest.mark.parametrize("dtype", ["bf16", "int8"])
def test_every_tier_trains_the_same_network(recipe, dtype, small_config, tmp_path):
    found = {}
    for tier in ("device", "host", "disk"):
        config = small_config(recipe, device="cuda", cache__tier=tier, cache__dtype=dtype)
        found[tier] = layer_digests(ff.train(config, tmp_path / tier).path)
    assert found["device"] == found["host"] == found["disk"]


IN_PARTS = {"batch": 96, "micro_batch": 20, "cache__shard_samples": 32, "optimiser__state_dtype": "bf16"}


@pytest.mark.parametrize("settings", [{}, IN_PARTS])
@pytest.mark.parametrize("tier", ["device", "host", "disk"])
def test_an_interrupted_run_resumes_bitwise(tier, settings, small_config, tmp_path):
    config = small_config(device="cuda", cache__tier=tier, **settings)
    with pytest.raises(KeyboardInterrupt):
        ff.train(config, tmp_path / "run", observer=InterruptAt("on_epoch", 4))
    whole = ff.train(config, tmp_path / "whole")
    assert layer_digests(ff.resume(tmp_path / "run").path) == layer_digests(whole.path)


def test_staged_blocks_are_those_of_the_cache_while_the_device_is_busy():
    device = torch.device("cuda")
    layout = CacheLayout(64 * 37, 2, 512, "bf16", 64)
    rows = torch.randn(layout.num_samples, 2, 512, generator=torch.Generator().manual_seed(0)).bfloat16()
    cache = MemoryCache(layout, torch.device("cpu"))
    for shard in range(layout.num_shards):
        cache.store(shard, rows[layout.shard_range(shard)])
    order = torch.randperm(layout.num_shards, generator=torch.Generator().manual_seed(1)).tolist() * 5
    big = torch.randn(4096, 4096, device=device)
    sums = []
    with Transfer(device) as transfer:
        for _, block in transfer.blocks(cache, order):
            big = torch.mm(big, big).clamp_(-1, 1)  # keeps the device behind the host, so that slots are contended
            sums.append(block.double().sum() + big[0, 0].double() * 0)
    for shard, found in zip(order, sums, strict=True):
        assert float(found) == pytest.approx(float(rows[layout.shard_range(shard)].double().sum()), rel=1e-9)


@pytest.mark.parametrize("tier", ["host", "disk"])
@pytest.mark.parametrize("dtype", ["bf16", "int8"])
def test_what_the_device_computes_is_what_is_stored_while_it_is_busy(tier, dtype, tmp_path):
    device = torch.device("cuda")
    layout = CacheLayout(64 * 37, 2, 512, dtype, 64)
    rows = torch.randn(layout.num_samples, 2, 512, generator=torch.Generator().manual_seed(0)).bfloat16()
    cache = disk_cache(layout, tmp_path) if tier == "disk" else MemoryCache(layout, torch.device("cpu"))
    big = torch.randn(4096, 4096, device=device)
    with Transfer(device) as transfer:
        for shard in range(layout.num_shards):
            part = rows[layout.shard_range(shard)].to(device)
            with transfer.storing(cache, shard) as room:
                big = torch.mm(big, big).clamp_(-1, 1)  # keeps the device behind the host
                room.copy_(part + big[0, 0].to(part.dtype) * 0)
        transfer.flush()
        for shard, block in transfer.blocks(cache, range(layout.num_shards)):
            assert torch.equal(block, as_cached(rows[layout.shard_range(shard)].to(device), dtype))


def test_device_memory_is_flat_in_depth(small_config, tmp_path):
    peaks = {}
    for depth in (3, 12):
        torch.cuda.reset_peak_memory_stats()
        ff.train(small_config(device="cuda", layers=depth, width=512, cache__tier="disk"), tmp_path / str(depth))
        peaks[depth] = torch.cuda.max_memory_allocated()
    assert peaks[12] <= 1.02 * peaks[3]


def test_memory_that_a_neighbour_takes_ends_the_run_in_one_line_and_it_goes_on_after(small_config, tmp_path):
    class Neighbour(ff.Observer):
        """Takes all that is free after the first layer; the second one, of 4096 inputs, needs more than that had."""

        def __init__(self):
            self.held = []

        def on_layer(self, figures):
            torch.cuda.empty_cache()
            size = torch.cuda.mem_get_info()[0]
            while size > 1 << 20:
                try:
                    self.held.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
                except torch.OutOfMemoryError:
                    size //= 2

    config, neighbour = small_config(width=4096, epochs=1, device="cuda"), Neighbour()
    with pytest.raises(ff.DeviceError, match="out of memory.*go on with ffstream resume") as caught:
        ff.train(config, tmp_path / "run", observer=neighbour)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "run").rglob(".tmp-*"))
    neighbour.held.clear()
    torch.cuda.empty_cache()
    assert ff.Run(tmp_path / "run").num_layers_done >= 1
    whole = ff.train(config, tmp_path / "whole")
    assert layer_digests(ff.resume(tmp_path / "run").path) == layer_digests(whole.path)


def test_a_run_from_the_gpu_goes_on_and_evaluates_on_the_cpu(small_config, tmp_path):
    run = ff.train(small_config(device="cuda"), tmp_path / "run")
    on_gpu, on_cpu = run.evaluate(device="cuda"), run.evaluate(device="cpu")
    assert abs(on_gpu.error - on_cpu.error) <= 0.02
    assert ff.resume(run.path, device="cpu", layers=4).num_layers_done == 4


def test_softmax_readout_runs_on_the_gpu(small_config, tmp_path):
    run = ff.train(small_config(device="cuda", epochs=6), tmp_path / "run")
    assert run.evaluate("softmax", device="cuda").error < 0.5


@pytest.mark.parametrize("number", [11, 17, 26])
def test_planned_memory_is_what_the_device_takes(number, tmp_path):
    config, num_features = draw_config(number, "cuda")
    planned, measured = compare(config, num_features, tmp_path / "sweep")
    assert measured <= planned <= 1.1 * measured


def test_a_budget_of_the_device_is_kept(small_config, tmp_path):
    config = small_config(device="cuda", cache__tier="disk").override({"memory.budget": "1KiB"})
    with pytest.raises(ff.BudgetError, match="--budget"):
        ff.train(config, tmp_path / "run")
    assert ff.make_plan(config.override({"memory.budget": "1GiB"})).total_s > 0


def test_a_profile_is_flat_for_ours_and_grows_for_the_others(tmp_path):
    settings = ProfileSettings.here(device="cuda", precision="auto", width=1024, batch=1024, micro_batch=128)
    for method in METHODS:
        sizes = []
        for depth in (3, 9):
            folder = tmp_path / f"{method}-{depth}"
            folder.mkdir()
            sizes.append(_measure(settings, method, depth, folder)["training_bytes"])
        if method == "ffstream":
            assert sizes[1] <= 1.01 * sizes[0]
        else:
            assert sizes[1] - sizes[0] >= 6 * 12 * 1024 * 1024
