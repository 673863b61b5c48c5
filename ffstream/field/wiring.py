"""How a row of a layer's cache holds what the layer reads, and what later layers read of what lies below it. Pure.

There is one cache for each layer. Its rows begin with the layer's input: what it reads, joined. What only later layers
read is carried behind that, and dropped after its last reader. What is a part of the input already, as an image beside
the layer below, is not stored again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ffstream.errors import ConfigError
from ffstream.field.layers import Activations
from ffstream.settings.reads import Reads, name_source


@dataclass(frozen=True)
class Part:
    """What one layer has handed on, or the image, and its shape."""

    source: int  # 0: the image; else the number of the layer, from 1
    shape: Activations

    def __str__(self) -> str:
        return f"{name_source(self.source)} ({self.shape})"


@dataclass(frozen=True)
class RowLayout:
    """What lies in a row: first `parts`, joined, which a layer reads; then each of `carried`."""

    parts: tuple[Part, ...]
    is_sum: bool = False
    carried: tuple[Part, ...] = ()

    @property
    def joined(self) -> Activations:
        """The shape of what the layer reads. Raises ConfigError for a sum of unlike shapes.

        Parts with the same places lie side by side at every place; any others lie one after the other, without places.
        """
        shapes = [part.shape for part in self.parts]
        first, planes = shapes[0], {shape.plane for shape in shapes}
        if len(shapes) == 1:
            return first
        if self.is_sum and len({(shape.places, shape.num_features) for shape in shapes}) > 1:
            raise ConfigError(
                "config network.layers: found join=sum of unlike shapes, allowed parts of one shape, as a conv layer "
                "with kernel=1 makes them"
            )
        if self.is_sum and (len(planes) == 1 or first.places is None):
            return Activations(first.num_features, first.plane)
        num_channels = first.num_channels if self.is_sum else sum(shape.num_channels for shape in shapes)
        if first.places is not None and len({shape.places for shape in shapes}) == 1:
            return Activations.of_places(*first.places, num_channels)
        return Activations(sum(shape.num_features for shape in shapes))

    @property
    def by_place(self) -> bool:
        """Whether the channels of a place come from several parts."""
        planes = {part.shape.plane for part in self.parts}
        return len(self.parts) > 1 and self.joined.plane is not None and (len(planes) > 1 or not self.is_sum)

    @property
    def num_read(self) -> int:
        """Features that the layer reads."""
        return self.joined.num_features

    @property
    def carried_features(self) -> tuple[int, ...]:
        """Features of each part that is carried."""
        return tuple(part.shape.num_features for part in self.carried)

    @property
    def num_features(self) -> int:
        """Features of a row."""
        return self.num_read + sum(self.carried_features)

    @property
    def segments(self) -> list[tuple[slice, tuple[int, ...]]]:
        """The columns of a row that follow one another, and which sources they hold."""
        sources = tuple(part.source for part in self.parts)
        if self.is_sum or self.by_place:
            sizes, held = [self.num_read], [sources]
        else:
            sizes, held = [part.shape.num_features for part in self.parts], [(source,) for source in sources]
        sizes, held = [*sizes, *self.carried_features], [*held, *((part.source,) for part in self.carried)]
        found, start = [], 0
        for size, each in zip(sizes, held, strict=True):
            found.append((slice(start, start + size), each))
            start += size
        return found

    def is_like(self, other: RowLayout) -> bool:
        """Whether rows have the same shape, whatever the numbers of the layers that they come from."""
        mine, its = (
            (each.is_sum, *([part.shape for part in parts] for parts in (each.parts, each.carried)))
            for each in (self, other)
        )
        return mine == its

    def __str__(self) -> str:
        return " and ".join(map(str, self.parts))

    def keep(self, part: Part) -> RowLayout:
        """The same rows, in which this part can be found."""
        is_there = part in self.carried or (part in self.parts and not self.is_sum)
        return self if is_there else dataclasses.replace(self, carried=(*self.carried, part))

    # --- rows

    def read(self, rows: Tensor) -> Tensor:
        """What the layer reads of rows (n, num_features): (n, num_read), contiguous."""
        return (rows[:, : self.num_read] if self.carried else rows).contiguous()

    def find(self, rows: Tensor, source: int) -> Tensor:
        """What one source has handed on, from rows (n, num_features), as it lay in its own rows."""
        for columns, sources in self.segments:
            if sources == (source,):
                return rows[:, columns]
        assert not self.is_sum, "what is needed of a sum is carried"
        part, channels = self._find_channels(source)
        return part.shape.from_places(self.joined.to_places(rows[:, : self.num_read])[:, :, channels])

    def _find_channels(self, source: int) -> tuple[Part, slice]:
        """A part whose channels lie beside those of others at every place, and which channels these are."""
        start = 0
        for part in self.parts:
            stop = start + part.shape.num_channels
            if part.source == source:
                return part, slice(start, stop)
            start = stop
        raise AssertionError(f"rows that hold {self} hold no {name_source(source)}")

    def join(self, values: Sequence[Tensor]) -> Tensor:
        """What the layer reads, (n, num_read), of the values of all parts, (n, features) each."""
        if len(values) == 1:
            return values[0]
        if self.by_place:
            values = [part.shape.to_places(value) for part, value in zip(self.parts, values, strict=True)]
        if not self.is_sum:
            return torch.cat(list(values), dim=-1).flatten(1)
        return _add(values).flatten(1)

    def write(self, own: Tensor, source: int, before: RowLayout, rows: Tensor) -> Tensor:
        """The rows (n, num_features) of the next layer, in a type that holds both `own` and `rows`.

        `own` (n, features) is what layer `source` hands on for `rows`, which `before` describes.
        """
        find = self._finder(own, source, before, rows)
        found = [self._make(sources, find) for _, sources in self.segments]
        return found[0] if len(found) == 1 else torch.cat(found, dim=1)

    def write_units(
        self, written: Tensor, units: slice, own: Tensor, source: int, before: RowLayout, rows: Tensor
    ) -> None:
        """Fill the columns of `written` (n, num_features) that some units, or channels, of layer `source` decide.

        `own` (n, units at all places) is what they hand on.
        """
        for columns, sources in self.segments:
            if source in sources:
                target = self._place(written[:, columns], sources, source)[:, :, units]
                values = own.unflatten(1, (target.shape[1], -1))
                for each in sources if self._adds(sources) else ():
                    if each != source:
                        values = values + self._read_places(each, before, rows)[:, :, units].to(own.dtype)
                target.copy_(values)

    def write_rest(self, written: Tensor, source: int, before: RowLayout, rows: Tensor) -> None:
        """Fill the columns of `written` that layer `source` does not decide."""
        for columns, sources in self.segments:
            if source not in sources:
                written[:, columns] = self._make(sources, lambda each: before.find(rows, each))
            elif not self._adds(sources):
                for each in sources:
                    if each != source:
                        self._place(written[:, columns], sources, each).copy_(self._read_places(each, before, rows))

    def _adds(self, sources: tuple[int, ...]) -> bool:
        return self.is_sum and len(sources) > 1

    def _place(self, segment: Tensor, sources: tuple[int, ...], source: int) -> Tensor:
        """Where the channels of a source lie in a segment of rows: (n, places, channels), a view."""
        if len(sources) == 1 or self.is_sum:
            shape = next(part.shape for part in (*self.parts, *self.carried) if part.source == source)
            of_source: Tensor = segment.unflatten(1, (shape.num_places, -1))
            return of_source
        return self.joined.to_places(segment)[:, :, self._find_channels(source)[1]]

    def _read_places(self, source: int, before: RowLayout, rows: Tensor) -> Tensor:
        """What a source has handed on, (n, places, channels), from the rows of the layer before."""
        shape = next(part.shape for part in self.parts if part.source == source)
        found = before.find(rows, source)
        return shape.to_places(found) if shape.plane is not None else found.unsqueeze(1)

    def _finder(self, own: Tensor, source: int, before: RowLayout, rows: Tensor) -> Callable[[int], Tensor]:
        dtype = torch.promote_types(own.dtype, rows.dtype)  # by hand: what torch would cast by itself is not planned
        return lambda each: (own if each == source else before.find(rows, each)).to(dtype)

    def _make(self, sources: tuple[int, ...], find: Callable[[int], Tensor]) -> Tensor:
        return find(sources[0]) if len(sources) == 1 else self.join([find(each) for each in sources])


def _add(values: Sequence[Tensor]) -> Tensor:
    total = values[0]
    for value in values[1:]:
        total = total + value
    return total


def find_carried(reads: Sequence[Reads], first: int) -> list[tuple[int, ...]]:
    """Which sources are carried in the rows that each layer of a stack reads; `first` is the number of its first layer.

    The last of `reads` is that of a layer on top of the stack, whether there is one or not.
    """
    last_reader = {source: place for place, each in enumerate(reads) for source in each.sources}
    found: list[tuple[int, ...]] = []
    live: list[int] = []  # what layers further up read, of what there is
    for place, each in enumerate(reads):
        below = first + place - 1 if place else 0
        live = [source for source in (*live, below) if last_reader.get(source, -1) > place]
        found.append(tuple(source for source in live if each.is_sum or source not in each.sources))
    return found


def lay_row(reads: Reads, carried: Sequence[int], shapes: Mapping[int, Activations]) -> RowLayout:
    """The rows of a layer that reads so; `shapes` are those of what each source hands on."""
    parts, more = (tuple(Part(source, shapes[source]) for source in each) for each in (reads.sources, carried))
    return RowLayout(parts, reads.is_sum, more)
