"""Lists of images: what their members are is looked at, as numpy drops masks and takes palettes for shades."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import ffstream as ff
from ffstream.data import as_tensor


def arrays(digits):
    return (digits.train.images[:5] * 15).to(torch.uint8).numpy()


def mask(image):
    return np.ma.masked_array(image, mask=image > 100)


REFUSED = {
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


@pytest.mark.parametrize("wrap", [list, tuple, lambda members: [members], lambda members: [*members[:4], members[4]]])
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
    "masked arrays without a mask": np.ma.masked_array,
    "lists": lambda image: image.tolist(),
}


@pytest.mark.parametrize("name", READ)
def test_a_list_is_read_as_the_array_that_it_makes(name, digits):
    images = arrays(digits)
    for wrap in (list, tuple):
        found = as_tensor(wrap(READ[name](image) for image in images), "images")
        assert torch.equal(found.detach().float(), torch.from_numpy(images).float())


def test_tensors_of_several_shapes_are_refused():
    with pytest.raises(ff.DataError, match="images: found a list of tensors of shapes .*2, 3.* and .*3, 2"):
        as_tensor([torch.zeros(2, 3), torch.zeros(3, 2)], "images")
