"""A run is one configuration and one set of data, and its layers are its own."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import ffstream as ff
from ffstream.cache import DiskCache
from ffstream.ground.folder import Folder
from ffstream.run.repair import diagnose
from ffstream.storage.manifest import write_manifest
from tests.helpers import InterruptAt, layer_digests


def test_two_runs_of_one_training_have_the_same_bits_and_not_the_same_identity(runs):
    assert layer_digests(runs / "one") == layer_digests(runs / "twin")
    identities = {ff.Run(runs / name).directory.read_identity() for name in ("one", "twin", "other")}
    assert len(identities) == 3


PARTS = ["layers/000", "layers/001", "layers", "readout", "data.json", "config.toml", "run.json", "environment.json"]


@pytest.mark.parametrize("other", ["twin", "other"])
@pytest.mark.parametrize("name", PARTS)
def test_what_is_another_runs_is_never_taken_for_its_own(name, other, runs, copy):
    """Even where both have the same bits: whoever copies parts of runs together is told so."""
    path = copy / name
    if path.is_dir():
        shutil.rmtree(path)
        shutil.copytree(runs / other / name, path)
    else:
        shutil.copy(runs / other / name, path)
    same = path.is_file() and path.read_bytes() == (runs / "one" / name).read_bytes()
    if same:  # data.json of the same data, and a configuration, may be word for word the same
        assert ff.Run(copy).verify() == 2
        return
    with pytest.raises(ff.RunError):
        ff.Run(copy).verify()
    if name != "readout":  # that one is not asked for
        with pytest.raises(ff.RunError):
            ff.resume(copy, layers=3)


@pytest.mark.parametrize("removed", ["config.toml", "run.json", "data.json", "environment.json"])
def test_what_an_interrupted_removal_leaves_is_no_run_to_be(removed, small_config, copy):
    (copy / removed).unlink()
    before = layer_digests(copy)
    for seed in (0, 99):
        with pytest.raises(ff.RunError):
            ff.train(small_config(layers=3, epochs=2, seed=seed), copy, resume=True)
    with pytest.raises(ff.RunError):
        ff.train(small_config(layers=2, epochs=2), copy)
    assert layer_digests(copy) == before


def test_layers_without_their_run_are_nobodys(small_config, copy):
    for name in ("config.toml", "run.json", "data.json", "environment.json", "metrics.jsonl", "validation.safetensors"):
        (copy / name).unlink()
    with pytest.raises(ff.RunError, match="neither empty nor a run"):
        ff.train(small_config(), copy)


def test_a_layer_may_be_sealed_anew_and_is_still_not_another_runs(copy):
    """As somebody would do who wants to be believed: settings and data stand in what the seal names."""
    for change in ({"settings": {}}, {"data": "0" * 64}, {"identity": "0" * 16}):
        content = json.loads((copy / "run.json").read_text())
        del content["manifest_sha256"]
        write_manifest(Folder(copy), "run.json", content | change)
        with pytest.raises(ff.RunError):
            ff.Run(copy).verify()


def test_the_data_of_every_split_that_is_used_are_those_of_the_start(small_data, small_config, tmp_path):
    tensors = load_file(small_data)
    data = tmp_path / "data.safetensors"
    save_file(tensors, data)
    run = ff.train(small_config(data=str(data)), tmp_path / "run")
    run.evaluate()
    save_file(tensors | {"test.labels": tensors["test.labels"].flip(0)}, data)
    with pytest.raises(ff.RunMismatchError, match="the test data have changed"):
        run.evaluate()
    run.evaluate(split="validation")
    ff.resume(run.path, layers=4)  # which reads none of it
    save_file(tensors | {"train.labels": tensors["train.labels"].flip(0)}, data)
    for use in (run.evaluate, lambda: run.evaluate(split="validation"), lambda: ff.resume(run.path, layers=5)):
        with pytest.raises(ff.RunMismatchError, match="other training data"):
            use()
    save_file(tensors, data)
    assert ff.Run(run.path).evaluate().num_samples == 100


@pytest.mark.parametrize("name", ["layers", "layers/000", "progress", "cache", "."])
def test_what_cannot_be_listed_is_neither_absent_nor_damaged(name, small_config, tmp_path, monkeypatch):
    whole = ff.train(small_config(cache__tier="disk"), tmp_path / "whole").path
    with pytest.raises(KeyboardInterrupt):
        ff.train(small_config(cache__tier="disk"), tmp_path / "run", observer=InterruptAt("on_epoch", 4))
    before = layer_digests(tmp_path / "run")
    listdir, forbidden = os.listdir, (tmp_path / "run" / name).resolve()

    def refusing(path="."):
        place = Path(f"/proc/self/fd/{path}" if isinstance(path, int) else path).resolve()
        if place == forbidden:
            raise PermissionError(13, "Permission denied", str(place))
        return listdir(path)

    monkeypatch.setattr(os, "listdir", refusing)
    errors, found = [], []
    for use in (
        lambda: found.append(diagnose(ff.Run(tmp_path / "run").directory)),
        lambda: ff.resume(tmp_path / "run"),
    ):
        try:
            use()
        except ff.StorageError as error:
            errors.append(str(error))
    assert all("Permission denied" in error for error in errors)
    if name in ("layers", "."):  # what is in them is asked first of all
        assert len(errors) == 2
    assert [each.problems for each in found] == [[]] * len(found)
    monkeypatch.undo()
    assert layer_digests(tmp_path / "run")[: len(before)] == before
    assert layer_digests(ff.resume(tmp_path / "run").path) == layer_digests(whole)


@pytest.mark.parametrize(
    "file", ["layers/000/weights.safetensors", "layers/000/manifest.json", "progress/manifest.json"]
)
def test_a_file_that_cannot_be_read_is_not_put_aside(file, small_config, tmp_path, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        ff.train(small_config(), tmp_path / "run", observer=InterruptAt("on_epoch", 4))
    directory, right = ff.Run(tmp_path / "run").directory, os.open

    def refusing(path, *arguments, **options):
        if str(path) == file:
            raise PermissionError(13, "Permission denied", file)
        return right(path, *arguments, **options)

    monkeypatch.setattr(os, "open", refusing)
    for use in (lambda: diagnose(directory), lambda: ff.resume(tmp_path / "run")):
        with pytest.raises(ff.StorageError, match=f"cannot read .*{file}: Permission denied"):
            use()


def test_a_loaded_network_does_not_change_when_its_files_do(runs, copy):
    network = ff.load(copy)
    images = torch.randint(0, 16, (20, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    before = network(images)
    for path in copy.glob("layers/*/weights.safetensors"):
        data = bytearray(path.read_bytes())
        data[-400:] = bytes(400)
        with path.open("r+b") as file:  # in place: the same file
            file.write(data)
    assert torch.equal(network(images), before)


def test_a_shard_of_another_epoch_does_not_pass(small_config, tmp_path, monkeypatch):
    """Where images are shifted anew for every epoch, its rows are others."""
    settings = {"cache__tier": "disk", "augmentation__restream": True, "augmentation__max_shift": 1, "layers": 1}
    kept, store = {}, DiskCache.store

    def replay(cache, shard, rows):
        store(cache, shard, rows)
        (path,) = (tmp_path / "run").glob(f"cache/*/000-train/.tmp-shard-{shard:05d}")
        if path in kept:
            path.write_bytes(kept[path])
        else:
            kept[path] = path.read_bytes()

    monkeypatch.setattr(DiskCache, "store", replay)
    with pytest.raises(ff.CorruptFileError, match="altered since it was written, or another shard's"):
        ff.train(small_config(validation_fraction=0.0, **settings), tmp_path / "run")
    assert kept


@pytest.mark.parametrize("name", ["layers/002", "layers", "progress", "readout", "cache", "damaged-1/layers/001"])
def test_no_part_of_a_run_becomes_another_run_or_its_cache(small_config, tmp_path, name):
    outer = ff.train(small_config(layers=1), tmp_path / "outer").path
    (outer / name).mkdir(parents=True, exist_ok=True)
    before = sorted(outer.rglob("*"))
    for path in (outer / name / "inner", *([] if name == "layers" else [outer / name])):
        with pytest.raises(ff.RunError, match="is a part of the run"):
            ff.train(small_config(layers=1), path)
        with pytest.raises(ff.RunError, match="is a part of the run"):
            ff.make_plan(small_config(layers=1), path)
        with pytest.raises(ff.StorageError, match="is a part of the run"):
            ff.train(small_config(layers=1, cache__tier="disk", cache__folder=str(path)), tmp_path / "run")
    assert sorted(outer.rglob("*")) == before
    assert not (tmp_path / "run").exists()


def test_a_run_beside_the_parts_of_another_is_its_own(small_config, tmp_path):
    outer = ff.train(small_config(layers=1), tmp_path / "outer").path
    inner = ff.train(small_config(layers=1), outer / "variants/inner").path
    assert layer_digests(inner) == layer_digests(ff.resume(outer).path)


def test_a_finished_run_is_not_called_done_where_a_layer_is_damaged(small_config, tmp_path):
    run = ff.train(small_config(layers=2), tmp_path / "run")
    weights = run.path / "layers/001/weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    with pytest.raises(ff.CorruptFileError, match="layers/001"):
        ff.resume(run.path)
