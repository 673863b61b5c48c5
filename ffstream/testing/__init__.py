"""Checks to test a part of your own: that it computes what it should, and trains as the built-in parts do.

    import my_package.my_module  # which registers the goodness "mean_cubes"
    from ffstream.testing import check_goodness

    def test_mean_cubes():
        check_goodness("mean_cubes")

Each check takes the name under which the part is registered, and raises AssertionError with a sentence that says what
does not hold. Each also trains small networks on the digits that come with the package: with every tier of the cache,
in at most twice the planned memory, and with an interruption after which a new process goes on. All of these must give
the same weights. A check takes about ten seconds.

`settings` are the dotted settings that the part needs, such as {"negatives.per_step": 2}.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ffstream.data import SOURCES, load_dataset
from ffstream.data.shape import DataShape
from ffstream.device.workspace import Workspace
from ffstream.field.blueprint import Blueprint
from ffstream.field.goodness import GOODNESSES
from ffstream.field.labels import make_label_method
from ffstream.field.layers import LAYER_KINDS, Activations, Layer, LayerShape
from ffstream.field.negatives import NEGATIVE_SAMPLERS, InformedSampler
from ffstream.field.objectives import OBJECTIVES
from ffstream.field.optimisers import OPTIMISERS
from ffstream.field.parts import complete_parts, describe_parts
from ffstream.field.similarity import SIMILARITIES
from ffstream.ground.files import find_current
from ffstream.run.launch import train
from ffstream.run.preparation import make_plan
from ffstream.settings.config import Config
from ffstream.testing.claims import claim, same
from ffstream.testing.layer_runs import StopInLayer, check_coded_run, check_steps
from ffstream.testing.layers import (
    check_activation,
    check_handing_on,
    check_hiding,
    check_outline,
    check_places,
    check_summary,
    check_tile,
)
from ffstream.testing.learning import check_gradients, check_noise, check_observing, check_state, check_update

_NUM_ROWS, _NUM_UNITS = 6, 16
_TIERS = ("device", "host", "disk")
_STOPPED_LAYER = 2  # by then one layer is committed, and this one is under way

Settings = Mapping[str, Any]


def check_goodness(name: str, settings: Settings | None = None) -> None:
    """Check that its gradient is that of its value, and that parts add up if it says so; then train with it."""
    goodness = GOODNESSES.of(_make_config({"objective.goodness": name}, settings))
    generator = torch.Generator().manual_seed(0)
    activities = torch.randn(_NUM_ROWS, _NUM_UNITS, generator=generator).relu()
    upstream = torch.randn(_NUM_ROWS, generator=generator)
    value = goodness.value(activities.clone())
    claim(value.shape == (_NUM_ROWS,), f"value gives {tuple(value.shape)}, expected {(_NUM_ROWS,)}, one of each row")
    claim(bool(value.isfinite().all()), "value is not finite")
    same(goodness.value(activities[:2].clone()), value[:2], "value of two rows depends on the rows beside them")
    expected = _differentiate(goodness.value, activities, upstream)
    found = goodness.gradient(activities.clone(), upstream).expand_as(activities)
    same(found, expected, "gradient is not that of value")
    place = activities.clone()
    same(goodness.gradient(place, upstream, out=place), expected, "gradient with out, in place, is another one")
    if goodness.is_flat_at_zero:
        claim(bool((expected[activities == 0] == 0).all()), "is_flat_at_zero is set, but the gradient at 0 is not 0")
    if goodness.over_units is not None:
        parts = [goodness.weight(part.shape[1], _NUM_UNITS) * goodness.value(part) for part in activities.split(5, 1)]
        same(sum(parts, torch.zeros(_NUM_ROWS)), value, f"over_units is {goodness.over_units!r}, but parts do not add")
    _check_training({"objective.goodness": name}, settings)


def check_objective(name: str, settings: Settings | None = None) -> None:
    """Check that its gradient is that of its loss; then train with it."""
    objective = OBJECTIVES.of(_make_config({"objective.name": name}, settings))
    for num_negatives in (1, 3):
        logits = torch.randn(_NUM_ROWS, 1 + num_negatives, generator=torch.Generator().manual_seed(num_negatives))
        loss, gradient = objective.loss_and_gradient(logits.clone())
        claim(loss.shape == (_NUM_ROWS,), f"loss gives {tuple(loss.shape)}, expected {(_NUM_ROWS,)}, one of each row")
        same(objective.loss(logits[:2].clone()), loss[:2], "loss of two rows depends on the rows beside them")
        same(loss, objective.loss(logits.clone()), "loss_and_gradient gives another loss than loss")
        expected = _differentiate(objective.loss, logits, torch.ones(_NUM_ROWS))
        same(gradient, expected, "loss_and_gradient gives another gradient than that of loss")
    _check_training({"objective.name": name}, settings)


def check_similarity(name: str, settings: Settings | None = None) -> None:
    """Check that its gradient is that of its term; then train with it."""
    similarity = SIMILARITIES.of(_make_config({"objective.similarity": name}, settings))
    generator = torch.Generator().manual_seed(0)
    cosines = torch.rand(2, _NUM_ROWS, _NUM_ROWS, generator=generator) * 1.6 - 0.8
    labels = torch.randint(0, 2, (2, _NUM_ROWS), generator=generator)
    alike = (labels.unsqueeze(2) == labels.unsqueeze(1)).float()
    alike.diagonal(dim1=1, dim2=2).zero_()
    term, gradient = similarity(cosines.clone(), alike.clone())
    claim(term.shape == (2, _NUM_ROWS), f"the term has shape {tuple(term.shape)}, expected {(2, _NUM_ROWS)}")
    step, turned = 1e-3, torch.randn(cosines.shape, generator=generator)
    turned.diagonal(dim1=1, dim2=2).zero_()
    above, below = (similarity(cosines + sign * step * turned, alike.clone())[0].sum() for sign in (1, -1))
    slope = (gradient * turned).sum()
    claim(
        bool((slope - (above - below) / (2 * step)).abs() < 1e-2 * (1 + slope.abs())),
        "gradient is not that of the term",
    )
    _check_training({"objective.similarity": name}, settings)


def check_negative_sampler(name: str, settings: Settings | None = None) -> None:
    """Check that it draws distinct wrong labels, by its generator alone; then train with it."""
    config, num_classes = _make_config({"negatives.sampler": name}, settings), 10
    sampler, num_negatives = NEGATIVE_SAMPLERS.of(config), config.negatives.per_step
    labels = torch.arange(200) % num_classes
    first, again = (
        sampler(labels.clone(), num_classes, num_negatives, torch.Generator().manual_seed(5)) for _ in range(2)
    )
    shape = (len(labels), num_negatives)
    is_shaped = first.shape == shape and first.dtype == torch.int64
    claim(is_shaped, f"gives {first.dtype} {tuple(first.shape)}, expected torch.int64 {shape}")
    claim(torch.equal(first, again), "draws other labels from the same generator")
    claim(bool(((first >= 0) & (first < num_classes)).all()), f"draws labels outside 0 to {num_classes - 1}")
    claim(not bool((first == labels.unsqueeze(1)).any()), "draws the true label")
    _check_distinct(first)
    if isinstance(sampler, InformedSampler):
        logits = torch.randn(len(labels), num_classes, generator=torch.Generator().manual_seed(6))
        logits[torch.arange(len(labels)), labels] = -torch.inf
        noise = sampler.draw_noise(len(labels), num_classes, torch.Generator().manual_seed(7))
        chosen = sampler.choose(logits.clone(), noise, num_negatives)
        claim(bool(logits.gather(1, chosen).isfinite().all()), "choose takes what may not be chosen")
        _check_distinct(chosen)
    _check_training({"negatives.sampler": name}, settings)


def check_layer(name: str, settings: Settings | None = None) -> None:
    """Check a layer kind, then train with it.

    Each row has to be computed independently of other rows. Gradients have to be those of preactivations; a kind
    without gradients has to learn by its parameters, its buffers and its generator alone. Noise has to be in the modes
    that the kind names, and in no other. The tiles of a tileable kind have to make up the whole layer. Steps have to
    take the memory that is planned, or declared, and an epoch that is gone on with has to end with the same bits.
    """
    own: dict[str, Any] = {"network.kind": name}
    found_kind = LAYER_KINDS[name]
    if not (found_kind.has_gradients and found_kind.has_input_gradient):
        own["objective.perturbation"] = 0.0  # as rows cannot be moved
    config = _make_config(own, settings)
    kind = LAYER_KINDS.of(config)
    layer = _make_layer(kind, config)
    num_units = kind.units_of(layer.shape).num_features
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(_NUM_ROWS, layer.in_features, generator=generator)
    gradient = torch.randn(_NUM_ROWS, num_units, generator=generator)
    with torch.no_grad():
        found = layer.preactivations(rows).clone()
        claim(found.shape == (_NUM_ROWS, num_units), f"preactivations have shape {tuple(found.shape)}")
        claim(found.dtype == torch.float32, f"preactivations are {found.dtype}, expected torch.float32")
        claim(bool(found.isfinite().all()), "preactivations are not finite")
        same(layer.preactivations(rows[:2]), found[:2], "preactivations of two rows depend on the rows beside them")
        again = _make_layer(kind, config)
        for key, tensor in layer.state_dict().items():
            claim(torch.equal(tensor, again.state_dict()[key]), f"initialise fills {key} by more than its generator")
    check_state(layer)
    check_noise(layer, rows)
    if layer.has_gradients:
        check_gradients(layer, rows, gradient)
    else:
        check_observing(layer, rows, gradient)
    if layer.owns_update:
        check_update(layer, partial(_make_layer, kind, config))
    check_activation(layer, found, gradient)
    check_summary(layer, found, generator)
    check_outline(layer, found, generator)
    check_places(layer, gradient)
    check_handing_on(layer, found)
    check_hiding(_make_layer(kind, config), rows)
    if kind.tileable and kind.can_be_cut(layer.shape.options) and layer.shape.head_layers == 1:
        check_tile(layer, kind, rows, found)
    check_steps(config)
    _check_training(own, settings)
    check_coded_run(config, _STOPPED_LAYER)


def check_optimiser(name: str, settings: Settings | None = None) -> None:
    """Check that it updates some rows of a parameter at a time as it does all at once, in place; then train with it."""
    whole_config = _make_config({"optimiser.name": name}, settings)
    optimiser, config = OPTIMISERS.of(whole_config), whole_config.optimiser
    names = optimiser.state_names
    claim(len(set(names)) == len(names), f"state_names are {names}, expected names that differ")
    claim(set(optimiser.slow_names) <= set(names), f"slow_names are {optimiser.slow_names}, expected some of {names}")
    generator = torch.Generator().manual_seed(0)
    parameter = torch.randn(_NUM_ROWS, _NUM_UNITS, generator=generator)
    gradients = torch.randn(3, _NUM_ROWS, _NUM_UNITS, generator=generator)

    def take_steps(parts: list[slice]) -> list[Tensor]:
        own, state = parameter.clone(), [torch.zeros_like(parameter) for _ in names]
        for step, gradient in enumerate(gradients):
            for part in parts:
                num_steps, given = torch.tensor(float(step)), gradient[part].clone()
                optimiser.update_(own[part], given, [each[part] for each in state], num_steps, 0.01, config)
                claim(float(num_steps) == step, "update_ counts num_steps up, which is left as it is")
        return [own, *state]

    whole = take_steps([slice(None)])
    claim(all(bool(tensor.isfinite().all()) for tensor in whole), "update_ gives what is not finite")
    claim(not torch.equal(whole[0], parameter), "update_ leaves the parameter as it is")
    for found, expected in zip(take_steps([slice(0, 2), slice(2, None)]), whole, strict=True):
        same(found, expected, "update_ of some rows depends on the rows beside them")
    _check_training({"optimiser.name": name}, settings)


def check_label_method(name: str, settings: Settings | None = None) -> None:
    """Check that its rows, candidates and gradients agree with a sweep of all labels; then train with it."""
    config = _make_config({"labels.method": name}, settings)
    blueprint = Blueprint.of(config.override({"cache.shard_samples": 512}), DataShape(64, 10, {}, (8, 8)))
    rows, candidates, reading = blueprint.method.rows, blueprint.method.candidates, blueprint.method.reading
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(_NUM_ROWS) % 10
    images = torch.rand(_NUM_ROWS, 64, generator=generator)
    mixed = torch.rand(_NUM_ROWS, rows.num_training_rows, 64, generator=generator) if rows.mixes_samples else images
    block = rows.training_rows(mixed, labels, generator)
    for words, found, num_rows in (
        ("training_rows", block, rows.num_training_rows),
        ("sweep_rows", rows.sweep_rows(images), rows.num_sweep_rows),
        ("neutral_rows", rows.neutral_rows(images), 1),
    ):
        expected = (_NUM_ROWS, num_rows, 64)
        claim(found.shape == expected, f"{words} have shape {tuple(found.shape)}, expected {expected}")
    first, again = (candidates.draw(labels, torch.Generator().manual_seed(5)) for _ in range(2))
    is_shaped = first.shape == (_NUM_ROWS, candidates.num_candidates) and first.dtype == torch.int64
    claim(is_shaped, f"draw gives {first.dtype} {tuple(first.shape)}")
    claim(torch.equal(first, again), "draw gives other candidates from the same generator")
    claim(bool(((first >= 0) & (first < candidates.num_values)).all()), "draw gives more values than num_values")
    _check_distinct(first)
    layer = blueprint.build_layer(blueprint.specs[0])
    upstream = torch.randn(first.shape, generator=generator)
    with torch.enable_grad():  # through a sweep of the training rows, from which the candidates are taken
        every = layer.preactivations(block.flatten(0, 1)).detach().requires_grad_()
        swept = reading.sweep(layer, blueprint.goodness, every, _NUM_ROWS)
        expected_goodness = swept.gather(1, first)
        (expected_gradient,) = torch.autograd.grad(expected_goodness, every, upstream)
    room = layer.workspace = Workspace(torch.device("cpu"))
    with torch.no_grad():
        shown = candidates.select(block, torch.arange(_NUM_ROWS), first, room)
        activities = reading.activities(layer, layer.preactivations(shown).clone(), first, room)
        found = reading.measure(layer, blueprint.goodness, activities, first)
        same(found, expected_goodness.detach(), "measure gives another goodness than sweep")
        gradient, _ = reading.differentiate(layer, blueprint.goodness, activities, first, upstream, None, room)
    if not candidates.shares_row:
        place = torch.arange(_NUM_ROWS).unsqueeze(1) * rows.num_training_rows + first
        expected_gradient = expected_gradient[place.t().flatten()]
    same(gradient, expected_gradient, "differentiate gives another gradient than that of sweep")
    _check_training({"labels.method": name}, settings)


def check_source(name: str, settings: Settings | None = None) -> None:
    """Check that it gives the same data each time; then train on them."""
    SOURCES[name]
    first, again = (load_dataset(name) for _ in range(2))
    claim(torch.equal(first.train.images[:], again.train.images[:]), "gives other images the second time")
    claim(torch.equal(first.train.labels, again.train.labels), "gives other labels the second time")
    _check_training({"data": name}, settings)


def _make_layer(kind: type[Layer], config: Config) -> Layer:
    options = LAYER_KINDS.make_settings(*config.part("network.kind"))
    num_in_head = config.labels.head_layers if kind.takes_head else 1
    num_groups = make_label_method(config, DataShape(64, 10, {}, (8, 8))).reading.num_groups
    shape = LayerShape(
        Activations.of_image(64, (8, 8)),
        config.width,
        options=options,
        head_layers=num_in_head,
        num_groups=num_groups,
    )
    layer = kind(shape)
    layer.initialise(torch.Generator().manual_seed(0))
    return layer


def _differentiate(function: Callable[[Tensor], Tensor], values: Tensor, upstream: Tensor) -> Tensor:
    with torch.enable_grad():
        leaf = values.clone().requires_grad_()
        (found,) = torch.autograd.grad(function(leaf), leaf, upstream)
    return found


def _check_distinct(labels: Tensor) -> None:
    ordered = labels.sort(dim=1).values
    claim(not bool((ordered[:, 1:] == ordered[:, :-1]).any()), "draws one label twice for a sample")


_RESUME = "import ffstream, sys; run = ffstream.resume(sys.argv[1]); print(run.evaluate().error)"


def _make_config(own: Settings, settings: Settings | None) -> Config:
    plain: dict[str, Any] = {"layers": 3, "width": 48, "epochs": 2, "batch": 512, "device": "cpu", "precision": "fp32"}
    plain["cache.shard_samples"] = 512  # decides bits, and a plan may choose other sizes for other tiers
    return complete_parts(Config.from_mapping(plain | dict(own) | dict(settings or {})))


def _check_training(own: Settings, settings: Settings | None) -> None:
    """Train with each cache tier within a budget, and with an interruption after which a new process goes on."""
    config = _make_config(own, settings)
    planned_bytes = make_plan(config).device.num_bytes
    modules = [part["module"] for part in describe_parts(config).values()]
    claim("__main__" not in modules, "is registered by a script; move it to a module that others can import")
    with tempfile.TemporaryDirectory() as folder:
        weights = {}
        for tier in _TIERS:
            bound = {"cache.tier": tier, "memory.budget": f"{2 * planned_bytes}B"}  # with it, steps are tried
            run = train(config.override(bound), Path(folder) / tier)
            weights[tier] = _digest_weights(run.path)
            claim(weights[tier] == weights[_TIERS[0]], f"a cache on {tier} trains other weights than on {_TIERS[0]}")
        error = run.evaluate().error
        path = Path(folder) / "stopped"
        with contextlib.suppress(KeyboardInterrupt):
            train(config, path, observer=StopInLayer(_STOPPED_LAYER))
        places = [entry or str(find_current() or "") for entry in sys.path]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, places))}
        command = [sys.executable, "-c", _RESUME, str(path)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        claim(done.returncode == 0, f"a new process cannot go on with its run: {done.stderr.strip()[-500:]}")
        claim(_digest_weights(path) == weights[_TIERS[0]], "an interrupted run ends with other weights")
        claim(float(done.stdout) == error, f"a new process evaluates to {done.stdout.strip()}, this one to {error}")


def _digest_weights(path: Path) -> list[str]:
    return [
        hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted((path / "layers").rglob("weights.safetensors"))
    ]
