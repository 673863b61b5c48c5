"""Configuration: round trips, precedence, refusals, identity."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ffstream as ff
from ffstream.settings.config import describe_settings
from ffstream.settings.recipes import RECIPES
from ffstream.settings.toml import parse_assignment
from tests.helpers import run_cli

SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        "data": st.text(st.characters(codec="utf-8"), min_size=1),
        "layers": st.integers(1, 10**6),
        "width": st.integers(1, 1 << 18),
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
    if "network.layers" in RECIPES[recipe]:  # which say how wide they are
        given_settings = {name: value for name, value in given_settings.items() if name != "width"}
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
    "labels.method": [3],
    "labels.embedding_std": [0.0],
    "negatives.per_step": [0],
    "negatives.per_sample": [0, "some"],
    "objective.scale": [0, float("nan"), float("inf")],
    "objective.threshold": ["width", float("nan")],
    "objective.peer_momentum": [1.0],
    "optimiser.name": [3],
    "optimiser.learning_rate": [0, -1e-3],
    "optimiser.decay_start": [1.5],
    "cache.tier": ["ram"],
    "cache.dtype": ["int4"],
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
    assert "allowed did" not in str(caught.value)


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


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("layers", 0, "an integer >= 1"),
        ("layers", True, "an integer >= 1"),
        ("seed", -1, "an integer >= 0"),
        ("batch", "many", "an integer >= 1 and <= 10000000, or 'auto'"),
        ("validation_fraction", 1.0, "a number >= 0 and < 1"),
        ("network.dropout", 1, "a number >= 0 and <= 0.99"),
        ("network.input_skip", 1, "true or false"),
        ("labels.embedding_std", 0, "a number > 0"),
        ("negatives.per_sample", "some", "an integer >= 1, or 'all'"),
        ("objective.threshold", float("inf"), "a number, or 'auto'"),
        ("objective.scale", float("nan"), "a number > 0"),
        ("optimiser.learning_rate", float("-inf"), "a number > 0"),
        ("cache.dtype", "bf61", "did you mean 'bf16'? allowed: bf16, fp16, fp32, int8"),
        ("cache.tier", "dsk", "did you mean 'disk'? allowed: auto, device, disk, host"),
        ("data", None, "a string"),
        ("network.kind", 7, "a string"),
    ],
)
def test_a_refusal_says_what_is_allowed(key, value, allowed):
    with pytest.raises(ff.ConfigError) as caught:
        ff.Config().override({key: value})
    joint = "; " if allowed.startswith("did you mean") else ", allowed "
    assert str(caught.value).startswith(f"config {key}: found {value!r}{joint}")
    assert allowed in str(caught.value)


@pytest.mark.parametrize("section", [3, "auto", {"scale": 3.0}, ff.Config().network])
def test_a_section_that_is_no_section_of_its_kind_is_refused(section):
    with pytest.raises(ff.ConfigError, match="objective"):
        ff.Config(objective=section)


@pytest.mark.parametrize("key", ["seed", "layers", "objective.scale", "objective.threshold"])
def test_an_integer_beyond_every_float_is_kept_or_refused(key):
    try:
        found = ff.Config().override({key: 10**400}).to_flat()[key]
    except ff.ConfigError:
        return
    assert found == 10**400


def test_equal_configurations_have_one_fingerprint():
    plus, minus = (ff.Config().override({"network.dropout": zero}) for zero in (0.0, -0.0))
    assert (plus == minus) == (plus.fingerprint() == minus.fingerprint())


def test_a_path_that_is_no_text_survives_the_round_trip_or_is_refused(tmp_path):
    try:  # a file name in another encoding, as the command line hands it over
        config = ff.Config(data="caf\udce9.npz")
    except ff.ConfigError:
        return
    (tmp_path / "config.toml").write_text(config.to_toml(), encoding="utf-8")
    assert ff.Config.from_toml(tmp_path / "config.toml") == config


def test_an_override_leaves_the_original_and_other_settings_alone():
    base = ff.Config(recipe="hinton", width=9)
    changed = base.override({"objective.scale": 7.0, "width": 8})
    assert base == ff.Config(recipe="hinton", width=9)
    both = base.to_flat().items() ^ changed.to_flat().items()
    assert {key for key, _ in both} == {"objective.scale", "width"}


def test_a_recipe_lies_over_the_defaults_and_under_what_is_given():
    default, recipe, given = (
        ff.Config.from_mapping(mapping).override({}).objective.scale
        for mapping in ({}, {"recipe": "hinton"}, {"recipe": "hinton", "objective": {"scale": 5}})
    )
    assert (default, recipe, given) == (10.0, 1.0, 5.0)
    config = ff.Config.from_mapping({"objective": {"scale": 5}, "recipe": "hinton"}).override({"objective.scale": 6})
    assert config.objective.scale == 6.0
    assert config.to_flat().items() >= {**RECIPES["hinton"], "objective.scale": 6.0}.items()


def test_an_unknown_recipe_is_refused_with_the_nearest():
    for make in (lambda: ff.Config(recipe="hintn"), lambda: ff.Config.from_mapping({"recipe": "hintn"})):
        with pytest.raises(ff.ConfigError, match="recipe: unknown recipe 'hintn'; did you mean 'hinton'"):
            make()


@settings(max_examples=50, deadline=None)
@given(given_settings=SETTINGS)
def test_identities_differ_just_where_differences_says(given_settings):
    mine, theirs = ff.Config().override(given_settings), ff.Config()
    named = {line.partition(":")[0] for line in mine.differences(theirs)}
    assert named == {key for key, value in mine.identity().items() if value != theirs.identity()[key]}
    assert (mine.fingerprint() == theirs.fingerprint()) == (not named)
    free = {"layers", "device", "data", "data_root", "cache.tier"}
    assert not [key for key in mine.identity() if key in free or key.startswith("readout.")]


@pytest.mark.parametrize("text", ["layers", "", "=3", " = 3"])
def test_an_assignment_without_key_or_sign_is_refused_with_an_example(text):
    with pytest.raises(ff.ConfigError, match=r"allowed section\.key=value"):
        parse_assignment(text)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "+nan"])
def test_a_number_that_is_not_finite_is_refused_from_toml_too(value, tmp_path):
    (tmp_path / "a.toml").write_text(f"[objective]\nscale = {value}\n")
    with pytest.raises(ff.ConfigError, match=r"objective\.scale"):
        ff.Config.from_toml(tmp_path / "a.toml")
    with pytest.raises(ff.ConfigError, match=r"objective\.scale"):
        ff.Config().override(dict([parse_assignment(f"objective.scale={value}")]))


def test_a_recipe_is_chosen_when_the_configuration_is_made():
    with pytest.raises(ff.ConfigError, match=r"allowed only when a Config is made: Config\(recipe='hinton'\)"):
        ff.Config().override({"recipe": "hinton"})


def test_an_assignment_of_several_lines_is_refused():
    with pytest.raises(ff.ConfigError, match="several lines"):
        parse_assignment("layers=3\nwidth=4")


def test_every_setting_says_what_it_means():
    described = {name: text for _, settings in describe_settings() for name, _, text in settings}
    assert described.keys() == ff.Config().to_flat().keys()
    for name, text in described.items():
        assert text.endswith("."), name
        section, _, key = name.rpartition(".")
        kind = type(getattr(ff.Config(), section)) if section else ff.Config
        assert f"    {key} = " in kind.__doc__
        assert text in kind.__doc__


def test_config_lists_every_setting_on_the_command_line_without_torch(tmp_path):
    code, output, _ = run_cli("config", "--json")
    assert code == 0
    assert json.loads(output).keys() == ff.Config().to_flat().keys()
    command = [sys.executable, "-m", "ffstream", "config"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for name in ff.Config().to_flat():
        assert f"\n{name} = " in shown
    (tmp_path / "all.toml").write_text(shown)  # which is a file that --config reads, with all defaults
    assert ff.Config.from_toml(tmp_path / "all.toml").recipe == "inject"
    code = "import sys; from ffstream.cli import app; app(['config'], standalone_mode=False); "
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=False).returncode == 0


def test_what_an_earlier_version_did_not_know_is_as_it_was_whatever_the_recipe_says_today():
    saved = ff.Config(recipe="conv").to_mapping()
    assert ff.Config.from_saved(saved) == ff.Config.from_mapping(saved)
    del saved["labels"]["head_layers"]
    assert ff.Config.from_saved(saved).labels.head_layers == 1
    assert ff.Config.from_mapping(saved).labels.head_layers == 3


@pytest.mark.parametrize(
    ("recipe", "given", "expected"),
    [("conv", {}, "channels"), ("conv", {"standardise": "none"}, "none"), ("inject", {}, "none")],
)
def test_a_recipe_may_standardise_unless_it_is_told_not_to(recipe, given, expected):
    assert ff.Config(recipe=recipe, **given).standardise == expected
    assert ff.Config.from_mapping({"recipe": recipe} | given).standardise == expected


@pytest.mark.parametrize("value", [[], {}, [[1]], 3, None, (1, {})])
def test_a_value_of_any_type_is_taken_or_refused(value):
    """As a file of settings may hold it."""
    whole = ff.Config().to_flat()
    for name in whole:
        with contextlib.suppress(ff.ConfigError):
            ff.Config.from_mapping({name: value})
        with contextlib.suppress(ff.ConfigError):
            ff.Config().override({name: value})
    with pytest.raises(ff.ConfigError, match="recipe"):
        ff.Config.from_mapping(whole | {"recipe": value})
