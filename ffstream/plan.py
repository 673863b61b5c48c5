"""What a run will take before it starts: tier and shards of the cache, the most memory and disk at once. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ffstream.cache import CacheLayout
from ffstream.config import Config
from ffstream.errors import BudgetError
from ffstream.footprint import NUM_DISTINCT, DataShape, Footprint, KernelBytes, PaperLayer, cache_layouts, do_on_paper
from ffstream.labels import LabelMethod
from ffstream.ledger import Work
from ffstream.network import LayerSpec, compute_layer_specs
from ffstream.propagation import chunk_samples
from ffstream.units import format_bytes

_SHARD_SAMPLES = 4096  # where the budget has room for it
_SMALLEST_BATCH = 8  # that is suggested
_SLACK_DIVISOR = 8  # the host's allocator keeps up to an eighth more than is alive, as was measured
_MOST_WEIGHTS = 10**16  # of a layer
_MIB = 1 << 20


@dataclass(frozen=True)
class Rates:
    """How fast a machine is. `probe.measure_rates` finds it for this one."""

    flops_per_s: float  # of matrix products, in the precision of the run
    moved_bytes_per_s: float  # that other operators read and write on the device
    operator_s: float  # of starting an operator
    loaded_bytes_per_s: Mapping[str, float]  # from a tier of the cache to the device: host, disk

    def seconds(self, work: Work) -> dict[str, float]:
        """What work takes, by what it is spent on."""
        return {
            "products": work.flops / self.flops_per_s,
            "memory": work.moved_bytes / self.moved_bytes_per_s,
            "operators": work.num_operators * self.operator_s,
        }


@dataclass(frozen=True)
class Resources:
    """What a run may take, in bytes. `memory.survey_resources` finds it for this machine."""

    device_type: str  # cpu, cuda
    device_bytes: int
    host_bytes: int  # of the whole process
    host_used_bytes: int  # by the interpreter and its libraries
    disk_bytes: int
    disk_is_memory: bool = False  # the run directory lies in a file system that is kept in memory
    rates: Rates | None = None  # no times are planned without


@dataclass(frozen=True)
class LayerPlan:
    """Layers `first` to `last`, from 1, which are alike."""

    first: int
    last: int
    in_features: int
    num_units: int
    footprint: Footprint
    cache_bytes: int  # of what one of them reads
    read_bytes: int  # from the cache, over the training of one of them
    written_bytes: int  # to the next one's cache
    seconds: dict[str, float] | None  # of one of them, by what it is spent on; "loading" goes on beside the rest

    @property
    def total_s(self) -> float | None:
        """Seconds for one of them; None where no rates are known."""
        if self.seconds is None:
            return None
        return max(sum(self.seconds.values()) - self.seconds["loading"], self.seconds["loading"])

    @property
    def bottleneck(self) -> str | None:
        """What takes the most time: loading where it does not hide behind the rest."""
        if self.seconds is None:
            return None
        hidden = self.seconds["loading"] < (self.total_s or 0.0)
        return max((name for name in self.seconds if name != "loading" or not hidden), key=self.seconds.__getitem__)


@dataclass(frozen=True)
class Need:
    """The most bytes of one resource at once, what they are made of, and how many may be taken."""

    noun: str
    num_bytes: int
    allowed_bytes: int
    terms: dict[str, int]

    @property
    def excess_bytes(self) -> int:
        """By how much it is more than may be taken."""
        return max(self.num_bytes - self.allowed_bytes, 0)


@dataclass(frozen=True)
class Plan:
    """How a run goes, and what it takes."""

    config: Config  # shards resolved
    tier: str  # of the cache: device, host, disk
    max_unsynced: int | None  # shards that may wait to be durable; None: any number
    layers: list[LayerPlan]
    device: Need
    host: Need
    disk: Need

    @property
    def fits(self) -> bool:
        """Whether all that it takes may be taken."""
        return not any(need.excess_bytes for need in (self.device, self.host, self.disk))

    @property
    def total_s(self) -> float | None:
        """Seconds for all layers, finished ones too; None where no rates are known."""
        known = [(layer.last - layer.first + 1, layer.total_s) for layer in self.layers]
        return sum(count * (each or 0.0) for count, each in known) if known[0][1] is not None else None

    def to_mapping(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        layers = [
            dataclasses.asdict(layer)
            | {"footprint": dataclasses.asdict(layer.footprint) | {"peak": layer.footprint.peak}}
            | {"total_s": layer.total_s, "bottleneck": layer.bottleneck}
            for layer in self.layers
        ]
        needs = {name: dataclasses.asdict(getattr(self, name)) for name in ("device", "host", "disk")}
        return {
            "tier": self.tier,
            "total_s": self.total_s,
            "batch": self.config.batch,
            "shard_samples": self.config.cache.shard_samples,
            "layers": layers,
            "peaks": needs,
        }


def compute_plan(
    config: Config,
    method: LabelMethod,
    data: DataShape,
    data_bytes: int,
    resources: Resources,
    num_done: int = 0,
    measure_kernels: Callable[[Config], Sequence[KernelBytes]] = lambda _: (),
    *,
    must_fit: bool = True,
) -> Plan:
    """The plan with the fastest tier of the cache that has room, and the largest shards up to 4096 samples.

    `data_bytes` is what the data set takes on the host, `num_done` the number of finished layers. `measure_kernels` is
    asked for a plan that fits without them. Raises BudgetError, naming what does not fit and what would; unless it must
    not fit, then the plan that comes nearest is returned.
    """
    planner = _Planner(method, data, data_bytes, resources, num_done)
    frugal = []
    for tier in _tiers(config.cache.tier, resources.device_type):
        largest, *smaller = _with_shards(config, data)
        plan = planner.draft(largest, tier, measure_kernels)
        if not plan.fits and smaller:
            plan = planner.draft(smaller.pop(), tier, measure_kernels)
            larger = (planner.draft(sized, tier, measure_kernels) for sized in smaller) if plan.fits else ()
            plan = next((draft for draft in larger if draft.fits), plan)
        if plan.fits:
            return plan
        frugal.append(plan)
    nearest = min(frugal, key=lambda plan: sum(need.excess_bytes for need in (plan.device, plan.host, plan.disk)))
    if not must_fit:
        return nearest
    if nearest.device.num_bytes < 2 * nearest.device.allowed_bytes:  # near enough to say exactly what would do
        nearest = planner.draft(nearest.config, nearest.tier, measure_kernels, only_if_it_fits=False)
    raise BudgetError(_explain(nearest, planner.smaller_batch(nearest, measure_kernels)))


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


def _with_shards(config: Config, data: DataShape) -> list[Config]:
    """With shards from 4096 samples down to a batch, by halves; as it is where their size is given."""
    assert isinstance(config.batch, int), "batch is resolved before it is planned for"
    if isinstance(config.cache.shard_samples, int):
        return [config]
    sizes = [max(_SHARD_SAMPLES, config.batch)]
    while sizes[-1] // 2 >= config.batch:
        sizes.append(sizes[-1] // 2)
    num_samples = max(data.num_samples.values())
    different = [size for size in sizes if size < num_samples or size == sizes[0]]
    return [config.override({"cache.shard_samples": size}) for size in different]


@dataclass(frozen=True)
class _Planner:
    """Makes plans for one data set on one machine."""

    method: LabelMethod
    data: DataShape
    data_bytes: int
    resources: Resources
    num_done: int

    def draft(
        self,
        config: Config,
        tier: str,
        measure_kernels: Callable[[Config], Sequence[KernelBytes]],
        *,
        only_if_it_fits: bool = True,
    ) -> Plan:
        """The plan for a tier, whether it fits or not. Kernels are measured if it fits without them."""
        plan = self._draft(config, tier, ())
        kernels = measure_kernels(config) if plan.fits or not only_if_it_fits else ()
        return self._draft(config, tier, kernels) if kernels else plan

    def _draft(self, config: Config, tier: str, kernels: Sequence[KernelBytes]) -> Plan:
        on_cpu = self.resources.device_type == "cpu"
        specs = compute_layer_specs(config, self.data.num_features)
        _check_countable(specs)
        staged = tier == "disk" or (tier == "host" and not on_cpu)
        on_paper = do_on_paper(
            config, specs, self.method, self.data, draws_on_device=on_cpu, staged=staged, kernels=kernels
        )
        rates = self.resources.rates
        layers = _layer_plans(config, specs, on_paper, self.method, self.data, rates, tier if staged else None)
        shards = [layout.shard_bytes for spec in specs[:2] for layout in _layouts(config, self.method, self.data, spec)]
        cache_bytes = max(layer.cache_bytes for layer in layers) + max(shards)  # an input becomes its output by shards
        largest = max(layers, key=lambda layer: layer.footprint.peak)
        device = _need(
            f"the device ({_describe(largest)})",
            self.resources.device_bytes,
            _device_terms(largest.footprint) | {"cache": cache_bytes if tier == "device" else 0},
        )
        disk, max_unsynced = self._disk(layers, cache_bytes if tier == "disk" else 0)
        in_memory = tier == "host" or (tier == "disk" and self.resources.disk_is_memory)
        host = self._host(largest.footprint, cache_bytes if in_memory else 0)
        return Plan(config, tier, max_unsynced, layers, device, host, disk)

    def _disk(self, layers: list[LayerPlan], cache_bytes: int) -> tuple[Need, int | None]:
        """Twice the cache where there is room: what was read is freed once what was made of it is durable."""
        kept = sum(layer.footprint.weights * (layer.last - max(layer.first - 1, self.num_done)) for layer in layers)
        progress = 2 * max(layer.footprint.weights + layer.footprint.optimiser for layer in layers)
        terms = {"layers": kept, "progress": progress}
        roomy = _need("the disk", self.resources.disk_bytes, terms | {"cache": 2 * cache_bytes})
        if not roomy.excess_bytes or not cache_bytes:
            return roomy, None
        return _need("the disk", self.resources.disk_bytes, terms | {"cache": cache_bytes}), 1

    def _host(self, footprint: Footprint, cache_bytes: int) -> Need:
        work = footprint.peak
        if self.resources.device_type != "cpu":  # pinned slots; what a layer is made in, and saved from
            work = 2 * footprint.slots + footprint.weights + footprint.optimiser
        terms = {
            "interpreter": self.resources.host_used_bytes,
            "data set": 2 * self.data_bytes,  # as loaded, and cut into splits
            "cache": cache_bytes,
            "a layer's work": work,
        }
        slack = (sum(terms.values()) - self.resources.host_used_bytes) // _SLACK_DIVISOR
        return _need("host memory", self.resources.host_bytes, terms | {"allocator": slack})

    def smaller_batch(self, plan: Plan, measure_kernels: Callable[[Config], Sequence[KernelBytes]]) -> int | None:
        """The largest smaller batch with which the plan would fit, by halves, or None."""
        batch = plan.config.batch
        assert isinstance(batch, int), "batch is resolved before it is planned for"
        if (
            max(layer.footprint.weights + layer.footprint.optimiser for layer in plan.layers)
            > plan.device.allowed_bytes
        ):
            return None  # which no batch changes
        while batch >= 2 * _SMALLEST_BATCH:
            batch //= 2
            config = plan.config.override({"batch": batch, "cache.shard_samples": batch})
            if self.draft(config, plan.tier, measure_kernels).fits:
                return batch
        return None


def _need(noun: str, allowed_bytes: int, terms: dict[str, int]) -> Need:
    return Need(noun, sum(terms.values()), allowed_bytes, terms)


def _check_countable(specs: list[LayerSpec]) -> None:
    """Raise BudgetError for a layer whose bytes do not fit in 64 bits: torch has no shape for it."""
    for spec in specs[:2]:
        if spec.in_features * spec.num_units > _MOST_WEIGHTS:
            raise BudgetError(
                f"plan: layer {spec.index + 1} has {spec.in_features} x {spec.num_units} weights; allowed "
                f"{_MOST_WEIGHTS:.0e}, more cannot be counted in bytes; use a smaller --width"
            )


def _layer_plans(
    config: Config,
    specs: list[LayerSpec],
    on_paper: list[PaperLayer],
    method: LabelMethod,
    data: DataShape,
    rates: Rates | None,
    tier: str | None,
) -> list[LayerPlan]:
    """The first layers one by one, and all that are like the last of them together.

    `tier`: where shards are loaded from, None where they are not.
    """
    plans = []
    for spec, layer in zip(specs[:NUM_DISTINCT], on_paper, strict=True):
        layouts = cache_layouts(config, method, data, spec.in_features)
        read = sum(layout.num_bytes for layout in layouts.values())
        hands_on = spec.index + 1 < len(specs)
        read_bytes = read * (config.epochs + hands_on)
        seconds = None
        if rates is not None:
            work = _all_work(config, layer, layouts)
            loading = read_bytes / rates.loaded_bytes_per_s[tier] if tier is not None else 0.0
            seconds = rates.seconds(work) | {"loading": loading}
        plans.append(
            LayerPlan(
                first=spec.index + 1,
                last=len(specs) if spec.index + 1 == NUM_DISTINCT else spec.index + 1,
                in_features=spec.in_features,
                num_units=spec.num_units,
                footprint=layer.footprint,
                cache_bytes=read,
                read_bytes=read_bytes,
                written_bytes=read // spec.in_features * spec.out_features if hands_on else 0,
                seconds=seconds,
            )
        )
    return plans


def _all_work(config: Config, layer: PaperLayer, layouts: Mapping[str, CacheLayout]) -> Work:
    """Of training one layer, measuring it after every epoch and handing its output on."""
    assert isinstance(config.batch, int), "batch is resolved before it is planned for"
    train = layouts["train"]
    work = layer.step * (config.epochs * -(-train.num_samples // config.batch))
    if "validation" in layouts:
        validation = layouts["validation"]
        work += layer.sweep * (config.epochs * -(-validation.num_samples // chunk_samples(validation)))
    first_chunks = sum(min(chunk_samples(layout), layout.num_samples) for layout in layouts.values())
    return work + layer.hand_on * -(-sum(layout.num_samples for layout in layouts.values()) // first_chunks)


def _layouts(config: Config, method: LabelMethod, data: DataShape, spec: LayerSpec) -> list[CacheLayout]:
    return list(cache_layouts(config, method, data, spec.in_features).values())


def _device_terms(footprint: Footprint) -> dict[str, int]:
    """What the peak is made of, by the term's name."""
    terms = {name: value for name, value in dataclasses.asdict(footprint).items() if name != "handing_on"}
    if footprint.handing_on > footprint.training:
        terms = {"weights": footprint.weights, "handing on": footprint.handing_on - footprint.weights}
    return terms


def _describe(layer: LayerPlan) -> str:
    which = f"layer {layer.first}" if layer.first == layer.last else f"layers {layer.first} to {layer.last}"
    return f"{which}, {layer.in_features} x {layer.num_units}"


_MENDS = {
    "device": "{}a smaller --width, or --budget {} or more",
    "host": "{}--cache disk, or --host-budget {} or more",
    "disk": "{}--cache host, a smaller --width or fewer --negatives-per-sample, or --disk-budget {} or more",
}


def _explain(plan: Plan, smaller_batch: int | None) -> str:
    """One line on the first resource that has no room, from the most frugal plan there is."""
    name = next(name for name in ("device", "host", "disk") if getattr(plan, name).excess_bytes)
    need: Need = getattr(plan, name)
    terms = sorted(need.terms.items(), key=lambda item: -item[1])
    parts = ", ".join(f"{term} {format_bytes(num_bytes)}" for term, num_bytes in terms if num_bytes)
    enough = f"{-(-need.num_bytes // _MIB)}MiB"
    batch = f"--batch {smaller_batch}, " if smaller_batch else ""
    return (
        f"plan: {need.noun} needs {format_bytes(need.num_bytes)} with the cache on {plan.tier} ({parts}); allowed "
        f"{format_bytes(need.allowed_bytes)}; use {_MENDS[name].format(batch, enough)}"
    )
