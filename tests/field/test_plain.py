"""Layers made of modules of torch's own compute what they did before, and hold nothing twice."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ffstream.field.layers import Activations, Block, BlockOptions, Conv, ConvOptions, LayerShape, Linear, Local

IMAGES = Activations.of_image(2 * 9 * 8, (2, 9, 8))
SHAPES = {
    Linear: LayerShape(IMAGES, 12),
    Local: LayerShape(IMAGES, 144),
    Conv: LayerShape(IMAGES, 6, options=ConvOptions(kernel=5, stride=2, groups=2, pool=2), head_layers=3),
    Block: LayerShape(IMAGES, 6, options=BlockOptions(layers=3, stride=2, groups=2, pool=2), head_layers=2),
}


class Halved(Linear):
    """A kind that multiplies by itself."""

    def preactivations(self, rows):
        return rows @ self.weight.t() / 2


def make_layer(kind, dtype=torch.float32, shape=None):
    layer = kind(shape or SHAPES[kind], dtype)
    generator = torch.Generator().manual_seed(0)
    layer.initialise(generator)
    with torch.no_grad():
        layer.bias.normal_(generator=generator)
        for name in layer.summary_names:
            layer.get_parameter(name).add_(torch.rand(layer.get_parameter(name).shape, generator=generator))
    return layer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", SHAPES)
def test_it_computes_what_it_did(kind, dtype):
    layer, rows = (
        make_layer(kind, dtype),
        torch.rand(7, IMAGES.num_features, generator=torch.Generator().manual_seed(1)),
    )
    num_parameters = sum(parameter.numel() for parameter in layer.parameters())
    with torch.no_grad():
        made = layer(rows)
        read, handed_on = layer.summarise(layer.activate(made))[0], layer.hand_on(made)
        layer.make_plain()
        found = layer(rows)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, made)
        torch.testing.assert_close(layer.hand_on(made), handed_on)
        torch.testing.assert_close(layer.summarise(layer.activate(made))[0], read, rtol=1e-2, atol=1e-2)
    assert sum(parameter.numel() for parameter in layer.parameters()) == num_parameters
    places = [(each.untyped_storage().data_ptr(), each.storage_offset()) for each in layer.parameters()]
    assert len({storage for storage, _ in places}) == len(places)


def test_a_kind_that_multiplies_by_itself_keeps_its_weights():
    layer, rows = make_layer(Halved, shape=SHAPES[Linear]), torch.rand(3, IMAGES.num_features)
    before = layer(rows)
    layer.make_plain()
    assert torch.equal(layer(rows), before)
    assert not any(isinstance(module, nn.Linear) for module in layer.modules())


def test_modules_are_made_without_drawing_random_numbers():
    before = torch.get_rng_state()
    for kind in SHAPES:
        make_layer(kind).make_plain()
    assert torch.equal(torch.get_rng_state(), before)
