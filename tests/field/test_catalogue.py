"""`ffstream recipes` shows all that can be chosen, what users register included."""

from __future__ import annotations

import dataclasses
import json

import pytest

import ffstream as ff
from ffstream.field.catalogue import read_catalogue
from ffstream.field.goodness import Goodness
from ffstream.field.parts import REGISTRIES, _list_recorded
from ffstream.ground.registry import Registry
from ffstream.settings import limits
from ffstream.settings.config import Config
from ffstream.settings.recipes import DESCRIPTIONS, RECIPES
from tests.helpers import run_cli


class Loudest(Goodness):
    """The largest activity.

    More lines are not shown.
    """

    def value(self, activities):
        return activities.amax(dim=1)


@pytest.fixture
def _registered(monkeypatch):
    monkeypatch.setattr(ff.GOODNESSES, "_parts", dict(ff.GOODNESSES._parts))
    monkeypatch.setattr(ff.GOODNESSES, "_descriptions", dict(ff.GOODNESSES._descriptions))
    ff.GOODNESSES.register("loudest", Loudest())
    ff.register_recipe("loud", {"objective.goodness": "loudest", "batch": 77}, "Shouts.")
    yield
    del RECIPES["loud"], DESCRIPTIONS["loud"]


@pytest.mark.usefixtures("_registered")
def test_everything_registered_is_shown_with_a_line():
    code, shown, _ = run_cli("recipes", "--json")
    assert code == 0
    found = json.loads(shown)
    assert set(found["recipes"]) == set(RECIPES)
    assert [set(parts) for parts in found["parts"].values()] == [set(registry) for registry in REGISTRIES.values()]
    lines = [recipe["description"] for recipe in found["recipes"].values()]
    lines += [line for parts in found["parts"].values() for line in parts.values()]
    assert all(lines)
    assert len(set(lines)) == len(lines)
    assert found["parts"]["objective.goodness"]["loudest"] == "The largest activity."
    assert found["recipes"]["loud"] == {
        "description": "Shouts.",
        "sets": {"objective.goodness": "loudest", "batch": 77},
    }


@pytest.mark.usefixtures("_registered")
def test_tables_name_everything():
    code, shown, _ = run_cli("recipes")
    assert code == 0
    assert "U[label]" in shown
    words = set(shown.replace("=", " ").split())
    for names in (RECIPES, *REGISTRIES.values()):
        assert words >= set(names)


def test_every_setting_of_the_catalogue_takes_what_it_shows():
    for setting, parts in read_catalogue().parts.items():
        for name in parts:
            assert Config().override({setting: name}).to_flat()[setting] == name


@pytest.mark.parametrize("setting", REGISTRIES)
def test_a_part_that_is_not_registered_is_refused_by_name_before_anything_is_planned(setting, tmp_path):
    config = ff.Config(layers=1, device="cpu").override({setting: "nothing"})
    with pytest.raises(ff.ConfigError, match=rf"config {setting}: unknown .* 'nothing'; .*allowed: "):
        ff.train(config, tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_a_part_without_a_docstring_has_an_empty_line_and_a_description_goes_first():
    registry = Registry("part", "parts.name")
    registry.register("plain", lambda: None)
    registry.register("told", Loudest(), "In other words.")
    assert (registry.describe("plain"), registry.describe("told")) == ("", "In other words.")


@dataclasses.dataclass(frozen=True)
class Grown:
    """The settings of a part that once had only the first of them."""

    old: int = limits.setting(1, "Was there at first.")
    new: int = limits.setting(0, "Came later.", later=True)


def test_a_setting_that_came_later_is_recorded_only_where_it_changes_what_the_part_does():
    assert _list_recorded(Grown(1, 0)) == {"old": 1}
    assert _list_recorded(Grown(2, 3)) == {"old": 2, "new": 3}
