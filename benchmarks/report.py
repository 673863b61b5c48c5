"""Write what was measured into README.md, docs/figures.md, benchmarks/README.md and benchmarks/reliability/README.md.

`python -m benchmarks.report` reads benchmarks/results and benchmarks/reliability/torture.json.

Each table stands between two marks, so that no figure is copied by hand.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.figures import describe, describe_ratios
from benchmarks.profile import read_profile
from benchmarks.run import RESULTS
from ffstream.cli.tables import format_point
from ffstream.studies.memory_profile import METHODS

ROOT = Path(__file__).parent.parent
RELIABILITY = ROOT / "benchmarks" / "reliability"
HEADLINES = {"peers", "depth", "profile"}  # what the page that a newcomer reads first needs


def main() -> None:
    found = {path.stem: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))}
    results = dict(sorted(found.items(), key=lambda item: -len(item[1])))  # the machine that most was run on first
    insert(ROOT / "README.md", headlines(next(found for found in results.values() if set(found) >= HEADLINES)))
    figures = ROOT / "docs" / "figures.md"
    insert(figures, "\n\n".join(short_table(found) for found in results.values()))
    profiles = [found["profile"] for found in results.values() if "profile" in found]
    insert(figures, "\n\n".join(map(profile_table, profiles[:1])), "profile")  # others look alike
    depths = [found["depth"] for found in results.values() if "depth" in found]
    insert(figures, "\n\n".join(map(depth_table, depths)), "depth")
    insert(ROOT / "benchmarks" / "README.md", "\n\n".join(long_table(name, found) for name, found in results.items()))
    torture = json.loads((RELIABILITY / "torture.json").read_text())
    insert(RELIABILITY / "README.md", torture_table(torture))


def insert(path: Path, table: str, noun: str = "figures") -> None:
    """Replace what stands between the marks of a file."""
    before, rest = path.read_text().split(f"<!-- {noun} -->\n", 1)
    _, after = rest.split(f"<!-- end of {noun} -->", 1)
    path.write_text(f"{before}<!-- {noun} -->\n{table}\n<!-- end of {noun} -->{after}")


def headlines(found: dict[str, Any]) -> str:
    """The picture of memory against depth, and three figures in words for somebody who is new to all of this."""
    peers, depth = found["peers"], found["depth"]
    deepest = peers["depths"][-1]
    ours, backprop = (deepest["methods"][name]["peak_bytes"] / 2**20 for name in ("ffstream", "backprop"))
    trained = peers["trained"]["methods"]
    (our_s, our_error), (their_s, their_error) = (trained[name]["curve"][-1] for name in ("ffstream", "published"))
    by_depth = depth["curves"]["deep"]["test"]["by_depth"]
    lines = [
        f"![Peak memory against depth](benchmarks/results/{found['profile']['picture']})",
        "",
        f"- **{ours:.0f} MiB where backpropagation takes {backprop:.0f}.** A network of {deepest['num_layers']} layers "
        "of 1000 units is trained in the memory of one layer, however deep it is.",
        f"- **{100 * our_error:.1f} % validation error after {our_s:.0f} s** on MNIST, where the published "
        f"Forward-Forward program has {100 * their_error:.1f} % after {their_s:.0f} s (4 layers of 1000 units).",
        f"- **Depth pays.** {len(by_depth)} layers have {100 * by_depth[-1]:.2f} % test error where the first "
        f"{depth['shallow']} have {100 * by_depth[depth['shallow'] - 1]:.2f} % (MNIST, `--recipe deep`).",
    ]
    return "\n".join(textwrap.fill(line, 120, subsequent_indent="  ") for line in lines)


def torture_table(rows: dict[str, Any]) -> str:
    """What became of the cases, by kind; a row is named by its workload, if it has one, and its kind."""
    kinds: dict[str, list[dict[str, Any]]] = {}
    for name, row in rows.items():
        kinds.setdefault(name.split()[-1], []).append(row)
    lines: list[tuple[str, ...]] = [
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
    picture = f"![Peak memory against depth](../benchmarks/results/{found['picture']})"
    return (
        f"{picture}\n\nMiB of training / of evaluation:\n\n{_table(rows)}\n\n{deeper} "
        f"{found['machine']['device']}, torch {found['machine']['torch']}, {profile.settings.precision}."
    )


def short_table(found: dict[str, Any]) -> str:
    """The rows that say what ffstream is for."""
    rows = [("what was run", "measured")]
    if "inject" in found:
        rows.append(("MNIST, 4 x 1000 units, 20 epochs a layer, 3 seeds", describe("inject", found["inject"])))
    if "mono" in found:
        rows.append(("the same with a classifier in each layer (`--recipe mono`)", describe("mono", found["mono"])))
    if "hinton" in found:
        rows.append(("the same, the paper's recipe (`--recipe hinton`)", describe("hinton", found["hinton"])))
    if "shifts" in found:
        rows.append(
            (
                "images shifted by up to 2 pixels, `mono`, 4 x 1008 local units, 25 epochs",
                describe("shifts", found["shifts"]),
            )
        )
    if "unsupervised" in found:
        rows.append(
            (
                "without labels, 4 x 2000 units, 30 epochs (`--recipe unsupervised`)",
                describe("unsupervised", found["unsupervised"]),
            )
        )
    if "unsupervised-local" in found:
        rows.append(
            (
                "without labels, 4 x 2016 local units, 30 epochs (`--recipe unsupervised`)",
                describe("unsupervised-local", found["unsupervised-local"]),
            )
        )
    if "depth" in found:
        rows.append(
            (
                f"images shifted by up to 2 pixels, {_depth_shape(found['depth'])}, 16 epochs (`--recipe deep`)",
                describe("depth", found["depth"]),
            )
        )
    if "memory" in found:
        rows.append(("peak memory of 40 layers against 4, 1000 units", describe("memory", found["memory"])))
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
        rows.append(("peak memory planned before a run against measured", describe_ratios(found["footprint"])))
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
    return f"{_table(rows)}\n\n{machine['device']}, {_each(found, 'num_cores')} cores, torch {_each(found, 'torch')}."


def _each(found: dict[str, Any], fact: str) -> str:
    """A fact of the machine on which the results were measured; all its values where they differ."""
    return " or ".join(sorted({str(result["machine"][fact]) for result in found.values()}))


def long_table(name: str, found: dict[str, Any]) -> str:
    """Every benchmark with its figures, time and commit."""
    rows = [("name", "figures", "commit", "cores", "took")]
    for key, value in found.items():
        machine, took = value["machine"], f"{value['wall_s']:.0f} s"
        rows.append((f"`{key}`", describe(key, value), machine["commit"], str(machine["num_cores"]), took))
    machine = next(iter(found.values()))["machine"]
    return "\n\n".join(
        [
            f"### {machine['device']}",
            f"Python {_each(found, 'python')}, torch {_each(found, 'torch')}; "
            f"configurations in [results/{name}.json](results/{name}.json).",
            _table(rows),
        ]
    )


def _depth_shape(found: dict[str, Any]) -> str:
    """The layers and units of the networks that `depth` trained."""
    config = found["curves"]["deep"]["config"]
    return f"{config['layers']} x {config['width']} units"


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
        f"![Test error against depth](../benchmarks/results/{found['picture']})\n\n"
        f"Test / validation error of the goodness summed to each layer in %, means over runs: MNIST, "
        f"{_depth_shape(found)}, 5,000 images held out:\n\n{_table(rows)}\n\n"
        f"{machine['device']}, torch {machine['torch']}, commit {machine['commit']}."
    )


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    head, *body = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([head, "|---" * len(rows[0]) + "|", *body])


if __name__ == "__main__":
    main()
