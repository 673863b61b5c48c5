"""What each layer kind must fulfil, one property at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from ffstream.device.workspace import Workspace
from ffstream.errors import ConfigError
from ffstream.field.layers import Layer
from ffstream.testing.claims import claim, same


def check_activation(layer: Layer, preactivations: Tensor, gradient: Tensor) -> None:
    """Check the activation in place, and the gradient through it."""
    activities = layer.activate(preactivations.clone())
    same(layer.activate_(preactivations.clone()), activities, "activate_ is not activate")
    expected = torch.autograd.functional.vjp(layer.activate, preactivations, gradient)[1]
    found = layer.through_activation_(activities.clone(), gradient.clone())
    same(found, expected, "through_activation_ is not the gradient of activate")


def check_summary(layer: Layer, preactivations: Tensor, generator: torch.Generator) -> None:
    """Check the shape of a summary, and the gradient through it and the activation."""
    activities = layer.activate(preactivations.clone())
    summary, *kept = layer.summarise(activities, keep=True)
    expected_shape = (len(activities), layer.num_summarised)
    claim(summary.shape == expected_shape, f"summarise gives {tuple(summary.shape)}, expected {expected_shape}")
    upstream = torch.randn(summary.shape, generator=generator)
    expected = torch.autograd.functional.vjp(
        lambda given: layer.summarise(layer.activate(given))[0], preactivations, upstream
    )[1]
    found, of_head = layer.through_summary_(activities.clone(), upstream, kept)
    same(found, expected, "through_summary_ is not the gradient of summarise and activate")
    claim(of_head.keys() == layer.summary_names, f"through_summary_ gives {[*of_head]}, not summary_names")
    names = sorted(layer.summary_names)
    if names:
        with torch.enable_grad():
            again = layer.summarise(activities.clone())[0]
            wanted = torch.autograd.grad(again, [layer.get_parameter(name) for name in names], upstream)
        for name, value in zip(names, wanted, strict=True):
            same(of_head[name], value, f"through_summary_ gives another gradient of {name} than autograd")


def check_outline(layer: Layer, preactivations: Tensor, generator: torch.Generator) -> None:
    """Check that a similarity compares rows by what each has by itself, and the gradient through that."""
    activities = layer.activate(preactivations.clone())
    outline, *kept = layer.outline(activities.clone())
    same(layer.outline(activities[:2])[0], outline[:2], "the outline of two rows depends on the rows beside them")
    upstream = torch.randn(outline.shape, generator=generator)
    expected = torch.autograd.functional.vjp(
        lambda given: layer.outline(layer.activate(given))[0], preactivations, upstream
    )[1]
    found = layer.through_outline_(activities, upstream, kept)
    same(found, expected, "through_outline_ is not the gradient of outline and activate")


def check_places(layer: Layer, by_unit: Tensor) -> None:
    """Check that numbers by width are spread over places, and that `collect` is the gradient of that."""
    by_width = torch.arange(2.0 * layer.width).view(2, layer.width)
    spread = layer.spread(by_width)
    claim(spread.shape == (2, layer.num_units), f"spread gives {tuple(spread.shape)}, expected one number per unit")
    expected = torch.autograd.functional.vjp(layer.spread, by_width[:1].repeat(len(by_unit), 1), by_unit)[1]
    same(layer.collect(by_unit), expected, "collect is not the gradient of spread")


def check_handing_on(layer: Layer, preactivations: Tensor) -> None:
    """Check what is handed on, row by row, in place and not."""
    expected = (len(preactivations), layer.handed_on_by(layer.shape).num_features)
    with torch.no_grad():
        if layer.has_statistics:
            statistics = layer.statistics_of(preactivations.clone()).double()
            parts = (layer.statistics_of(part.clone()).double() for part in preactivations.split(2))
            same(sum(parts, torch.zeros(())), statistics, "statistics_of parts of the rows do not add up")
            layer.settle(statistics)
        found = layer.hand_on(preactivations.clone())
        claim(found.shape == expected, f"hand_on gives {tuple(found.shape)}, expected {expected}")
        claim(bool(found.isfinite().all()), "hand_on gives what is not finite")
        same(layer.hand_on(preactivations[:2].clone()), found[:2], "what is handed on depends on the rows beside it")
        layer.workspace = Workspace(preactivations.device)
        same(layer.hand_on(preactivations.clone()), found, "hand_on gives something else with a workspace")
        layer.workspace = None


def check_hiding(layer: Layer, rows: Tensor) -> None:
    """Check that preactivations do not depend on hidden features, if the kind can hide any."""
    hidden = torch.arange(layer.in_features) % 3 == 0
    try:
        layer.hide(hidden)
    except ConfigError:  # a kind may say that it cannot
        return
    with torch.no_grad():
        whole = layer.preactivations(rows).clone()
        without = layer.preactivations(rows.masked_fill(hidden, 0.0))
    same(without, whole, "hide leaves features in: preactivations depend on them")


def check_tile(layer: Layer, kind: type[Layer], rows: Tensor, whole: Tensor) -> None:
    """Check that units 2 to 6 by themselves compute what they do in the whole layer."""
    tile = kind(layer.shape.cut(slice(2, 7)))
    units = torch.arange(2, 7)
    tile.load_state_dict(
        {key: tensor.index_select(kind.unit_axis(key), units) for key, tensor in layer.state_dict().items()}
    )
    expected = whole.unflatten(1, (-1, layer.width))[:, :, 2:7].flatten(1)
    with torch.no_grad():
        same(tile.preactivations(rows), expected, "is tileable, but some units by themselves compute otherwise")
