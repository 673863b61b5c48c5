"""Shifted images: what a shift does, which samples it reaches, and that streaming them changes nothing else."""

from __future__ import annotations

import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

import ffstream as ff
from ffstream.cache import CacheLayout, DiskCache, compute_shard_order
from ffstream.data.augmentation import check_augmentation, count_shifts, draw_fresh, draw_view, shift_images
from ffstream.field.layers import Linear
from ffstream.run import frozen_layers
from ffstream.run.executor import Runner
from ffstream.settings.sections import AugmentationConfig
from tests.helpers import InterruptAt, check_resumed_equals, layer_digests, metrics_without_times, run_cli

WAYS = {"views": {"augmentation__views": 3, "augmentation__max_shift": 1}, "restream": {"augmentation__restream": True}}
SHAPES = {
    "inject": {},
    "hinton": {"recipe": "hinton"},
    "some negatives": {"recipe": "hinton", "negatives__per_sample": 3},
    "skip": {"network__input_skip": True},
    "reads": {"recipe": "hinton", "network__layers": "conv12 dense24(reads=image+below)"},
    "tiles": {"network__tile_units": 10, "epochs": 2},
    "parts": {"micro_batch": 20, "batch": 160, "cache__shard_samples": 40, "optimiser__state_dtype": "bf16"},
}


# --- shifts


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 3), (3, 6, 5), (6, 5, 1), (1, 6, 5)])
@pytest.mark.parametrize("max_shift", [1, 3])
def test_a_shift_moves_every_pixel_by_as_much_and_zeros_come_in(shape, max_shift):
    images = torch.arange(1, 1 + 49 * 6 * 5 * 3).view(49, -1)[:, : torch.Size(shape).numel()].reshape(49, *shape)
    shifts = torch.arange(count_shifts(max_shift), dtype=torch.int32)
    images = images[: len(shifts)]
    plane = 1 if shape[0] in (1, 3) else 0
    moved = shift_images(images, shifts, max_shift).movedim((plane + 1, plane + 2), (1, 2))
    images = images.movedim((plane + 1, plane + 2), (1, 2))
    for number in shifts.tolist():
        down, right = number // (2 * max_shift + 1) - max_shift, number % (2 * max_shift + 1) - max_shift
        expected = torch.roll(images[number], (down, right), (0, 1))
        expected[: max(down, 0)] = 0
        expected[6 + min(down, 0) :] = 0
        expected[:, : max(right, 0)] = 0
        expected[:, 5 + min(right, 0) :] = 0
        assert torch.equal(moved[number], expected)


def test_what_lies_inside_the_border_is_never_lost(digits):
    images = torch.nn.functional.pad(digits.train.images, (2, 2, 2, 2))
    moved = shift_images(images, draw_fresh(len(images), 2, 0, 1, 0), 2)
    assert torch.equal(moved.flatten(1).sort(dim=1).values, images.flatten(1).sort(dim=1).values)
    assert 0.9 < float((moved != images).flatten(1).any(dim=1).double().mean()) < 1


@given(max_shift=st.integers(1, 4), seed=st.integers(0, 99))
def test_views_of_a_sample_are_distinct_and_none_is_the_image_itself(max_shift, seed):
    num_shifts = count_shifts(max_shift)
    views = torch.stack([draw_view(40, view, max_shift, seed) for view in range(1, num_shifts)], dim=1)
    others = torch.tensor([number for number in range(num_shifts) if number != num_shifts // 2])
    assert torch.equal(views.sort(dim=1).values, others.expand(40, -1).to(torch.int32))


def test_shifts_are_all_as_frequent_in_a_view_and_in_an_epoch():
    for drawn, num_shifts in ((draw_view(90000, 4, 1, 3), 8), (draw_fresh(90000, 1, 3, 2, 5), 9)):
        counts = drawn.bincount()
        counts = counts[counts > 0]
        assert len(counts) == num_shifts
        assert counts.double().div(90000 / num_shifts).sub(1).abs().max() < 0.05


def test_fresh_shifts_differ_by_seed_layer_and_epoch_and_are_the_same_again():
    drawn = [draw_fresh(100, 2, *key) for key in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))]
    assert torch.equal(drawn[0], draw_fresh(100, 2, 0, 0, 0))
    assert not any(torch.equal(drawn[0], other) for other in drawn[1:])


# --- what an epoch visits


@given(
    num_samples=st.integers(1, 200),
    shard_samples=st.integers(1, 70),
    num_views=st.integers(1, 6),
    epoch=st.integers(0, 20),
    num_epochs=st.integers(1, 8),
)
def test_an_epoch_reads_one_view_of_every_sample(num_samples, shard_samples, num_views, epoch, num_epochs):
    layout = CacheLayout(num_samples, 1, 3, "fp32", shard_samples, num_views)
    order = compute_shard_order(layout, 0, 1, epoch, num_epochs)
    seen = torch.zeros(num_samples, dtype=torch.int64)
    for shard in order:
        seen[layout.shard_range(shard)] += 1
    assert bool((seen == 1).all())
    stored = torch.cat([torch.arange(layout.num_stored)[layout.stored_range(s)] for s in range(layout.num_shards)])
    assert torch.equal(stored, torch.arange(layout.num_stored))


@given(num_views=st.integers(2, 9), num_epochs=st.integers(1, 30), num_tiles=st.integers(1, 3))
def test_the_images_themselves_are_read_last_and_often_and_the_other_views_in_turn(num_views, num_epochs, num_tiles):
    layout = CacheLayout(100, 1, 3, "fp32", 30, num_views)
    orders = [sorted(compute_shard_order(layout, 0, 1, e, num_epochs)) for e in range(num_tiles * num_epochs)]
    views = [[shard % num_views for shard in order] for order in orders]
    of_images = [epoch for epoch, seen in enumerate(views) if 0 in seen]
    from_last = range(num_epochs - 1, -1, -min(4, num_views))
    assert of_images == sorted(tile * num_epochs + epoch for tile in range(num_tiles) for epoch in from_last)
    assert all(set(views[epoch]) == {0} for epoch in of_images)
    others = [seen for seen in views if 0 not in seen]
    for start in range(0, len(others) - num_views + 2, num_views - 1):
        cycle = others[start : start + num_views - 1]
        assert [sorted(seen) for seen in zip(*cycle, strict=True)] == [[*range(1, num_views)]] * layout.num_blocks


class ReadingCaches(ff.Observer):
    """Keeps what the caches hold before a layer trains."""

    def __init__(self, monkeypatch):
        self.rows = {}
        train = Runner._train

        def noting(of, spec):
            for name, cache in of._caches.current.items():
                for shard in range(cache.layout.num_shards):
                    slot = torch.empty(cache.layout.shard_shape(shard), dtype=cache.layout.dtype)
                    cache.load(shard, slot)
                    key = spec.index, name, cache.layout.shard_range(shard).start, shard % cache.layout.num_views
                    self.rows[key] = slot
            train(of, spec)

        monkeypatch.setattr(Runner, "_train", noting)


def test_the_validation_cache_and_the_first_view_are_not_shifted_and_the_others_are(
    small_config, tmp_path, monkeypatch
):
    found = []
    for changes in ({}, WAYS["views"], WAYS["restream"]):
        reading = ReadingCaches(monkeypatch)
        ff.train(small_config(layers=1, **changes), tmp_path / str(len(found)), observer=reading)
        found.append(reading.rows)
        monkeypatch.undo()
    plain, views, restream = found
    assert {key[1] for key in restream} == {"validation"}  # the training cache is written by the epoch
    for key, rows in plain.items():
        assert torch.equal(rows, views[key])
        if key[1] == "train":
            assert not torch.equal(rows, views[(*key[:3], 1)])
        else:
            assert torch.equal(rows, restream[key])


# --- streaming


@pytest.mark.parametrize("recipe", ["inject", "hinton"])
def test_shifts_by_nothing_train_the_network_of_none(recipe, small_config, tmp_path):
    """So that writing an input anew for every epoch, through the layers below, is the cache that moves."""
    plain = ff.train(small_config(recipe), tmp_path / "plain")
    for name, changes in (
        ("one view", {"augmentation__max_shift": 1}),
        ("unmoved", {"augmentation__restream": True, "augmentation__max_shift": 0}),
    ):
        run = ff.train(small_config(recipe, **changes), tmp_path / name)
        assert layer_digests(run.path) == layer_digests(plain.path)
        assert metrics_without_times(run.path) == metrics_without_times(plain.path)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("way", WAYS)
def test_every_tier_trains_the_same_network_and_it_is_another_one(way, shape, small_config, tmp_path):
    base = small_config(**SHAPES[shape], layers=2)
    digests = layer_digests(ff.train(base, tmp_path / "plain").path)
    settings = {key.replace("__", "."): value for key, value in WAYS[way].items()}
    for tier in ("device", "host", "disk"):
        run = ff.train(base.override(settings | {"cache.tier": tier}), tmp_path / tier)
        assert layer_digests(run.path) == layer_digests(tmp_path / "device")
    assert not set(digests) & set(layer_digests(tmp_path / "device"))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    runs = {}

    def get(config):
        key = config.fingerprint()
        if key not in runs:
            runs[key] = ff.train(config, tmp_path_factory.mktemp("whole") / "run").path
        return runs[key]

    return get


@pytest.mark.parametrize(
    ("shape", "method", "nth", "tier"),
    [
        ("inject", "on_epoch", 1, "host"),
        ("inject", "on_epoch", 4, "disk"),
        ("inject", "on_layer", 0, "disk"),
        ("inject", "on_step", 3, "disk"),
        ("some negatives", "on_epoch", 4, "disk"),
        ("tiles", "on_epoch", 4, "disk"),
        ("tiles", "on_step", 2, "host"),
    ],
)
@pytest.mark.parametrize("way", WAYS)
def test_an_interrupted_run_resumes_bitwise(way, shape, method, nth, tier, small_config, uninterrupted, tmp_path):
    config = small_config(layers=2, **SHAPES[shape], **WAYS[way], cache__tier=tier)
    with pytest.raises(KeyboardInterrupt):
        ff.train(config, tmp_path / "run", observer=InterruptAt(method, nth))
    check_resumed_equals(uninterrupted(config), ff.resume(tmp_path / "run").path)


# Of two shards and one of the validation split: three views of them, moved on once; or anew for each of three epochs.
NUM_STORED = {"views": 2 * (3 * 2 + 1), "restream": 2 * (1 + 3 * 2) + 3 * 2}


@pytest.mark.parametrize(("way", "num_stored"), [(way, n) for way in WAYS for n in range(2, NUM_STORED[way], 4)])
def test_a_disk_that_fails_while_shards_are_written_loses_nothing(
    way, num_stored, small_config, uninterrupted, tmp_path, monkeypatch
):
    config = small_config(layers=2, **WAYS[way], cache__tier="disk", cache__shard_samples=150)
    whole, store, stored = uninterrupted(config), DiskCache.store, []

    def failing_store(cache, shard, rows):
        stored.append(shard)
        if len(stored) > num_stored:
            raise ff.StorageError("disk full")
        store(cache, shard, rows)

    with monkeypatch.context() as patch, pytest.raises(ff.StorageError, match="disk full"):
        patch.setattr(DiskCache, "store", failing_store)
        ff.train(config, tmp_path / "run")
    check_resumed_equals(whole, ff.resume(tmp_path / "run").path)


def test_no_layer_is_there_while_the_layers_below_write_its_input(small_config, tmp_path, monkeypatch):
    """One at a time: neither the one in training nor the one below stays while another is loaded."""
    alive, found, load, initialise = weakref.WeakSet(), [], frozen_layers.load_committed, Linear.__init__

    def noting(layer, *args):
        initialise(layer, *args)
        alive.add(layer)

    def counting(*args):
        found.append(len(alive))
        return load(*args)

    config = small_config(**WAYS["restream"])
    monkeypatch.setattr(Linear, "__init__", noting)
    monkeypatch.setattr(frozen_layers, "load_committed", counting)
    ff.train(config, tmp_path / "run")
    # Of the epochs of the second layer all but the first, which finds the layer below still there; of the third all.
    assert len(found) >= 2 + 3
    assert set(found) == {0}


@pytest.mark.parametrize("way", WAYS)
def test_a_shifted_run_is_evaluated_exported_and_read_out_as_any(way, small_config, tmp_path):
    run = ff.train(small_config(**WAYS[way]), tmp_path / "run")
    assert ff.resume(run.path, layers=4).num_layers_done == 4
    for method in ("goodness", "softmax"):
        assert run.evaluate(method).num_samples == 100
    run.export(tmp_path / "model.safetensors")
    data = ff.SOURCES["digits"]("").test.images[:50]
    assert torch.equal(ff.load(tmp_path / "model.safetensors")(data), run.load()(data))
    with pytest.raises(ff.RunMismatchError, match="augmentation"):
        ff.train(run.config.override({"augmentation.max_shift": 3}), run.path, resume=True)


# --- what is refused


@pytest.mark.parametrize(
    ("settings", "shape", "words"),
    [
        ({"views": 3, "restream": True}, (8, 8), "together with augmentation.restream"),
        ({"views": 10, "max_shift": 1}, (8, 8), "allowed at most 9, the distinct shifts by up to 1 pixels"),
        ({"views": 2, "max_shift": 0}, (8, 8), "allowed at most 1"),
        ({"restream": True}, (64,), r"shifts and transforms need images, found samples of shape \(64,\)"),
        ({"views": 2}, (2, 8, 8, 3), "need images"),
        ({"views": 2}, (8, 8, 8), "need images"),
        ({"views": 2, "max_shift": 6}, (8, 6), "found 6, allowed at most 5 for images of 8 x 6 pixels"),
        ({"restream": True, "max_shift": 8}, (3, 8, 8), "allowed at most 7"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(settings, shape, words):
    with pytest.raises(ff.ConfigError, match=words) as caught:
        check_augmentation(AugmentationConfig(**settings), shape)
    assert "\n" not in str(caught.value)


def test_without_shifts_any_data_will_do():
    check_augmentation(AugmentationConfig(), (64,))
    check_augmentation(AugmentationConfig(views=2), None)


@pytest.mark.parametrize("command", ["train", "plan"])
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--views", 0), "augmentation.views: found 0, allowed an integer >= 1"),
        (("--views", 3, "--restream"), "together with"),
        (("--restream", "--max-shift", 9), "allowed at most 7"),
        (("--views", 2), "need images"),
    ],
)
def test_a_refusal_comes_before_anything_is_written(command, options, words, tmp_path, digits):
    data = tmp_path / "vectors.safetensors"
    images = digits.train.images[:100].flatten(1).clone()
    save_file({"train.images": images, "train.labels": digits.train.labels[:100].clone()}, data)
    source = ("--data", data) if "need images" in words else ()
    code, _, error = run_cli(command, *source, "--device", "cpu", "--run-dir", tmp_path / "run", *options)
    assert code != 0
    assert words in str(error)
    assert not (tmp_path / "run").exists()
