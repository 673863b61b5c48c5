"""The digest of every layer's weights, for small runs of every kind: what a change of structure must leave as it is.

    python -m benchmarks.digests --against REVISION
    python -m benchmarks.digests --output before.json
    python -m benchmarks.digests --compare before.json

`--against` checks the revision out into a temporary folder, makes the same runs with it, and compares. Digests are
those of one machine: another processor, or another torch, adds in another order. The settings that decide bits are
written out, so that a change of their defaults does not show here.

The runs are made through the public names only (`Config`, `train`), so that earlier and later commits can make them.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: so small a step is no faster with more

ROOT = Path(__file__).resolve().parents[1]
REFUSED = "refused"

RECIPES = ("inject", "hinton", "grouped", "mono", "deep", "unsupervised")
SHAPE = {
    "data": "digits",
    "layers": 3,
    "width": 48,
    "epochs": 2,
    "batch": 64,
    "seed": 5,
    "device": "cpu",
    "precision": "bf16",
    "network.kind": "linear",
    "cache.dtype": "bf16",
    "cache.tier": "host",
    "cache.shard_samples": 512,
    "micro_batch": 64,
    "network.tile_units": 48,
}
ALONE: dict[str, list[dict[str, Any]]] = {  # settings that are changed one at a time, by recipe
    "inject": [
        {"precision": "fp32"},
        {"precision": "fp32", "cache.dtype": "fp32", "cache.tier": "disk"},
        {"cache.dtype": "fp16"},
        {"cache.dtype": "int8", "cache.tier": "disk"},
        {"cache.tier": "device"},
        {"micro_batch": 24},
        {"batch": 1024, "cache.shard_samples": 256},
        {"network.input_skip": True},
        {"network.stack_layers": 2, "network.stack_features": 0.6},
        {"network.dropout": 0.0, "objective.perturbation": 0.0},
        {"negatives.sampler": "uniform"},
        {"negatives.per_step": 3},
        {"objective.name": "logistic"},
        {"objective.name": "pairwise"},
        {"objective.goodness": "sum_squares"},
        {"objective.goodness": "mean"},
        {"objective.goodness": "neg_mean_squares"},
        {"objective.peer_normalisation": 0.03},
        {"optimiser.name": "sgd", "optimiser.learning_rate": 0.05},
        {"optimiser.name": "adamw", "optimiser.weight_decay": 0.01},
        {"optimiser.state_dtype": "bf16"},
        {"augmentation.views": 5, "augmentation.max_shift": 1},
        {"augmentation.restream": True, "augmentation.max_shift": 1},
        {"objective.similarity": "matching", "objective.similarity_weight": 0.3},
        {"validation_fraction": 0.0},
    ],
    "hinton": [
        {"negatives.sampler": "uniform"},
        {"negatives.per_sample": 3},
        {"negatives.per_step": 2, "micro_batch": 24},
        {"objective.peer_normalisation": 0.03},
        {"augmentation.restream": True, "augmentation.max_shift": 1, "negatives.sampler": "uniform"},
    ],
    "grouped": [{"micro_batch": 24}, {"objective.goodness": "sum_squares"}],
    "mono": [
        {"objective.similarity": "contrastive", "objective.similarity_weight": 0.01},
        {"objective.goodness": "sum", "objective.scale": 0.6},
        {"micro_batch": 24},
    ],
    "deep": [{"layers": 9}, {"cache.dtype": "int8"}],
    "unsupervised": [{"negatives.blurs": 2}, {"negatives.per_step": 2}, {"optimiser.name": "adam"}],
}


def list_cases() -> Iterator[tuple[str, dict[str, Any]]]:
    """The name of each run, and its settings: recipe, and dotted settings that differ from the recipe's."""
    kinds: tuple[dict[str, Any], ...] = (
        {},
        {"network.tile_units": 20},
        {"network.kind": "local", "width": 144, "network.tile_units": 144},
    )
    for recipe, tier, kind in itertools.product(RECIPES, ("host", "disk"), kinds):
        words = ", ".join(f"{key} {value}" for key, value in kind.items())
        yield f"{recipe}, {tier}, {words or 'as it is'}", {"recipe": recipe, **SHAPE, "cache.tier": tier, **kind}
    for recipe, changes in ALONE.items():
        for changed in changes:
            words = ", ".join(f"{key} {value}" for key, value in changed.items())
            yield f"{recipe}, {words}", {"recipe": recipe, **SHAPE, **changed}


def make_digests() -> dict[str, dict[str, str] | str]:
    """For each run, the digest of each file of weights by its path in the run; or `REFUSED`, by a message for users."""
    import ffstream as ff

    digests: dict[str, dict[str, str] | str] = {}
    for name, settings in list_cases():
        with tempfile.TemporaryDirectory() as folder:
            try:
                config = ff.Config(recipe=settings["recipe"]).override(settings)
                path = ff.train(config, Path(folder) / "run").path
            except ff.FFStreamError:
                digests[name] = REFUSED
                continue
            files = sorted(path.glob("layers/*/weights.safetensors"))
            digests[name] = {str(f.relative_to(path)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}
        print(f"{name}: {len(files)} layers", file=sys.stderr)
    return digests


def list_differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """A line for each run that differs, naming its first file that does."""
    lines = []
    for name in [*before, *(name for name in after if name not in before)]:
        old, new = before.get(name, "not tried"), after.get(name, "not tried")
        if old == new:
            continue
        if isinstance(old, str) or isinstance(new, str):
            words = [each if isinstance(each, str) else "trained" for each in (old, new)]
            lines.append(f"{name}: {words[0]} before, {words[1]} now")
        else:
            first = min(path for path in {**old, **new} if old.get(path) != new.get(path))
            lines.append(f"{name}: {first} differs")
    return lines


def make_digests_of(revision: str) -> dict[str, Any]:
    """The same of another commit of this repository, in a process of its own. Raises CalledProcessError."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        subprocess.run(["git", "worktree", "add", "--quiet", "--detach", tree, revision], cwd=ROOT, check=True)
        try:
            script, output = Path(folder) / "sweep.py", Path(folder) / "digests.json"
            script.write_bytes(Path(__file__).read_bytes())  # apart from its neighbours, which bear names of Python's
            command: list[str | Path] = [sys.executable, script, "--output", output]
            subprocess.run(command, check=True, cwd=folder, env=os.environ | {"PYTHONPATH": str(tree)})
            found: dict[str, Any] = json.loads(output.read_text())
            return found
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", tree], cwd=ROOT, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--against", metavar="REVISION", help="a commit, tag or branch to compare with")
    parser.add_argument("--output", type=Path, help="a file for the digests")
    parser.add_argument("--compare", type=Path, help="a file that --output wrote")
    given = parser.parse_args()
    digests = make_digests()
    if given.output:
        given.output.write_text(json.dumps(digests, indent=1) + "\n")
    before = make_digests_of(given.against) if given.against else None
    if given.compare:
        before = json.loads(given.compare.read_text())
    num_files = sum(len(files) for files in digests.values() if not isinstance(files, str))
    num_refused = sum(files == REFUSED for files in digests.values())
    print(f"{len(digests)} runs, {num_refused} of them refused, {num_files} files of weights")
    if before is not None:
        lines = list_differences(before, digests)
        print("\n".join(lines) or "All are byte for byte the same.")
        sys.exit(bool(lines))


if __name__ == "__main__":
    main()
