"""What a plan that does not fit lacks, and the options with which it would: the text of its refusal. Pure."""

from __future__ import annotations

from ffstream.cache import CODED
from ffstream.field.network import find_untileable
from ffstream.ground.units import format_bytes
from ffstream.plan.plan import Need, Plan

_MIB = 1 << 20
_BUDGETS = {"device": "--budget", "host": "--host-budget", "disk": "--disk-budget"}


def explain(plan: Plan, ways: list[str]) -> str:
    """One line on the first resource that has too little room, for a plan that comes nearest, and ways out."""
    need: Need = getattr(plan, _find_lacking(plan))
    terms = sorted(need.terms.items(), key=lambda item: -item[1])
    parts = ", ".join(f"{term} {format_bytes(num_bytes)}" for term, num_bytes in terms if num_bytes)
    return (
        f"plan: {need.noun} needs {format_bytes(need.num_bytes)} with the cache on {plan.tier} ({parts}); allowed "
        f"{format_bytes(need.allowed_bytes)}; use {', '.join(ways[:-1])}{', or ' if ways[1:] else ''}{ways[-1]}"
    )


def _find_lacking(plan: Plan) -> str:
    """The first resource that has too little room."""
    return next(name for name in ("device", "host", "disk") if getattr(plan, name).excess_bytes)


def find_ways(plan: Plan, smaller_batch: int | None) -> list[str]:
    """Options with which a new run takes less of the resource that lacks room.

    `smaller_batch` is the largest one that would fit, None if there is none.
    """
    name, config = _find_lacking(plan), plan.config
    ways = [f"--batch {smaller_batch}"] if smaller_batch else []
    if name == "device":
        ways += ["a smaller --width"]
        in_turn = config.override({"schedule.order": "sequential"})
        if config.in_rounds and find_untileable(in_turn) is None:
            ways += ["--order sequential, in which layers are cut into tiles"]
    elif name == "host":
        ways += ["--cache disk"] if plan.tier != "disk" else []
    else:
        ways += ["--cache host"] + (["--cache-dtype int8"] if config.cache.dtype != CODED else [])
        ways += ["fewer --views"] if config.augmentation.views > 1 else []
        ways += ["a smaller --width"]
        ways += ["fewer --negatives-per-sample"] if config.labels.method in ("overlay", "none") else []
    return [*ways, f"{_BUDGETS[name]} {-(-getattr(plan, name).num_bytes // _MIB)}MiB or more"]


def find_ways_on(plan: Plan) -> list[str]:
    """The same for a run that was started: what decides its bits, such as its width and batches, stays as it is."""
    name = _find_lacking(plan)
    if name == "device":
        return [f"--budget {-(-plan.device.num_bytes // _MIB)}MiB or more", "a --device with more memory"]
    if name == "host":
        return [*(["--cache disk"] if plan.tier != "disk" else []), "a machine on which more memory is free"]
    return ["--cache host", "--cache-dir on a larger disk", "the same again once space is free there"]
