"""Layers that start from another run's: what is taken, what is said, and that a resume needs only what was copied."""

from __future__ import annotations

import itertools
import shutil

import pytest
import torch
from safetensors.torch import load_file

import ffstream as ff
from ffstream.data import load_dataset
from ffstream.ground import interrupts
from ffstream.run import launch
from ffstream.run.repair import diagnose, put_aside
from ffstream.storage import tensor_file
from ffstream.training.layer_trainer import LayerTrainer
from tests.helpers import InterruptAt, layer_digests, metrics_without_times, run_cli, train_in_pieces, write_pictures

# Every layer kind, reading, tier and way of showing images.
CASES = {
    "inject": {"cache__tier": "disk"},
    "hinton": {"recipe": "hinton"},
    "grouped": {"recipe": "grouped", "width": 30},
    "mono": {"recipe": "mono"},
    "unsupervised": {"recipe": "unsupervised"},
    "tiles": {"network__tile_units": 10, "layers": 2},
    "tiles, restreamed": {"network__tile_units": 10, "augmentation__restream": True, "layers": 2},
    "stacks of their own pixels": {"network__stack_layers": 1, "network__stack_features": 0.5, "cache__tier": "disk"},
    "input skip": {"network__input_skip": True},
    "views": {"augmentation__views": 2},
    "int8, save_every": {"cache__dtype": "int8", "save_every": "0.001s"},
    "unlike": {
        "recipe": "mono",
        "network__layers": "conv4 pool conv6(normalise=samples) local3(field=3) dense20",
        "cache__tier": "disk",
    },
    "conv": {"recipe": "conv", "network__layers": "conv4 conv4 conv4", "labels__head_layers": 2},
    "conv-ff": {"recipe": "conv-ff", "network__layers": "conv4 conv4"},
    "tiles of channels": {
        "recipe": "conv",
        "network__layers": "conv24 conv24",
        "labels__head_layers": 1,
        "network__tile_units": 10,
    },
    "grids": {"network__kind": "local", "width": 144, "layers": 2},
}


RUNS = {"tiles of channels": 4}  # in which a classifier's weights for all channels lie: the parts of the plane


class Notes(ff.Observer):
    def __init__(self):
        self.notes = []

    def on_note(self, text):
        self.notes.append(text)


class Starts:
    """The state of each layer, or tile, before its first step."""

    def __init__(self, monkeypatch):
        self.states = []
        train_epoch = LayerTrainer.train_epoch

        def spy(trainer, transfer, cache, labels, epoch, *more, **options):
            if epoch % trainer.schedule.num_epochs == 0:
                self.states.append({key: value.clone() for key, value in trainer.layer.state_dict().items()})
            return train_epoch(trainer, transfer, cache, labels, epoch, *more, **options)

        monkeypatch.setattr(LayerTrainer, "train_epoch", spy)


def weights_of(run, index):
    return load_file(run.path / f"layers/{index:03d}/weights.safetensors")


def flip(path):
    data = bytearray(path.read_bytes())
    data[-9] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", CASES)
def test_layers_start_as_the_other_runs_ended_and_resume_bitwise_without_it(name, small_config, tmp_path, monkeypatch):
    config = small_config(**CASES[name], epochs=2, seed=1)
    other = ff.train(config.override({"seed": 0}), tmp_path / "other")
    ended = [weights_of(other, index) for index in range(config.layers)]
    starts, notes = Starts(monkeypatch), Notes()
    whole = ff.train(config, tmp_path / "whole", init_from=other.path, observer=notes)
    assert notes.notes == [f"layers 1-{config.layers} start from {other.path}"]
    num_tiles = len(starts.states) // config.layers
    for index, end in enumerate(ended):
        tiles = starts.states[index * num_tiles : (index + 1) * num_tiles]
        for key, value in end.items():
            axis, runs = (1, RUNS.get(name, 1)) if key == "label_embedding" else (0, 1)
            parts = [tile[key].unflatten(axis, (runs, -1)) for tile in tiles]
            begun = tiles[0][key] if num_tiles == 1 else torch.cat(parts, dim=axis + 1).flatten(axis, axis + 1)
            if name == "stacks of their own pixels" and key == "weight" and index:  # which read other pixels here
                hidden = (begun == 0).all(dim=0)
                assert 0.6 < hidden.float().mean() < 0.9  # of those that either run does not read
                value[:, hidden] = 0
            assert torch.equal(begun, value), key
    assert not (whole.path / "initial").exists()

    settings = config.override({"init_from": str(other.path)})
    with pytest.raises(KeyboardInterrupt):
        ff.train(settings, tmp_path / "run", observer=InterruptAt("on_epoch", 0))
    shutil.rmtree(other.path)
    assert train_in_pieces(settings, tmp_path / "run", "on_epoch") >= config.layers
    assert layer_digests(tmp_path / "run") == layer_digests(whole.path)
    assert metrics_without_times(tmp_path / "run") == metrics_without_times(whole.path)
    assert not (tmp_path / "run/initial").exists()


def test_it_makes_a_difference_and_is_part_of_what_a_run_is(small_config, tmp_path):
    plain, other = (ff.train(small_config(seed=seed), tmp_path / str(seed)) for seed in (0, 1))
    run = ff.train(small_config(), tmp_path / "run", init_from=other.path)
    assert all(a != b for a, b in zip(layer_digests(run.path), layer_digests(plain.path), strict=True))
    assert "init_from" not in plain.config.identity()
    assert run.config.fingerprint() != plain.config.fingerprint()
    with pytest.raises(ff.RunMismatchError, match="init_from"):
        ff.train(small_config(), run.path, init_from=plain.path, resume=True)
    with pytest.raises(ff.RunMismatchError, match="init_from"):
        ff.train(small_config(), plain.path, init_from=other.path, resume=True)
    shutil.rmtree(other.path)
    assert ff.train(small_config(layers=4), run.path, resume=True).num_layers_done == 4  # it need not be named again
    assert ff.load(run.path) is not None


# What differs here from the run that layers start from, and what is said of it.
DIFFERENCES = {
    "more layers": ({"layers": 4}, "layers 1-3 start from {}; layer 4 does not: that run has 3 layers"),
    "another width": (
        {"network__layers": "dense24 dense30 dense24"},
        "layer 1 starts from {}; layer 2 does not: it has 24 units there and 30 here; layer 3 does not: it reads 24 "
        "features there and 30 features here",
    ),
    "another kind": (
        {"network__layers": "conv24 dense24", "recipe": "mono"},
        "layer 1 does not start from {}: it is linear there and conv here; layer 2 does not: it reads 24 features "
        "there and 24 x 8 x 8 here",
    ),
    "another recipe": (
        {"recipe": "mono"},
        "layers 1-3 start from {}, but for the label embedding, as labels.method is injection there and classifier "
        "here",
    ),
    "none told": ({"recipe": "grouped"}, "layers 1-3 start from {}"),
    "an input skip": (
        {"network__input_skip": True},
        "layer 1 starts from {}; layers 2-3 do not: they read 24 features there and 88 features here",
    ),
}


@pytest.fixture(scope="module")
def other(tmp_path_factory, small_data):
    config = ff.Config(data=str(small_data), layers=3, width=24, epochs=1, batch=32, device="cpu", precision="fp32")
    return ff.train(config, tmp_path_factory.mktemp("other") / "run")


@pytest.mark.parametrize("name", DIFFERENCES)
def test_what_differs_is_named_by_ranges_of_layers(name, other, small_config, tmp_path):
    settings, said = DIFFERENCES[name]
    config, said, notes = small_config(**settings, epochs=1), said.format(other.path), Notes()
    if "start from" not in said.replace("not start from", "") and "starts from" not in said:
        with pytest.raises(ff.ConfigError) as caught:
            ff.train(config, tmp_path / "run", init_from=other.path)
        assert said in str(caught.value)
        assert not (tmp_path / "run").exists()
        return
    assert ff.make_plan(config.override({"init_from": str(other.path)})).note == said
    run = ff.train(config, tmp_path / "run", init_from=other.path, observer=notes)
    assert notes.notes == [said]
    assert said in run_cli("inspect", run.path)[1]
    assert run.verify() == config.layers


def test_labels_of_another_number_start_anew_and_of_other_names_are_named(other, small_config, tmp_path):
    digits, notes = load_dataset("digits").train, Notes()
    for num_classes, first in ((7, "0"), (10, "zero")):
        place = tmp_path / f"{num_classes}"
        for label in range(num_classes):
            pixels = (16 * digits.images[digits.labels == label][:20]).clamp(max=255).byte().reshape(-1, 8, 8).numpy()
            write_pictures(place, {str(label) if label else first: list(pixels)})
        ff.train(
            small_config(epochs=1, data=str(place)), place / "../run" / first, init_from=other.path, observer=notes
        )
    said = f"layers 1-3 start from {other.path}"
    assert notes.notes == [
        f"{said}, but for the label embedding, of 10 classes there and 7 here",
        f"{said}; class 0 is '0' there and '1' here",  # as names of folders are sorted, all classes have moved
    ]


def test_a_local_classifier_of_other_layers_starts_anew(small_config, tmp_path):
    layers = {"recipe": "conv", "network__layers": "conv4 conv4", "epochs": 1}
    other = ff.train(small_config(**layers, labels__head_layers=2), tmp_path / "other")
    notes = Notes()
    for head_layers in (1, 3):
        config = small_config(**layers, labels__head_layers=head_layers)
        ff.train(config, tmp_path / f"{head_layers}", init_from=other.path, observer=notes)
    said = f"layers 1-2 start from {other.path}, but for the local classifier, which has other layers there"
    assert said == notes.notes[-1]
    assert notes.notes[0].startswith(f"layers 1-2 start from {other.path}")


def test_of_a_run_that_is_still_trained_the_finished_layers_are_taken(small_config, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        ff.train(small_config(), tmp_path / "other", observer=InterruptAt("on_epoch", 0))
    with pytest.raises(ff.ConfigError, match="that run has 0 finished layers"):
        ff.train(small_config(), tmp_path / "run", init_from=tmp_path / "other")
    found = []

    class StartAnother(ff.Observer):
        def on_epoch(self, layer, epoch, *_):
            if (layer, epoch) == (3, 1):
                notes = Notes()
                ff.train(small_config(seed=5), tmp_path / "run", init_from=tmp_path / "other", observer=notes)
                found.extend(notes.notes)

    ff.resume(tmp_path / "other", observer=StartAnother())
    (note,) = found
    assert note == (f"layers 1-2 start from {tmp_path / 'other'}; layer 3 does not: that run has 2 finished layers")


@pytest.mark.parametrize("file", ["weights.safetensors", "manifest.json"])
def test_a_damaged_run_is_named_before_anything_is_written(file, other, small_config, tmp_path):
    damaged = shutil.copytree(other.path, tmp_path / "damaged")
    flip(damaged / "layers/001" / file)
    with pytest.raises(ff.CorruptFileError, match=rf"init_from: .*layers/001/{file}"):
        ff.train(small_config(), tmp_path / "run", init_from=damaged)
    assert not (tmp_path / "run").exists()
    assert ff.train(small_config(layers=1), tmp_path / "run", init_from=damaged).num_layers_done == 1


def test_the_run_itself_and_what_is_no_run_are_refused_in_a_line(other, small_config, tmp_path):
    for resume in (True, False):
        with pytest.raises(ff.ConfigError, match="the run that is to be trained itself"):
            ff.train(small_config(), other.path, init_from=other.path, resume=resume)
    for place, match in ((tmp_path / "none", "no run there"), (other.path / "config.toml", "is a file")):
        with pytest.raises(ff.RunError, match=f"init_from: run .*{match}"):
            ff.train(small_config(), tmp_path / "run", init_from=place)
    assert not (tmp_path / "run").exists()


def test_a_damaged_copy_is_named_and_taken_again_from_the_other_run(other, small_config, tmp_path):
    config = small_config(init_from=str(shutil.copytree(other.path, tmp_path / "other")))
    whole = ff.train(config, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        ff.train(config, tmp_path / "run", observer=InterruptAt("on_epoch", 4))  # in the second layer
    run = ff.Run(tmp_path / "run")
    assert len(list(run.path.glob("initial/*"))) == 2
    (copy,) = run.path.glob("initial/layer-002-*")
    flip(copy)
    for use in (run.verify, lambda: ff.resume(run.path)):
        with pytest.raises(ff.CorruptFileError, match=r"initial/layer-002.*it is a copy of .*layers/002/weights"):
            use()
    assert diagnose(run.directory).damaged == [copy]
    put_aside(run.directory)
    shutil.move(tmp_path / "other", tmp_path / "moved")
    with pytest.raises(ff.RunError, match=r"layer 3 starts from weights of run .*other, of which there is no copy"):
        ff.resume(run.path)
    shutil.move(tmp_path / "moved", tmp_path / "other")
    assert layer_digests(ff.resume(run.path).path) == layer_digests(whole.path)


def test_layers_that_are_put_aside_start_from_the_same_weights_again(other, small_config, tmp_path):
    whole = ff.train(small_config(init_from=str(other.path)), tmp_path / "run")
    before = layer_digests(whole.path)
    path = whole.path / "layers/001/weights.safetensors"
    flip(path)
    put_aside(whole.directory)
    assert layer_digests(ff.resume(whole.path).path) == before


def test_no_more_disk_is_taken_than_planned(other, small_config, tmp_path):
    """When the run starts, when layers are committed, and between."""
    config, seen = small_config(epochs=2, init_from=str(other.path), cache__tier="host"), []

    def weigh():
        files = [path for path in (tmp_path / "run").rglob("*.safetensors") if path.parent.name != "run"]
        seen.append(sum(path.stat().st_size for path in files if path.name != "validation.safetensors"))

    class Weigh(ff.Observer):
        def on_start(self, _outline):
            weigh()

        def on_step(self, _description):
            weigh()

    ff.train(config, tmp_path / "run", observer=Weigh())
    terms = ff.make_plan(config).disk.terms
    headers = 1024 * 8
    assert terms["initial weights"] > 0
    assert max(seen) <= terms["layers"] + terms["progress"] + terms["initial weights"] + headers
    assert "initial weights" not in ff.make_plan(config.override({"init_from": ""})).disk.terms


def test_an_interrupt_while_weights_are_copied_leaves_nothing(other, small_config, tmp_path, monkeypatch):
    calls = itertools.count()

    def interrupt():
        if next(calls) == 1:
            raise KeyboardInterrupt
        interrupts.check_interrupts()

    monkeypatch.setattr(tensor_file, "check_interrupts", interrupt)
    with pytest.raises(KeyboardInterrupt):
        ff.train(small_config(), tmp_path / "run", init_from=other.path)
    assert not (tmp_path / "run").exists()


def test_a_run_that_changes_while_it_is_copied_is_named_and_nothing_is_left(other, small_config, tmp_path, monkeypatch):
    changing = shutil.copytree(other.path, tmp_path / "other")
    write_start = launch._write_start

    def change(*arguments):
        shutil.copy(changing / "layers/002/weights.safetensors", changing / "layers/001/weights.safetensors")
        return write_start(*arguments)

    monkeypatch.setattr(launch, "_write_start", change)
    with pytest.raises(ff.CorruptFileError, match=r"layers/001/weights\.safetensors: altered"):
        ff.train(small_config(), tmp_path / "run", init_from=changing)
    assert not (tmp_path / "run").exists()
