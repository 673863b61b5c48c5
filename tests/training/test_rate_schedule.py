"""The learning rate over a layer's epochs, epochs and rates of a layer's own, and layers that are done early."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ffstream as ff
from ffstream.training.rate_schedule import RateSchedule
from tests.helpers import InterruptAt, check_resumed_equals, layer_digests, run_cli


@given(
    num_epochs=st.integers(1, 60),
    decay_start=st.floats(0.01, 1.0),
    patience=st.integers(1, 5),
    errors=st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.4]), max_size=60),
)
def test_a_shortened_schedule_is_decided_by_the_errors_before_it_falls(num_epochs, decay_start, patience, errors):
    whole = RateSchedule(num_epochs, decay_start)
    assert whole.shorten(errors, 0) == whole
    found = whole.shorten(errors, patience)
    assert found.num_epochs <= num_epochs
    if found == whole:
        return
    fall = round(found.decay_start * found.num_epochs)
    assert patience < fall <= len(errors)
    assert min(errors[fall - patience : fall]) >= min(errors[: fall - patience])
    assert (
        found.num_epochs * decay_start == pytest.approx(fall, abs=decay_start + 1e-9) or found.num_epochs == num_epochs
    )
    for length in range(fall, len(errors) + 1):  # nothing that comes later changes it
        assert whole.shorten(errors[:length], patience) == found
    for length in range(fall):
        assert whole.shorten(errors[:length], patience) == whole
    factors = [found.factor(epoch) for epoch in range(found.num_epochs)]
    assert all(factor == 1.0 for factor in factors[:fall])
    assert factors == sorted(factors, reverse=True)
    assert factors[-1] > 0


def small(**settings):
    base = {"validation_fraction": 0.2, "width": 24, "epochs": 12, "layers": 2, "seed": 1, "device": "cpu"}
    return ff.Config(recipe="mono", **base).override(settings)


def epochs_of(run):
    lines = (run.path / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    layers = [record["layer"] for record in found if record.get("kind") == "epoch"]
    return [layers.count(number + 1) for number in range(max(layers))]


def test_a_layer_that_learns_nothing_more_is_done_early_and_resumes_with_the_same_bits(tmp_path):
    config = small(epochs=40, **{"optimiser.patience": 2})
    said = []
    listener = ff.Observer()
    listener.on_early_end = lambda *numbers: said.append(numbers)
    whole = ff.train(config, tmp_path / "whole", observer=listener)
    assert said == [(number, taken, 40) for number, taken in enumerate(epochs_of(whole), start=1)]
    assert all(number < 40 for number in epochs_of(whole))
    for nth in (3, epochs_of(whole)[0] - 2):  # before the rate falls, and after
        path = tmp_path / f"cut {nth}"
        with pytest.raises(KeyboardInterrupt):
            ff.train(config, path, observer=InterruptAt("on_epoch", nth))
        check_resumed_equals(whole.path, ff.resume(path).path)


def test_layers_have_epochs_and_rates_of_their_own(tmp_path):
    lines = "dense24(epochs=2) dense24 dense24(epochs=4,learning_rate=1e-9)"
    config = small(epochs=3, layers=3, **{"network.layers": lines})
    run = ff.train(config, tmp_path / "run")
    assert epochs_of(run) == [2, 3, 4]
    alike = ff.train(
        small(epochs=3, layers=3, **{"network.layers": lines.replace("1e-9", "0.004")}), tmp_path / "alike"
    )
    mine, its = layer_digests(run.path), layer_digests(alike.path)
    assert mine[:2] == its[:2]
    assert mine[2] != its[2]
    code, output, _ = run_cli("inspect", run.path, "--json")
    assert code == 0
    assert "dense" not in output


@pytest.mark.parametrize("kind", ["dense24", "conv12", "local3(field=3"])
def test_a_layer_of_any_kind_keeps_its_epochs_and_its_rate(kind, tmp_path):
    own = "epochs=2,learning_rate=0.001)"
    line = f"{kind},{own}" if "(" in kind else f"{kind}({own}"
    run = ff.train(small(epochs=5, **{"network.layers": f"{line} dense24", "width": 24}), tmp_path / "run")
    assert epochs_of(run) == [2, 5]
    first = run.config.list_layers()[0]
    assert (first.num_epochs, first.learning_rate) == (2, 0.001)


def test_epochs_given_for_all_are_those_of_the_network(tmp_path):
    one = ff.train(small(epochs=3, **{"network.layers": "dense24x2"}), tmp_path / "one")
    other = ff.train(small(epochs=7, **{"network.layers": "dense24(epochs=3)x2"}), tmp_path / "other")
    assert layer_digests(one.path) == layer_digests(other.path)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("dense24(epochs=0)", "epochs is 0, allowed an integer >= 1"),
        ("dense24(epochs=1.5)", "epochs is 1.5"),
        ("dense24(learning_rate=0)", "learning_rate is 0, allowed a number > 0"),
        ("dense24(learning_rate=fast)", "learning_rate is 'fast'"),
    ],
)
def test_epochs_and_rates_that_cannot_be_are_refused(line, words):
    with pytest.raises(ff.ConfigError) as refused:
        small(**{"network.layers": line})
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"validation_fraction": 0.0}, "without a validation split"),
        ({"optimiser.decay_start": 0.0}, "decay_start=0"),
        ({"augmentation.views": 2}, "with --views"),
        ({"network.tile_units": 10}, "in tiles"),
    ],
)
def test_patience_where_a_layer_cannot_be_done_early_is_refused(settings, words, tmp_path):
    with pytest.raises(ff.ConfigError, match="optimiser.patience") as refused:
        ff.train(small(**{"optimiser.patience": 2} | settings), tmp_path / "run")
    assert words in str(refused.value)
