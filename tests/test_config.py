"""Configuration: round trips, precedence, refusals, identity."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ffstream as ff
from ffstream.config import parse_assignment
from ffstream.recipes import RECIPES

SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        "data": st.text(st.characters(codec="utf-8"), min_size=1),
        "layers": st.integers(1, 10**6),
        "width": st.integers(1, 10**6),
        "batch": st.one_of(st.just("auto"), st.integers(1, 10**6)),
        "validation_fraction": st.floats(0, 0.99),
        "network.input_skip": st.booleans(),
        "network.dropout": st.floats(0, 0.99),
        "negatives.per_sample": st.one_of(st.just("all"), st.integers(1, 99)),
        "objective.threshold": st.one_of(st.just("auto"), st.floats(-1e9, 1e9)),
        "objective.scale": st.floats(1e-9, 1e9),
        "optimiser.learning_rate": st.floats(1e-12, 1e3),
        "cache.tier": st.sampled_from(["auto", "device", "host", "disk"]),
    },
)


@settings(max_examples=100, deadline=None)
@given(given_settings=SETTINGS, recipe=st.sampled_from(sorted(RECIPES)))
def test_toml_reads_back_to_an_equal_configuration(tmp_path_factory, given_settings, recipe):
    config = ff.Config(recipe=recipe).override(given_settings)
    path = tmp_path_factory.mktemp("config") / "config.toml"
    path.write_text(config.to_toml(), encoding="utf-8")
    assert ff.Config.from_toml(path) == config
    assert ff.Config.from_toml(path).fingerprint() == config.fingerprint()


BAD = {
    "layers": [0, -1, 1.5, "4", True],
    "width": [0],
    "epochs": [0, -3],
    "batch": [0, "many"],
    "seed": [-1],
    "precision": ["fp8"],
    "validation_fraction": [1.0, -0.1],
    "network.dropout": [1.0, 0.999, -0.1, "none"],
    "network.input_skip": [1, "yes"],
    "labels.method": ["inject"],
    "labels.embedding_std": [0.0],
    "negatives.per_step": [0],
    "negatives.per_sample": [0, "some"],
    "objective.scale": [0, float("nan"), float("inf")],
    "objective.threshold": ["width", float("nan")],
    "objective.peer_momentum": [1.0],
    "optimiser.name": ["adagrad"],
    "optimiser.learning_rate": [0, -1e-3],
    "optimiser.decay_start": [1.5],
    "cache.tier": ["ram"],
    "cache.dtype": ["int8"],
    "cache.shard_samples": [0],
    "recipe": ["none", 3],
    "data": [3],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in BAD.items() for value in values])
def test_a_bad_value_is_refused_naming_key_and_value(key, value):
    with pytest.raises(ff.ConfigError) as caught:
        ff.Config().override({key: value})
    assert key in str(caught.value)
    assert repr(value) in str(caught.value)
    assert "allowed" in str(caught.value) or "did you mean" in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": {"scal": 1}}, "objective.scal: unknown setting; did you mean 'objective.scale'"),
        ({"layer": 3}, "layer: unknown setting; did you mean 'layers'"),
        ({"objectiv": {"scale": 1}}, r"\[objectiv\]: unknown section; did you mean 'objective'"),
        ({"objective": 3}, r"objective: found 3, allowed a section"),
        ({"layers": {"x": 1}}, r"\[layers\]: unknown section"),
    ],
)
def test_unknown_keys_are_refused_with_the_nearest_one(settings, message):
    with pytest.raises(ff.ConfigError, match=message):
        ff.Config.from_mapping(settings)


def test_unreadable_toml_is_refused_naming_the_file(tmp_path):
    (tmp_path / "bad.toml").write_text("layers = = 3")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    for name in ("bad.toml", "binary.toml", "absent.toml"):
        with pytest.raises(ff.ConfigError, match=name):
            ff.Config.from_toml(tmp_path / name)


def test_a_recipe_fills_in_what_is_not_given_and_no_more():
    config = ff.Config.from_mapping({"recipe": "hinton", "objective": {"scale": 0.5}})
    assert config.labels.method == "overlay"
    assert config.objective.name == "logistic"
    assert config.objective.scale == 0.5
    assert ff.Config(recipe="hinton", batch=7).batch == 7


def test_every_recipe_makes_a_valid_configuration():
    for recipe in RECIPES:
        assert ff.Config(recipe=recipe).recipe == recipe


def test_a_registered_recipe_is_known():
    ff.register_recipe("mine", {"objective.scale": 3.0})
    try:
        assert ff.Config(recipe="mine").objective.scale == 3.0
    finally:
        del RECIPES["mine"]


@pytest.mark.parametrize(
    ("key", "value"),
    [("layers", 9), ("device", "cuda"), ("data_root", "/x"), ("cache.tier", "disk"), ("readout.epochs", 9)],
)
def test_what_changes_no_layer_changes_no_fingerprint(key, value):
    assert ff.Config().override({key: value}).fingerprint() == ff.Config().fingerprint()


@pytest.mark.parametrize(("key", "value"), [("seed", 9), ("epochs", 9), ("cache.dtype", "fp32"), ("width", 9)])
def test_what_changes_a_layer_changes_the_fingerprint_and_is_named(key, value):
    other = ff.Config().override({key: value})
    assert other.fingerprint() != ff.Config().fingerprint()
    assert [line.partition(":")[0] for line in other.differences(ff.Config())] == [key]


def test_an_integer_where_a_number_stands_is_the_same_number():
    assert ff.Config().override({"objective.scale": 10}) == ff.Config()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("layers=3", ("layers", 3)),
        ("objective.scale = 1e-3", ("objective.scale", 1e-3)),
        ("network.input_skip=true", ("network.input_skip", True)),
        ("objective.name=pairwise", ("objective.name", "pairwise")),
        ('data="a=b.npz"', ("data", "a=b.npz")),
        ("data=a=b.npz", ("data", "a=b.npz")),
    ],
)
def test_assignments_are_toml_values_or_bare_words(text, expected):
    assert parse_assignment(text) == expected
