"""What a benchmark found, in a line."""

from __future__ import annotations

import statistics
from typing import Any


def describe(name: str, found: dict[str, Any]) -> str:
    """The figures of one benchmark."""
    return _FIGURES[name](found)


def _accuracy(found: dict[str, Any]) -> str:
    softmax = statistics.mean(row["test_error_softmax"] for row in found["seeds"])
    run_s = statistics.median(row["training_s"] for row in found["seeds"])
    read_out = f"softmax readout {100 * softmax:.2f} %" if softmax != found["mean_test_error"] else "softmax readout"
    error = (
        f"{100 * found['mean_test_error']:.2f} % test error (spread {100 * found['spread_test_error']:.2f}; {read_out})"
    )
    return f"{error}, {run_s:.0f} s a run"


def _depth(found: dict[str, Any]) -> str:
    errors = found["curves"]["deep"]["test"]
    best, seeds = 100 * min(errors["by_depth"]), ", ".join(f"{100 * error:.2f}" for error in errors["deepest_by_seed"])
    return (
        f"{100 * errors['deepest']:.2f} % test error at layer 40 (by seed {seeds}), "
        f"{100 * errors['by_depth'][found['shallow'] - 1]:.2f} % at layer {found['shallow']}, at best {best:.2f} %"
    )


def _step(found: dict[str, Any]) -> str:
    shares = ", ".join(f"{row['recipe']} {100 * row['share']:.0f} %" for row in found["recipes"])
    return f"of the rate of the plain product, {found['config']}: {shares}"


def _accelerator(found: dict[str, Any]) -> str:
    parts = []
    for row in found["widths"]:
        waits = "" if row["waits_a_step"] is None else f", the host waits {row['waits_a_step']:.2f} times"
        streamed = "" if row["streamed_ratio"] is None else f", streamed x {row['streamed_ratio']:.3f} of the time"
        parts.append(
            f"{row['width']} units: {100 * row['share']:.0f} % of the rate of the plain product, "
            f"{row['operators_a_step']:.0f} operators a step{waits}{streamed}"
        )
    budget = found["budget"]
    planned, allowed, shown = (budget[f"{name}_bytes"] for name in ("planned", "budget", "shown"))
    told = "nvidia-smi tells nothing here" if shown is None else f"{shown / 2**20:.0f} shown by nvidia-smi"
    return "; ".join([*parts, f"budget {allowed / 2**20:.0f} MiB: {planned / 2**20:.0f} planned, {told}"])


def _growth(found: dict[str, Any]) -> str:
    return (
        f"layers 361 to 400 take x {found['depth_ratio']:.2f} of the time of layers 3 to 42; eight times the samples "
        f"x {found['per_sample_ratio']:.2f} of eight times the time, eight times the width "
        f"x {found['per_square_width_ratio']:.2f} of 64 times"
    )


def _peers(found: dict[str, Any]) -> str:
    parts = []
    for row in found["depths"]:
        each = {name: method["us_per_sample"] for name, method in row["methods"].items()}
        times = "; ".join(
            ", ".join(f"{name} x {taken / each[ours]:.1f}" for name, taken in each.items() if "ffstream" not in name)
            + f" of the time of {noun}"
            for ours, noun in (("ffstream", "ffstream's epoch"), ("ffstream, lean", "a lean one"))
        )
        peaks = ", ".join(
            f"{name} {method['peak_bytes'] / 2**20:.0f}"
            for name, method in row["methods"].items()
            if method.get("peak_bytes")
        )
        parts.append(f"{row['num_layers']} layers: {times}; MiB at most: {peaks}")
    ends = ", ".join(
        f"{name} {100 * method['curve'][-1][1]:.1f} % after {method['curve'][-1][0]:.0f} s"
        for name, method in found["trained"]["methods"].items()
    )
    ours, theirs = (found["trained"]["methods"][name]["curve"] for name in ("ffstream", "published"))
    reached_s = next(second for second, error in ours if error <= theirs[-1][1])
    parts.append(f"{found['trained']['num_layers']} layers, 8 epochs, validation error: {ends}")
    parts.append(f"the error of the published one is reached in 1/{theirs[-1][0] / reached_s:.0f} of its time")
    return "; ".join(parts)


def _start(found: dict[str, Any]) -> str:
    steps = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in found["first_step_s"].items())
    return f"`ffstream --help` {found['help_s']:.2f} s; from torch's import to the first step: {steps}"


def _memory(found: dict[str, Any]) -> str:
    shallow, deep, *stacked = (int(value) / 2**20 for value in found["peak_bytes"].values())
    num_runs = len(next(iter(found["peak_bytes_of_each_run"].values())))
    growth = f"{100 * found['growth']:+.1f} %, medians of {num_runs} processes each"
    in_stacks = "".join(f"; in stacks of four, which read the data set again, {peak:.1f} MiB" for peak in stacked)
    return f"{deep:.1f} MiB against {shallow:.1f} MiB ({growth}){in_stacks}"


def _tiers(found: dict[str, Any]) -> str:
    parts = []
    for epochs, part in found["by_epochs"].items():
        for way in ("disk", "disk, dropped"):
            ratios, stalled = part[way]["ratios"], part[way]["stalled"]
            spread = f"median of {len(ratios)} pairs, {min(ratios):.3f} to {max(ratios):.3f}"
            shares = ", ".join(f"{noun} {100 * share:.1f} %" for noun, share in stalled.items())
            noun = "page cache dropped" if "dropped" in way else "page cache warm"
            parts.append(f"{epochs} epochs a layer, {noun}: x {part[way]['median']:.3f} ({spread}); {shares}")
    streamed, direct = (found["cold_reads"][f"{name}_bytes_per_s"] for name in ("streamed", "direct"))
    rates = f"{streamed / 1e9:.1f} GB/s against {direct / 1e9:.1f} of direct reads"
    return "; ".join([*parts, f"shards from the disk alone: {rates}"])


def describe_ratios(found: dict[str, Any]) -> str:
    """Of the footprint: planned over measured bytes."""
    ratios = f"x {found['lowest_ratio']:.3f} to {found['highest_ratio']:.3f} (median {found['median_ratio']:.3f})"
    return f"{ratios} in {len(found['configurations'])} configurations"


def _data_memory(found: dict[str, Any]) -> str:
    said = [
        f"{noun}: " + ", ".join(f"{int(num):,} images {each['bytes'] / 2**20:.0f} MiB" for num, each in sizes.items())
        for noun, sizes in found["sources"].items()
    ]
    return "; ".join(said)


def _stream(found: dict[str, Any]) -> str:
    errors = ", ".join(
        f"{100 * row['test_error']:.2f} % with {replays} ({row['elapsed_s']:.0f} s)"
        for replays, row in found["replays"].items()
    )
    ends = "with the same bits" if found["are_alike"] else "with OTHER bits"
    return (
        f"MNIST seen once, test error by replays: {errors}; memory over {found['num_windows']} windows "
        f"{100 * found['growth']:+.1f} %; killed {found['num_kills']} times, the run ended {ends}"
    )


def _conv_layer(found: dict[str, Any]) -> str:
    text = f"{found['shape']}: x {found['ratio']:.2f} ({1e3 * found['step_s']:.0f} ms)"
    if "with_classifier_ratio" in found:  # earlier records have none
        text += f", with the recipe's local classifier x {found['with_classifier_ratio']:.2f}"
    return text


def _conv_memory(found: dict[str, Any]) -> str:
    names = ("in_budget_bytes", "ffstream_bytes", "checkpointed_bytes", "backprop_bytes")
    rows = [
        f"{row['depth']} layers: " + " / ".join(f"{row[name] / 2**20:.0f}" for name in names) for row in found["depths"]
    ]
    growth = ", ".join(f"{100 * number:+.2f} %" for number in found["growth"].values())
    heading = f"MiB within {found['budget']} / by default / backprop, checkpointing / backprop"
    return f"{heading}; {'; '.join(rows)}; growth {growth}"


def _footprint(found: dict[str, Any]) -> str:
    layer = found["layer_2000"]
    return (
        f"planned / measured {describe_ratios(found)}; a layer of 2000 x 2000: "
        f"{layer['measured_bytes'] / 2**20:.1f} MiB, x {layer['ratio']:.3f} of its state, two slots and one batch"
    )


def _tiles(found: dict[str, Any]) -> str:
    exact = ", ".join(f"x {row['ratio']:.2f} at batch {row['batch']}" for row in found["exact"])
    budget, planned = (found[name] / 2**20 for name in ("budget_bytes", "planned_bytes"))
    return (
        f"budget {budget:.1f} MiB, {found['num_tiles']} tiles, planned {planned:.1f} MiB "
        f"(planned / measured x {found['planned_over_measured']:.3f}): "
        f"{100 * found['added_validation_error']:+.2f} points of validation error, x {found['time_ratio']:.2f} of the "
        f"time; a step of the exact way: {exact}"
    )


def _times(found: dict[str, Any]) -> str:
    ratios = f"{found['lowest_ratio']:.2f} to {found['highest_ratio']:.2f}"
    return f"planned / measured over {len(found['shapes'])} shapes: {ratios}"


def _state(found: dict[str, Any]) -> str:
    errors, peaks = found["mean_validation_error"], found["planned_peak_bytes_2000"]
    return (
        f"validation error {100 * errors['bf16']:.2f} % in bf16 against {100 * errors['fp32']:.2f} % in fp32, x "
        f"{found['time_ratio']:.2f} of the time; a layer of 2000 x 2000 takes {peaks['bf16'] / 2**20:.1f} MiB "
        f"instead of {peaks['fp32'] / 2**20:.1f} MiB"
    )


def _rows(found: dict[str, Any]) -> str:
    parts = []
    for tier, part in found["by_tier"].items():
        errors, place = part["mean_validation_error"], "on the device" if tier == "device" else "on disk, dropped"
        parts.append(
            f"{place}: validation error {100 * errors['int8']:.2f} % in 8 bits against {100 * errors['bf16']:.2f} % in "
            f"bf16, x {part['time_ratio']:.2f} of the time"
        )
    sizes = [found["cache_bytes"][dtype] / 2**20 for dtype in ("int8", "bf16")]
    return "; ".join([*parts, f"cache of a layer {sizes[0]:.1f} MiB instead of {sizes[1]:.1f} MiB"])


def _batches(found: dict[str, Any]) -> str:
    return "; ".join(
        f"{row['epochs']} epochs, batches of {row['batch']}: {100 * row['mean_validation_error']:.2f} % after "
        f"{row['median_training_s']:.0f} s"
        for row in found["rows"]
    )


def _profile(found: dict[str, Any]) -> str:
    return "; ".join(
        f"ffstream from {depths} layers: {100 * growth:+.2f} %" for depths, growth in found["growth"].items()
    )


_FIGURES = {
    "inject": _accuracy,
    "mono": _accuracy,
    "shifts": _accuracy,
    "hinton": _accuracy,
    "unsupervised": _accuracy,
    "unsupervised-local": _accuracy,
    "depth": _depth,
    "memory": _memory,
    "tiers": _tiers,
    "tiles": _tiles,
    "times": _times,
    "state": _state,
    "rows": _rows,
    "batches": _batches,
    "step": _step,
    "accelerator": _accelerator,
    "growth": _growth,
    "stream": _stream,
    "data-memory": _data_memory,
    "peers": _peers,
    "start": _start,
    "footprint": _footprint,
    "conv-step": lambda found: "; ".join(map(_conv_layer, found["layers"])),
    "conv-footprint": lambda found: f"planned / measured {describe_ratios(found)}",
    "conv-memory": _conv_memory,
    "profile": _profile,
}
