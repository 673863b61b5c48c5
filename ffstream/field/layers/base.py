"""The base class of all layer kinds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ffstream.device.workspace import Workspace
from ffstream.errors import ConfigError
from ffstream.field.goodness import Goodness
from ffstream.field.layers.mode import Mode
from ffstream.field.layers.shape import Activations, LayerShape, UnitAxis
from ffstream.field.normalisation import length_normalise, length_normalise_
from ffstream.ground import seeding


class Layer(nn.Module, ABC):
    """One layer: rows (n, in_features) in, preactivations (n, num_units) out, in float32.

    A subclass makes its parameters in `__init__`, fills them in `initialise` and computes `preactivations` from them.
    That is enough to train it, as `gradients` uses autograd through this one layer unless it is overridden.
    `label_embedding` exists when labels are injected, where the activities under label c are
    relu(preactivations + spread(label_embedding)[c]), or when the goodness of label c is
    summarise(activities) @ label_embedding[c].

    A kind whose units have places, such as a convolution, says so by `units_of`, and one that hands on something else
    than its activities by `handed_on_by`. `options` is a frozen dataclass of the settings that a kind has of its own.

    A loaded layer is made of modules of torch's own, where its kind says by `make_plain` which.

    What cannot be differentiated, such as a device of analog hardware, belongs into `preactivations`; a kind says so by
    `has_gradients`, and learns by what it yields in `observe`. A kind that changes its parameters in a way of its own
    sets `owns_update`, and one whose work torch cannot do on paper defines `declare_bytes`. A kind that draws random
    numbers names the modes in which it does by `noisy_modes`. All that decides what a layer does next is in its
    parameters and buffers, in float32: they are what is saved.

    A kind sets `tileable` if each unit depends only on its own slice, along `unit_axis`, of every parameter and buffer:
    a layer that has only some of the units is then a tile of the whole layer.
    """

    tileable: ClassVar[bool] = False
    has_places: ClassVar[bool] = False  # whether its units are channels at every place of a plane
    takes_head: ClassVar[bool] = False  # whether its summary may go through hidden layers of a local classifier

    # The number of the layer, counted from 1, from which on all layers have the same shapes and find the same in
    # memory. By default it is 3: the first layer reads images, and the second finds what the first one left in memory.
    num_distinct: ClassVar[int] = 3

    # Whether goodness is read off the summary alone. A kind may then have preactivations of less precision.
    is_summarised: bool = False

    has_input_gradient: ClassVar[bool] = True  # whether `input_gradients` works, which moves rows so that loss rises
    has_gradients: ClassVar[bool] = True  # False: neither that nor `gradients` works, and `observe` is called instead
    owns_update: ClassVar[bool] = False  # whether `update_` changes its parameters, instead of the optimiser
    noisy_modes: ClassVar[frozenset[Mode]] = frozenset()  # in which it draws random numbers, from `generator`

    # What the next preactivations are for, and the generator that they draw from: None where the kind is not noisy.
    # Without a generator, every kind computes without noise.
    mode: Mode = Mode.HANDING_ON
    generator: torch.Generator | None = None
    origin: tuple[int, int] = (0, 0)  # the seed of the run and the index of the layer, which decide what is drawn

    label_embedding: nn.Parameter | None

    # Buffers for a loop that is done with each result before it asks for the next. Without a workspace, every result is
    # a new tensor.
    workspace: Workspace | None = None

    def __init__(self, shape: LayerShape, compute_dtype: torch.dtype = torch.float32) -> None:
        """Make the parameters, undefined. Raises ConfigError for a shape that the kind cannot have."""
        super().__init__()
        self.shape = shape
        self.in_features, self.width, self.first_unit = shape.in_features, shape.width, shape.first_unit
        self.units = self.units_of(shape)
        self.num_units = self.units.num_features
        self.compute_dtype = compute_dtype
        self.register_parameter("label_embedding", None)
        self.label_classifier: nn.Module | None = None  # has the label embedding of a loaded layer, if that is a weight
        # Running mean activity of each unit, or channel, for peer normalisation; Hinton's program starts it at 0.5.
        self.mean_activity: Tensor
        self.register_buffer("mean_activity", torch.full((shape.width,), 0.5, dtype=torch.float32))

    @classmethod
    def units_of(cls, shape: LayerShape) -> Activations:
        """The shape of the units, which goodness sees. Raises ConfigError for what the kind cannot read."""
        return Activations(shape.width)

    @classmethod
    def handed_on_by(cls, shape: LayerShape) -> Activations:
        """The shape of what the next layer reads of this one."""
        return cls.units_of(shape)

    @classmethod
    def can_be_cut(cls, options: Any) -> bool:  # noqa: ARG003 - a kind that has options looks at them
        """Whether layers with these options of the kind's own can be cut into tiles, if the kind is tileable."""
        return True

    @staticmethod
    def unit_axis(name: str) -> int:
        """The axis of a parameter or buffer that runs over units."""
        return 1 if name == "label_embedding" else 0

    @abstractmethod
    def initialise(self, generator: torch.Generator) -> None:
        """Fill the parameters from `generator`, on the CPU.

        They exist by then: `__init__` made them, as a finished layer is read from disk without this.
        """

    def count_unit_runs(self, name: str) -> int:
        """How many times all units, or channels, lie along that axis, one run after the other."""
        return 1

    def list_unit_axes(self) -> dict[str, UnitAxis]:
        """The axis of each parameter and buffer along which its units lie."""
        return {name: UnitAxis(self.unit_axis(name), self.count_unit_runs(name)) for name in self.state_dict()}

    @classmethod
    def hands_on_by_unit(cls, shape: LayerShape) -> bool:  # noqa: ARG003 - a kind that has options looks at them
        """Whether a tile hands on without knowing the others; else activities are divided by the length of rows."""
        return False

    def hide(self, hidden: Tensor) -> None:
        """Ignore the features of a row that `hidden` (in_features,) marks: set the weights that multiply them to zero.

        Called after `initialise`. Rows hold zeros in these features while the layer trains, and any values later.
        """
        raise ConfigError(
            f"config network.stack_features: found less than 1, but layers of kind {type(self).__name__} cannot leave "
            "features out; set it to 1, or network.stack_layers to 0"
        )

    def draw_label_embedding(self, std: float, generator: torch.Generator) -> None:
        """Fill U ~ N(0, std^2), one row per class."""
        assert self.label_embedding is not None, "it is there when the label method uses it"
        with torch.no_grad():
            self.label_embedding.normal_(generator=generator).mul_(std)

    @abstractmethod
    def preactivations(self, rows: Tensor) -> Tensor:
        """(n, in_features) in any floating type -> (n, num_units) in `unit_dtype`."""

    def declare_bytes(self, num_rows: int) -> int | None:
        """Bytes on the device that a call with `num_rows` rows takes beside tensors that the layer has, gets and gives.

        This includes what the layer keeps there all the time outside of its parameters and buffers. A kind defines it
        whose preactivations cannot be computed on tensors that have a shape and no memory, as when numpy or an
        instrument does it: `preactivations`, `gradients`, `input_gradients`, `observe` and `update_` are then planned
        by it, the last with 0 rows. All else is still done on paper, as is what `loss_of` takes. None: nothing is
        declared.
        """
        return None

    @property
    def is_black_box(self) -> bool:
        """Whether the kind declares its bytes: its work is not done by torch, so that nothing can trace it."""
        return self.declare_bytes(0) is not None

    def begin(self, mode: Mode, epoch: int = 0, place: str = "") -> None:
        """Say what the next preactivations are for, and where in an epoch or in a cache: `place`.

        Where the kind is noisy, its generator is then a function of (seed, layer, epoch, mode, place).
        """
        self.mode, self.generator = mode, None
        if mode in self.noisy_modes:
            device = self.mean_activity.device
            purpose = f"noise {mode.value} {place} of unit {self.first_unit}"
            on = "cpu" if device.type == "meta" else device  # on paper nothing is drawn
            self.generator = seeding.generator(*self.origin, epoch, purpose, on)

    def rewind(self) -> None:
        """Let the generator, if there is one, draw the same numbers again as since `begin`."""
        if self.generator is not None:
            self.generator.manual_seed(self.generator.initial_seed())

    def make_plain(self) -> None:
        """Hand the parameters over to modules of torch's own, which `preactivations` calls from then on.

        Once, on a layer that is loaded to be used as a module: it is no longer trained from here, or streamed through.
        A kind without such modules keeps its parameters.
        """

    def gradients(
        self, rows: Tensor, gradient: Tensor, total: Tensor | None = None
    ) -> Iterator[tuple[str, slice, Tensor]]:
        """Yield the gradient of every parameter, given dL/dpreactivations (n, num_units). Nothing flows into `rows`.

        `total` (num_units,) is the sum of `gradient` over its rows, if that is known already.
        Yields (name, rows of the parameter, their gradient), where the gradient is valid until the next is asked for. A
        parameter may come in parts, and each part may be updated at once. The gradients of `label_embedding` and of
        `summary_names` are not among them, as they are behind the preactivations.
        """
        names = self.list_inner()
        self.rewind()  # so that the noise is that of the preactivations whose gradient is given
        with torch.enable_grad():
            preactivations = self.preactivations(rows.detach())
            inner = [self.get_parameter(name) for name in names]
            found = torch.autograd.grad(preactivations, inner, gradient, allow_unused=True) if names else ()
        for name, value in zip(names, found, strict=True):
            if value is None:
                raise ConfigError(
                    f"layer kind {type(self).__name__}: preactivations do not depend on the parameter {name}; use it "
                    "there, or make it a buffer"
                )
            yield name, slice(None), value

    def observe(
        self, rows: Tensor, gradient: Tensor, loss_of: Callable[[Tensor], Tensor]
    ) -> Iterator[tuple[str, slice, Tensor]]:
        """Yield what a kind without gradients learns by, in the form in which `gradients` yields them.

        Any number for each number of a parameter will do: what is yielded for the parts of a batch is added up, and
        handed to the optimiser as if it were the gradient, or to `update_`. For a rule by feedback, `gradient` is
        dL/dpreactivations (n, num_units). For one by trial, `loss_of` maps any preactivations (n, num_units) of these
        rows to the loss of the sample that each row belongs to, (n,), as a share of the mean loss of the batch, without
        similarity term and peer normalisation. The parameters may change meanwhile, if they are put back.
        """
        raise ConfigError(f"layer kind {type(self).__name__}: has no gradients, but does not define observe")

    def update_(self, name: str, rows: slice, observed: Tensor, rate: float) -> None:
        """Change rows of a parameter by what was yielded for them, at this learning rate; once a step."""
        raise ConfigError(f"layer kind {type(self).__name__}: owns its update, but does not define update_")

    def list_inner(self) -> list[str]:
        """The names of the parameters on which preactivations depend."""
        behind = self.summary_names | {"label_embedding"}
        return [name for name, _ in self.named_parameters() if name not in behind]

    def input_gradients(self, rows: Tensor, gradient: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Yield dL/drows, given dL/dpreactivations (n, num_units). It moves the rows, and never reaches a layer below.

        Yields (features, their gradient (n, num_features)), where the gradient is valid until the next is asked for. By
        then the caller may have changed these features of `rows`.
        """
        self.rewind()
        with torch.enable_grad():
            leaf = rows.detach().requires_grad_()
            (found,) = torch.autograd.grad(self.preactivations(leaf), leaf, gradient)
        yield slice(None), found

    def activate(self, preactivations: Tensor) -> Tensor:
        """max(z, 0): preactivations (..., num_units) to activities of the same shape. Gradients flow through it."""
        return torch.relu(preactivations)

    def activate_(self, preactivations: Tensor) -> Tensor:
        """The same in place."""
        return preactivations.relu_()

    def through_activation_(self, activities: Tensor, gradient: Tensor) -> Tensor:
        """dL/dpreactivations, written over the activities h: dL/dactivities where h > 0, else 0.

        `gradient` is dL/dactivities. It may have the shape (n, 1) if it is the same for all units.
        """
        return activities.sign_().mul_(gradient)

    def through_goodness_(self, goodness: Goodness, activities: Tensor, upstream: Tensor) -> Tensor:
        """dL/dpreactivations, written over the activities (n, num_units), from dL/dgoodness (n,)."""
        if goodness.is_flat_at_zero:  # where activities are not zero, a ReLU does not change the gradient
            return goodness.gradient(activities, upstream, out=activities)
        return self.through_activation_(activities, goodness.gradient(activities, upstream))

    def spread(self, by_width: Tensor) -> Tensor:
        """Numbers of units, or of channels, (..., width), as numbers of all units, (..., num_units)."""
        return (
            by_width if self.num_units == self.width else by_width.repeat(*[1] * (by_width.dim() - 1), self._num_places)
        )

    def collect(self, by_unit: Tensor) -> Tensor:
        """The gradient of `spread`: (..., num_units) to (..., width), summed over places."""
        return by_unit if self.num_units == self.width else by_unit.unflatten(-1, (self._num_places, -1)).sum(dim=-2)

    def average(self, by_unit: Tensor) -> Tensor:
        """Numbers of all units, (..., num_units), averaged over places: (..., width)."""
        return by_unit if self.num_units == self.width else by_unit.unflatten(-1, (self._num_places, -1)).mean(dim=-2)

    @property
    def unit_dtype(self) -> torch.dtype:
        """The type of preactivations, that of the parameters: a kind may have less where goodness is summarised."""
        return self.mean_activity.dtype

    @property
    def _num_places(self) -> int:
        return self.num_units // self.width

    @property
    def num_summarised(self) -> int:
        """Features of a summary."""
        return self.num_units

    @property
    def summary_names(self) -> frozenset[str]:
        """The parameters on which only the summary depends: those of a local head, whose gradients it yields."""
        return frozenset()

    def summarise(self, activities: Tensor, *, keep: bool = False) -> list[Tensor]:
        """What a local classifier reads of activities (n, num_units).

        Returns the summary, (n, num_summarised), then, to `keep`, any further tensors that `through_summary_` needs.
        """
        return [activities]

    def through_summary_(
        self, activities: Tensor, gradient: Tensor, kept: Sequence[Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """dL/dpreactivations, written over the activities, from dL/dsummary (n, num_summarised).

        `kept` are the further tensors that `summarise` returned. Returns the gradients of the parameters in
        `summary_names` too, by name.
        """
        return self.through_activation_(activities, gradient), {}

    def outline(self, activities: Tensor) -> list[Tensor]:
        """What a similarity term compares of activities (n, num_units), which are not changed: they themselves.

        Returns the outline, (n, numbers) in a type in which products may run, then any further tensors (n, ...) that
        `through_outline_` needs.
        """
        return [activities]

    def through_outline_(self, activities: Tensor, gradient: Tensor, kept: Sequence[Tensor]) -> Tensor:
        """dL/dpreactivations, written over the activities, from dL/doutline (n, numbers).

        `kept` are the further tensors that `outline` returned.
        """
        return self.through_activation_(activities, gradient)

    def hand_on(self, preactivations: Tensor) -> Tensor:
        """What the next layer reads: the activities, divided by their length; they hand on no goodness.

        If the layer has a workspace, `preactivations` is overwritten.
        """
        if self.workspace is None:
            return length_normalise(self.activate(preactivations))
        return length_normalise_(self.activate_(preactivations), self.workspace)

    @property
    def has_statistics(self) -> bool:
        """Whether `settle` has to be called, once the layer is trained, before it hands on."""
        return False

    def statistics_of(self, preactivations: Tensor) -> Tensor:
        """Numbers that add up over samples, from which `settle` takes what the layer has to know of all of them."""
        raise ConfigError(f"layer kind {type(self).__name__}: has statistics, but does not define statistics_of")

    def settle(self, statistics: Tensor) -> None:
        """Fix what the layer hands on by statistics that were summed over all training rows, in float64."""
        raise ConfigError(f"layer kind {type(self).__name__}: has statistics, but does not define settle")

    def forward(self, rows: Tensor) -> Tensor:
        """The preactivations (n, num_units) of rows (n, in_features), so that a hook on a layer sees both."""
        return self.preactivations(rows)


def cut_units(num_units: int, most: int) -> list[slice]:
    """Cut units, or features, into slices of `most`; the last may be smaller."""
    return [slice(start, min(start + most, num_units)) for start in range(0, num_units, most)]
