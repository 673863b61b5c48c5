"""Making the plan of a run: the fewest tiles, the fastest tier of the cache and the largest shards that fit. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from operator import attrgetter

from ffstream.data.shape import DataShape
from ffstream.device.caching_allocator import reserve_alike
from ffstream.errors import BudgetError
from ffstream.field.blueprint import Blueprint
from ffstream.field.labels import LabelMethod, make_label_method
from ffstream.field.network import find_untileable
from ffstream.plan.dry_run import do_on_paper
from ffstream.plan.footprint import (
    Footprint,
    Kernels,
    PaperLayer,
    add_slots,
    cache_layouts,
    check_countable,
)
from ffstream.plan.pinned import count_pinned
from ffstream.plan.plan import LayerPlan, Need, Plan, Resources
from ffstream.plan.refusal import explain, find_ways, find_ways_on
from ffstream.plan.search import find_most
from ffstream.plan.ways import list_halves, list_ways
from ffstream.plan.workload import plan_layers
from ffstream.settings.config import Config

_SMALLEST_BATCH = 8  # the smallest one that is suggested
_GOOD_TILE = 256  # units from which on matrix products are about as fast as they get
_TILE_STEP = 32  # the units of a tile are a multiple of it, as matrix products are fastest then
_SLACK_DIVISOR = 8  # the host's allocator was measured to keep up to an eighth more than is alive
_ENDLESS_BYTES = 1 << 62
_EXCESS = attrgetter("excess_bytes")
_SIZES = ("cache.shard_samples", "micro_batch", "network.tile_units")  # which affect the trained bits

# Finds what kernels of the first layers take beside tensors; called once all else fits.
KernelProbe = Callable[[Blueprint], Kernels]
_NO_KERNELS = Kernels()


def compute_plan(
    config: Config,
    data: DataShape,
    data_bytes: int,
    resources: Resources,
    num_done: int = 0,
    measure_kernels: KernelProbe = lambda _: _NO_KERNELS,
    *,
    must_fit: bool = True,
    is_started: bool = False,
    copied_bytes: Mapping[int, int] | None = None,
) -> Plan:
    """The plan with the fewest tiles, the fastest tier and the largest shards (up to 4096 samples) that fit.

    `data_bytes` is what the data set takes on the host, `num_done` the number of finished layers. `measure_kernels` is
    called for a plan that fits with kernels left out. Sizes that affect the trained bits are chosen by
    `resources.installed`, if it is given and they fit into what is free as well, so that they are the same whenever a
    run is started. If nothing fits, raises BudgetError, which names what does not fit and what would, among the options
    of `ffstream resume` for a run that `is_started`; without `must_fit`, the plan that comes nearest is returned.
    `copied_bytes` are those of the copies of weights that layers start from, by the index of the layer.
    """
    method, copied = make_label_method(config, data), copied_bytes or {}
    planner = _Planner(method, data, data_bytes, resources, num_done, measure_kernels, copied)
    plan = planner.decide(config)
    if plan.fits:
        return planner.keep_cast(plan)
    if not must_fit:
        return planner.spare_device(config, plan)
    if plan.device.num_bytes < 2 * plan.device.allowed_bytes:  # near enough to say exactly which budget would do
        plan = planner.draft(plan.config, plan.tier, kernels=measure_kernels(planner.blueprint(plan.config)))
    ways = find_ways_on(plan) if is_started else find_ways(plan, planner.smaller_batch(plan))
    raise BudgetError(explain(plan, ways))


def choose_tier(
    requested: str, device_type: str, cache_bytes: int, device_free_bytes: int, host_free_bytes: int
) -> str:
    """The tier of a cache that no plan was made for: device, host or disk, within half of what is free."""
    if requested != "auto":
        return _tiers(requested, device_type)[0]
    if device_type != "cpu" and 2 * cache_bytes <= device_free_bytes:
        return "device"
    return "host" if 2 * cache_bytes <= host_free_bytes else "disk"


def _tiers(requested: str, device_type: str) -> list[str]:
    """The tiers to consider, the fastest first. A CPU's device memory is the host's."""
    tiers = ["device", "host", "disk"] if requested == "auto" else [requested]
    return list(dict.fromkeys("host" if tier == "device" and device_type == "cpu" else tier for tier in tiers))


@dataclass(frozen=True)
class _Planner:
    """Makes plans for one data set on one machine."""

    method: LabelMethod
    data: DataShape
    data_bytes: int
    resources: Resources
    num_done: int
    measure_kernels: KernelProbe
    copied_bytes: Mapping[int, int]
    papers: dict[tuple[Config, Kernels, bool], list[PaperLayer]] = field(default_factory=dict)
    kernels: dict[Config, Kernels] = field(default_factory=dict)

    def blueprint(self, config: Config) -> Blueprint:
        """The blueprint of what is trained, in the sizes of a configuration."""
        return Blueprint.of(config, self.data, self.method)

    def decide(self, config: Config) -> Plan:
        """The plan with sizes by what is installed and the tier by what is free; failing that, both by what is free."""
        installed = self.resources.installed
        if installed is None:
            return self.choose_sizes(config)
        plan = dataclasses.replace(self, resources=installed).choose_sizes(config)
        wanted = {name: plan.config.to_flat()[name] for name in _SIZES}
        if plan.fits:
            fitting = self.choose(config.override(wanted), plan.sizes.tile_units)
            if fitting.fits:
                return fitting
        elif self.resources.is_within(installed):  # no more is free than installed, so nothing fits
            return self.draft(plan.config, plan.tier, kernels=_NO_KERNELS)
        plan = self.choose_sizes(config)
        found = plan.config.to_flat()
        changed = [f"{name} {found[name]}, not {wanted[name]}" for name in _SIZES if found[name] != wanted[name]]
        return dataclasses.replace(plan, sizes_by_free=", ".join(changed) or None)

    def spare_device(self, config: Config, plan: Plan) -> Plan:
        """What comes nearest, in the sizes of a host and a disk with room, where the device has room for these.

        `plan` is what came nearest of all sizes. Smaller ones hardly help a host or a disk that is far too small, and
        make everything slower.
        """
        resources = dataclasses.replace(self.resources, host_bytes=_ENDLESS_BYTES, disk_bytes=_ENDLESS_BYTES)
        roomy = dataclasses.replace(self, resources=resources)
        sized = roomy.choose_sizes(config)
        if not sized.fits:
            return plan
        drafts = (self.draft(sized.config, tier, kernels=_NO_KERNELS) for tier in self._tiers(config))
        return min((draft for draft in drafts if not draft.device.excess_bytes), key=_EXCESS, default=plan)

    def keep_cast(self, plan: Plan) -> Plan:
        """The same plan with all weights of a layer kept in the type of its products, if that fits and saves casts.

        It decides no bit, and everything else comes first: the tier of the cache, and the sizes of shards and tiles. On
        a CPU, casts of some weights at a time stay in a core's own cache.
        """
        if self.resources.device_type == "cpu":
            return plan
        blueprint = self.blueprint(plan.config)
        kernels = self.kernels.get(plan.config, _NO_KERNELS)
        without, with_cast = (self._on_paper(blueprint, kernels, keeps_cast) for keeps_cast in (False, True))
        if sum(map(_moved_bytes, with_cast)) >= sum(map(_moved_bytes, without)):
            return plan
        kept = self._draft(plan.config, plan.tier, kernels, keeps_cast=True)
        return dataclasses.replace(kept, sizes_by_free=plan.sizes_by_free) if kept.fits else plan

    def choose_sizes(self, config: Config) -> Plan:
        """The best plan, in tiles where layers do not fit whole; the one that comes nearest if nothing fits."""
        plan = self.choose(config, config.width)
        if plan.device.excess_bytes and config.network.tile_units == "auto" and find_untileable(config) is None:
            plan = min(plan, self.choose_with_tiles(config), key=_EXCESS)
        return plan

    def choose(self, config: Config, tile_units: int) -> Plan:
        """The plan in the fastest tier with room and the best of `list_ways` there, else the one that comes nearest."""
        ways = list_ways(_with_tiles(config, tile_units), self.data, self.method)
        at_once = [way for way in ways if way.micro_batch == ways[0].micro_batch]
        # Either of these may be the smaller one: cutting a batch saves rows, but needs room to sum gradients.
        frugal = [way for way in ways[1:] if way in (at_once[-1], ways[-1])]
        nearest = None
        for tier in self._tiers(config):
            plan = self.draft(ways[0], tier)
            smallest = []
            if not plan.fits and not plan.is_hopeless:
                smallest = [self.draft(way, tier, kernels=_NO_KERNELS) for way in frugal]
            if any(draft.fits for draft in smallest):
                drafts = (self.draft(way, tier) for way in ways[1:])
                plan = next((draft for draft in drafts if draft.fits), plan)
            if plan.fits:
                return plan
            nearest = min([plan, *smallest, *([nearest] if nearest else [])], key=_EXCESS)
        assert nearest is not None, "there is a tier"
        return nearest

    def choose_with_tiles(self, config: Config) -> Plan:
        """As `choose`, with the largest tiles that fit, made smaller if kernels need room.

        It takes the best of `list_ways` in which tiles of `_GOOD_TILE` units could fit, or the last one.
        """
        ways = list_ways(config, self.data, self.method)
        sized = ways[-1]
        if self._could_fit(ways[0], _GOOD_TILE) or self._could_fit(sized, _GOOD_TILE):  # else no other way does
            sized = next((way for way in ways if self._could_fit(way, _GOOD_TILE)), sized)
        if not self._could_fit(sized, _TILE_STEP):
            return self.choose(sized, _TILE_STEP)
        # In multiples of _TILE_STEP units.
        fits = find_most(lambda num: self._find_room(sized, num * _TILE_STEP), -(-config.width // _TILE_STEP))
        plan = self.choose(sized, fits * _TILE_STEP)
        while not plan.fits and fits > 1:
            fits -= 1 + fits // 16
            plan = self.choose(sized, fits * _TILE_STEP)
        return plan

    def _could_fit(self, config: Config, tile_units: int) -> bool:
        """Whether tiles of `tile_units` units fit in some tier, with kernels left out."""
        return self._find_room(config, tile_units) >= 0

    def _find_room(self, config: Config, tile_units: int) -> int:
        """The least room that such tiles leave in bytes of any resource, in the tier where that is most."""
        config = _with_tiles(config, tile_units)
        drafts = (self.draft(config, tier, kernels=_NO_KERNELS) for tier in self._tiers(config))
        return max(draft.room_bytes for draft in drafts)

    def _tiers(self, config: Config) -> list[str]:
        return _tiers(config.cache.tier, self.resources.device_type)

    def draft(self, config: Config, tier: str, *, kernels: Kernels | None = None) -> Plan:
        """The plan for a tier, whether it fits or not. Unless `kernels` is given, it is measured if the rest fits."""
        if kernels is not None:
            return self._draft(config, tier, kernels)
        plan = self._draft(config, tier, _NO_KERNELS)
        if not plan.fits:
            return plan
        if config not in self.kernels:
            self.kernels[config] = self.measure_kernels(self.blueprint(config))
        kernels = self.kernels[config]
        return plan if kernels == _NO_KERNELS else self._draft(config, tier, kernels)

    def _draft(self, config: Config, tier: str, kernels: Kernels, *, keeps_cast: bool = False) -> Plan:
        on_cpu = self.resources.device_type == "cpu"
        blueprint = self.blueprint(config)
        check_countable(blueprint.distinct)
        staged = tier == "disk" or (tier == "host" and not on_cpu)
        on_paper = add_slots(self._on_paper(blueprint, kernels, keeps_cast), blueprint, staged=staged)
        loaded = self.resources.rates, tier if staged else None
        layers = plan_layers(blueprint, on_paper, *loaded, "host")
        shards = [
            layout.shard_bytes for spec in blueprint.distinct for layout in cache_layouts(blueprint, spec.row).values()
        ]
        cache_bytes = max(layer.cache_bytes for layer in layers) + max(shards)  # output replaces input shard by shard
        largest = max(layers, key=lambda layer: layer.footprint.peak)
        terms = _device_terms(largest.footprint) | {"cache": cache_bytes if tier == "device" else 0}
        if not on_cpu:
            reserved = max(layer.reserved for layer in on_paper)
            reserved += _reserve_cache(blueprint) if tier == "device" else 0
            terms |= {"allocator": max(reserved - sum(terms.values()), 0), "context": self.resources.context_bytes}
        device = _need(f"the device ({_describe(largest)})", self.resources.device_bytes, terms)
        between = self._between_windows(config, layers)
        disk, max_unsynced = self._disk(
            layers, cache_bytes if tier == "disk" else 0, between, in_rounds=config.in_rounds
        )
        pinned = {} if on_cpu else count_pinned(on_paper, blueprint, staged=staged)
        in_memory = tier == "host" or (tier == "disk" and self.resources.disk_is_memory)
        on_device = device.num_bytes if self.resources.shares_host else 0
        of_cache = cache_bytes if in_memory else 0
        host = self._host(largest.footprint, of_cache, pinned, on_device, between)
        layer_tier = "host"
        if between and host.excess_bytes:
            layer_tier, host = "disk", self._host(largest.footprint, of_cache, pinned, on_device)
            layers = plan_layers(blueprint, on_paper, *loaded, layer_tier)
        return Plan(
            config,
            blueprint.sizes,
            self.data,
            tier,
            max_unsynced,
            layers,
            device,
            host,
            disk,
            keeps_cast=keeps_cast,
            layer_tier=layer_tier,
            warning=self.resources.unpinned if staged else None,
        )

    def _on_paper(self, blueprint: Blueprint, kernels: Kernels, keeps_cast: bool) -> list[PaperLayer]:
        """The layers on paper, computed once for all tiers, as it takes a fraction of a second."""
        key = (blueprint.config, kernels, keeps_cast)
        if key not in self.papers:
            on_cpu = self.resources.device_type == "cpu"
            self.papers[key] = do_on_paper(blueprint, draws_on_device=on_cpu, kernels=kernels, keeps_cast=keeps_cast)
        return self.papers[key]

    def _in_rounds(self, layers: list[LayerPlan]) -> int:
        """Bytes of two rounds on the disk, and of the layer that is being written, each with its optimiser's state."""
        of_goodness = 4 * self.data.num_samples.get("validation", 0) * self.data.num_classes
        of_each = [layer.footprint.weights + layer.footprint.optimiser + of_goodness for layer in layers]
        return 2 * sum(size * len(layer.numbers) for size, layer in zip(of_each, layers, strict=True)) + max(of_each)

    def _between_windows(self, config: Config, layers: list[LayerPlan]) -> int:
        """Bytes of all layers and of their optimisers' state, which are kept from one window of a round to the next."""
        if config.schedule.count_windows(self.data.num_samples["train"]) == 1:
            return 0
        return sum(len(layer.numbers) * (layer.footprint.weights + layer.footprint.optimiser) for layer in layers)

    def _disk(
        self, layers: list[LayerPlan], cache_bytes: int, between: int, *, in_rounds: bool
    ) -> tuple[Need, int | None]:
        """The need for disk space, and how many shards may wait to be durable (None: any number).

        Between windows, `between` bytes of layers may lie there, of which the last ones that were saved are kept.
        Where there is room the cache counts twice, as a shard that was read is freed only once its output is durable.
        """
        kept = sum(layer.weight_bytes * sum(number > self.num_done for number in layer.numbers) for layer in layers)
        if in_rounds:
            kept = self._in_rounds(layers)
        progress = 2 * max(layer.footprint.weights + layer.footprint.optimiser for layer in layers)
        progress += max(layer.weight_bytes if layer.num_tiles > 1 else 0 for layer in layers)  # finished tiles
        terms = {"layers": kept, "progress": progress + 2 * between}
        terms |= {"initial weights": self._excess_of_copies(layers)} if self.copied_bytes else {}
        roomy = _need("the disk", self.resources.disk_bytes, terms | {"cache": 2 * cache_bytes})
        if not roomy.excess_bytes or not cache_bytes:
            return roomy, None
        return _need("the disk", self.resources.disk_bytes, terms | {"cache": cache_bytes}), 1

    def _excess_of_copies(self, layers: list[LayerPlan]) -> int:
        """The most bytes that copies of initial weights take beyond the room of the layers that replace them.

        A copy is removed once its layer is committed.
        """
        sizes = {number - 1: layer.weight_bytes for layer in layers for number in layer.numbers}
        copies = finished_later = most = 0
        for index in sorted((each for each in sizes if each >= self.num_done), reverse=True):
            copies += self.copied_bytes.get(index, 0)
            most = max(most, copies - finished_later)
            finished_later += sizes[index]
        return most

    def _host(
        self, footprint: Footprint, cache_bytes: int, pinned: dict[str, int], on_device: int, between: int = 0
    ) -> Need:
        work = footprint.peak
        if self.resources.device_type != "cpu":  # a layer's state as it is made and saved
            work = footprint.weights + footprint.optimiser
        terms = {
            "interpreter": self.resources.host_used_bytes,
            "data set": self.data_bytes,
            "cache": cache_bytes,
            "a layer's work": work,
            **pinned,
        }
        terms |= {"the device": on_device} if on_device else {}
        terms |= {"layers between windows": between} if between else {}
        slack = (sum(terms.values()) - self.resources.host_used_bytes) // _SLACK_DIVISOR
        return _need("host memory", self.resources.host_bytes, terms | {"allocator": slack})

    def smaller_batch(self, plan: Plan) -> int | None:
        """The largest batch with which the plan would fit, this one halved once or more; None if there is none."""
        batch = plan.sizes.batch
        batches = [size for size in list_halves(batch, _SMALLEST_BATCH) if size < batch]
        configs = [
            plan.config.override({"batch": size, "cache.shard_samples": size, "micro_batch": size}) for size in batches
        ]
        if not configs or not self.draft(configs[-1], plan.tier, kernels=_NO_KERNELS).fits:
            return None
        return next(
            (size for size, config in zip(batches, configs, strict=True) if self.draft(config, plan.tier).fits), None
        )


def _with_tiles(config: Config, tile_units: int) -> Config:
    """The configuration with tiles of `tile_units` units; unchanged if it gives their size."""
    if isinstance(config.network.tile_units, int):
        return config
    return config.override({"network.tile_units": min(tile_units, config.width)})


def _moved_bytes(layer: PaperLayer) -> int:
    return layer.step.moved_bytes + layer.hand_on.moved_bytes


def _reserve_cache(blueprint: Blueprint) -> int:
    """Bytes that an accelerator's allocator reserves for the largest cache, and for a shard beside it."""
    layouts = [list(cache_layouts(blueprint, spec.row).values()) for spec in blueprint.distinct]
    of_caches = [sum(reserve_alike(layout.shard_bytes, layout.num_shards) for layout in each) for each in layouts]
    return max(of_caches) + max(reserve_alike(layout.shard_bytes, 1) for each in layouts for layout in each)


def _need(noun: str, allowed_bytes: int, terms: dict[str, int]) -> Need:
    return Need(noun, sum(terms.values()), allowed_bytes, terms)


def _device_terms(footprint: Footprint) -> dict[str, int]:
    """The bytes that add up to the peak, by the name of their term."""
    terms = {name: value for name, value in dataclasses.asdict(footprint).items() if name != "handing_on"}
    if footprint.handing_on > footprint.training:
        terms = {"weights": footprint.weights, "handing on": footprint.handing_on - footprint.weights}
    return terms


def _describe(layer: LayerPlan) -> str:
    tiles = f" in {layer.num_tiles} tiles" if layer.num_tiles > 1 else ""
    return f"{layer.name}, {layer.shape}{tiles}"
