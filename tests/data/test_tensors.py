"""Sequences of images: their members are looked at, as numpy drops masks and takes palettes for shades."""

from __future__ import annotations

import io
from collections import deque

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

import ffstream as ff
from ffstream.data import as_tensor
from ffstream.data.fit import fit_images
from ffstream.data.picture_file import read_picture


def arrays(digits):
    return (digits.train.images[:5] * 15).to(torch.uint8).numpy()


def mask(image):
    return np.ma.masked_array(image, mask=image > 100)


def reopen(image, suffix="png", **options):
    """A picture that Pillow has opened, and whose pixels are yet to be decoded."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, suffix, **options)
    return Image.open(file)


def turn(image, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return reopen(image, exif=exif)


def cut_short(image):
    file = io.BytesIO()
    Image.fromarray(np.kron(image, np.ones((40, 40), np.uint8))).save(file, "jpeg")
    return Image.open(io.BytesIO(file.getvalue()[: len(file.getvalue()) // 2]))


def deepen(image):
    return Image.open(io.BytesIO(b"P6 8 8 65535\n" + np.repeat(image, 3).astype(">u2").tobytes()))


REFUSED = {
    "to be turned": lambda image: turn(image, 6),
    "to be flipped": lambda image: turn(image, 2),
    "transparent": lambda image: reopen(image, transparency=0),
    "of several frames": lambda image: reopen(image, "tiff", save_all=True, append_images=[Image.fromarray(image)]),
    "cut short": cut_short,
    "of 16 bits and coloured": deepen,
    "pairs": lambda image: (image, 3),
    "masked": mask,
    "sparse": lambda image: torch.from_numpy(image).to_sparse(),
    "quantised": lambda image: torch.quantize_per_tensor(torch.from_numpy(image).float(), 1.0, 0, torch.quint8),
    "complex": lambda image: torch.from_numpy(image).to(torch.complex64),
    "of palettes": lambda image: Image.fromarray(image).convert("RGB").quantize(16),
    "of one bit": lambda image: Image.fromarray(image).convert("1"),
    "with alpha": lambda image: Image.fromarray(image).convert("LA"),
    "of 16 bits": lambda image: Image.fromarray(image.astype(np.uint16) * 257),
    "None": lambda image: None,
}


class Column:
    """A sequence that gives its members when it is asked for them, and is no list."""

    def __init__(self, members):
        self.members = list(members)

    def __len__(self):
        return len(self.members)

    def __getitem__(self, number):
        return self.members[number]


class ArrayOf:
    """An object that numpy takes for an array."""

    def __init__(self, values):
        self.values = values

    def __array__(self, dtype=None, copy=None):
        return self.values


WRAPPERS = [list, tuple, Column, deque, lambda members: [members], lambda members: deque([Column(members)])]


@pytest.mark.parametrize("wrap", WRAPPERS)
@pytest.mark.parametrize("name", REFUSED)
def test_a_list_is_refused_for_what_any_of_its_members_is(name, wrap, digits):
    images = list(arrays(digits))
    for members in ([*images[:4], REFUSED[name](images[4])], [REFUSED[name](image) for image in images]):
        with pytest.raises(ff.DataError, match="^images") as error:
            as_tensor(wrap(members), "images")
        assert "\n" not in str(error.value)


READ = {
    "arrays": lambda image: image,
    "tensors": torch.from_numpy,
    "tensors with gradients": lambda image: torch.from_numpy(image).float().requires_grad_(),
    "tensors of 16 bits": lambda image: torch.from_numpy(image).bfloat16(),
    "grey pictures": Image.fromarray,
    "opened pictures": reopen,
    "upright pictures": lambda image: turn(image, 1),
    "pictures that were turned": lambda image: ImageOps.exif_transpose(turn(np.rot90(image).copy(), 6)),
    "opaque pictures": lambda image: reopen(image, transparency=7),
    "single frames": lambda image: reopen(image, "tiff"),
    "masked arrays without a mask": np.ma.masked_array,
    "lists": lambda image: image.tolist(),
}


@pytest.mark.parametrize("name", READ)
def test_a_list_is_read_as_the_array_that_it_makes(name, digits):
    images = arrays(digits)
    for wrap in (list, tuple, deque, Column):
        found = as_tensor(wrap(READ[name](image) for image in images), "images")
        assert torch.equal(found.detach().float(), torch.from_numpy(images).float())


@pytest.mark.parametrize("name", ["to be turned", "transparent", "of several frames"])
def test_a_picture_is_refused_or_turned_alike_in_a_file_and_in_a_list(name, digits, tmp_path):
    picture = REFUSED[name](arrays(digits)[0])
    path = tmp_path / f"a.{picture.format.lower()}"
    path.write_bytes(picture.fp.getvalue())
    with pytest.raises(ff.DataError, match=r"^images\[0\]: found a picture"):
        as_tensor([picture], "images")
    if name == "to be turned":
        upright = ImageOps.exif_transpose(Image.open(path))
        assert np.array_equal(read_picture(path)[1], as_tensor([upright], "images")[0].numpy())
    else:
        with pytest.raises(ff.DataError, match="a.png|a.tiff"):
            read_picture(path)


@pytest.mark.parametrize("wrap", [ArrayOf, lambda values: [ArrayOf(each) for each in values]])
def test_an_object_that_is_an_array_keeps_its_mask(wrap, digits):
    images = arrays(digits)
    assert torch.equal(as_tensor(wrap(images), "images"), torch.from_numpy(images))
    with pytest.raises(ff.DataError, match="^images.*: holds values that are masked"):
        as_tensor(wrap(mask(images)), "images")


def test_each_member_of_a_sequence_is_read_once(digits):
    class Reading(Column):
        num_reads = 0

        def __getitem__(self, number):
            self.num_reads += number < len(self)
            return reopen(super().__getitem__(number))

    column = Reading(arrays(digits))
    assert torch.equal(as_tensor(column, "images"), torch.from_numpy(arrays(digits)))
    assert column.num_reads == len(column)


OTHER = {
    "a tuple of int and ndarray": lambda image: (image, 3),
    "a str": lambda image: "x",
    "a None": lambda image: None,
}


@pytest.mark.parametrize("name", OTHER)
def test_the_first_member_that_is_no_image_is_named(name, digits):
    images = list(arrays(digits))
    with pytest.raises(ff.DataError, match=rf"^images\[3\]: found {name}"):
        as_tensor([*images[:3], OTHER[name](images[3]), images[4]], "images")


def test_images_for_a_run_are_named_with_the_run_and_their_place(digits):
    with pytest.raises(ff.DataError, match=r"^run r: images\[3\]: found a picture that its EXIF data say to turn"):
        fit_images([*map(reopen, arrays(digits)[:3]), turn(arrays(digits)[3], 6)], (8, 8), "run r")


@pytest.mark.parametrize("make", [np.zeros, torch.zeros, lambda shape: np.zeros(shape).tolist()])
def test_the_first_member_of_another_shape_is_named(make):
    with pytest.raises(ff.DataError, match=r"images\[2\]: found .*3, 2.* allowed .*2, 3.* images\[0\]"):
        as_tensor([make((2, 3)), make((2, 3)), make((3, 2)), make((4, 2))], "images")
