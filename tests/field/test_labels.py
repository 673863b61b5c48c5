"""Label injection and label overlay: which rows, which candidates, which gradient."""

from __future__ import annotations

import itertools

import pytest
import torch

import ffstream as ff
from ffstream.data.shape import DataShape
from ffstream.device.workspace import Workspace
from ffstream.field.goodness import GOODNESSES
from ffstream.field.labels import make_label_method
from tests.helpers import describe

NUM_CLASSES, NUM_FEATURES, NUM_SAMPLES = 5, 12, 8
METHODS = {
    "injection": {},
    "overlay": {"labels.method": "overlay"},
    "overlay of two": {"labels.method": "overlay", "negatives.per_sample": 2, "negatives.per_step": 2},
    "groups": {"labels.method": "groups"},
    "groups of one unit": {"labels.method": "groups", "width": 5},
    "classifier": {"labels.method": "classifier", "objective.goodness": "mean"},
}
READ = ["groups", "groups of one unit", "classifier"]  # candidates are all labels


def workspace():
    return Workspace(torch.device("cpu"))


def make(name, **settings):
    shape = {"width": 7, "precision": "fp32", "negatives.per_step": 2}
    config = ff.Config().override(shape | METHODS[name] | settings)
    blueprint = describe(config, NUM_FEATURES, NUM_CLASSES)
    return blueprint.method, blueprint.build_layer(blueprint.specs[0])


def draw(seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(NUM_SAMPLES, NUM_FEATURES, generator=generator)
    return images, torch.randint(0, NUM_CLASSES, (NUM_SAMPLES,), generator=generator), generator


@pytest.mark.parametrize("name", METHODS)
def test_rows_have_the_promised_number_and_unit_rms(name):
    method, _ = make(name)
    images, labels, generator = draw()
    made = {
        method.rows.num_training_rows: method.rows.training_rows(images, labels, generator),
        method.rows.num_sweep_rows: method.rows.sweep_rows(images),
        1: method.rows.neutral_rows(images),
    }
    for num_rows, rows in made.items():
        assert rows.shape == (NUM_SAMPLES, num_rows, NUM_FEATURES)
        torch.testing.assert_close(rows.square().mean(-1), torch.ones(NUM_SAMPLES, num_rows), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["overlay", "overlay of two"])
def test_overlay_candidates_show_the_true_label_first_and_then_wrong_ones(name):
    method, _ = make(name)
    images, labels, generator = draw()
    rows = method.rows.training_rows(images, labels, generator)
    candidates = method.candidates.draw(labels, generator)
    index = torch.tensor([5, 0, 3])
    chosen = method.candidates.select(rows, index, candidates[index], workspace()).view(3, len(index), NUM_FEATURES)
    shown = chosen[:, :, :NUM_CLASSES]
    assert ((shown > 0).sum(-1) == 1).all()
    shown_labels = shown.argmax(-1)
    assert torch.equal(shown_labels[0], labels[index])
    assert (shown_labels[1:] != labels[index]).all()
    assert (shown_labels[1] != shown_labels[2]).all()


@pytest.mark.parametrize(
    ("changes", "num_in_pool"),
    [
        ({"negatives.pool": 2}, 2),
        ({"negatives.pool": 2, "negatives.per_step": 3}, 3),  # no fewer than are chosen
        ({"negatives.pool": 2, "negatives.per_sample": 3}, 2),
        ({"negatives.pool": 4}, None),
        ({"negatives.pool": 3, "negatives.per_sample": 3}, None),
        ({}, None),
    ],
)
def test_negatives_are_chosen_from_a_pool_of_distinct_wrong_labels(changes, num_in_pool):
    config = ff.Config().override({"labels.method": "overlay"} | changes)
    method = make_label_method(config, DataShape(12, 5))
    labels = torch.arange(400) % 5
    pool = method.candidates.draw_pool(labels, torch.Generator().manual_seed(0))
    assert method.candidates.num_in_pool == num_in_pool
    if num_in_pool is None:
        assert pool is None
        assert method.candidates.num_choices == method.rows.num_training_rows
        return
    assert method.candidates.num_choices == pool.shape[1] == num_in_pool
    assert all(len(set(row)) == num_in_pool for row in pool.tolist())
    positives = method.candidates.draw(labels, torch.Generator())[:, :1]
    assert (pool != positives).all()
    assert (pool < method.rows.num_training_rows).all()
    assert pool[positives.squeeze(1) == 0].unique().tolist() == list(range(1, method.rows.num_training_rows))


def test_overlay_leaves_the_other_features_in_proportion():
    method, _ = make("overlay")
    images, _, _ = draw()
    rest = method.rows.sweep_rows(images)[:, :, NUM_CLASSES:]
    ratio = rest / images[:, None, NUM_CLASSES:]
    torch.testing.assert_close(ratio, ratio[:, :, :1].expand_as(ratio))


def spell_out(name, layer, goodness, preactivations, candidates):
    """Goodness of each candidate, (n, 1 + K), by the definition of each method; differentiable."""
    columns = candidates.unbind(1)
    if name == "injection":
        hidden = [torch.relu(preactivations + layer.label_embedding[column]) for column in columns]
        return torch.stack([goodness.value(h) for h in hidden], dim=1)
    if name.startswith("overlay"):
        return torch.stack([goodness.value(torch.relu(part)) for part in preactivations.chunk(len(columns))], dim=1)
    h = torch.relu(preactivations)
    if name == "classifier":
        by_label = [goodness.value(h * row) for row in layer.label_embedding]
    else:
        groups = [h[:, (label - layer.first_unit) % NUM_CLASSES :: NUM_CLASSES] for label in range(NUM_CLASSES)]
        share = layer.num_units / NUM_CLASSES
        by_label = [
            goodness.value(group) * goodness.weight(group.shape[1], share) if group.shape[1] else torch.zeros(len(h))
            for group in groups
        ]
    return torch.stack(by_label, dim=1).gather(1, candidates)


@pytest.mark.parametrize(
    ("name", "goodness_name"),
    [
        (name, goodness)
        for name in METHODS
        for goodness in (["sum_squares", "neg_mean_squares"] if name != "classifier" else []) + ["sum", "mean"]
    ],
)
@pytest.mark.parametrize(("first_unit", "num_units"), [(0, 7), (0, 10), (3, 12), (5, 4), (6, 1)])
def test_goodness_and_gradients_are_those_of_the_definition(name, first_unit, num_units, goodness_name):
    method, _ = make(name)
    config = ff.Config().override({"width": 30} | METHODS[name])
    units = slice(first_unit, first_unit + num_units)
    blueprint = describe(config, NUM_FEATURES, NUM_CLASSES)
    layer = blueprint.build_layer(blueprint.specs[0], units).double()
    layer.compute_dtype = torch.float64
    goodness = GOODNESSES[goodness_name]
    images, labels, generator = draw()
    block = method.rows.training_rows(images.double(), labels, generator)
    candidates = method.candidates.draw(labels, generator)
    assert candidates.shape == (NUM_SAMPLES, method.candidates.num_candidates)
    rows = method.candidates.select(block, torch.arange(NUM_SAMPLES), candidates, workspace())
    upstream = torch.randn(NUM_SAMPLES, method.candidates.num_candidates, generator=generator, dtype=torch.float64)
    pull = torch.randn(num_units, generator=generator, dtype=torch.float64)

    leaf = layer.preactivations(rows).detach().requires_grad_()
    expected = spell_out(name, layer, goodness, leaf, candidates)
    ((expected * upstream).sum() + (leaf[:NUM_SAMPLES] * pull).sum()).backward()

    room = workspace()
    with torch.no_grad():
        activities = method.reading.activities(layer, leaf.detach().clone(), candidates, room)
        torch.testing.assert_close(activities[0][0].mean(0), positive_mean(name, layer, leaf, candidates))
        torch.testing.assert_close(method.reading.measure(layer, goodness, activities, candidates), expected)
        gradient, of_goodness = method.reading.differentiate(
            layer, goodness, activities, candidates, upstream, pull, room
        )
    torch.testing.assert_close(gradient, leaf.grad)
    embedding_gradient = of_goodness.get("label_embedding")
    assert (embedding_gradient is None) == (layer.label_embedding is None) == (not method.reading.uses_embedding)
    if name == "injection":
        layer.label_embedding.grad.index_add_(0, candidates[:, 0], pull.expand(NUM_SAMPLES, -1))
    if embedding_gradient is not None:
        torch.testing.assert_close(embedding_gradient, layer.label_embedding.grad)
    if method.reading.adds_embedding:
        torch.testing.assert_close(embedding_gradient.sum(0), gradient.sum(0))


def positive_mean(name, layer, preactivations, candidates):
    """Mean activities that peer normalisation reads: of the positives, or of the one label-free pass."""
    z = preactivations[:NUM_SAMPLES].detach()
    return torch.relu(z + layer.label_embedding[candidates[:, 0]] if name == "injection" else z).mean(0).detach()


@pytest.mark.parametrize("room", [False, True])
@pytest.mark.parametrize("name", METHODS)
def test_sweep_equals_one_label_at_a_time(name, room):
    method, layer = make(name)
    images, _, _ = draw()
    rows = method.rows.sweep_rows(images)
    goodness = GOODNESSES["mean" if name == "classifier" else "mean_squares"]
    with torch.no_grad():
        preactivations = layer.preactivations(rows.flatten(0, 1))
        if name in READ:
            every = torch.arange(NUM_CLASSES).expand(NUM_SAMPLES, -1)
            expected = spell_out(name, layer, goodness, preactivations, every)
        else:
            shown = [rows[:, 0] if method.rows.num_sweep_rows == 1 else rows[:, label] for label in range(NUM_CLASSES)]
            told = layer.label_embedding if method.reading.uses_embedding else torch.zeros(NUM_CLASSES, 1)
            expected = torch.stack(
                [goodness.value(torch.relu(layer(row) + u)) for row, u in zip(shown, told, strict=True)], dim=1
            )
        layer.workspace = workspace() if room else None
        kept = preactivations.clone()
        torch.testing.assert_close(method.reading.sweep(layer, goodness, preactivations, len(rows)), expected)
        assert room or torch.equal(preactivations, kept)


@pytest.mark.parametrize("name", READ)
def test_all_labels_are_candidates_and_the_true_one_comes_first(name):
    method, _ = make(name)
    _, labels, generator = draw()
    state = generator.get_state()
    candidates = method.candidates.draw(labels, generator)
    assert torch.equal(candidates[:, 0], labels)
    assert torch.equal(candidates.sort(dim=1).values, torch.arange(NUM_CLASSES).expand(NUM_SAMPLES, -1))
    assert torch.equal(generator.get_state(), state)  # nothing is drawn


@pytest.mark.parametrize("name", READ)
def test_few_classes_need_no_setting_of_negatives(name):
    assert make_label_method(ff.Config().override(METHODS[name]), DataShape(3, 2)).candidates.num_candidates == 2


@pytest.mark.parametrize("cuts", [[0, 30], [0, 10, 20, 30], [0, 7, 12, 30], [0, 3, 28, 30]])
@pytest.mark.parametrize("name", ["groups", "classifier"])
@pytest.mark.parametrize("goodness_name", ["sum", "mean"])
def test_tiles_add_up_to_the_layer(name, cuts, goodness_name):
    config = ff.Config().override({"width": 30, "precision": "fp32"} | METHODS[name])
    blueprint, goodness = describe(config, NUM_FEATURES, NUM_CLASSES), GOODNESSES[goodness_name]
    (spec, *_), method = blueprint.specs, blueprint.method
    layer = blueprint.build_layer(spec)
    z = layer.preactivations(draw()[0]).detach()
    total = torch.zeros(NUM_SAMPLES, NUM_CLASSES)
    for start, stop in itertools.pairwise(cuts):
        tile = blueprint.build_layer(spec, slice(start, stop))
        if tile.label_embedding is not None:
            tile.label_embedding.data = layer.label_embedding.data[:, start:stop]
        found = method.reading.sweep(tile, goodness, z[:, start:stop].contiguous(), NUM_SAMPLES)
        total += found.detach() * goodness.weight(stop - start, 30)
    torch.testing.assert_close(total, method.reading.sweep(layer, goodness, z, NUM_SAMPLES).detach())


@pytest.mark.parametrize(
    ("settings", "num_features", "message"),
    [
        ({"negatives.per_step": 5}, 12, "per_step: found 5, allowed at most 4"),
        ({"labels.method": "overlay"}, 4, "overlay needs a feature for each of the 5 classes, found 4"),
        (
            {"labels.method": "overlay", "negatives.per_sample": 1, "negatives.per_step": 3},
            12,
            r"per_sample: found 1, allowed 3",
        ),
        ({"labels.method": "overlay", "negatives.per_sample": 9}, 12, r"per_sample: found 9"),
        ({"labels.method": "groups", "width": 4}, 12, "width: found 4, allowed 5 or more with labels.method=groups"),
        ({"labels.method": "classifier"}, 12, "goodness: found 'mean_squares', allowed mean or sum with labels.method"),
    ],
)
def test_what_does_not_fit_the_data_is_refused(settings, num_features, message):
    with pytest.raises(ff.ConfigError, match=message):
        make_label_method(ff.Config().override(settings), DataShape(num_features, NUM_CLASSES))


def test_injection_candidates_are_the_true_label_and_distinct_wrong_ones():
    method, _ = make("injection")
    _, labels, generator = draw()
    candidates = method.candidates.draw(labels, generator)
    assert candidates.shape == (NUM_SAMPLES, 3)
    assert torch.equal(candidates[:, 0], labels)
    assert (candidates[:, 1:] != labels.unsqueeze(1)).all()
    assert (candidates[:, 1] != candidates[:, 2]).all()


def test_all_cached_overlays_stand_in_the_order_of_their_labels():
    method, _ = make("overlay")
    images, labels, generator = draw()
    rows = method.rows.training_rows(images, labels, generator)
    assert torch.equal(rows, method.rows.sweep_rows(images))
    assert torch.equal(rows[:, :, :NUM_CLASSES].argmax(-1), torch.arange(NUM_CLASSES).expand(NUM_SAMPLES, -1))
    assert torch.equal(method.candidates.draw(labels, generator)[:, 0], labels)


def test_some_cached_overlays_hold_the_true_label_in_row_zero_only():
    method, _ = make("overlay of two")
    images, labels, generator = draw()
    shown = method.rows.training_rows(images, labels, generator)[:, :, :NUM_CLASSES].argmax(-1)
    assert torch.equal(shown[:, 0], labels)
    assert (shown[:, 1:] != labels.unsqueeze(1)).all()
    candidates = method.candidates.draw(labels, generator)
    assert not candidates[:, 0].any()
    assert ((candidates[:, 1:] >= 1) & (candidates[:, 1:] <= 2)).all()


def test_the_neutral_overlay_favours_no_label():
    method, _ = make("overlay")
    images, _, _ = draw()
    shown = method.rows.neutral_rows(images)[:, 0, :NUM_CLASSES]
    torch.testing.assert_close(shown, shown[:, :1].expand_as(shown))
    expected = torch.cat([torch.full((NUM_SAMPLES, NUM_CLASSES), 1 / NUM_CLASSES), images[:, NUM_CLASSES:]], dim=1)
    cosine = torch.nn.functional.cosine_similarity(method.rows.neutral_rows(images)[:, 0], expected)
    torch.testing.assert_close(cosine, torch.ones(NUM_SAMPLES))


@pytest.mark.parametrize("name", METHODS)
def test_the_images_are_left_alone(name):
    method, _ = make(name)
    images, labels, generator = draw()
    kept = images.clone()
    method.rows.training_rows(images, labels, generator)
    method.rows.sweep_rows(images)
    method.rows.neutral_rows(images)
    assert torch.equal(images, kept)


@pytest.mark.parametrize("name", METHODS)
def test_select_takes_each_candidates_row_and_leaves_the_block_alone(name):
    method, _ = make(name)
    images, labels, generator = draw()
    block = method.rows.training_rows(images, labels, generator)
    kept = block.clone()
    index = torch.tensor([6, 1, 1, 4])
    candidates = method.candidates.draw(labels, generator)[index]
    rows = method.candidates.select(block, index, candidates, workspace())
    if method.candidates.shares_row:
        assert torch.equal(rows, block[index, 0])
    else:
        assert torch.equal(rows, torch.cat([block[index, column] for column in candidates.unbind(1)]))
    rows.zero_()
    assert torch.equal(block, kept)


@pytest.mark.parametrize("name", METHODS)
def test_a_step_through_a_used_workspace_equals_one_through_a_fresh_one(name):
    method, layer = make(name)
    images, labels, generator = draw()
    block = method.rows.training_rows(images, labels, generator)
    candidates = method.candidates.draw(labels, generator)

    def step(num_samples, room):
        index, drawn = torch.arange(num_samples), candidates[:num_samples]
        goodness = GOODNESSES["mean" if name == "classifier" else "mean_squares"]
        with torch.no_grad():
            rows = method.candidates.select(block, index, drawn, room)
            activities = method.reading.activities(layer, layer.preactivations(rows), drawn, room)
            measured = method.reading.measure(layer, goodness, activities, drawn)
            found, others = method.reading.differentiate(layer, goodness, activities, drawn, measured, None, room)
            return [measured, found, *others.values()]

    used = workspace()
    step(NUM_SAMPLES, used)
    found, expected = step(3, used), step(3, workspace())
    assert len(found) == len(expected) == 2 + method.reading.uses_embedding
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_injection_without_an_embedding_is_refused_naming_the_layer():
    method, _ = make("injection")
    _, layer = make("overlay")
    with pytest.raises(ff.ConfigError, match="label embedding, found Linear without"):
        method.reading.sweep(layer, GOODNESSES["mean_squares"], torch.zeros(2, 7), 2)


def test_an_unknown_sampler_is_refused_with_the_nearest():
    with pytest.raises(ff.ConfigError, match="unknown negative sampler 'unifrom'; did you mean 'uniform'"):
        make_label_method(ff.Config().override({"negatives.sampler": "unifrom"}), DataShape(NUM_FEATURES, NUM_CLASSES))


def test_the_limits_themselves_are_allowed():
    settings = {"labels.method": "overlay", "negatives.per_step": 4, "negatives.per_sample": 4}
    method = make_label_method(ff.Config().override(settings), DataShape(NUM_CLASSES, NUM_CLASSES))
    assert (method.rows.num_training_rows, method.rows.num_sweep_rows) == (5, 5)
