"""Rows that hold what a layer reads, and what later layers read of what lies below it."""

from __future__ import annotations

import random

import pytest
import torch

import ffstream as ff
from ffstream.field.layers import Activations
from ffstream.field.network import compute_layer_specs, keep_outputs
from ffstream.field.wiring import Part, RowLayout, find_carried, lay_row
from ffstream.settings.reads import CONCAT, SUM, Reads
from tests.helpers import describe

SHAPES = [
    Activations.of_places(5, 6, 2),
    Activations.of_places(5, 6, 3),
    Activations.of_image(60, (2, 5, 6)),
    Activations.of_places(2, 2, 6),
    Activations(60),
    Activations(7),
]


def draw(num_features, seed):
    return torch.randn(5, num_features, generator=torch.Generator().manual_seed(seed))


def join_plainly(values, shapes, *, is_sum):
    """What a layer reads, as tensors of (n, channels, height, width) where all parts have the same places."""
    if len(values) == 1:
        return values[0]
    if any(shape.plane is None for shape in shapes) or len({shape.plane[1:3] for shape in shapes}) > 1:
        return sum(values[1:], values[0]) if is_sum else torch.cat(values, dim=1)
    planes = [
        value.view(-1, *shape.plane).permute(0, 1, 4, 2, 3).flatten(1, 2)
        for value, shape in zip(values, shapes, strict=True)
    ]
    if is_sum and len({shape.plane for shape in shapes}) == 1:
        return sum(values[1:], values[0])
    joined = sum(planes[1:], planes[0]) if is_sum else torch.cat(planes, dim=1)
    return joined.permute(0, 2, 3, 1).flatten(1)


def draw_network(rng):
    """What some layers read, and the shapes of what they hand on; a sum only of what has one shape."""
    shapes, reads = {0: rng.choice(SHAPES[:3])}, []
    for number in range(1, rng.randint(3, 8)):
        sources = tuple(rng.sample(range(number), rng.randint(1, min(number, 3))))
        alike = {(shapes[source].places, shapes[source].num_features) for source in sources}
        reads.append(Reads(sources if number > 1 else (0,), SUM if len(alike) == 1 and rng.random() < 0.7 else CONCAT))
        shapes[number] = rng.choice(SHAPES)
    return [*reads, Reads((len(reads),))], shapes


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.parametrize("keeps", [False, True])
def test_every_layer_reads_what_it_names_and_nothing_is_stored_twice_or_for_too_long(seed, keeps):
    reads, shapes = draw_network(random.Random(seed))
    values = {number: draw(shape.num_features, number) for number, shape in shapes.items()}
    layouts = [lay_row(*each, shapes) for each in zip(reads, find_carried(reads, 1), strict=True)]
    if keeps:
        layouts[1:] = [row.keep(Part(number, shapes[number])) for number, row in enumerate(layouts[1:], 1)]
    rows = values[0]
    for number, (each, row) in enumerate(zip(reads, layouts, strict=True)):
        if number:
            rows = row.write(values[number], number, layouts[number - 1], rows)
        expected = join_plainly(
            [values[source] for source in each.sources], [shapes[source] for source in each.sources], is_sum=each.is_sum
        )
        assert rows.shape[1] == row.num_features
        assert torch.equal(row.read(rows), expected)
        assert row.read(rows).is_contiguous()
        later = {source for other in reads[number + 1 :] for source in other.sources if source <= number}
        held = {part.source for part in row.carried}
        found = held if each.is_sum else held | set(each.sources)
        assert later | ({number} if keeps else set()) <= found
        assert not held & set(() if each.is_sum else each.sources)
        assert held <= later | ({number} if keeps else set())
        for source in found:
            assert torch.equal(row.find(rows, source), values[source])


def test_channels_lie_side_by_side_at_every_place_and_what_lacks_these_places_one_after_the_other():
    by_place = RowLayout((Part(0, SHAPES[2]), Part(1, SHAPES[1])))
    assert by_place.joined == Activations.of_places(5, 6, 5)
    for shape in SHAPES[3:]:
        assert RowLayout((Part(0, SHAPES[2]), Part(1, shape))).joined == Activations(60 + shape.num_features)


def test_gradients_reach_every_part_of_a_row():
    parts = Part(0, SHAPES[2]), Part(1, SHAPES[0])
    before = RowLayout(parts[:1])
    for row in (RowLayout(parts), RowLayout(parts, is_sum=True), RowLayout(parts[1:], carried=parts[:1])):
        rows, own = draw(60, 1).requires_grad_(), draw(60, 2).requires_grad_()
        row.write(own, 1, before, rows).sum().backward()
        assert torch.equal(rows.grad, torch.ones(5, 60))
        assert torch.equal(own.grad, torch.ones(5, 60))


def specs_of(text, shape=(8, 8), **settings):
    config = ff.Config(recipe="mono").override({"network.layers": text, "network.stack_layers": 0} | settings)
    return compute_layer_specs(config, torch.Size(shape).numel(), shape)


def test_a_part_is_carried_to_its_last_reader_and_not_beside_an_input_that_holds_it():
    specs = specs_of("dense6 dense6 dense6(reads=below+1,join=sum) dense6(reads=below+1) dense6 dense6(reads=image)")
    carried = [[part.source for part in spec.row.carried] for spec in specs]
    assert carried == [[], [0], [0, 1], [0], [0], []]
    assert [spec.row.num_features for spec in specs] == [64, 70, 6 + 64 + 6, 12 + 64, 6 + 64, 64]
    assert [spec.in_features for spec in specs] == [64, 6, 6, 12, 6, 64]
    kept = keep_outputs(specs)
    assert [[part.source for part in spec.next_row.carried] for spec in kept] == [[0], [0, 1, 2], [0], [0], [5], []]


def test_an_input_skip_is_a_layer_that_reads_the_image_beside_the_one_below():
    skip = ff.Config(layers=3, width=9).override({"network.input_skip": True, "network.stack_layers": 0})
    spelled = specs_of("dense9 dense9(reads=below+image)x2")
    for mine, other in zip(compute_layer_specs(skip, 64, (8, 8)), spelled, strict=True):
        assert (mine.row, mine.shape.reads) == (other.row, other.shape.reads)


def test_layers_are_alike_only_where_their_rows_are():
    config = ff.Config(recipe="mono").override(
        {"network.layers": "dense8x6 dense8(reads=below+1,join=sum) dense8x4", "network.stack_layers": 0}
    )
    assert describe(config, 64, image_shape=(8, 8)).representatives == [0, 1, 2, 3, 3, 5, 6, 7, 8, 8, 8]


REFUSED = {
    "conv8 pool conv8(reads=below+image)": r"of kind conv reads 192 features.*layer 2 reads layer 1 \(8 x 4 x 4\) and "
    r"the image \(1 x 8 x 8\); channels lie side by side only where all parts have the same places",
    "conv8 conv4 conv8(reads=below+1,join=sum)": r"join=sum of unlike shapes, allowed parts of one shape.*layer 3 "
    r"reads layer 2 \(4 x 8 x 8\) and layer 1 \(8 x 8 x 8\)",
    "dense64 dense8(reads=below+image,join=sum)": r"join=sum of unlike shapes.*layer 2 reads layer 1 \(64 features\)",
    "dense8 conv8(reads=image) local3(field=3,reads=below+1)": "local layer with field=3 reads 520 features.*layer 3",
    "local144 local144(reads=below+image)": "local layer without a field reads the cells of the layer below.*layer 2",
    "local144 dense8 local144(reads=1)": "local layer without a field reads the cells of the layer below.*layer 3",
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_does_not_compose_is_refused_with_the_layer_and_what_it_reads(text):
    with pytest.raises(ff.ConfigError, match=REFUSED[text]) as caught:
        specs_of(text)
    assert "\n" not in str(caught.value)
