"""Write what was measured into README.md, benchmarks/README.md and benchmarks/reliability/README.md.

`python -m benchmarks.report` reads benchmarks/results and benchmarks/reliability/torture.json.

Each table stands between two marks, so that no figure is copied by hand.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks.profile import read_profile
from benchmarks.run import RESULTS
from ffstream.memory_profile import METHODS
from ffstream.tables import format_point

ROOT = Path(__file__).parent.parent
RELIABILITY = ROOT / "benchmarks" / "reliability"


def main() -> None:
    found = {path.stem: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))}
    results = dict(sorted(found.items(), key=lambda item: -len(item[1])))  # the machine that most was run on first
    insert(ROOT / "README.md", "\n\n".join(short_table(found) for found in results.values()))
    profiles = [found["profile"] for found in results.values() if "profile" in found]
    insert(ROOT / "README.md", "\n\n".join(map(profile_table, profiles)), "profile")
    depths = [found["depth"] for found in results.values() if "depth" in found]
    insert(ROOT / "README.md", "\n\n".join(map(depth_table, depths)), "depth")
    insert(ROOT / "benchmarks" / "README.md", "\n\n".join(long_table(name, found) for name, found in results.items()))
    torture = json.loads((RELIABILITY / "torture.json").read_text())
    insert(RELIABILITY / "README.md", torture_table(torture))


def insert(path: Path, table: str, noun: str = "figures") -> None:
    """Replace what stands between the marks of a file."""
    before, rest = path.read_text().split(f"<!-- {noun} -->\n", 1)
    _, after = rest.split(f"<!-- end of {noun} -->", 1)
    path.write_text(f"{before}<!-- {noun} -->\n{table}\n<!-- end of {noun} -->{after}")


def torture_table(rows: dict[str, Any]) -> str:
    """What became of the cases, by kind; a row is named by its workload, if it has one, and its kind."""
    kinds: dict[str, list[dict[str, Any]]] = {}
    for name, row in rows.items():
        kinds.setdefault(name.split()[-1], []).append(row)
    lines = [
        ("kind", "tried", "cases", "as they must be", "of them refused by name", "silent errors", "minutes", "commit")
    ]
    for kind, found in kinds.items():
        sums = {key: sum(row[key] for row in found) for key in ("num_cases", "num_exact", "num_refused", "took_s")}
        options = {f"{key} {value:,}" for row in found for key, value in row["options"].items()}
        lines.append(
            (
                f"`{kind}`",
                ", ".join([f"{len(found)} workloads"] * (len(found) > 1) + sorted(options)),
                *(f"{sums[key]:,}" for key in ("num_cases", "num_exact", "num_refused")),
                str(sum(len(row["failures"]) for row in found)),
                f"{sums['took_s'] / 60:.0f}",
                ", ".join(sorted({row["commit"] for row in found})),
            )
        )
    machines = sorted({f"{row['device']}, one core, torch {row['torch']}" for row in rows.values()})
    note = "Every case but those of `fuzz` is a run of its own; the minutes are of a core that was shared."
    return "\n\n".join([f"{'; '.join(machines)}. {note}", _table(lines)])


def profile_table(found: dict[str, Any]) -> str:
    """The picture, and what it shows: MiB by depth and method."""
    profile = read_profile(found["beside"])
    rows = [("layers", *METHODS.values())]
    for num_layers in sorted({point.num_layers for point in profile.points}):
        points = [profile.find(method, num_layers) for method in METHODS]
        rows.append((str(num_layers), *(format_point(point) for point in points if point is not None)))
    deep = read_profile(found["deep"])
    shown = " and ".join(f"{format_point(point)} with {point.num_layers} layers" for point in deep.curve("ffstream"))
    deeper = f"Of {deep.settings.width} units at batch {deep.settings.batch}, ffstream takes {shown}."
    picture = f"![Peak memory against depth](benchmarks/results/{found['picture']})"
    return (
        f"{picture}\n\nMiB of training / of evaluation:\n\n{_table(rows)}\n\n{deeper} "
        f"{found['machine']['device']}, torch {found['machine']['torch']}, {profile.settings.precision}."
    )


def short_table(found: dict[str, Any]) -> str:
    """The rows that say what ffstream is for."""
    rows = [("what was run", "measured")]
    if "inject" in found:
        rows.append(("MNIST, 4 x 1000 units, 20 epochs a layer, 3 seeds", _accuracy(found["inject"])))
    if "mono" in found:
        rows.append(("the same with a classifier in each layer (`--recipe mono`)", _accuracy(found["mono"])))
    if "hinton" in found:
        rows.append(("the same, the paper's recipe (`--recipe hinton`)", _accuracy(found["hinton"])))
    if "shifts" in found:
        rows.append(
            ("images shifted by up to 2 pixels, `mono`, 4 x 1008 local units, 25 epochs", _accuracy(found["shifts"]))
        )
    if "unsupervised" in found:
        rows.append(
            ("without labels, 4 x 2000 units, 30 epochs (`--recipe unsupervised`)", _accuracy(found["unsupervised"]))
        )
    if "unsupervised-local" in found:
        rows.append(
            (
                "without labels, 4 x 2016 local units, 30 epochs (`--recipe unsupervised`)",
                _accuracy(found["unsupervised-local"]),
            )
        )
    if "depth" in found:
        rows.append(
            ("images shifted by up to 2 pixels, 40 x 500 units, 16 epochs (`--recipe deep`)", _depth(found["depth"]))
        )
    if "memory" in found:
        rows.append(("peak memory of 40 layers against 4, 1000 units", _memory(found["memory"])))
    if "peers" in found:
        methods = found["peers"]["depths"][-1]["methods"]
        ours, lean, backprop, published = (
            methods[name] for name in ("ffstream", "ffstream, lean", "backprop", "published")
        )
        rows.append(
            (
                "40 layers of 1000 units, batch 512, beside backprop in bf16, and Forward-Forward as it is published",
                f"{ours['peak_bytes'] / 2**20:.0f} MiB against {backprop['peak_bytes'] / 2**20:.0f} and "
                f"{published['peak_bytes'] / 2**20:.0f}; time of an epoch x "
                f"{backprop['us_per_sample'] / ours['us_per_sample']:.1f} and x "
                f"{published['us_per_sample'] / ours['us_per_sample']:.1f}; of one without hard "
                f"negatives, moved rows and dropout x "
                f"{backprop['us_per_sample'] / lean['us_per_sample']:.1f} and x "
                f"{published['us_per_sample'] / lean['us_per_sample']:.1f}",
            )
        )
    if "tiers" in found:
        ways = found["tiers"]["by_epochs"]["20"]
        ratios = f"x {ways['disk']['median']:.2f}; page cache dropped x {ways['disk, dropped']['median']:.2f}"
        rows.append(("time with the cache on disk against in memory, 20 epochs a layer", ratios))
    if "footprint" in found:
        rows.append(("peak memory planned before a run against measured", _ratios(found["footprint"])))
    if "tiles" in found:
        tiles = found["tiles"]
        change = f"{100 * tiles['added_validation_error']:+.2f} points of validation error"
        rows.append(
            (
                "a layer eight times larger than the budget against the same layer whole",
                f"x {tiles['time_ratio']:.2f} of the time, {change}, {tiles['num_tiles']} tiles",
            )
        )
    machine = next(iter(found.values()))["machine"]
    cores = " or ".join(sorted({str(result["machine"]["num_cores"]) for result in found.values()}))
    return f"{_table(rows)}\n\n{machine['device']}, {cores} cores, torch {machine['torch']}."


def long_table(name: str, found: dict[str, Any]) -> str:
    """Every benchmark with its figures, time and commit."""
    rows = [("name", "figures", "commit", "cores", "took")]
    for key, value in found.items():
        machine, took = value["machine"], f"{value['wall_s']:.0f} s"
        rows.append((f"`{key}`", _FIGURES[key](value), machine["commit"], str(machine["num_cores"]), took))
    machine = next(iter(found.values()))["machine"]
    return "\n\n".join(
        [
            f"### {machine['device']}",
            f"Python {machine['python']}, torch {machine['torch']}; "
            f"configurations in [results/{name}.json](results/{name}.json).",
            _table(rows),
        ]
    )


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


def depth_table(found: dict[str, Any]) -> str:
    """The picture, and what it shows: error by recipe and depth."""
    depths = (4, 8, 16, 24, 32, 40)
    rows = [("recipe", "epochs a layer", "runs", *(f"layer {depth}" for depth in depths))]
    for name, curve in found["curves"].items():
        errors = (
            f"{100 * curve['test']['by_depth'][depth - 1]:.2f} / {100 * curve['validation']['by_depth'][depth - 1]:.2f}"
            for depth in depths
        )
        rows.append((name, str(curve["config"]["epochs"]), str(len(curve["seeds"])), *errors))
    machine = found["machine"]
    return (
        f"![Test error against depth](benchmarks/results/{found['picture']})\n\n"
        f"Test / validation error of the goodness summed to each layer in %, means over runs: MNIST, 40 x 500 units, "
        f"5,000 images held out:\n\n{_table(rows)}\n\n"
        f"{machine['device']}, torch {machine['torch']}, commit {machine['commit']}."
    )


def _step(found: dict[str, Any]) -> str:
    shares = ", ".join(f"{row['recipe']} {100 * row['share']:.0f} %" for row in found["recipes"])
    return f"of the rate of the plain product, {found['config']}: {shares}"


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
    shallow, deep = (int(value) / 2**20 for value in found["peak_bytes"].values())
    num_runs = len(next(iter(found["peak_bytes_of_each_run"].values())))
    growth = f"{100 * found['growth']:+.1f} %, medians of {num_runs} processes each"
    return f"{deep:.1f} MiB against {shallow:.1f} MiB ({growth})"


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


def _ratios(found: dict[str, Any]) -> str:
    ratios = f"x {found['lowest_ratio']:.3f} to {found['highest_ratio']:.3f} (median {found['median_ratio']:.3f})"
    return f"{ratios} in {len(found['configurations'])} configurations"


def _footprint(found: dict[str, Any]) -> str:
    layer = found["layer_2000"]
    return (
        f"planned / measured {_ratios(found)}; a layer of 2000 x 2000: {layer['measured_bytes'] / 2**20:.1f} MiB, "
        f"x {layer['ratio']:.3f} of its state, two slots and one batch"
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
    "growth": _growth,
    "peers": _peers,
    "start": _start,
    "footprint": _footprint,
    "profile": _profile,
}


def _table(rows: list[tuple[str, ...]]) -> str:
    head, *body = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([head, "|---" * len(rows[0]) + "|", *body])


if __name__ == "__main__":
    main()
