"""Training of one layer on its cached input. All steps that train a layer of a run are taken here."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ffstream.cache import ActivationCache, compute_shard_order
from ffstream.cache.transfer import Transfer
from ffstream.device.workspace import Buffer, Workspace
from ffstream.errors import DivergedError
from ffstream.field.blueprint import Blueprint
from ffstream.field.labels import take_rows
from ffstream.field.layers import LAYER_KINDS, Layer, Mode
from ffstream.field.layers.contract import check_moving, compute, learn, naming_driver
from ffstream.field.similarity import compare
from ffstream.ground import seeding
from ffstream.storage.epoch_part import EpochPart
from ffstream.training.dropout import drop_features_
from ffstream.training.epoch_batches import EpochBatches
from ffstream.training.epoch_figures import EpochFigures, sum_figures
from ffstream.training.loss_scale import scale_loss
from ffstream.training.micro_batch import MicroBatch, samples_in_sweep
from ffstream.training.optimiser import LayerOptimiser
from ffstream.training.rate_schedule import RateSchedule
from ffstream.training.window import WHOLE, Window

_MOVED_ROWS = Buffer("moved rows", "rows")
_GRADIENT_SUMS = Buffer("gradient sums", "gradient")
_TICK_S = 0.2  # time between two reports within an epoch; each report makes the host wait for the device


class LayerTrainer:
    """Trains one layer, or one tile of it. Its only state between epochs is that of the layer and of the optimiser.

    A layer grows tile by tile. While one tile trains, earlier tiles are frozen, later ones do not exist yet, and the
    objective sees the goodness of all units so far: this is stagewise additive modelling (Friedman, Hastie and
    Tibshirani 2000, section 4), with tiles as the weak learners. Only the first tile is trained adversarially, as it is
    not known how moved rows would change the goodness of frozen tiles. A mean over units is taken per tile, so that
    each tile adds to the goodness. For peer normalisation, the peers of a unit are the units of its tile.
    """

    def __init__(
        self,
        layer: Layer,
        layer_index: int,
        blueprint: Blueprint,
        device: torch.device,
        units: slice | None = None,
    ) -> None:
        self.layer = layer.to(device)
        self._index = layer_index
        self._blueprint, config = blueprint, blueprint.config
        self._config = config
        self._sizes = blueprint.sizes
        self._candidates, self._reading = blueprint.method.candidates, blueprint.method.reading
        self._num_rows = blueprint.method.rows.num_training_rows
        self._device = device
        self._workspace = layer.workspace = layer.workspace or Workspace(device)
        self._goodness, self._objective = blueprint.goodness, blueprint.objective
        self._similarity = blueprint.similarity
        spec = blueprint.specs[layer_index]
        self.schedule = RateSchedule(spec.num_epochs, config.optimiser.decay_start)
        self._num_epochs = spec.num_epochs
        settings = replace(config.optimiser, learning_rate=spec.learning_rate)
        self._own = frozenset(layer.list_inner() if layer.owns_update else ())
        self.optimiser = LayerOptimiser(layer, blueprint.optimiser, settings, self._workspace, self._own)
        self._place, self._num_parts = (0, 0), 0  # epoch and samples before the current step; parts of it so far
        num_so_far = (units.stop if units is not None else spec.width) * spec.units.num_places
        num_in_tile = blueprint.tiles_of(spec)[0].stop * spec.units.num_places
        self._weight = self._goodness.weight(layer.num_units, num_in_tile)
        whole = self._default_threshold(spec.num_units)
        threshold = self._default_threshold(num_so_far) * self._goodness.weight(num_so_far, num_in_tile)
        if not isinstance(config.objective.threshold, str):
            threshold = config.objective.threshold * (threshold / whole if whole else 1.0)
        self._threshold = threshold
        self._steepest: float | None = None
        if layer.compute_dtype == torch.float16 and layer.has_gradients:
            # The bound of dL/dactivity for a unit whose activity is 1 and an objective whose gradient is at most 1.
            ones = torch.ones(1, 1).expand(1, max(layer.num_units // self._reading.num_groups, 1))
            slope = float(self._goodness.gradient(ones, torch.ones(1)).abs().max())
            self._steepest = config.objective.scale * abs(self._weight) * slope

    def _default_threshold(self, num_units: int) -> float:
        return self._goodness.default_threshold(max(num_units // self._reading.num_groups, 1))

    def start_part(self) -> EpochPart:
        """The part of an epoch of which nothing is done, whose tensors another part can be read into."""
        on_host, on_device = (
            seeding.generator(0, 0, 0, "part", device) for device in (torch.device("cpu"), self._device)
        )
        return EpochPart(0, 0, 0.0, torch.zeros(4), on_host.get_state(), on_device.get_state())

    def batches_of(self, cache: ActivationCache, epoch: int) -> EpochBatches:
        """The batches of an epoch, in an order that (seed, layer, epoch) decides."""
        order = compute_shard_order(cache.layout, self._config.seed, self._index, epoch, self._num_epochs)
        return EpochBatches(cache, order, self._blueprint, self._device)

    def train_epoch(
        self,
        transfer: Transfer,
        cache: ActivationCache,
        labels: Tensor,
        epoch: int,
        on_tick: Callable[[EpochFigures], None] | None = None,
        others: Tensor | None = None,
        done: EpochPart | None = None,
        on_part: Callable[[Callable[[], EpochPart]], None] | None = None,
        window: Window = WHOLE,
    ) -> EpochFigures:
        """Train on one view of every sample, in an order that (seed, layer, epoch, window) decides.

        `labels` (num_samples,) are those of the samples of `cache`. `epoch` counts on through the tiles of a layer.
        The learning rate is that of `schedule`. A `window` holds a part of the samples of an epoch.
        `others` (num_stored, values) is the goodness that earlier tiles give every value that a candidate may take.
        An epoch of which a part is `done` is gone on with. `on_part` is called between groups of shards, with a
        function that describes the part that is done by then.
        Raises DivergedError when the loss is no longer finite.
        """
        start_s = last_tick_s = time.perf_counter()
        totals = torch.zeros(4, device=self._device)
        num_samples = num_groups = 0
        seed, number = self._config.seed, window.count_before(epoch)
        host_generator = seeding.generator(seed, self._index, number, "batches and negatives")
        generator = seeding.generator(seed, self._index, number, "dropout", self._device)
        start = epoch % self._num_epochs + window.number / window.num
        informed = others is not None or start > 0
        batches = self.batches_of(cache, number)
        ends = batches.ends
        if done is not None:
            num_groups, num_samples = done.num_groups, done.num_samples
            start_s -= done.elapsed_s
            totals.copy_(done.totals)
            host_generator.set_state(done.host_state)
            generator.set_state(done.device_state)

        def describe() -> EpochPart:
            elapsed_s, states = time.perf_counter() - start_s, (host_generator.get_state(), generator.get_state())
            return EpochPart(num_groups, num_samples, elapsed_s, totals.cpu(), *states)

        loaded = batches.load(transfer, labels, others, host_generator, informed=informed, num_skipped=num_groups)
        for num_in_batch, parts in loaded:
            factor = self.schedule.factor(start + num_samples / len(labels) / window.num)
            self._place = number, num_samples
            totals += self.step(parts, num_in_batch, factor, generator)
            num_samples += num_in_batch
            now_s = time.perf_counter()
            if num_samples == ends[num_groups]:
                num_groups += 1
                if on_part is not None and num_groups < len(ends):
                    on_part(describe)
            if on_tick is not None and now_s - last_tick_s >= _TICK_S:
                last_tick_s = now_s
                on_tick(EpochFigures.of(totals, num_samples, now_s - start_s))
        figures = EpochFigures.of(totals, num_samples, time.perf_counter() - start_s)
        if not torch.isfinite(totals).all():
            own = type(self.layer).__name__
            is_built_in = LAYER_KINDS.is_built_in(self._blueprint.specs[self._index].kind)
            hint = "" if is_built_in else f"see that layer kind {own} gives finite numbers (ffstream.testing), or "
            raise DivergedError(
                f"layer {self._index + 1}, epoch {epoch + 1}: the loss is {figures.loss}, allowed a finite number; "
                f"{hint}lower optimiser.learning_rate (found {self.optimiser.settings.learning_rate:g}) or "
                f"objective.scale (found {self._config.objective.scale:g}); finished layers are kept"
            )
        return figures

    @torch.no_grad()
    def step(self, parts: Iterable[MicroBatch], num_samples: int, factor: float, generator: torch.Generator) -> Tensor:
        """One update from a batch of `num_samples`. Returns summed loss, goodness (positive, negative), wins.

        `generator`, on the device, draws the dropout masks and the rounding of state in bfloat16.
        A part is used up before the next is asked for, and is cut further if it is too large.
        """
        num_cuts = self._sizes.num_micro_batches
        if num_cuts > 1 or self._sizes.num_shards_in_batch > 1:
            cut = (micro_batch for part in parts for micro_batch in part.cut(num_cuts))
            return self.step_in_parts(cut, num_samples, factor, generator)
        (part,) = parts
        self._begin_step(factor, generator)
        figures, gradients = self._differentiate(part, num_samples, generator)
        for name, units, value in gradients:
            self._update(name, units, value)
        return figures

    @torch.no_grad()
    def step_in_parts(
        self, parts: Iterable[MicroBatch], num_samples: int, factor: float, generator: torch.Generator
    ) -> Tensor:
        """The same update as that of `step`, from parts that are small enough; their gradients are summed first."""
        self._begin_step(factor, generator)
        sums, figures, learnt = self._zero_gradients(), torch.zeros(4, device=self._device), set[str]()
        for part in parts:
            more, gradients = self._differentiate(part, num_samples, generator)
            for name, units, value in gradients:
                sums[name][units] += value
                learnt.add(name)
            figures += more
        for name, total in sums.items():
            if name in learnt:  # what a layer observes may say nothing of a parameter, which then stays as it is
                self._update(name, slice(None), total)
        return figures

    def _begin_step(self, factor: float, generator: torch.Generator) -> None:
        self.optimiser.begin_step(factor, generator)
        self._num_parts = 0

    def _update(self, name: str, units: slice, value: Tensor) -> None:
        if name in self._own:
            with naming_driver(self.layer, "update_"):
                self.layer.update_(name, units, value, self.optimiser.learning_rate)
        else:
            self.optimiser.update(name, units, value)

    def _differentiate(
        self, part: MicroBatch, num_samples: int, generator: torch.Generator
    ) -> tuple[Tensor, Iterator[tuple[str, slice, Tensor]]]:
        """The figures of a batch, or of a part of it, and an iterator over the gradients of its mean loss.

        The mean is over the `num_samples` of the whole batch. Products in float16 are of gradients times a factor, by
        which what they give is divided.
        """
        factor = scale_loss(num_samples, self._steepest) if self._steepest is not None else 1.0
        divisor = num_samples / factor
        (epoch, start), self._num_parts = self._place, self._num_parts + 1
        self.layer.begin(Mode.TRAINING, epoch, f"{start} {self._num_parts}")
        part, rows, preactivations = self.multiply(part, generator)
        if self._config.objective.perturbation and part.others is None:
            activities, goodness = self.read_goodness(preactivations, part.candidates)
            _, upstream = self._differentiate_loss(goodness, divisor)
            gradient, _ = self._differentiate_goodness(activities, part, upstream, parameters=False)
            self._perturb_(rows, gradient)
            self.layer.rewind()  # the same noise, on other rows
            preactivations = compute(self.layer, rows)
        similarity = self._compare(preactivations, part)
        activities, goodness = self.read_goodness(preactivations, part.candidates)
        if part.others is not None:
            goodness += part.others
        loss, upstream = self._differentiate_loss(goodness, divisor)
        figures = sum_figures(loss, goodness)
        pull = None
        if self._config.objective.peer_normalisation:
            pull = self._peer_gradient(activities[0][0], len(part.index) / num_samples) / divisor
        gradient, of_goodness = self._differentiate_goodness(activities, part, upstream, pull)
        total = None
        if self._reading.adds_embedding and similarity is None:
            total = of_goodness["label_embedding"].sum(dim=0)
        if similarity is not None:
            term, by_preactivation = similarity
            figures[0] += term * self._config.objective.similarity_weight
            gradient.add_(by_preactivation, alpha=self._config.objective.similarity_weight / divisor)
        if not self.layer.has_gradients:  # by a copy of the gradient, whose memory `loss_of` uses again
            gradient = gradient.clone()
        found = learn(self.layer, rows, gradient, total, partial(self._loss_of, part, divisor))
        found = itertools.chain(found, ((name, slice(None), value) for name, value in of_goodness.items()))
        return figures, found if factor == 1 else ((name, units, value.div_(factor)) for name, units, value in found)

    def _loss_of(self, part: MicroBatch, divisor: float, preactivations: Tensor) -> Tensor:
        """The loss over `divisor` of the sample that each row belongs to, (n,), for preactivations (n, num_units)."""
        _, goodness = self.read_goodness(preactivations.clone(), part.candidates)
        if part.others is not None:
            goodness += part.others
        loss, _ = self._differentiate_loss(goodness, divisor)
        return loss.div_(divisor).repeat(len(preactivations) // len(loss))

    def _differentiate_loss(self, goodness: Tensor, divisor: float) -> tuple[Tensor, Tensor]:
        """The loss of each sample, (n,), and dL/dgoodness, (n, 1 + K), where L is the summed loss over `divisor`."""
        scale = self._config.objective.scale
        loss, upstream = self._objective.loss_and_gradient((goodness - self._threshold) * scale)
        return loss, upstream * (scale * self._weight / divisor)

    def _differentiate_goodness(
        self,
        activities: list[Tensor],
        part: MicroBatch,
        upstream: Tensor,
        pull: Tensor | None = None,
        *,
        parameters: bool = True,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """dL/dpreactivations, in the memory of the activities, and the gradients of parameters that goodness reads.

        `pull` (num_units,) is added to the gradient of the positive.
        """
        return self._reading.differentiate(
            *(self.layer, self._goodness, activities, part.candidates, upstream, pull, self._workspace),
            parameters=parameters,
        )

    def _perturb_(self, rows: Tensor, gradient: Tensor) -> None:
        """Move each feature a little so that the loss rises (Goodfellow, Shlens and Szegedy 2015, section 4).

        The gradient ends at the rows: they come from a cache, not from a layer.
        """
        for features, direction in self.layer.input_gradients(rows, gradient):
            check_moving(self.layer, direction, rows[:, features])
            direction.sign_()
            if direction.dtype != rows.dtype:  # adding a tensor of another type would allocate a copy
                room = self._workspace.take(_MOVED_ROWS, tuple(direction.shape), rows.dtype)
                direction = room.copy_(direction)
            rows[:, features].add_(direction, alpha=self._config.objective.perturbation)

    def _zero_gradients(self) -> dict[str, Tensor]:
        """Zeros for the gradient of every parameter, in one buffer."""
        parameters = dict(self.layer.named_parameters())
        sizes = [parameter.numel() for parameter in parameters.values()]
        dtype = next(iter(parameters.values())).dtype
        room = self._workspace.take(_GRADIENT_SUMS, (sum(sizes),), dtype).zero_()
        return {
            name: part.view(parameter.shape)
            for (name, parameter), part in zip(parameters.items(), room.split(sizes), strict=True)
        }

    def _compare(self, preactivations: Tensor, part: MicroBatch) -> tuple[Tensor, Tensor] | None:
        """The unweighted similarity term summed over the part, and its gradient with respect to preactivations."""
        if self._similarity is None:
            return None
        labels = part.candidates[:, 0]
        return compare(self.layer, self._similarity, preactivations, labels, self._workspace)

    @torch.no_grad()
    def multiply(self, part: MicroBatch, generator: torch.Generator) -> tuple[MicroBatch, Tensor, Tensor]:
        """The part with its negatives chosen, its rows after dropout, and their preactivations.

        Where candidates share a row, the negatives are chosen by the same matrix product that trains the layer.
        """
        is_open, shares_row = part.noise is not None, self._candidates.shares_row
        if is_open and not shares_row:
            part = self._choose(part, self._sweep_rows(part))
        rows = self._candidates.select(self._read(part.block), part.index, part.candidates, self._workspace)
        if self._config.network.dropout:
            shared = 1 if shares_row else self._candidates.num_candidates
            drop_features_(rows, self._config.network.dropout, shared, generator, self._workspace)
        self.layer.rewind()  # after the rows that were swept
        preactivations = compute(self.layer, rows)
        if is_open and shares_row:
            part = self._choose(part, self._reading.sweep(self.layer, self._goodness, preactivations, len(rows)))
        return part, rows, preactivations

    def _read(self, block: Tensor) -> Tensor:
        """What the layer reads of a block, a view; behind that lies what is carried for later layers."""
        return block[..., : self.layer.in_features]

    def _sweep_rows(self, part: MicroBatch) -> Tensor:
        """The goodness of all those rows of each sample from which negatives are chosen: (n, choices)."""
        num_candidates, num_choices, found = self._candidates.num_candidates, self._candidates.num_choices, []
        block = self._read(part.block)
        first = part.index.unsqueeze(1) * self._num_rows  # first row of each sample in the block
        swept = first + (torch.arange(num_choices, device=self._device) if part.pool is None else part.pool)
        for index in swept.split(samples_in_sweep(len(swept), num_candidates, num_choices)):
            preactivations = compute(self.layer, take_rows(block, index.flatten(), self._workspace))
            found.append(self._reading.sweep(self.layer, self._goodness, preactivations, len(index)))
        return torch.cat(found)

    def _choose(self, part: MicroBatch, goodness: Tensor) -> MicroBatch:
        """The part with the negatives that the sampler chooses by its noise and the layer's `goodness` (n, choices)."""
        sampler, noise, pool, positives = self._candidates.informed, part.noise, part.pool, part.candidates[:, :1]
        assert sampler is not None, "only such a sampler has noise drawn"
        assert noise is not None
        goodness = goodness * self._weight
        if part.others is not None:
            goodness += part.others if pool is None else part.others.gather(1, pool)
        logits, num_negatives = goodness.mul_(self._config.objective.scale), self._candidates.num_candidates - 1
        if pool is None:
            wrong = sampler.choose(logits.scatter_(1, positives, -torch.inf), noise, num_negatives)
        else:
            wrong = pool.gather(1, sampler.choose(logits, noise, num_negatives))
        candidates = torch.cat([positives, wrong], dim=1)
        others = part.others.gather(1, candidates) if part.others is not None else None
        return MicroBatch(part.block, part.index, candidates, others)

    def read_goodness(self, preactivations: Tensor, candidates: Tensor) -> tuple[list[Tensor], Tensor]:
        """Each candidate's activities, and their goodness (n, 1 + K). May overwrite `preactivations`."""
        activities = self._reading.activities(self.layer, preactivations, candidates, self._workspace)
        goodness = self._reading.measure(self.layer, self._goodness, activities, candidates)
        if self._weight != 1.0:
            goodness *= self._weight
        return activities, goodness

    def _peer_gradient(self, positive_activities: Tensor, share: float) -> Tensor:
        """The gradient that pulls the running mean activity of each unit, or channel, to its peers': (num_units,).

        It acts on the positive pass only and is not gated by the ReLU, so that it revives dead units (as in Hinton's
        program). `share` is the part's share of the batch; the running mean takes that share of a step.
        """
        objective, mean = self._config.objective, self.layer.mean_activity
        found = self.layer.average(positive_activities.mean(dim=0, dtype=mean.dtype))
        mean.lerp_(found, 1 - objective.peer_momentum**share)
        return self.layer.spread((mean - mean.mean()) * objective.peer_normalisation)
