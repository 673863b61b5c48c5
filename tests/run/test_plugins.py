"""Parts of a user's own travel: other processes find them, changed ones are refused, a stranger's run runs nothing."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import ffstream as ff
from ffstream.field.negatives import NEGATIVE_SAMPLERS
from ffstream.ground.plugins import Untrusted, load_plugins
from ffstream.ground.registry import Registry
from tests.helpers import layer_digests
from tests.warm import run_python

PART = """
import torch, ffstream as ff
class Cubes(ff.Goodness):
    '''The mean of cubed activities.'''
    over_units = "mean"
    def value(self, activities):
        return activities.pow(3).mean(dim=1)
ff.GOODNESSES.register("cubes", Cubes())
ff.register_recipe("cubic", {"objective.goodness": "cubes", "objective.scale": 2.0})
"""
OPTIONS = ["--layers", "2", "--width", "24", "--epochs", "1", "--batch", "32", "--device", "cpu"]


def run(*command, cwd, path=None, variable=None):
    """A command in a process of its own, with PYTHONPATH or without."""
    done = run_unchecked(*command, cwd=cwd, path=path, variable=variable)
    assert "Traceback" not in done.stderr, done.stderr
    return done


def run_unchecked(*command, cwd, path=None, variable=None):
    environment = {name: value for name, value in os.environ.items() if name != "FFSTREAM_PLUGINS"}
    own = environment.get("PYTHONPATH")
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [own, str(path) if path else None]))
    environment |= {"FFSTREAM_PLUGINS": variable} if variable else {}
    return run_python(*command, cwd=cwd, environment=environment)


def ffstream(*command, cwd, path=None):
    return run("-m", "ffstream", *command, cwd=cwd, path=path)


def test_threads_that_import_at_once_leave_the_path_as_it_was(tmp_path, monkeypatch):
    names = [f"slow_{number}" for number in range(4)]
    for name in names:
        (tmp_path / f"{name}.py").write_text("import time; time.sleep(0.01)")
    monkeypatch.syspath_prepend(tmp_path)
    before = list(sys.path)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda name: load_plugins([name], search_here=True), names))
    assert sys.path == before


@pytest.fixture(scope="module")
def trained(tmp_path_factory, small_data):
    """A folder with a module of one's own, and beside it a run that was trained with it."""
    folder = tmp_path_factory.mktemp("plugins")
    (folder / "mine" / "lab").mkdir(parents=True)
    (folder / "mine" / "lab" / "__init__.py").write_text("")
    (folder / "mine" / "lab" / "parts.py").write_text(PART)
    train = ["train", "--plugin", "lab.parts", "--recipe", "cubic", "--data", small_data, *OPTIONS]
    done = ffstream(*train, "--run-dir", folder / "run", cwd=folder / "mine")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def copied(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "copy")
    return tmp_path / "copy"


def test_another_process_evaluates_resumes_exports_and_loads_it(copied, tmp_path):
    mine = copied / "mine"
    found = ffstream("evaluate", copied / "run", cwd=tmp_path, path=mine)
    assert found.returncode == 0, found.stderr
    assert ffstream("resume", copied / "run", "--layers", "3", cwd=tmp_path, path=mine).returncode == 0
    assert ffstream("export", copied / "run", tmp_path / "net.safetensors", cwd=tmp_path, path=mine).returncode == 0
    code = "import ffstream as ff, torch, sys; n = ff.load(sys.argv[1]); print(tuple(n(torch.zeros(2, 8, 8)).shape))"
    for source in (tmp_path / "net.safetensors", copied / "run"):
        done = run("-c", code, source, cwd=tmp_path, path=mine)
        assert done.stdout.strip() == "(2, 10)", done.stderr


def test_what_computes_nothing_of_a_part_does_without_it(copied, tmp_path):
    for command in (["inspect", "--verify"], ["repair"], ["clean"], ["plot"]):
        done = ffstream(command[0], copied / "run", *command[1:], cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    done = ffstream("doctor", copied / "run", cwd=tmp_path, path=copied / "mine")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", [["evaluate"], ["resume", "--layers", "3"], ["export", "net.safetensors"]])
def test_a_part_that_is_nowhere_is_named_with_its_module(command, copied, tmp_path):
    done = ffstream(command[0], copied / "run", *command[1:], cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "needs the goodness 'cubes', which module lab.parts registers" in done.stderr
    assert "--plugin lab.parts" in done.stderr


def test_a_module_is_named_by_option_variable_and_file(copied, tmp_path):
    mine = copied / "mine"
    assert ffstream("evaluate", copied / "run", "--plugin", "lab.parts", cwd=mine).returncode == 0
    (mine / "c.toml").write_text('plugins = ["lab.parts"]\nrecipe = "cubic"\nlayers = 1\nwidth = 24\nepochs = 1\n')
    done = ffstream("train", "--config", "c.toml", "--device", "cpu", "--run-dir", tmp_path / "run", cwd=mine)
    assert done.returncode == 0, done.stderr
    assert ff.Run(tmp_path / "run").config.plugins == ("lab.parts",)
    for name, words in (
        ("no.such", "found no module"),
        ("lab.broken", "cannot be imported"),
        ("a b", "name of a module"),
    ):
        (mine / "lab" / "broken.py").write_text("def f(:")
        done = ffstream("plan", "--plugin", name, cwd=mine)
        assert done.returncode == 1
        assert words in done.stderr or name == "a b"
        assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("changed", ["parts.py", "__init__.py"])
def test_a_changed_part_is_refused_before_anything_of_it_runs_unless_told_otherwise(changed, copied, tmp_path):
    mine, witness = copied / "mine", tmp_path / "witness"
    source = (mine / "lab" / changed).read_text()
    (mine / "lab" / changed).write_text(f"open({str(witness)!r}, 'w')\n{source}")
    np.save(tmp_path / "images.npy", np.zeros((2, 8, 8), dtype=np.float32))
    for command in (["evaluate"], ["resume", "--layers", "3"], ["predict", tmp_path / "images.npy"]):
        done = ffstream(command[0], copied / "run", *command[1:], cwd=tmp_path, path=mine)
        assert done.returncode == 1, command
        assert "has changed since" in done.stderr
        assert "--accept-environment" in done.stderr
        assert not witness.exists()
    named = ffstream("evaluate", copied / "run", "--plugin", "lab.parts", cwd=mine)  # imported, as a user says so
    assert named.returncode == 1
    assert "has changed since" in named.stderr
    accepted = ffstream("evaluate", copied / "run", "--accept-environment", cwd=tmp_path, path=mine)
    assert accepted.returncode == 0, accepted.stderr
    grown = ffstream("resume", copied / "run", "--layers", "3", "--accept-environment", cwd=tmp_path, path=mine)
    assert grown.returncode == 0, grown.stderr
    assert ffstream("evaluate", copied / "run", cwd=tmp_path, path=mine).returncode == 0  # the run remembers it


@pytest.mark.parametrize("place", ["beside the run", "in the run"])
def test_a_run_of_somebody_else_brings_no_code(place, copied, tmp_path):
    """The same source, so that its digest is right, where the command is started."""
    witness = tmp_path / "witness"
    away = copied / "run" if place == "in the run" else copied
    shutil.move(copied / "mine" / "lab", away / "lab")
    part = away / "lab" / "parts.py"
    environment = (copied / "run" / "environment.json").read_text()
    part.write_text(f"open({str(witness)!r}, 'w')\n{PART}")
    assert "lab.parts" in environment
    for path in (None, away if place == "in the run" else None):
        done = ffstream("evaluate", copied / "run", cwd=away, path=path)
        assert done.returncode == 1
        assert not witness.exists()


def test_nothing_of_pythons_own_is_imported_for_a_run(copied):
    from ffstream.field.parts import restore_parts

    with pytest.raises(ff.RunError, match="found no such module"):
        restore_parts(
            {"objective.goodness=x": {"module": "this", "sources": {"this": "0"}}}, "run r", Untrusted(copied)
        )
    assert "this" not in sys.modules


def test_installed_packages_offer_parts(copied, tmp_path):
    mine = copied / "mine"
    (mine / "lab-1.0.dist-info").mkdir()
    (mine / "lab-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: lab\nVersion: 1.0\n")
    (mine / "lab-1.0.dist-info" / "entry_points.txt").write_text("[ffstream.plugins]\nlab = lab.parts\n")
    done = ffstream("recipes", cwd=tmp_path, path=mine)
    assert "cubic" in done.stdout
    assert "cubes" in done.stdout


POWERS = """
from dataclasses import dataclass
import ffstream as ff
@dataclass(frozen=True)
class Settings:
    power: float = ff.setting(3.0, "The power.", above=1.0)
    is_loud: bool = ff.setting(False, "Doubled.")
class Powers(ff.Goodness):
    over_units = "mean"
    def __init__(self, settings):
        self.settings = settings
    def value(self, activities):
        return activities.pow(self.settings.power).mean(dim=1) * (1 + self.settings.is_loud)
ff.GOODNESSES.register("powers", Powers, settings=Settings)
"""


def test_settings_of_a_part_are_kept_in_its_run_and_are_what_it_is(small_data, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "powers.py").write_text(POWERS)
    given = ["--plugin", "powers", "--set", "objective.goodness=powers", "--data", small_data, *OPTIONS]
    train = ["train", *given, "--set", "parts.goodness.power=2.5"]
    done = ffstream(*train, "--run-dir", tmp_path / "run", cwd=mine)
    assert done.returncode == 0, done.stderr
    assert "parts.goodness.power = 3.0" in ffstream("recipes", "--plugin", "powers", "--json", cwd=mine).stdout
    text = (tmp_path / "run" / "config.toml").read_text()
    assert "goodness.power = 2.5" in text
    assert "goodness.is_loud = false" in text  # a default, which may be another in a later version
    assert ff.Run(tmp_path / "run").config.part("objective.goodness") == ("powers", {"power": 2.5, "is_loud": False})
    for command in (["evaluate"], ["export", tmp_path / "net.safetensors"], ["resume", "--layers", "3"]):
        done = ffstream(command[0], tmp_path / "run", *command[1:], cwd=tmp_path, path=mine)
        assert done.returncode == 0, done.stderr
    code = "import ffstream as ff, torch, sys; n = ff.load(sys.argv[1]); print(n(torch.ones(2, 8, 8)).tolist())"
    found = [run("-c", code, source, cwd=tmp_path, path=mine).stdout for source in (tmp_path / "net.safetensors",)]
    assert "[[" in found[0]
    whole = ffstream(*train, "--layers", "3", "--run-dir", tmp_path / "whole", cwd=mine)
    assert whole.returncode == 0, whole.stderr
    assert layer_digests(tmp_path / "whole") == layer_digests(tmp_path / "run")
    other = ffstream("train", *given, "--run-dir", tmp_path / "run", "--resume", cwd=mine)
    assert other.returncode == 1
    assert "parts.goodness.power: 3.0, 2.5" in other.stderr
    for name, words in (
        ("goodness.pwr=2", "unknown setting of the goodness 'powers'; did you mean 'power'?"),
        ("goodness.power=1", "found 1, allowed a number > 1"),
        ("goodness.power=loud", "found 'loud', allowed a number > 1"),
        ("goodnes.power=2", "unknown kind of part; did you mean 'goodness'?"),
        ("sampler.power=2", "unknown setting of the negative sampler 'hard'; it has none"),
        ("similarity.power=2", "and objective.similarity is none"),
    ):
        done = ffstream("plan", *given, "--set", f"parts.{name}", cwd=mine)
        assert done.returncode == 1
        assert words in done.stderr
        assert done.stderr.count("\n") == 1


class Other(ff.Goodness):
    def value(self, activities):
        return activities.sum(dim=1)


def test_a_name_is_never_replaced_in_silence():
    with pytest.raises(ff.ConfigError, match="goodness 'mean': is registered already"):
        ff.GOODNESSES.register("mean", Other())
    with pytest.raises(ff.ConfigError, match="is registered already"):
        NEGATIVE_SAMPLERS.register("hard", lambda *_: None)
    with pytest.raises(ff.ConfigError, match="recipe 'inject': is registered already"):
        ff.register_recipe("inject", {"objective.scale": 3.0})
    ff.GOODNESSES.register("of this test", Other())
    again = Other()
    ff.GOODNESSES.register("of this test", again)  # a cell that is run again
    assert ff.GOODNESSES["of this test"] is again
    with pytest.raises(ff.ConfigError, match="is registered already"):
        ff.GOODNESSES.register("of this test", ff.GOODNESSES["sum"])
    del ff.GOODNESSES._parts["of this test"]


class Half(ff.Layer):
    def initialise(self, generator):
        pass


def test_a_class_that_lacks_a_method_is_refused_by_name():
    with pytest.raises(ff.ConfigError, match="layer kind 'half': Half lacks preactivations; define what"):
        ff.LAYER_KINDS.register("half", Half)
    assert "half" not in ff.LAYER_KINDS


@pytest.mark.parametrize("make", [lambda: torch.add, lambda: functools.partial(torch.add, 1), lambda: lambda x: x])
def test_parts_without_a_name_of_their_own_are_no_versions_of_each_other(make):
    registry = Registry("part", "part")
    registry.register("p", make())
    with pytest.raises(ff.ConfigError, match="is registered already"):
        registry.register("p", torch.mul)
    with pytest.raises(ff.ConfigError, match="is registered already"):
        registry.register("p", lambda x: 2 * x)


EVIL = "open({witness!r}, 'w')\n"


@pytest.mark.parametrize(
    "way", ["a package that is the run", "a package that holds the run", "a file's", "the doctor's"]
)
def test_what_lies_in_a_run_or_beside_a_file_is_never_imported_by_another_name(way, copied, tmp_path):
    """However it is reached from a folder that is trusted, and although its digest is the recorded one."""
    witness, run_dir = tmp_path / "witness", copied / "run"
    evil = EVIL.format(witness=str(witness)).encode()
    digest = hashlib.sha256(evil).hexdigest()
    name = "run" if way == "a package that is the run" else "run.evil"
    sources = {"run": "no source"} | {name: digest}
    (run_dir / ("__init__.py" if name == "run" else "evil.py")).write_bytes(evil)
    record = {"objective.goodness=cubes": {"module": name, "sources": sources}}
    if way == "the doctor's":
        (copied / "evil.py").write_bytes(evil)
        config = (run_dir / "config.toml").read_text().partition("\n")[2]
        (run_dir / "config.toml").write_text(config.replace('"lab.parts"', '"evil"'))
        done = ffstream("doctor", run_dir, cwd=copied, path=copied / "mine")
        assert "evil" in (run_dir / "config.toml").read_text()
    else:
        is_file = way == "a file's"
        untrusted = Untrusted(run_dir, is_of_file=is_file)
        code = (
            "import sys, json; from pathlib import Path; from ffstream.ground.plugins import *; "
            "r = json.loads(sys.argv[1]); "
            "import_recorded(r['module'], r['sources'], 'run r', accept=True, "
            f"untrusted=Untrusted(Path(sys.argv[2]), is_of_file={is_file}))"
        )
        assert untrusted.holds(run_dir / "evil.py")
        (part,) = record.values()
        done = run_unchecked("-c", code, json.dumps(part), run_dir, cwd=copied, path=copied)
        assert "found no such module" in done.stderr
    assert not witness.exists(), done.stderr


def test_the_variable_is_not_looked_for_where_a_command_is_started(copied, tmp_path):
    witness = tmp_path / "witness"
    (copied / "run" / "sly.py").write_text(EVIL.format(witness=str(witness)))
    done = run("-m", "ffstream", "recipes", cwd=copied / "run", variable="sly")
    assert done.returncode == 1
    assert "found no module" in done.stderr
    assert not witness.exists()


def test_folders_without_init_and_helpers_that_register_are_found_again(small_data, tmp_path):
    mine = tmp_path / "mine"
    (mine / "a" / "b").mkdir(parents=True)
    (mine / "helper.py").write_text("import ffstream as ff\ndef add(name, part): ff.GOODNESSES.register(name, part)\n")
    source = PART.replace("ff.GOODNESSES.register", "helper.add").replace("import torch,", "import helper, torch,")
    (mine / "a" / "b" / "parts.py").write_text(source)
    train = ["train", "--plugin", "a.b.parts", "--recipe", "cubic", "--data", small_data, *OPTIONS]
    done = ffstream(*train, "--run-dir", tmp_path / "run", cwd=mine)
    assert done.returncode == 0, done.stderr
    found = ffstream("evaluate", tmp_path / "run", cwd=tmp_path, path=mine)
    assert found.returncode == 0, found.stderr


def test_runs_without_parts_of_ones_own_are_what_they_were(small_config, tmp_path):
    run = ff.train(small_config(), tmp_path / "run")
    assert run.directory.read_parts() == {}
    again = ff.train(small_config(plugins=("json",)), tmp_path / "again")
    assert layer_digests(run.path) == layer_digests(again.path)


@pytest.mark.parametrize(
    "source",
    [
        "raise SystemExit(0)",
        "1 / 0",
        "nothing",
        "import ffstream as ff\nff.Goodness(1)",
        "import ffstream as ff\nclass Half(ff.Goodness): pass\nHalf()",
    ],
)
def test_a_module_that_fails_is_one_line_with_its_place(source, tmp_path):
    (tmp_path / "failing.py").write_text(f"# first\n{source}\n")
    done = ffstream("train", "--plugin", "failing", *OPTIONS, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "plugin failing: cannot be imported" in done.stderr
    assert "failing.py line" in done.stderr


def test_a_goodness_of_another_shape_is_named(tmp_path):
    (tmp_path / "odd.py").write_text(PART.replace("mean(dim=1)", "mean()"))
    done = ffstream("plan", "--plugin", "odd", "--recipe", "cubic", *OPTIONS, cwd=tmp_path)
    assert done.returncode == 1
    assert "value of 'cubes' gives shape () for activities of shape (2, 3), allowed (2,)" in done.stderr


def test_a_run_whose_module_only_its_record_names_is_gone_on_with_by_its_configuration(small_data, tmp_path):
    """A program has imported the module, so that no setting names it; `train --resume` finds it by the run."""
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "parts.py").write_text(PART)
    code = (
        "import sys, parts, ffstream as ff; "
        "c = ff.Config(recipe='cubic', data=sys.argv[1], layers=2, width=24, epochs=1, batch=32, device='cpu'); "
        "ff.train(c, sys.argv[2])"
    )
    made = run("-c", code, small_data, tmp_path / "run", cwd=tmp_path, path=mine)
    assert made.returncode == 0, made.stderr
    (tmp_path / "all.toml").write_text((tmp_path / "run" / "config.toml").read_text())
    given = ["--config", "all.toml", "--layers", "3", "--run-dir", "run", "--resume"]
    for command in ("plan", "train"):
        done = ffstream(command, *given, cwd=tmp_path, path=mine)
        assert done.returncode == 0, done.stderr
    assert ff.Run(tmp_path / "run").num_layers_done == 3
