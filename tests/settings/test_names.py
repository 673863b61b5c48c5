"""Names are known before torch is imported, and are those of what is registered."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import ffstream as ff
from ffstream.data.sources import SOURCES
from ffstream.field.parts import REGISTRIES
from ffstream.settings.names import DATA_SETS, PARTS, check_names


def test_names_are_those_that_are_registered():
    assert PARTS.keys() == REGISTRIES.keys()
    for setting, (noun, names) in PARTS.items():
        registry = REGISTRIES[setting]
        assert noun == registry.noun
        assert set(names) == {name for name in registry if registry.is_built_in(name)} | {"none"} & set(names)
    assert set(DATA_SETS) == {name for name in SOURCES if SOURCES.is_built_in(name)}


WRONG = [
    ["train", "--recipe", "injct"],
    ["train", "--data", "mnst"],
    ["train", "--layers", "0"],
    ["train", "--budget", "5x"],
    ["train", "--config", "nothing.toml"],
    *[["train", "--set", f"{setting}=nothing"] for setting in PARTS],
    ["train", "--set", "objectiv.scale=3"],
    ["plan", "--set", "objective.goodness=meen"],
    *[[command, "nothing"] for command in ("resume", "evaluate", "inspect", "plot", "repair", "clean", "doctor")],
    ["predict", "nothing", "x.png"],
    ["export", "nothing", "x.safetensors"],
    ["evaluate", "nothing", "--method", "sofmax"],
    ["evaluate", "nothing", "--split", "tst"],
]


def test_what_is_wrong_is_answered_before_torch_is_imported(tmp_path):
    code = (
        "import json, sys\n"
        "from ffstream.cli.app import main\n"
        "import ffstream.cli\n"
        "for words in json.loads(sys.argv[1]):\n"
        "    sys.argv = ['ffstream', *words]\n"
        "    try:\n"
        "        main()\n"
        "    except SystemExit as end:\n"
        "        assert end.code == 1, words\n"
        "    assert 'torch' not in sys.modules, words\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(WRONG)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("\n") == len(WRONG)


def test_what_is_there_and_what_may_be_registered_is_no_wrong_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = ff.Config().to_flat()
    check_names(settings)
    with pytest.raises(ff.DataError, match="data pictures: neither"):
        check_names(settings | {"data": "pictures"})
    (tmp_path / "below" / "pictures").mkdir(parents=True)
    check_names(settings | {"data": "pictures", "data_root": "below"})
    check_names(settings | {"data": "~"})
    (tmp_path / "pictures").mkdir()
    check_names(settings | {"data": "pictures"})
