"""Repair: the longest prefix of layers without damage is kept, the rest is put aside, and the run goes on."""

from __future__ import annotations

import shutil

import pytest

import ffstream as ff
from ffstream.ground.lock import RunLock
from ffstream.run.repair import diagnose, put_aside
from tests.helpers import InterruptAt, layer_digests, metrics_without_times, run_cli


@pytest.fixture
def whole(small_config, tmp_path):
    return ff.train(small_config(cache__tier="disk"), tmp_path / "whole").path


@pytest.fixture
def damaged(whole, tmp_path):
    return ff.Run(shutil.copytree(whole, tmp_path / "damaged"))


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("file", ["weights.safetensors", "validation.safetensors", "manifest.json"])
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_layers_from_the_first_damage_on_are_trained_again(file, layer, whole, damaged):
    flip(damaged.path / f"layers/00{layer}/{file}")
    found = diagnose(damaged.directory)
    assert (found.num_valid, found.num_committed) == (layer, 3)
    assert file in found.problems[0]
    _, aside = put_aside(damaged.directory)
    assert sorted(path.name for path in (aside / "layers").iterdir()) == [f"00{k}" for k in range(layer, 3)]
    assert damaged.num_layers_done == layer
    assert layer_digests(ff.resume(damaged.path).path) == layer_digests(whole)
    assert diagnose(damaged.directory).problems == []


@pytest.mark.parametrize("linked", ["layers", "layers/001"])
def test_what_lies_behind_a_link_is_not_said_to_be_put_aside(linked, damaged, tmp_path):
    path, elsewhere = damaged.path / linked, tmp_path / "elsewhere"
    shutil.move(path, elsewhere)
    path.symlink_to(elsewhere)
    flip(damaged.path / "layers/001/weights.safetensors")
    before = {each: each.read_bytes() for each in tmp_path.rglob("*") if each.is_file()}
    if linked == "layers":
        with pytest.raises(ff.StorageError, match="layers/001 lies behind a link, through which nothing is moved"):
            put_aside(damaged.directory)
    else:  # the link itself is what is moved
        put_aside(damaged.directory)
        assert damaged.num_layers_done == 1
    assert all(path.read_bytes() == content for path, content in before.items() if elsewhere in path.parents)


def test_damage_is_put_aside_where_the_record_of_environments_is_missing_too(damaged):
    (damaged.path / "environment.json").unlink()
    flip(damaged.path / "layers/001/weights.safetensors")
    diagnosis, aside = put_aside(damaged.directory)
    assert "has no environment.json" in diagnosis.problems[0]
    assert (aside / "layers/001").is_dir()
    assert ff.resume(damaged.path, accept_environment=True).verify() == 3


def test_the_record_of_environments_is_made_again_once_that_is_accepted(damaged):
    (damaged.path / "environment.json").unlink()
    ff.resume(damaged.path, accept_environment=True)  # no layer is trained
    assert damaged.verify() == 3
    assert diagnose(damaged.directory).problems == []


def test_no_repair_is_advised_for_what_none_can_mend(damaged):
    (damaged.path / "validation.safetensors").unlink()
    for use in (damaged.verify, lambda: diagnose(damaged.directory)):
        with pytest.raises(ff.CorruptFileError, match=r"is missing; restore it from a copy$"):
            use()


def test_a_layer_that_is_missing_takes_those_above_with_it(whole, damaged):
    (damaged.path / "layers/001/manifest.json").unlink()
    found = diagnose(damaged.directory)
    assert found.num_valid == 1
    assert "layer 2 is missing" in found.problems[0]
    put_aside(damaged.directory)
    assert layer_digests(ff.resume(damaged.path).path) == layer_digests(whole)


@pytest.mark.parametrize("pattern", ["progress/*.safetensors", "progress/manifest.json", "metrics.jsonl"])
def test_the_layer_in_training_is_taken_up_from_its_start(pattern, whole, small_config, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        ff.train(small_config(cache__tier="disk"), tmp_path / "run", observer=InterruptAt("on_epoch", 4))
    run = ff.Run(tmp_path / "run")
    (file,) = run.path.glob(pattern)
    flip(file)
    with pytest.raises(ff.CorruptFileError, match=file.name):
        run.verify()
    with pytest.raises(ff.CorruptFileError, match=file.name):
        ff.resume(run.path)
    found = diagnose(run.directory)
    assert found.num_valid == found.num_committed == 1
    assert found.damaged == [run.path / pattern.partition("/")[0]]
    put_aside(run.directory)
    assert layer_digests(ff.resume(run.path).path) == layer_digests(whole)


def test_progress_of_another_runs_first_layer_is_named_and_the_lines_of_this_one_are_kept(
    whole, small_config, tmp_path
):
    """There is no layer below that would tell them apart, and it seals other lines."""
    runs = []
    for seed in (0, 1):
        with pytest.raises(KeyboardInterrupt):
            config = small_config(cache__tier="disk", seed=seed)
            ff.train(config, tmp_path / f"{seed}", observer=InterruptAt("on_epoch", 1))
        runs.append(ff.Run(tmp_path / f"{seed}"))
    run, other = runs
    shutil.copy(other.path / "progress/manifest.json", run.path / "progress/manifest.json")
    for check in (run.verify, lambda: ff.resume(run.path)):
        with pytest.raises(ff.CorruptFileError, match=r"progress/manifest\.json: belongs to another run"):
            check()
    found = diagnose(run.directory)
    assert [path.name for path in found.damaged] == ["progress"]
    put_aside(run.directory)
    assert layer_digests(ff.resume(run.path).path) == layer_digests(whole)


def _relabel(data):
    """A shard whose header tells of another layout, of as many bytes."""
    return data.replace(b'\\"num_samples\\": 275', b'\\"num_samples\\": 274')


@pytest.mark.parametrize(
    "alter",
    [
        lambda data: data[:300] + bytes([data[300] ^ 1]) + data[301:],
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: bytes(len(data)),
        lambda data: b"",
        _relabel,
    ],
    ids=["flipped", "cut", "longer", "zeros", "empty", "of another layout"],
)
@pytest.mark.parametrize("dtype", ["bf16", "int8"])
def test_a_cache_is_checked_without_what_it_was_made_of_and_made_again(alter, dtype, small_config, tmp_path):
    config = small_config(cache__tier="disk", cache__dtype=dtype)
    whole = ff.train(config, tmp_path / "whole").path
    with pytest.raises(KeyboardInterrupt):
        ff.train(config, tmp_path / "run", observer=InterruptAt("on_epoch", 4))
    run = ff.Run(tmp_path / "run")
    assert run.verify() == 1
    (shard,) = run.path.glob("cache/*/001-train/shard-00001.safetensors")
    data = shard.read_bytes()
    shard.write_bytes(alter(data))
    assert shard.read_bytes() != data
    with pytest.raises(ff.CorruptFileError, match=r"cache shard .*001-train/shard-00001\.safetensors"):
        run.verify()
    found = diagnose(run.directory)
    assert found.damaged == [shard.parent]
    put_aside(run.directory)
    assert run.verify() == 1
    assert layer_digests(ff.resume(run.path).path) == layer_digests(whole)


def test_a_shard_in_another_ones_place_is_not_taken_for_it(small_config, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        ff.train(small_config(cache__tier="disk"), tmp_path / "run", observer=InterruptAt("on_epoch", 4))
    first, second = sorted((tmp_path / "run").glob("cache/*/001-train/shard-0000[01].safetensors"))
    second.write_bytes(first.read_bytes())
    with pytest.raises(ff.CorruptFileError, match="another shard's"):
        ff.Run(tmp_path / "run").verify()


def test_the_readout_is_fitted_again(damaged):
    error = damaged.evaluate("softmax").error
    flip(damaged.path / "readout/weights.safetensors")
    put_aside(damaged.directory)
    assert damaged.evaluate("softmax").error == error


def test_what_makes_the_run_is_restored_and_not_repaired(damaged):
    flip(damaged.path / "config.toml")
    with pytest.raises(ff.CorruptFileError, match=r"config\.toml.*first line"):
        diagnose(damaged.directory)


def test_a_configuration_whose_digest_was_taken_out_is_the_users_own(damaged):
    path = damaged.path / "config.toml"
    path.write_text("\n".join(path.read_text().splitlines()[1:]) + "\n")
    assert diagnose(damaged.directory).problems == []


def test_nothing_is_put_aside_while_the_run_is_trained(damaged):
    flip(damaged.path / "layers/001/weights.safetensors")
    with RunLock(damaged.path), pytest.raises(ff.RunLockedError):
        put_aside(damaged.directory)
    assert damaged.num_layers_done == 3


def test_what_was_trained_again_since_it_was_looked_at_is_not_put_aside(damaged):
    flip(damaged.path / "layers/001/weights.safetensors")
    assert diagnose(damaged.directory).damaged
    put_aside(damaged.directory)
    ff.resume(damaged.path)  # as in another terminal
    found, aside = put_aside(damaged.directory)
    assert (found.damaged, aside, damaged.num_layers_done) == ([], None, 3)


def test_lines_that_nothing_seals_are_named_and_left_to_a_resume(small_config, tmp_path):
    whole = ff.train(small_config(), tmp_path / "whole").path
    with pytest.raises(KeyboardInterrupt):
        ff.train(small_config(), tmp_path / "run", observer=InterruptAt("on_epoch", 4))
    run = ff.Run(tmp_path / "run")
    with run.directory.metrics_path.open("ab") as file:
        file.write(b"rotten\n")
    for use in (lambda: diagnose(run.directory), lambda: put_aside(run.directory)[0]):
        found = use()
        assert (len(found.problems), found.damaged) == (1, [])
        assert "belong to nothing that was saved; ffstream resume removes them" in found.problems[0]
    code, said, _ = run_cli("repair", run.path, "--apply")
    assert code == 1
    assert f"nothing has to be put aside; go on with: ffstream resume {run.path}" in said
    assert layer_digests(ff.resume(run.path).path) == layer_digests(whole)
    assert run_cli("repair", run.path)[0] == 0


def test_the_command_says_first_and_does_when_told_to(damaged):
    assert "nothing is damaged; 3 layers" in run_cli("repair", damaged.path)[1]
    flip(damaged.path / "layers/001/weights.safetensors")
    code, said, _ = run_cli("repair", damaged.path)
    assert code == 1
    assert "1 of 3 committed layers can be kept" in said
    assert "--apply" in said
    assert damaged.num_layers_done == 3
    said = run_cli("repair", damaged.path, "--apply")[1]
    assert f"ffstream resume {damaged.path}" in said
    assert damaged.num_layers_done == 1
    assert "nothing is damaged; 1 layer committed" in run_cli("repair", damaged.path)[1]


def test_metrics_that_are_taken_away_while_a_run_is_trained_are_not_missed(whole, small_config, tmp_path):

    class Taker(ff.Observer):
        def on_epoch(self, layer, epoch, *_):
            if (layer, epoch) == (2, 1):
                (tmp_path / "run" / "metrics.jsonl").unlink()

    run = ff.train(small_config(cache__tier="disk"), tmp_path / "run", observer=Taker())
    assert layer_digests(run.path) == layer_digests(whole)
    assert not run.directory.metrics_path.exists()
    run.verify()
    assert ff.resume(run.path, layers=4).verify() == 4
    assert [record["layer"] for record in metrics_without_times(run.path)] == [4, 4, 4, 4]


def test_a_damaged_cache_on_another_disk_is_removed_and_made_again(whole, small_config, tmp_path):
    (tmp_path / "scratch").mkdir()
    config = small_config(cache__tier="disk", cache__folder=str(tmp_path / "scratch"))
    with pytest.raises(KeyboardInterrupt):
        ff.train(config, tmp_path / "run", observer=InterruptAt("on_epoch", 4))
    (shard,) = (tmp_path / "scratch").glob("*/001-train/shard-00001.safetensors")
    flip(shard)
    code, said, _ = run_cli("repair", tmp_path / "run", "--apply")
    assert code == 0
    assert "removed, to be made again" in said
    assert not (tmp_path / "run/damaged-1").exists()
    assert not shard.exists()
    assert layer_digests(ff.resume(tmp_path / "run").path) == layer_digests(whole)
