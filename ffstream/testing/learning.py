"""What each layer kind must fulfil while it learns: gradients, or what it observes instead; noise; its own update."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from ffstream.field.layers import Layer, Mode
from ffstream.testing.claims import claim, same


def check_noise(layer: Layer, rows: Tensor) -> None:
    """Check that preactivations are random in the modes that the kind names and no other, by its generator alone."""
    with torch.no_grad():
        for mode in Mode:
            found = []
            for place in ("first", "first", "second"):
                layer.begin(mode, place=place)
                found.append(layer.preactivations(rows).clone())
            layer.rewind()
            found.append(layer.preactivations(rows).clone())
            is_same = torch.equal(found[0], found[1]) and torch.equal(found[2], found[3])
            claim(is_same, f"preactivations are random while {mode.value}, by more than the layer's generator")
            if mode in layer.noisy_modes:
                claim(not torch.equal(found[0], found[2]), f"noisy_modes has {mode}, but there is no noise while it is")
    layer.begin(Mode.HANDING_ON)
    layer.generator = None


def check_gradients(layer: Layer, rows: Tensor, gradient: Tensor) -> None:
    """Check gradients against those of autograd, with the noise of training, and that those of parts add up."""
    layer.begin(Mode.TRAINING)
    expected = _differentiate(layer, rows, gradient)
    for key, found in _gather(layer, lambda: layer.gradients(rows.clone(), gradient.clone())).items():
        claim(key in expected, f"gradients yields {key!r}, allowed: {', '.join(expected)}")
        same(found, expected.pop(key), f"gradients of {key} are not those of preactivations")
    claim(not any(bool(value.any()) for value in expected.values()), f"gradients leaves out {', '.join(expected)}")
    if layer.has_input_gradient:
        whole = torch.zeros_like(rows)
        for features, values in layer.input_gradients(rows.clone(), gradient.clone()):
            whole[:, features] = values
        layer.rewind()
        expected_of_rows = torch.autograd.functional.vjp(layer.preactivations, rows, gradient)[1]
        same(whole, expected_of_rows, "input_gradients are not those of preactivations")
    layer.generator = None  # without noise, which is another one for parts
    whole_batch = _gather(layer, lambda: layer.gradients(rows.clone(), gradient.clone()))
    halves = [
        _gather(layer, lambda part=part: layer.gradients(rows[part].clone(), gradient[part].clone()))  # type: ignore[misc]
        for part in (slice(0, 2), slice(2, None))
    ]
    for key, value in whole_batch.items():
        same(halves[0][key] + halves[1][key], value, f"gradients of {key} of parts of a batch do not add up")


def check_observing(layer: Layer, rows: Tensor, gradient: Tensor) -> None:
    """Check what a kind without gradients yields: numbers for its parameters, by its generator; these do not change."""

    def loss_of(preactivations: Tensor) -> Tensor:
        return (preactivations * gradient).sum(dim=1)

    def observe() -> dict[str, Tensor]:
        layer.begin(Mode.TRAINING)
        layer.preactivations(rows)
        return _gather(layer, lambda: layer.observe(rows.clone(), gradient.clone(), loss_of))

    before = {key: value.clone() for key, value in layer.state_dict().items()}
    with torch.no_grad():
        first, again = observe(), observe()
    claim(bool(first), "observe yields nothing to learn by")
    for key, value in first.items():
        claim(torch.equal(value, again[key]), f"observe yields other numbers of {key} from the same generator")
        claim(bool(value.isfinite().all()), f"observe yields numbers of {key} that are not finite")
    for key, value in layer.state_dict().items():
        claim(torch.equal(value, before[key]), f"observe leaves {key} changed")
    layer.generator = None


def check_update(layer: Layer, make: Callable[[], Layer]) -> None:
    """Check that `update_` changes the layer by what is in its parameters, its buffers and its generator alone.

    `make` makes a layer of the same shape, as a process does that resumes.
    """
    observed = {
        name: torch.randn(layer.get_parameter(name).shape, generator=torch.Generator().manual_seed(2))
        for name in layer.list_inner()
    }

    def take_step(layer: Layer, place: str) -> dict[str, Tensor]:
        layer.begin(Mode.TRAINING, place=place)
        for name, value in observed.items():
            layer.update_(name, slice(None), value.clone(), 1.0)
        layer.generator = None
        return {key: value.clone() for key, value in layer.state_dict().items()}

    with torch.no_grad():
        before = {key: value.clone() for key, value in layer.state_dict().items()}
        after = take_step(layer, "first")
        claim(any(not torch.equal(value, before[key]) for key, value in after.items()), "update_ changes nothing")
        resumed = make()
        resumed.load_state_dict(after)
        wanted, found = take_step(layer, "second"), take_step(resumed, "second")
        for key, value in wanted.items():
            claim(
                torch.equal(value, found[key]),
                f"update_ changes {key} by more than is saved, which is parameters, buffers and the generator's place",
            )
        layer.load_state_dict(before)


def check_state(layer: Layer) -> None:
    """Check that what is saved of a layer is in float32, as files of runs and of exported networks hold it."""
    for key, value in layer.state_dict().items():
        claim(value.dtype == torch.float32, f"{key} is {value.dtype}, expected torch.float32")


def _differentiate(layer: Layer, rows: Tensor, gradient: Tensor) -> dict[str, Tensor]:
    """The gradients of autograd, by the name of each parameter on which preactivations depend."""
    names = layer.list_inner()
    layer.rewind()
    with torch.enable_grad():
        preactivations = layer.preactivations(rows.clone())
        found = torch.autograd.grad(preactivations, [layer.get_parameter(name) for name in names], gradient)
    return dict(zip(names, found, strict=True))


def _gather(layer: Layer, yielding: Callable[[], Iterable[tuple[str, slice, Tensor]]]) -> dict[str, Tensor]:
    """What is yielded in parts, as whole parameters."""
    whole: dict[str, Tensor] = {}
    for name, part, values in yielding():
        claim(name in layer.list_inner(), f"yields {name!r}, allowed: {', '.join(layer.list_inner())}")
        room = whole.setdefault(name, torch.zeros(layer.get_parameter(name).shape))
        claim(room[part].shape == values.shape, f"yields {tuple(values.shape)} for {name}, not its shape")
        room[part] = values
    return whole
