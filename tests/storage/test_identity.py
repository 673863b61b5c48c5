"""A run is one configuration and one set of data, and its layers are its own."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import ffstream as ff
from ffstream.cache import DiskCache
from ffstream.ground.folder import Folder
from ffstream.ground.lock import RunLock
from ffstream.run import launch
from ffstream.run.cleaning import clean_run
from ffstream.run.repair import diagnose
from ffstream.storage.identity import FolderState
from ffstream.storage.manifest import write_manifest
from ffstream.storage.run_directory import RunDirectory
from tests.helpers import SMALL, InterruptAt, layer_digests


@pytest.fixture(scope="module")
def runs(small_data, tmp_path_factory):
    """The same training twice, and one of another seed."""
    config = ff.Config(data=str(small_data)).override(SMALL | {"layers": 2, "epochs": 2})
    folder = tmp_path_factory.mktemp("identity")
    for name, seed in (("one", 0), ("twin", 0), ("other", 1)):
        ff.train(config.override({"seed": seed}), folder / name)
        ff.Run(folder / name).evaluate("softmax")
    return folder


@pytest.fixture
def copy(runs, tmp_path):
    return shutil.copytree(runs / "one", tmp_path / "copy")


def test_two_runs_of_one_training_have_the_same_bits_and_not_the_same_identity(runs):
    assert layer_digests(runs / "one") == layer_digests(runs / "twin")
    identities = {ff.Run(runs / name).directory.read_identity() for name in ("one", "twin", "other")}
    assert len(identities) == 3


PARTS = ["layers/000", "layers/001", "layers", "readout", "data.json", "config.toml", "run.json", "environment.json"]


@pytest.mark.parametrize("other", ["twin", "other"])
@pytest.mark.parametrize(
    "name",
    ["layers/000", "layers/001", "layers", "readout", "data.json", "config.toml", "run.json", "environment.json"],
)
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


def test_processes_that_start_in_one_second_have_a_folder_each_and_their_own_weights(small_data, tmp_path):
    options = f"--data {small_data} --layers 1 --width 16 --epochs 1 --device cpu --precision fp32".split()
    command = [sys.executable, "-m", "ffstream", "train", *options]
    started = [
        subprocess.Popen([*command, "--seed", str(seed)], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
        for seed in (1, 2, 3, 4)
    ]
    assert [process.wait() for process in started] == [0] * 4
    found = {ff.Run(path).config.seed: layer_digests(path) for path in (tmp_path / "runs").iterdir()}
    assert sorted(found) == [1, 2, 3, 4]
    for seed, digests in found.items():
        config = ff.Config(
            data=str(small_data), layers=1, width=16, epochs=1, device="cpu", precision="fp32", seed=seed
        )
        assert layer_digests(ff.train(config, tmp_path / f"alone-{seed}").path) == digests


def test_a_start_that_was_killed_is_gone_on_with_whatever_is_asked_then(small_config, tmp_path, monkeypatch):
    """Killed here between its marker and its configuration."""
    whole = ff.train(small_config(seed=3), tmp_path / "whole").path
    with pytest.raises(KeyboardInterrupt):
        ff.train(small_config(), tmp_path / "run", observer=InterruptAt("on_epoch", 1))
    for name in ("layers", "progress", "cache"):
        shutil.rmtree(tmp_path / "run" / name, ignore_errors=True)
    identity = ff.Run(tmp_path / "run").directory.read_identity()
    for name in ("config.toml", "metrics.jsonl"):
        (tmp_path / "run" / name).unlink()
    directory = ff.train(small_config(seed=3), tmp_path / "run").directory
    assert directory.survey().state is FolderState.RUN
    assert directory.read_identity() != identity  # which may be that of a run from which these files were copied
    assert layer_digests(tmp_path / "run") == layer_digests(whole)


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


def test_copies_of_a_runs_files_alone_are_no_start_of_a_run_and_are_kept(runs, small_config, tmp_path):
    for names in (["run.json", "data.json"], ["run.json", "validation.safetensors"], ["run.json", "environment.json"]):
        place = tmp_path / "-".join(names)
        place.mkdir()
        shutil.copy(runs / "one/run.json", place)
        (place / names[1]).write_text("mine")
        for resume in (False, True):
            with pytest.raises(ff.RunError, match=names[1]):
                ff.train(small_config(seed=7), place, resume=resume)
        assert (place / names[1]).read_text() == "mine"


def say_first(problems):
    raise ff.CorruptFileError(problems[0])


USES = {
    "verify": lambda run, **_: ff.Run(run).verify(),
    "repair": lambda run, **_: say_first(diagnose(RunDirectory(run)).problems),
    "evaluate": lambda run, **options: ff.Run(run).evaluate(**options),
    "load": lambda run, **options: ff.load(run, **options),
    "export": lambda run, **options: ff.Run(run).export(run.parent / "net.safetensors", **options),
    "resume": lambda run, **options: ff.resume(run, **options),
    "grow": lambda run, **options: ff.resume(run, layers=3, **options),
}


@pytest.mark.parametrize("use", USES)
def test_an_environment_that_is_gone_is_noticed_by_whatever_uses_it(use, copy):
    (copy / "environment.json").unlink()
    with pytest.raises(ff.CorruptFileError, match=r"has no environment\.json"):
        USES[use](copy)


def test_a_run_can_go_on_without_its_environment_if_told_so(copy):
    (copy / "environment.json").unlink()
    ff.Run(copy).evaluate(accept_environment=True)
    ff.resume(copy, layers=3, accept_environment=True)
    assert ff.Run(copy).verify() == 3  # the layers from before name an environment of which only the digest is known
    ff.resume(copy, layers=4)


def grow_elsewhere(run, layers, monkeypatch):
    """Add layers in another environment, which is accepted."""
    describe = launch.describe_environment
    with monkeypatch.context() as patch:
        patch.setattr(launch, "describe_environment", lambda *where: describe(*where) | {"torch": "of another day"})
        ff.resume(run, layers=layers, accept_environment=True)


def test_copies_of_a_run_that_went_apart_are_not_put_together(copy, tmp_path, monkeypatch):
    other = tmp_path / "other"
    shutil.copytree(copy, other)
    grow_elsewhere(other, 3, monkeypatch)
    shutil.copytree(other / "layers/002", copy / "layers/002")
    for name in ("metrics.jsonl", "config.toml"):
        shutil.copy(other / name, copy / name)
    with pytest.raises(ff.CorruptFileError, match=r"trained in an environment that environment\.json does not record"):
        ff.Run(copy).verify()
    with pytest.raises(ff.CorruptFileError, match=r"environment\.json does not record"):
        ff.resume(copy, layers=4)


def test_an_older_record_of_environments_does_not_fit_newer_layers(copy, monkeypatch):
    older = (copy / "environment.json").read_text()
    grow_elsewhere(copy, 3, monkeypatch)
    (copy / "environment.json").write_text(older)
    with pytest.raises(ff.CorruptFileError, match=r"environment\.json does not record"):
        ff.Run(copy).verify()
    with pytest.raises(ff.CorruptFileError, match=r"environment\.json does not record"):
        ff.Run(copy).evaluate()


def copy_while_it_changes(source, target):
    """Until a copy has all that its original names."""
    while True:
        with contextlib.suppress(shutil.Error, ff.FFStreamError):
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(source, target, symlinks=True)
            ff.Run(target).verify()
            return target


def test_a_copy_that_was_made_while_a_run_is_trained_is_not_in_use(small_config, tmp_path):
    copies = []

    class Copying(ff.Observer):
        def on_epoch(self, layer, epoch, *_):
            if (layer, epoch) == (2, 2):
                copies.append(copy_while_it_changes(tmp_path / "run", tmp_path / "copy"))
                clean_run(ff.Run(tmp_path / "copy"))

    whole = ff.train(small_config(), tmp_path / "run", observer=Copying()).path
    assert copies
    assert layer_digests(ff.resume(tmp_path / "copy").path) == layer_digests(whole)


@pytest.mark.parametrize("restream", [False, True])
@pytest.mark.parametrize("how", ["setting", "link"])
def test_a_copy_and_its_original_do_not_use_one_cache_at_once(how, restream, small_config, tmp_path):
    """They have one identity, by which a folder on another disk is named."""
    scratch, run, copy = tmp_path / "scratch", tmp_path / "run", tmp_path / "copy"
    scratch.mkdir()
    settings = {"cache__folder": str(scratch)} if how == "setting" else {}
    settings |= {"augmentation__restream": restream, "augmentation__max_shift": 1}
    if how == "link":
        run.mkdir()
        (run / "cache").symlink_to(scratch)
    said = []

    class Copying(ff.Observer):
        def on_epoch(self, layer, epoch, *_):
            if (layer, epoch) == (2, 2):
                copy_while_it_changes(run, copy)
                for use in (lambda: clean_run(ff.Run(copy)), lambda: ff.resume(copy)):
                    with pytest.raises(ff.RunLockedError) as caught:
                        use()
                    said.append(str(caught.value))

    ff.train(small_config(cache__tier="disk", **settings), run, observer=Copying())
    assert all(text.startswith("cache ") and "in use by process" in text for text in said)
    assert len(said) == 2
    assert layer_digests(ff.resume(copy).path) == layer_digests(run)
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("instead", ["a folder", "another run"])
def test_a_run_that_is_moved_while_it_is_trained_goes_on_where_it_is(small_config, tmp_path, instead):
    other = ff.train(small_config(seed=1, layers=1), tmp_path / "other").path
    whole = ff.train(small_config(cache__tier="disk"), tmp_path / "whole").path

    class Moving(ff.Observer):
        def on_epoch(self, layer, epoch, *_):
            if (layer, epoch) == (2, 2):
                (tmp_path / "run").rename(tmp_path / "moved")
                if instead == "another run":
                    shutil.copytree(other, tmp_path / "run")
                else:
                    (tmp_path / "run/cache").mkdir(parents=True)
                    (tmp_path / "run/cache/mine").write_text("mine")

    with pytest.raises(ff.RunError, match="was moved while it was trained"):
        ff.train(small_config(cache__tier="disk"), tmp_path / "run", observer=Moving())
    if instead == "another run":
        assert layer_digests(tmp_path / "run") == layer_digests(other)
    else:
        assert [path.name for path in (tmp_path / "run").rglob("*")] == ["cache", "mine"]
    assert layer_digests(ff.resume(tmp_path / "moved").path) == layer_digests(whole)


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


# --- a start that is killed, and killed again


class Killed(BaseException):
    pass


def kill_at(number, work, monkeypatch):
    """Let the process die before its change `number` to the file system: nothing changes after that, cleaning neither.

    Returns whether it died.
    """
    num_changes = 0

    def before(function, changes):
        def call(*arguments, **options):
            nonlocal num_changes
            if changes(*arguments):
                num_changes += 1
                if num_changes >= number:
                    raise Killed
            return function(*arguments, **options)

        return call

    with monkeypatch.context() as patched:
        for name in ("rename", "replace", "unlink", "mkdir", "rmdir", "link"):
            patched.setattr(os, name, before(getattr(os, name), lambda *_: True))
        patched.setattr(os, "open", before(os.open, lambda _path, flags, *_: bool(flags & os.O_CREAT)))
        with contextlib.suppress(Killed):
            work()
    return num_changes >= number


def start(path, config, data, labels):
    path.mkdir(exist_ok=True)
    with RunLock(path, "") as lock:
        RunDirectory(path, lock).create(config, data, {"torch": "2"}, labels)


def test_wherever_two_starts_are_killed_a_third_one_starts_the_run(runs, tmp_path, monkeypatch):
    run = ff.Run(runs / "one")
    config, data = run.config, run.directory.read_data()
    labels = run.directory.load_validation_labels()
    work = partial(start, config=config, data=data, labels=labels)
    num_changes = next(n for n in itertools.count(1) if not kill_at(n, partial(work, tmp_path / f"{n}"), monkeypatch))
    assert num_changes > 10
    template = tmp_path / "template"
    for first in range(1, num_changes):
        shutil.rmtree(template, ignore_errors=True)
        template.mkdir()
        kill_at(first, partial(work, template), monkeypatch)
        if RunDirectory(template).survey().state is FolderState.RUN:  # it died after everything was there
            continue
        for second in itertools.count(1):
            path = tmp_path / "again"
            shutil.rmtree(path, ignore_errors=True)
            shutil.copytree(template, path)
            died = kill_at(second, partial(work, path), monkeypatch)
            if RunDirectory(path).survey().state is not FolderState.RUN:
                assert RunDirectory(path).survey().state is FolderState.FREE, (first, second)
                work(path)
            assert RunDirectory(path).survey().state is FolderState.RUN
            if not died:
                break
