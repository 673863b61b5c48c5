"""Transforms whose parameters are drawn for each sample: what each does, and that it depends on nothing else."""

from __future__ import annotations

import pytest
import torch

import ffstream as ff
from ffstream.data.augmentation import Augmentation, check_augmentation
from ffstream.data.transforms import make_transform
from ffstream.settings.sections import AugmentationConfig
from ffstream.settings.transform_list import TransformLine, list_transforms, read_transforms
from tests.helpers import InterruptAt, check_resumed_equals, layer_digests, run_cli

ALL = "crop2 flip cutout3 randaugment12"
SHAPES = [(8, 6), (8, 6, 3), (3, 8, 6), (1, 8, 6)]


def make_images(shape, num=60, seed=0):
    return torch.randint(1, 256, (num, *shape), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def augmentation_of(transforms, **settings):
    return Augmentation(AugmentationConfig(restream=True, transforms=read_transforms(transforms), **settings))


def as_channels_last(images, shape):
    return images.movedim(1, 3) if shape[0] <= 3 else images if len(shape) == 3 else images.unsqueeze(3)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("transforms", [*ALL.split(), ALL])
def test_what_a_sample_gets_does_not_depend_on_the_samples_beside_it(shape, transforms):
    images, augmentation = make_images(shape), augmentation_of(transforms)
    draws = augmentation.draw_fresh(len(images), 3, 2, 1)
    whole = augmentation.apply(images, draws)
    assert whole.shape == images.shape
    assert whole.dtype == images.dtype
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(1))
    parts = [augmentation.apply(images[part], draws[part]) for part in order.split(7)]
    assert torch.equal(torch.cat(parts), whole[order])
    assert 0.3 < float((whole != images).flatten(1).any(dim=1).double().mean()) <= 1


@pytest.mark.parametrize("shape", SHAPES)
def test_a_crop_is_a_shift_with_zeros_from_outside(shape):
    images = make_images(shape, 25 * 4)
    crop = make_transform(TransformLine("crop", 2))
    draws = torch.arange(100, dtype=torch.int32).unsqueeze(1)
    last = as_channels_last(images, shape)
    planes = last.unsqueeze(1)
    moved = crop.apply(planes, draws).squeeze(1)
    for number in range(100):
        down, right = number % 25 // 5 - 2, number % 5 - 2
        padded = torch.nn.functional.pad(last[number], (0, 0, 2, 2, 2, 2))
        assert torch.equal(moved[number], padded[2 - down : 10 - down, 2 - right : 8 - right])


@pytest.mark.parametrize("shape", SHAPES)
def test_a_flip_exchanges_left_and_right_in_half_of_the_images(shape):
    images, augmentation = make_images(shape, 400), augmentation_of("flip")
    before, after = (
        as_channels_last(each, shape)
        for each in (images, augmentation.apply(images, augmentation.draw_fresh(400, 0, 0, 0)))
    )
    is_same = (before == after).flatten(1).all(dim=1)
    is_flipped = (before.flip(2) == after).flatten(1).all(dim=1)
    assert bool((is_same ^ is_flipped).all())
    assert 150 < int(is_flipped.sum()) < 250


@pytest.mark.parametrize(("side", "shape"), [(1, (8, 6)), (3, (8, 6, 3)), (4, (3, 8, 6))])
def test_a_cutout_is_one_square_of_zeros_in_all_channels(side, shape):
    images, cutout = make_images(shape, 48), make_transform(TransformLine("cutout", side))
    planes = as_channels_last(images, shape).unsqueeze(1)
    changed = cutout.apply(planes, torch.arange(48, dtype=torch.int32).unsqueeze(1)).squeeze(1)
    for number in range(48):
        is_hidden = (changed[number] == 0).all(dim=2)
        assert torch.equal((changed[number] == 0).any(dim=2), is_hidden)
        top, left = number // 6 - side // 2, number % 6 - side // 2
        expected = torch.zeros(8, 6, dtype=torch.bool)
        expected[max(top, 0) : max(top + side, 0), max(left, 0) : max(left + side, 0)] = True
        assert torch.equal(is_hidden, expected)
        assert torch.equal(changed[number][~is_hidden], planes[number, 0][~is_hidden])


def test_randaugment_draws_the_steps_of_torchvision_and_is_stronger_with_its_magnitude():
    images = make_images((8, 8, 3), 300)
    changes = []
    for magnitude in (0, 9, 30):
        augmentation = augmentation_of(f"randaugment{magnitude}")
        changed = augmentation.apply(images, augmentation.draw_fresh(300, 0, 0, 0))
        changes.append(float((changed.int() - images.int()).abs().double().mean()))
    assert changes[0] < changes[1] < changes[2]


@pytest.mark.parametrize("way", [{"restream": True}, {"views": 3}])
def test_draws_differ_by_seed_layer_and_epoch_and_are_the_same_again(way):
    augmentation = Augmentation(AugmentationConfig(transforms=read_transforms(ALL), **way))
    draw = augmentation.draw_fresh if "restream" in way else augmentation.draw_view
    drawn = [draw(100, *key) for key in ((1, 0, 0), (2, 0, 0), (1, 1, 0), (1, 0, 1))]
    assert torch.equal(drawn[0], draw(100, 1, 0, 0))
    assert not any(torch.equal(drawn[0], other) for other in drawn[1:])
    assert drawn[0].numel() * drawn[0].element_size() == 100 * augmentation.bytes_per_sample


@pytest.mark.parametrize("way", [{"augmentation.restream": True}, {"augmentation.views": 3}])
def test_a_transformed_run_resumes_with_the_same_bits(tmp_path, way):
    settings = {"network.layers": "conv8 conv8", "augmentation.transforms": "crop1 flip", "epochs": 3} | way
    config = ff.Config(recipe="conv", validation_fraction=0.1, seed=1, device="cpu").override(settings)
    whole = ff.train(config, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        ff.train(config, tmp_path / "cut", observer=InterruptAt("on_epoch", 3))
    resumed = ff.resume(tmp_path / "cut")
    check_resumed_equals(whole.path, resumed.path)
    plain = ff.train(config.override({"augmentation.transforms": "crop1"}), tmp_path / "plain")
    assert layer_digests(plain.path) != layer_digests(whole.path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("crop4 flip", ("crop4", "flip")), ("flip,cutout", ("flip", "cutout8")), (["RandAugment"], ("randaugment9",))],
)
def test_a_list_of_transforms_has_one_form(text, expected):
    assert read_transforms(text) == expected
    assert read_transforms(expected) == expected
    assert tuple(map(str, list_transforms(expected))) == expected


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ("corp4", "did you mean 'crop'"),
        ("flip2", "allowed flip, without a number"),
        ("crop0", "from 1 to"),
        ("randaugment31", "from 0 to 30"),
        ("crop4 crop2", "crop stands there 2 times"),
        (4, "allowed a text such as"),
        ([4], "allowed a text such as"),
    ],
)
def test_what_is_no_transform_is_refused_by_name(found, words):
    with pytest.raises(ff.ConfigError, match="augmentation.transforms") as refused:
        ff.Config().override({"augmentation.transforms": found})
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("transforms", "shape", "dtype", "words"),
    [
        ("crop8", (8, 6), torch.uint8, "a number up to 5"),
        ("cutout8", (8, 6), torch.uint8, "a number up to 7"),
        ("randaugment", (8, 6, 3), torch.float32, "allowed bytes"),
        ("randaugment", (8, 6, 2), torch.uint8, "2 channels"),
        ("flip", (48,), torch.uint8, "need images"),
    ],
)
def test_a_transform_that_the_images_cannot_have_is_refused(transforms, shape, dtype, words):
    settings = AugmentationConfig(restream=True, transforms=read_transforms(transforms))
    with pytest.raises(ff.ConfigError, match=words):
        check_augmentation(settings, shape, dtype)


def test_transforms_that_would_change_nothing_are_refused(tmp_path):
    code, _, error = run_cli("train", "--transforms", "crop1 flip", "--run-dir", tmp_path / "run")
    assert code == 1
    assert "add --restream" in str(error)
