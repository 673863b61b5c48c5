"""Which recipe is taken where none is asked for: one rule, on the command line, in files and in Python."""

from __future__ import annotations

import pytest

import ffstream as ff
from tests.helpers import run_cli


@pytest.fixture
def planned(monkeypatch):
    """The configurations that plans are asked for, none of which is made."""
    seen = []

    def see(config, *_args, **_options):
        seen.append(config)
        raise ff.RunError("seen")

    monkeypatch.setattr("ffstream.run.preparation.make_plan", see)
    return seen


@pytest.mark.parametrize(
    ("options", "recipe"),
    [
        (["--data", "mnist", "--layers", "40"], "deep"),
        (["--data", "cifar10", "--layers", "9", "--width", "64", "--stack-layers", "2"], "deep"),
        (["--data", "mnist", "--layers", "8"], "inject"),
        (["--data", "mnist"], "inject"),
        (["--layers", "40"], "inject"),  # digits of 8 x 8 pixels
        (["--data", "mnist", "--layers", "40", "--recipe", "inject"], "inject"),
        (["--data", "mnist", "--layers", "40", "--set", "recipe=hinton"], "hinton"),
        (["--data", "mnist", "--layers", "40", "--set", "labels.method=overlay"], "inject"),
        (["--data", "mnist", "--layers", "40", "--views", "3"], "inject"),
    ],
)
def test_deep_networks_of_images_have_a_recipe_of_their_own_unless_one_is_asked_for(options, recipe, planned):
    _, output, _ = run_cli("plan", *options)
    assert planned[0].recipe == recipe
    assert planned[0].augmentation == ff.Config(recipe=recipe).augmentation or "--views" in options
    assert ("recipe deep, the default" in output) == (recipe == "deep")


@pytest.mark.parametrize(
    ("layers", "data", "recipe"), [(40, "mnist", "deep"), (8, "mnist", "inject"), (40, "digits", "inject")]
)
def test_python_and_the_command_line_take_the_same_recipe(layers, data, recipe, planned):
    run_cli("plan", "--data", data, "--layers", layers)
    config = ff.Config(layers=layers, data=data)
    assert config.recipe == planned[0].recipe == recipe
    assert config == planned[0] == ff.Config.from_mapping({"layers": layers, "data": data})
    assert config == ff.Config(recipe, data, layers=layers)
    assert ff.Config.from_mapping(config.to_mapping()) == config


def test_a_section_that_says_how_to_learn_decides_too():
    labels = ff.Config(recipe="hinton").labels
    assert ff.Config(layers=40, data="mnist", labels=labels).recipe == "inject"
    assert ff.Config(recipe="auto").recipe == "inject"


def test_a_config_file_decides_the_recipe_of_a_deep_network_too(tmp_path, planned):
    for text in ('data = "mnist"\nlayers = 40\n', 'data = "mnist"\nlayers = 40\n[objective]\nscale = 5.0\n'):
        (tmp_path / "c.toml").write_text(text)
        run_cli("plan", "--config", tmp_path / "c.toml")
    assert [config.recipe for config in planned] == ["deep", "inject"]


def test_resuming_takes_the_recipe_of_the_run(tmp_path):
    options = ["--width", "32", "--epochs", "1", "--device", "cpu", "--run-dir", tmp_path / "run"]
    assert run_cli("train", "--layers", "1", "--recipe", "mono", *options)[0] == 0
    code, output, error = run_cli("train", "--layers", "2", "--resume", *options)
    assert code == 0, (output, error)
    assert ff.Run(tmp_path / "run").config.recipe == "mono"
