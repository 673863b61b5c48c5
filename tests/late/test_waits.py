"""The host waits for the device only where it reports progress, and at the end of a pass."""

from __future__ import annotations

import threading
from collections import Counter

import pytest

import ffstream as ff
from ffstream.infer import evaluation, readout
from ffstream.run import frozen_layers
from ffstream.storage.run_directory import RunDirectory
from ffstream.training import layer_trainer
from ffstream.training.layer_trainer import LayerTrainer
from tests.late.accelerator import late_cuda


def count_in_epochs(config, folder, monkeypatch):
    """Train. Returns the numbers of epochs and of steps, and what made this thread wait within the epochs, by line."""
    num_steps, waits, own = Counter(), Counter(), threading.current_thread().name
    train_epoch, step = LayerTrainer.train_epoch, LayerTrainer.step
    with late_cuda("lazy") as late:

        def note_epoch(trainer, *args, **options):
            late.waits.clear()
            before = num_steps["all"]  # with those of a trial
            figures = train_epoch(trainer, *args, **options)
            num_steps["epochs"] += 1
            num_steps["of epochs"] += num_steps["all"] - before
            waits.update({(wait.cause, wait.line): n for wait, n in late.waits.items() if wait.thread == own})
            return figures

        def note_step(trainer, *args, **options):
            num_steps["all"] += 1
            return step(trainer, *args, **options)

        monkeypatch.setattr(LayerTrainer, "train_epoch", note_epoch)
        monkeypatch.setattr(LayerTrainer, "step", note_step)
        ff.train(config, folder)
    return num_steps["epochs"], num_steps["of epochs"], waits


WAYS = {
    "as it is": {"epochs": 2, "network__stack_layers": 0},
    "on the device": {"cache__tier": "device"},
    "tiles": {"network__tile_units": 12, "epochs": 1},
    "cut": {"batch": 96, "micro_batch": 20, "cache__shard_samples": 32, "optimiser__state_dtype": "bf16"},
    "8 bits": {"cache__dtype": "int8"},
}


@pytest.mark.parametrize("settings", WAYS.values(), ids=WAYS)
def test_the_host_waits_for_no_step(settings, small_config, tmp_path, monkeypatch):
    """An epoch ends with its figures, for which the host waits; no step before has to."""
    monkeypatch.setattr(layer_trainer, "_TICK_S", float("inf"))
    settings = {"layers": 2, "epochs": 2, "device": "cuda", "cache__tier": "disk"} | settings
    num_epochs, num_steps, waits = count_in_epochs(small_config(**settings), tmp_path / "run", monkeypatch)
    assert num_steps >= 3 * num_epochs
    assert waits.total() <= 2 * num_epochs, waits
    files = {line.split(":")[0] for _, line in waits}
    assert files == {"training/layer_trainer.py", "training/epoch_figures.py"}


def test_the_host_waits_once_for_each_report(small_config, tmp_path, monkeypatch):
    monkeypatch.setattr(layer_trainer, "_TICK_S", 0.0)
    config = small_config(layers=1, epochs=2, device="cuda", cache__tier="disk")
    num_epochs, num_steps, waits = count_in_epochs(config, tmp_path / "run", monkeypatch)
    assert waits.total() == num_steps + 2 * num_epochs, waits


PASSES = {  # the most waits in one: for its result, and, where slots are freed, for the last copy from each
    "measuring": (frozen_layers, "measure_goodness", 1),
    "handing on": (frozen_layers, "propagate", 2),
    "measuring what is evaluated": (evaluation, "measure_goodness", 1),
    "fitting a readout": (readout, "_fit", 2),  # it begins with copies of the labels and of the logits from below
    "reading out": (readout, "_logits", 1),
}


def note_passes(late, module, name, monkeypatch):
    """A list to which each pass by this name adds what made this thread wait in it."""
    passes, own, work = [], threading.current_thread().name, getattr(module, name)

    def note_pass(*args, **options):
        late.waits.clear()
        found = work(*args, **options)
        passes.append(Counter({wait: n for wait, n in late.waits.items() if wait.thread == own}))
        return found

    monkeypatch.setattr(module, name, note_pass)
    return passes


@pytest.mark.parametrize(("module", "name", "most"), PASSES.values(), ids=PASSES)
def test_a_pass_waits_for_no_shard(module, name, most, small_config, tmp_path, monkeypatch):
    config = small_config(device="cuda", cache__tier="disk", cache__shard_samples=32, epochs=1)
    if name == "measure_goodness":  # of training shards, after the first tile; there is one shard for validation
        config = config.override({"network.tile_units": 12})
    with late_cuda("lazy") as late:
        passes = note_passes(late, module, name, monkeypatch)
        run = ff.train(config, tmp_path / "run")
        if module is evaluation:
            run.evaluate("goodness", device="cuda")
        elif module is readout:
            run.evaluate("softmax", device="cuda")
    assert len(passes) >= 2
    assert max(found.total() for found in passes) <= most, passes


def test_handing_on_by_tiles_waits_for_nothing_but_tiles(small_config, tmp_path, monkeypatch):
    """Each tile is loaded twice for a shard: all it consists of is copied from memory that is not pinned."""
    num_tiles, config = 3, small_config(device="cuda", layers=2, epochs=1, cache__tier="disk", cache__shard_samples=32)
    config = config.override({"width": 30, "network.tile_units": 10, "validation_fraction": 0.0})
    loaded, load_units = [], RunDirectory.load_units
    with late_cuda("lazy") as late:
        passes = note_passes(late, frozen_layers, "propagate", monkeypatch)

        def note_load(directory, index, units, tile, digest):
            loaded.append(tile)
            load_units(directory, index, units, tile, digest)

        monkeypatch.setattr(RunDirectory, "load_units", note_load)
        ff.train(config, tmp_path / "run")
    ((waits,), places) = passes, Counter()
    for wait, count in waits.items():
        places[wait.line.split(":")[0]] += count
    assert len(loaded) % (2 * num_tiles) == 0
    assert places.pop("infer/frozen.py") == sum(len(tile.state_dict()) for tile in loaded)
    assert places.total() <= PASSES["handing on"][2], waits
