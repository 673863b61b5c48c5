"""Rows in eight bits: what coding may lose, what it takes, and that a network knows of it."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import ffstream as ff
from benchmarks.footprint import compare, draw_config
from ffstream.cache import CacheLayout, MemoryCache, as_cached, decode_, encode_, verify_shards
from ffstream.cache.transfer import Transfer
from ffstream.device import parts
from ffstream.device.parts import part_sizes
from ffstream.field.normalisation import length_normalise
from ffstream.ground.folder import Folder
from ffstream.infer.evaluation import error_rate
from tests.helpers import disk_cache

CPU = torch.device("cpu")


def draw_rows(num_rows, num_features, share_open, seed):
    """What a layer of ReLUs hands on."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(num_rows, num_features, generator=generator).abs()
    return length_normalise(rows * (torch.rand(rows.shape, generator=generator) < share_open))


@settings(max_examples=50, deadline=None)
@given(
    num_features=st.integers(1, 300), share_open=st.floats(0, 1), sign=st.sampled_from([1, -1]), seed=st.integers(0, 99)
)
def test_a_feature_is_off_by_little_more_than_half_a_step_of_its_row(num_features, share_open, sign, seed):
    rows = sign * draw_rows(20, num_features, share_open, seed)
    steps = rows.abs().amax(dim=1, keepdim=True) / 126 * 2 ** (1 / 8)  # scales are an eighth of an octave apart
    rounding = rows.abs() / 64  # in bfloat16: of the row, of the scale, of the quotient, of their product
    assert ((as_cached(rows, "int8").float() - rows).abs() <= steps / 2 + rounding).all()


def test_rows_of_zeros_stay_zeros_and_signs_are_kept():
    assert not as_cached(torch.zeros(3, 7), "int8").any()
    rows = torch.tensor([[-1.0, 1.0, 0.5, -0.5]])
    assert torch.equal(as_cached(rows, "int8").sign(), rows.sign())
    assert torch.equal(as_cached(-rows, "int8"), -as_cached(rows, "int8"))


def test_a_gradient_passes_as_if_nothing_was_rounded():
    rows = draw_rows(5, 7, 0.7, 0).requires_grad_()
    found = as_cached(rows, "int8")
    assert torch.equal(found, as_cached(rows.detach(), "int8"))
    (gradient,) = torch.autograd.grad(found.float().square().sum(), rows)
    torch.testing.assert_close(gradient, 2 * found.float(), atol=0, rtol=1e-2)


def test_one_large_feature_of_many_is_kept():
    """The longest row there is: one unit is open, and its activity is the root of their number."""
    rows = torch.zeros(1, 1 << 18)
    rows[0, 5] = 512.0
    assert as_cached(rows, "int8")[0, 5].item() == pytest.approx(512, rel=0.01)


def test_rounding_is_as_near_as_that_of_eight_bit_floats():
    rows = draw_rows(2000, 500, 0.5, 0)
    coded = (as_cached(rows, "int8").float() - rows).square().mean()
    floats = (rows.to(torch.float8_e4m3fn).float() - rows).square().mean()
    assert coded < floats


@pytest.mark.parametrize(("num_features", "carried"), [(1, ()), (6, ()), (33, ()), (33, (4,)), (33, (4, 9))])
@pytest.mark.parametrize("tier", ["memory", "disk"])
def test_a_tier_keeps_a_byte_for_each_feature_and_one_for_each_scale(tier, num_features, carried, tmp_path):
    layout = CacheLayout(50, 2, num_features, "int8", 16, carried=carried)
    rows = draw_rows(100, num_features, 0.7, 0).view(50, 2, num_features)
    rows[:, :, -4:] *= 50  # as what another layer has handed on may be
    cache = MemoryCache(layout, CPU) if tier == "memory" else disk_cache(layout, tmp_path)
    with Transfer(CPU) as transfer:
        for shard in range(layout.num_shards):
            with transfer.storing(cache, shard) as room:
                room.copy_(rows[layout.shard_range(shard)])
        transfer.flush()
        found = torch.cat([block.clone() for _, block in transfer.blocks(cache, range(layout.num_shards))])
    parts = rows.split([num_features - sum(carried), *carried], dim=2)
    assert torch.equal(found, torch.cat([as_cached(part, "int8") for part in parts], dim=2))
    assert torch.equal(found, as_cached(rows, "int8", carried))
    stored = [cache.resident(shard, CPU) for shard in range(4)] if tier == "memory" else []
    stored += [load_file(path)["rows"] for path in sorted(tmp_path.iterdir())]
    assert sum(shard.nbytes for shard in stored) == layout.num_bytes == 100 * (num_features + 1 + len(carried))
    if tier == "disk":
        verify_shards(Folder(tmp_path.parent), tmp_path.name, "")


@pytest.mark.parametrize("coded_rows", [1, 7, 64])
def test_how_many_rows_are_coded_at_once_changes_no_byte(coded_rows, monkeypatch):
    rows = draw_rows(50, 6, 0.7, 0).view(25, 2, 6).bfloat16()

    def pass_through():
        stored, found = torch.empty(25, 2, 7, dtype=torch.int8), torch.empty_like(rows)
        encode_(stored, rows.clone())
        return stored, decode_(found, stored)

    before = pass_through()
    monkeypatch.setattr(parts, "_ON_CPU", dataclasses.replace(part_sizes("cpu"), coded_rows=coded_rows))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(pass_through(), before, strict=True))


def test_the_room_for_decoded_rows_does_not_grow():
    """A buffer that grows leaves a gap in the memory of a device."""
    layout = CacheLayout(50, 2, 6, "int8", 16)
    cache, rows = MemoryCache(layout, CPU), draw_rows(100, 6, 0.7, 0).view(50, 2, 6)
    order = [3, 0, 1, 3]  # the last shard has two samples
    with Transfer(CPU) as transfer:
        for shard in range(layout.num_shards):
            with transfer.storing(cache, shard) as room:
                room.copy_(rows[layout.shard_range(shard)])
        transfer.flush()
        sizes, blocks = set(), []
        for _, block in transfer.blocks(cache, order):
            sizes.add(transfer._decoded.num_bytes("slots"))
            blocks.append(block.clone())
    assert sizes == {16 * 2 * 6 * 2}
    for shard, block in zip(order, blocks, strict=True):
        assert torch.equal(block, as_cached(rows[layout.shard_range(shard)], "int8"))


@pytest.mark.parametrize("recipe", ["inject", "hinton", "mono"])
def test_a_loaded_network_rounds_rows_as_its_run_did(recipe, small_config, small_data, tmp_path):
    run = ff.train(small_config(recipe, cache__dtype="int8"), tmp_path / "run")
    arrays = load_file(small_data)
    with torch.no_grad():
        by_layer = run.load().goodness_by_layer(arrays["test.images"])
    errors = [error_rate(goodness, arrays["test.labels"]) for goodness in by_layer]
    assert run.evaluate().layer_errors == pytest.approx(errors)


def test_a_run_in_eight_bits_learns_what_one_in_sixteen_learns(small_config, tmp_path):
    settings = {"epochs": 16, "width": 48, "network__stack_layers": 0}
    errors = {
        dtype: ff.train(small_config(cache__dtype=dtype, **settings), tmp_path / dtype).evaluate().error
        for dtype in ("bf16", "int8")
    }
    assert errors["int8"] <= errors["bf16"] + 0.03
    assert errors["bf16"] < 0.3


@pytest.mark.parametrize("number", [0, 23, 48, 65])
def test_planned_memory_of_coded_rows_is_what_a_run_takes(number, tmp_path):
    config, num_features = draw_config(number)
    planned, measured = compare(config.override({"cache.dtype": "int8"}), num_features, tmp_path / "sweep")
    assert measured <= planned <= 1.1 * measured
