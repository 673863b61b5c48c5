"""What a manifest must hold is checked before anything is read from it, whoever sealed it."""

from __future__ import annotations

import json
import shutil

import pytest

import ffstream as ff
from ffstream.ground.folder import Folder
from ffstream.run.repair import diagnose
from ffstream.storage.manifest import (
    COUNT,
    DIGEST,
    NAME,
    NUMBER,
    SIZE,
    TEXT,
    find_misfit,
    read_manifest,
    write_manifest,
)
from tests.helpers import SMALL

SHAPE = {"layer": COUNT, "names": [TEXT], "digests": {"weights": DIGEST, NAME: DIGEST}, "scale?": NUMBER}
GOOD = {"layer": 0, "names": ["a", "b"], "digests": {"weights": "0" * 64, "more-1.safetensors": "f" * 64}}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"layer": -1}, "layer: found -1, allowed an integer >= 0"),
        ({"layer": True}, "layer: found True, allowed an integer"),
        ({"layer": 0.0}, "layer: found 0.0, allowed an integer"),
        ({"layer": 1 << 63}, "layer: found 9223372036854775808, allowed an integer"),
        ({"names": "ab"}, "names: found 'ab', allowed a list"),
        ({"names": ["a", 1]}, r"names\[1\]: found 1, allowed a string"),
        ({"digests": []}, r"digests: found \[\], allowed a mapping"),
        ({"digests": {}}, "digests: found no weights"),
        ({"digests": {"weights": "0" * 63}}, "weights: found '0000.*, allowed a sha256"),
        (
            {"digests": GOOD["digests"] | {"../weights": "0" * 64}},
            "a name in digests: found '../weights', allowed a file",
        ),
        ({"digests": GOOD["digests"] | {"/etc/passwd": "0" * 64}}, "a name in digests: found '/etc/passwd'"),
        ({"digests": GOOD["digests"] | {".hidden": "0" * 64}}, "a name in digests: found '.hidden'"),
        ({"scale": float("nan")}, "scale: found nan, allowed a number"),
        ({"scale": 10**400}, "scale: found 1000.*, allowed a number"),
        ({"scale": None}, "scale: found None"),
    ],
)
def test_what_does_not_fit_is_named_with_what_is_allowed(change, words, tmp_path):
    assert find_misfit(GOOD, SHAPE) is None
    assert find_misfit(GOOD | {"scale": 0.5, "more": 1}, SHAPE) is None
    write_manifest(Folder(tmp_path), "manifest.json", GOOD | change)
    with pytest.raises(ff.CorruptFileError, match=words) as caught:
        read_manifest(Folder(tmp_path), "manifest.json", SHAPE)
    assert "manifest.json" in str(caught.value)


def test_what_is_missing_is_named():
    for name in GOOD:
        assert find_misfit({key: value for key, value in GOOD.items() if key != name}, SHAPE).endswith(f"no {name}")


def test_sizes_begin_at_one():
    assert find_misfit(0, SIZE) is not None
    assert find_misfit(1, SIZE) is None


@pytest.fixture(scope="module")
def small_run(tmp_path_factory, small_data):
    config = ff.Config(data=str(small_data)).override(SMALL | {"layers": 2})
    return ff.train(config, tmp_path_factory.mktemp("manifest") / "run").path


def num_refusals(run):
    found = 0
    for use in (run.verify, run.load, lambda: run.layers, run.evaluate, lambda: diagnose(run.directory)):
        try:
            use()
        except ff.FFStreamError:
            found += 1
    return found


@pytest.mark.parametrize("file", ["data.json", "layers/000/manifest.json"])
def test_a_manifest_that_was_sealed_anew_with_other_content_is_refused_by_name_and_not_followed(
    file, small_run, tmp_path
):
    """No digest protects against somebody who writes one."""
    sealed = json.loads((small_run / file).read_bytes())
    del sealed["manifest_sha256"]
    outside = tmp_path / "outside.safetensors"
    outside.write_bytes(b"untouched")
    for name in sealed:
        for value in (None, -1, [], {}, "../../../outside", {"../../../outside": "0" * 64}):
            if name in ("digest_below", "name", "metrics") and isinstance(value, str):
                continue
            copy = tmp_path / "copy"
            shutil.copytree(small_run, copy)
            write_manifest(Folder(copy), file, sealed | {name: value})
            run = ff.Run(copy)
            refused = 0
            for use in (
                run.verify,
                run.load,
                lambda run=run: run.layers,
                run.evaluate,
                lambda run=run: diagnose(run.directory),
            ):
                try:
                    use()
                except ff.FFStreamError:
                    refused += 1
            assert refused or name == "name", (name, value)
            shutil.rmtree(copy)
    assert outside.read_bytes() == b"untouched"
