"""Rounds: every layer takes one epoch in turn, and whatever interrupts them they end with the same bits."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import shutil

import pytest

import ffstream as ff
from ffstream.run.cycle import Cycle, find_cycle
from ffstream.run.repair import put_aside
from ffstream.settings.sections import OptimiserConfig
from ffstream.storage.run_directory import RunDirectory
from tests.helpers import SMALL, InterruptAt, check_resumed_equals, layer_digests, train_in_pieces

ROUNDS = {"schedule__order": "rounds"}
FRESH = {"augmentation__restream": True, "augmentation__max_shift": 1}
# Of every kind of layer, label method and statistics, and whatever else has state of its own between two rounds.
NETWORKS = {
    "inject": {},
    "fresh shifts": FRESH,
    "skip": {"network__input_skip": True},
    "hinton, peers": {"recipe": "hinton", "objective__perturbation": 0.0, "objective__peer_normalisation": 0.03},
    "grouped": {"recipe": "grouped"},
    "mono": {"recipe": "mono"},
    "unsupervised": {"recipe": "unsupervised"},
    "stacks": {"network__stack_layers": 2, "layers": 3, **FRESH},
    "coded, bf16 state": {"cache__dtype": "int8", "optimiser__state_dtype": "bf16"},
    "convolutions": {"recipe": "conv-ff", "network__layers": "conv4 pool conv6(normalise=channels)"},
    "local heads": {"recipe": "conv", "network__layers": "conv4 pool conv6", "labels__head_layers": 2},
    "fields": {"recipe": "mono", "network__layers": "local2(field=3) local2(field=3,stride=2) dense16"},
}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    runs = {}

    def get(config):
        key = config.to_toml()
        if key not in runs:
            runs[key] = ff.train(config, tmp_path_factory.mktemp("whole") / "run").path
        return runs[key]

    return get


def weights_of(run_dir, index):
    folder = RunDirectory(run_dir).layer_folder(index)
    return hashlib.sha256((folder / "weights.safetensors").read_bytes()).hexdigest()


@pytest.mark.parametrize("more", [{}, {"recipe": "hinton"}, {"recipe": "unsupervised"}, {"recipe": "mono"}])
@pytest.mark.parametrize("tier", ["host", "disk"])
def test_rounds_of_one_layer_are_the_epochs_of_a_sequential_run(more, tier, small_config, tmp_path):
    config = small_config(**more, **FRESH, layers=1, cache__tier=tier, optimiser__patience=1)
    one = ff.train(config, tmp_path / "sequential")
    other = ff.train(config.override({"schedule.order": "rounds"}), tmp_path / "rounds")
    assert weights_of(one.path, 0) == weights_of(other.path, 0)
    errors = [
        [json.loads(line)["validation_error"] for line in path.read_text().splitlines() if '"kind": "epoch"' in line]
        for path in (one.path / "metrics.jsonl", other.path / "metrics.jsonl")
    ]
    assert errors[0] == errors[1]


@pytest.mark.parametrize("name", NETWORKS)
def test_every_tier_trains_the_same_network_and_resumes_it_from_every_layer(name, small_config, tmp_path):
    config = small_config(**{"layers": 2, **NETWORKS[name]}, **ROUNDS, epochs=2)
    whole = ff.train(config.override({"cache.tier": "host"}), tmp_path / "host")
    config = config.override({"cache.tier": "disk"})
    assert train_in_pieces(config, tmp_path / "disk", "on_epoch") >= 2 * config.layers
    check_resumed_equals(whole.path, tmp_path / "disk")
    whole.verify()


@pytest.mark.parametrize("tier", ["host", "disk"])
def test_interrupted_before_every_step_resumes_bitwise(tier, small_config, uninterrupted, tmp_path):
    config = small_config(**ROUNDS, **FRESH, cache__tier=tier)
    assert train_in_pieces(config, tmp_path / "run", "on_step") >= 3 * 6
    check_resumed_equals(uninterrupted(config), tmp_path / "run")


@pytest.mark.parametrize("tier", ["host", "disk"])
def test_interrupted_within_an_epoch_of_any_round_resumes_bitwise(
    tier, small_config, uninterrupted, tmp_path, monkeypatch
):
    monkeypatch.setattr("ffstream.training.layer_trainer._TICK_S", 0.0)
    monkeypatch.setattr("ffstream.run.progress_saver.ProgressSaver.is_due", lambda _saver: True)
    config = small_config(**ROUNDS, cache__tier=tier, layers=2, epochs=2, save_every="1h")
    whole = uninterrupted(config)
    for nth in range(3, 40, 9):
        path = tmp_path / str(nth)
        with contextlib.suppress(KeyboardInterrupt):
            ff.train(config, path, observer=InterruptAt("on_tick", nth))
        saved = RunDirectory(path).read_progress_round(), RunDirectory(path).is_within_epoch()
        assert saved[1], "a part was saved"
        check_resumed_equals(whole, ff.resume(path).path)


def test_rounds_are_a_pass_through_all_layers_each_as_it_has_just_been_trained(small_config, tmp_path):
    """What a layer reads in a round is what the layer below hands on after its own epoch of that round."""
    config = small_config(**ROUNDS, layers=2, epochs=1)
    run = ff.train(config, tmp_path / "run")
    below = run.load().layers[0]
    alone = ff.train(config.override({"layers": 1}), tmp_path / "alone")
    assert weights_of(run.path, 0) == weights_of(alone.path, 0)
    sequential = ff.train(config.override({"schedule.order": "sequential"}), tmp_path / "sequential")
    assert [weights_of(run.path, k) for k in (0, 1)] == [weights_of(sequential.path, k) for k in (0, 1)]
    assert below.num_units == config.width


def test_a_second_round_changes_what_was_learnt_in_the_first(small_config, tmp_path):
    config = small_config(**ROUNDS, epochs=2)
    run = ff.train(config, tmp_path / "run")
    first, second = (run.directory.at_round(number) for number in (1, 2))
    for index in range(3):
        assert first.read_layer_manifest(index)["digests"] != second.read_layer_manifest(index)["digests"]


# --- what a reader finds


class AtEachEpoch(ff.Observer):
    def __init__(self, look):
        self._look = look

    def on_epoch(self, *_args):
        self._look()


def test_a_reader_finds_the_last_committed_round_while_the_run_goes_on(small_config, tmp_path):
    """Never a mixture of two rounds: what is evaluated at any moment is what some whole round evaluates to."""
    config, path = small_config(**ROUNDS, epochs=4), tmp_path / "run"
    found, digests = [], []

    def look():
        run = ff.Run(path)
        found.append((run.directory.round, run.num_layers_done))
        run.verify()
        if run.num_layers_done:
            directory = run.directory
            digests.append((directory.round, tuple(directory.read_weight_digests(3))))
            assert run.load() is not None
            assert run.evaluate().error <= 1

    ff.train(config, path, observer=AtEachEpoch(look))
    assert found == [(done, 3 if done else 0) for done in range(4) for _ in range(3)]
    assert len(set(digests)) == 3, "one network for each round"


def test_a_reader_keeps_to_its_round_and_says_when_that_is_gone(small_config, tmp_path):
    config, path, readers, words = small_config(**ROUNDS, epochs=5), tmp_path / "run", [], []

    def look():
        for reader, digests in readers:
            try:
                assert reader.read_weight_digests(3) == digests
            except ff.RunError as error:
                words.append((reader.count_rounds() - reader.round, str(error)))
        directory = RunDirectory(path)
        if directory.count_layers():
            readers.append((directory, directory.read_weight_digests(3)))

    ff.train(config, path, observer=AtEachEpoch(look))
    assert words
    assert all("gone on by two rounds" in text and "\n" not in text for _, text in words)
    assert min(behind for behind, _ in words) >= 1, "a reader has the time of a round"


def test_the_disk_holds_two_rounds_and_a_layer(small_config, tmp_path):
    config, path, most = small_config(**ROUNDS, epochs=4, layers=6), tmp_path / "run", []

    def look():
        most.append(len(list(path.glob("rounds/*/*/manifest.json"))))

    ff.train(config, path, observer=AtEachEpoch(look))
    assert max(most) <= 2 * 6 + 1
    assert len(list(path.glob("rounds/*/manifest.json"))) == 2


# --- more rounds, and fewer


@pytest.mark.parametrize("stopped_after", [1, 4])  # epochs of three layers: in the first round, and in the second
def test_an_unfinished_run_takes_as_many_rounds_as_are_asked_for_now(
    stopped_after, small_config, uninterrupted, tmp_path
):
    """With a rate that is constant so far, the bits are those of a run that was started with so many."""
    config = small_config(**ROUNDS, epochs=4)
    with pytest.raises(KeyboardInterrupt):
        ff.train(config, tmp_path / "run", observer=InterruptAt("on_epoch", stopped_after))
    ff.resume(tmp_path / "run", epochs=6)
    assert layer_digests(tmp_path / "run") == layer_digests(uninterrupted(config.override({"epochs": 6})))


@pytest.mark.parametrize("asked", [3, 8])
@pytest.mark.parametrize("stop", [("on_tick", 72), ("on_epoch", 7), ("on_epoch", 8)], ids=str)
def test_a_round_that_was_begun_ends_with_the_rate_that_it_began_with(
    stop, asked, small_config, uninterrupted, tmp_path, monkeypatch
):
    """All layers of a round have one learning rate, also one of which only a part of an epoch is saved."""
    monkeypatch.setattr("ffstream.training.layer_trainer._TICK_S", 0.0)
    monkeypatch.setattr("ffstream.run.progress_saver.ProgressSaver.is_due", lambda _saver: True)
    config = small_config(**ROUNDS, epochs=4, save_every="1h")  # the rate falls in the third and fourth rounds
    path = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        ff.train(config, path, observer=InterruptAt(*stop))
    stopped = RunDirectory(path)
    begun = stopped.read_begun_cycle()
    assert begun is not None
    assert (stopped.count_rounds(), begun["stop"]) == (2, 4)
    with pytest.raises(KeyboardInterrupt):
        ff.resume(path, epochs=asked, observer=InterruptAt("on_round", 0))
    third = [RunDirectory(each).at_round(3) for each in (path, uninterrupted(config))]
    assert third[0].read_weight_digests(3) == third[1].read_weight_digests(3)
    run = ff.resume(path)
    assert run.directory.count_rounds() == asked
    assert run.directory.newest().read_round()["cycle"]["stop"] == (4 if asked == 3 else asked)


def test_a_finished_run_takes_more_rounds_whose_rate_starts_anew(small_config, tmp_path):
    config = small_config(**ROUNDS, epochs=2)
    ff.train(config, tmp_path / "run")
    run = ff.resume(tmp_path / "run", epochs=4)
    assert run.directory.count_rounds() == 4
    assert run.directory.newest().read_round()["cycle"]["start"] == 2
    before = layer_digests(run.path)
    assert ff.resume(run.path).directory.count_rounds() == 4
    assert layer_digests(run.path) == before
    # Interrupted anywhere in the added rounds, it ends with the same bits.
    other = ff.train(config, tmp_path / "other").path
    for method, nth in (("on_epoch", 1), ("on_step", 4), ("on_epoch", 0)):
        with pytest.raises(KeyboardInterrupt):
            ff.resume(other, epochs=4, observer=InterruptAt(method, nth))
    ff.resume(other)
    assert layer_digests(other) == before


SETTINGS = OptimiserConfig(decay_start=0.5, patience=2)


def test_cycles():
    assert find_cycle(None, 0, 8, SETTINGS) == Cycle(0, 8)
    going = Cycle(0, 8, (0.5, 0.4, 0.3))
    assert find_cycle(going, 3, 8, SETTINGS) == going
    assert find_cycle(going, 3, 20, SETTINGS) == dataclasses.replace(going, stop=20)
    assert find_cycle(going, 3, 3, SETTINGS) is None
    over = Cycle(0, 8, (0.5,) * 8)
    assert find_cycle(over, 8, 8, SETTINGS) is None
    assert find_cycle(over, 8, 12, SETTINGS) == Cycle(8, 12)
    early = Cycle(0, 20, (0.5, 0.5, 0.5))  # ceases to fall after three rounds, so that six are all
    assert not early.is_over(5, SETTINGS)
    assert early.is_over(6, SETTINGS)
    assert find_cycle(early, 6, 20, SETTINGS) is None
    assert find_cycle(early, 6, 21, SETTINGS) == Cycle(6, 21)


def test_the_rate_of_added_rounds_falls_from_the_whole_to_nothing():
    schedule = Cycle(8, 12).find_schedule(SETTINGS)
    assert [schedule.factor(taken) for taken in (8, 10, 11, 12)] == [1.0, 1.0, 0.5, 0.0]


def test_rounds_end_early_when_the_networks_error_ceases_to_fall(small_config, tmp_path):
    config = small_config(**ROUNDS, epochs=40, optimiser__patience=1)
    told = []

    class Note(ff.Observer):
        def on_early_end(self, *args):
            told.append(args)

    whole = ff.train(config, tmp_path / "whole", observer=Note())
    num_rounds = whole.directory.count_rounds()
    assert num_rounds < 40
    assert told == [(0, num_rounds, 40)]
    with pytest.raises(KeyboardInterrupt):
        ff.train(config, tmp_path / "run", observer=InterruptAt("on_epoch", 3 * num_rounds - 4))
    (tmp_path / "run/metrics.jsonl").unlink()  # which decides nothing
    ff.resume(tmp_path / "run")
    assert layer_digests(tmp_path / "run") == layer_digests(whole.path)


# --- damage


@pytest.fixture(scope="module")
def stopped_in_round_4(tmp_path_factory, small_data):
    """A run of three layers that was stopped in the second one."""
    path = tmp_path_factory.mktemp("stopped") / "run"
    config = ff.Config().override(SMALL | {"data": str(small_data), "schedule.order": "rounds", "epochs": 5})
    with pytest.raises(KeyboardInterrupt):
        ff.train(config, path, observer=InterruptAt("on_epoch", 10))
    return path


@pytest.mark.parametrize("place", ["rounds/0003", "rounds/0004/000", "rounds/0002/001"])
@pytest.mark.parametrize("file", ["weights.safetensors", "optimiser.safetensors", "manifest.json"])
def test_a_damaged_round_is_named_and_what_is_before_it_is_gone_on_from(
    place, file, small_config, uninterrupted, stopped_in_round_4, tmp_path
):
    whole = uninterrupted(small_config(**ROUNDS, epochs=5))
    path = shutil.copytree(stopped_in_round_4, tmp_path / "run")
    path = path / place / ("002" if place.endswith("0003") else "") / file
    damaged = bytearray(path.read_bytes())
    # In a manifest, the last digit of a number may be another one without that the number is.
    damaged[damaged.find(b"sha256") if file == "manifest.json" else len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    run = ff.Run(tmp_path / "run")
    if not place.startswith("rounds/0002"):  # which nothing reads any more
        with pytest.raises(ff.CorruptFileError, match=file):
            run.verify()
        found, aside = put_aside(run.directory)
        assert found.problems
        assert aside is not None
    ff.resume(run.path)
    assert layer_digests(run.path) == layer_digests(whole)


def test_layers_of_two_rounds_are_not_taken_for_one_network(small_config, tmp_path):
    run = ff.train(small_config(**ROUNDS, epochs=2), tmp_path / "run")
    older, newer = (run.path / f"rounds/000{number}/001" for number in (1, 2))
    shutil.rmtree(newer)
    shutil.copytree(older, newer)
    with pytest.raises(ff.CorruptFileError, match="round 1, found in round 2"):
        run.evaluate()
    shutil.rmtree(newer)
    with pytest.raises(ff.CorruptFileError, match="layer 2 is missing"):
        run.evaluate()


def test_progress_of_another_round_is_refused(small_config, tmp_path, monkeypatch):
    monkeypatch.setattr("ffstream.run.progress_saver.ProgressSaver.is_due", lambda _saver: True)
    config = small_config(**ROUNDS, epochs=3, save_every="1h")
    with pytest.raises(KeyboardInterrupt):
        ff.train(config, tmp_path / "run", observer=InterruptAt("on_epoch", 4))
    run = ff.Run(tmp_path / "run")
    assert run.directory.read_progress_round() == 2
    shutil.rmtree(run.path / "rounds/0001")
    with pytest.raises(ff.CorruptFileError, match="layer 2 of round 2, but only 0 layers"):
        ff.resume(run.path)


# --- refusals


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"augmentation__views": 3}, "augmentation.views: found 3, allowed 1 with schedule.order=rounds"),
        ({"network__layers": "dense24(epochs=3) dense24"}, "layers with epochs of their own"),
        ({"network__tile_units": 12}, "not cut into tiles with schedule.order=rounds"),
    ],
)
def test_what_does_not_go_with_rounds_is_refused_in_a_line(more, words, small_config, tmp_path):
    with pytest.raises(ff.ConfigError) as error:
        ff.train(small_config(**ROUNDS, **more), tmp_path / "run")
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run/run.json").exists()


def test_a_run_in_rounds_gets_no_more_layers_and_no_fewer_rounds(small_config, tmp_path):
    run = ff.train(small_config(**ROUNDS, epochs=2), tmp_path / "run")
    for options, words in (({"layers": 5}, "allowed 3"), ({"epochs": 1}, "has taken 2 rounds, asked for 1")):
        with pytest.raises(ff.RunMismatchError, match=words):
            ff.resume(run.path, **options)


def test_a_sequential_run_takes_no_more_epochs(small_config, tmp_path):
    run = ff.train(small_config(layers=1, epochs=1), tmp_path / "run")
    with pytest.raises(ff.ConfigError, match="--epochs: found 5"):
        ff.resume(run.path, epochs=5)


def test_the_order_is_part_of_a_run_and_of_no_older_one(small_config, tmp_path):
    config = small_config()
    assert not [key for key in config.identity() if key.startswith("schedule")]
    run = ff.train(config, tmp_path / "run")
    with pytest.raises(ff.RunMismatchError, match="schedule.order"):
        ff.train(config.override({"schedule.order": "rounds"}), run.path, resume=True)
