"""Test error of the recipes on MNIST. Settings are the recipes' own; they were chosen on the validation split."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ffstream as ff
from ffstream.studies.charts import draw_errors

NUM_SEEDS = 3


def _train(config: ff.Config, folder: Path) -> tuple[ff.Run, float]:
    start_s = time.perf_counter()
    run = ff.train(config, folder, resume=True)
    return run, time.perf_counter() - start_s


# Chosen on one validation split of 10,000 images, beside a dense network of 1000 units.
SHIFTED = {
    "network.kind": "local",
    "width": 1008,
    "epochs": 25,
    "augmentation.views": 25,
    "augmentation.max_shift": 2,
    "objective.perturbation": 0.02,
    "network.dropout": 0.1,
}

# Units as in the paper (Hinton 2022, section 3.2); 144 divides those of a local layer. Fewer epochs than its 100 and
# 60, after which the cached hybrids are learnt by heart.
UNLABELLED = {"width": 2000, "epochs": 30}
UNLABELLED_LOCAL = {"network.kind": "local", "width": 2016, "epochs": 30}


def measure_recipe(
    recipe: str, data_root: str, device: str, folder: Path, settings: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """4 x 1000 units, 20 epochs a layer, or as `settings` say: the test error of three seeds, read once each.

    On all 60,000 training images, as the published figures are; the recipe was chosen on a validation split before.
    """
    rows, errors, times = [], [], []
    for seed in range(NUM_SEEDS):
        config = ff.Config(
            recipe=recipe,
            data="mnist",
            data_root=data_root,
            layers=4,
            width=1000,
            epochs=20,
            seed=seed,
            device=device,
            validation_fraction=0.0,
        ).override(settings or {})
        run, elapsed_s = _train(config, folder / f"{recipe}-{seed}")
        found = run.evaluate(device=device)
        softmax = run.evaluate("softmax", device=device)
        errors.append(found.error)
        times.append(elapsed_s)
        rows.append(
            {
                "seed": seed,
                "test_error": found.error,
                "test_errors_by_depth": found.errors_by_depth,
                "test_error_softmax": softmax.error,
                "training_s": elapsed_s,
            }
        )
    return {
        "config": run.config.to_mapping() | {"data_root": "", "seed": list(range(NUM_SEEDS))},
        "mean_test_error": statistics.mean(errors),
        "spread_test_error": max(errors) - min(errors),
        "mean_training_s": statistics.mean(times),
        "seeds": rows,
    }


# Of 40 layers: recipe, settings, seeds. Those of the first were chosen on one validation split of 10,000 images.
CURVES: dict[str, tuple[str, Mapping[str, Any], int]] = {
    "deep": ("deep", {"epochs": 16}, NUM_SEEDS),
    "inject": ("inject", {"epochs": 8}, 1),
    "hinton": ("hinton", {"epochs": 8}, 1),
    "inject, one stack": ("inject", {"epochs": 8, "network.stack_layers": 0}, 1),
}
_SHALLOW = 4  # layers: what deeper ones are measured against


def measure_depth(data_root: str, device: str, folder: Path, picture: Path) -> dict[str, Any]:
    """40 x 512 units: the error at depth 40 beside that of 4 layers and of the best depth, and the curves.

    5,000 training images are held out; the test set is read once for each run.
    """
    curves: dict[str, dict[str, object]] = {}
    drawn = {}
    for name, (recipe, settings, num_seeds) in CURVES.items():
        rows, validation, test = [], [], []
        for seed in range(num_seeds):
            config = ff.Config(recipe=recipe, data="mnist", data_root=data_root, layers=40, width=512, device=device)
            config = config.override({"seed": seed} | dict(settings))
            run, elapsed_s = _train(config, folder / f"{recipe}-{len(curves)}-{seed}")
            validation.append(run.validation_errors_by_depth)
            test.append(run.evaluate(device=device).errors_by_depth)
            rows.append(
                {
                    "seed": seed,
                    "training_s": elapsed_s,
                    "validation_errors_by_depth": validation[-1],
                    "test_errors_by_depth": test[-1],
                }
            )
        curves[name] = {
            "config": run.config.to_mapping() | {"data_root": ""},
            "seeds": rows,
            "validation": _summarise(validation),
            "test": _summarise(test),
        }
        drawn[name] = _average(test)
    draw_errors(drawn, "test error, mean", picture, force=True)
    return {"picture": picture.name, "shallow": _SHALLOW, "curves": curves}


def _average(by_seed: list[list[float]]) -> list[float]:
    """By depth."""
    return [statistics.mean(errors) for errors in zip(*by_seed, strict=True)]


def _summarise(by_seed: list[list[float]]) -> dict[str, float | list[float]]:
    mean = _average(by_seed)
    return {
        "by_depth": mean,
        "deepest": mean[-1],
        "deepest_by_seed": [errors[-1] for errors in by_seed],
        "above_best": mean[-1] - min(mean),
        "below_shallow": mean[_SHALLOW - 1] - mean[-1],
    }
