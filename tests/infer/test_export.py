"""Exported files: what is loaded is what was exported, or it is refused, and it stays as it is."""

from __future__ import annotations

import hashlib
import json
import random

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import ffstream as ff
from ffstream.errors import OutputError
from ffstream.infer import model
from ffstream.infer.model import export_network
from tests.helpers import run_cli


@pytest.fixture(scope="module")
def run(tmp_path_factory, small_data):
    config = ff.Config(data=str(small_data), layers=2, width=16, epochs=1, batch=64, device="cpu", precision="fp32")
    return ff.train(config, tmp_path_factory.mktemp("export") / "run")


@pytest.fixture(scope="module")
def readout_run(tmp_path_factory, small_data):
    """Of layers that saw no labels, so that a softmax readout is exported with them."""
    config = ff.Config(recipe="unsupervised", data=str(small_data), layers=2, width=16, epochs=1, device="cpu")
    run = ff.train(config, tmp_path_factory.mktemp("readout") / "run")
    run.evaluate("softmax")
    return run


@pytest.fixture
def exported(run, tmp_path):
    export_network(run.directory, tmp_path / "e.safetensors")
    return tmp_path / "e.safetensors"


def read(path):
    """Metadata and tensors, by the format's own library."""
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata()), load_file(path)


def write_older(path, metadata, tensors):
    """As the version before wrote, which knew no digest."""
    older = {key: value for key, value in metadata.items() if key in ("config", "data")}
    save_file(tensors, path, older | {"format": "ffstream-1"})


def write_sealed(path, metadata, tensors):
    """With a digest that is right, as somebody may make it."""
    metadata.pop("sha256")
    save_file(tensors, path, metadata)
    save_file(tensors, path, metadata | {"sha256": digest_of(path)})


def digest_of(path):
    """Of the metadata without it, the entries and the payload."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        payload = file.read()
    metadata, entries = header.pop("__metadata__"), header
    metadata.pop("sha256", None)
    text = json.dumps([metadata, entries], sort_keys=True)
    return hashlib.sha256(text.encode() + payload).hexdigest()


def test_what_is_exported_is_loaded_to_the_bit_and_said_by_its_digest(run, exported, digits):
    images = digits.test.images[:50]
    assert torch.equal(ff.load(exported)(images), run.load()(images))
    metadata, _ = read(exported)
    assert metadata["format"] == "ffstream-2"
    assert metadata["run"] == run.directory.read_identity()
    assert metadata["sha256"] == digest_of(exported)


def test_a_readout_is_exported_too(readout_run, tmp_path, digits):
    export_network(readout_run.directory, tmp_path / "e.safetensors")
    images = digits.test.images[:50]
    assert torch.equal(ff.load(tmp_path / "e.safetensors")(images), readout_run.load()(images))


def test_no_flipped_bit_is_loaded(exported):
    whole = exported.read_bytes()
    chosen = random.Random(0)
    header = 8 + int.from_bytes(whole[:8], "little")
    places = [chosen.randrange(header) for _ in range(150)] + [chosen.randrange(header, len(whole)) for _ in range(150)]
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << chosen.randrange(8)
        exported.write_bytes(damaged)
        with pytest.raises(ff.RunError) as caught:
            ff.load(exported)
        assert str(exported) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("num_bytes", [0, 7, 8, 100, -1, 1])
def test_no_file_of_another_length_is_loaded(num_bytes, exported):
    whole = exported.read_bytes()
    exported.write_bytes(whole + b"\0" if num_bytes == 1 else whole[:num_bytes])
    with pytest.raises(ff.CorruptFileError, match="cannot be read as a safetensors file"):
        ff.load(exported)


def change_data(**changes):
    return lambda metadata, tensors: metadata.update(data=json.dumps(json.loads(metadata["data"]) | changes))


def change_config(**changes):
    return lambda metadata, tensors: metadata.update(config=json.dumps(json.loads(metadata["config"]) | changes))


def put(name, value):
    return lambda metadata, tensors: tensors.update({name: value(tensors.get(name))})


def fill(number):
    return lambda tensor: tensor.clone().index_fill_(0, torch.tensor([1]), number)


WEIGHT = "layers.0.weight"
WRONG = {
    "nan weights": (put(WEIGHT, fill(float("nan"))), "layers.0.weight: holds numbers that are not finite"),
    "infinite bias": (put("layers.1.bias", fill(float("inf"))), "not finite"),
    "another type": (put(WEIGHT, torch.Tensor.double), "found torch.float64, allowed torch.float32"),
    "another shape": (put(WEIGHT, lambda tensor: tensor[:, :-1].contiguous()), r"found \(16, 63\), allowed \(16, 64\)"),
    "one more": (put("layers.0.more", lambda _: torch.zeros(1)), r"layers.0.more: found \(1,\), allowed None"),
    "one more layer": (put("layers.2.bias", lambda _: torch.zeros(16)), "found tensors of 3 layers, allowed"),
    "readout of no layer": (put("readout.009.weight", lambda _: torch.zeros(10, 16)), "readout of layer '009'"),
    "readout of no number": (put("readout.²²².weight", lambda _: torch.zeros(10, 16)), "readout of layer"),
    "half a readout": (put("readout.001.weight", lambda _: torch.zeros(10, 16)), "do not fit"),
    "zero scale": (change_data(scale=0), "scale: found 0, allowed a number > 0"),
    "negative scale": (change_data(scale=-1.0), "scale: found -1.0"),
    "scale nan": (change_data(scale=float("nan")), "scale: found nan"),
    "scale infinite": (change_data(scale=float("inf")), "scale: found inf"),
    "fewer names": (change_data(class_names=["a"]), "found 1 names of classes, allowed 10"),
    "names that are none": (change_data(class_names=list(range(10))), "found 0, allowed a string"),
    "fewer classes": (change_data(num_classes=9, class_names=list("abcdefghi")), "do not fit"),
    "another shape of images": (change_data(image_shape=[8, 9]), r"images of shape \(8, 9\), allowed of 64 features"),
    "no shape": (change_data(image_shape="88"), "image_shape: found '88', allowed a list"),
    "images of a billion pixels": (change_data(image_shape=[1 << 40], num_features=1 << 40), "do not fit"),
    "data that are none": (lambda metadata, _: metadata.update(data="[]"), "allowed a mapping"),
    "data of many brackets": (lambda metadata, _: metadata.update(data="[" * 100_000), "do not parse"),
    "a number of many digits": (lambda metadata, _: metadata.update(data="1" * 5000), "do not parse"),
    "no data": (lambda metadata, _: metadata.pop("data"), "do not parse"),
    "unknown setting": (change_config(bogus=1), "bogus: unknown setting"),
    "more layers": (change_config(layers=1_000_000), "allowed those of the 1000000"),
    "layers of no number": (change_config(layers="2"), "found tensors of 2 layers"),
    "another width": (change_config(width=1 << 18), "do not fit"),
    "another kind": (change_config(network={"kind": "local"}), "do not fit"),
    "another method": (change_config(labels={"method": "overlay"}), "do not fit"),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("write", [write_older, write_sealed])
def test_what_no_run_can_have_is_refused_whoever_wrote_it(name, write, exported):
    alter, message = WRONG[name]
    metadata, tensors = read(exported)
    alter(metadata, tensors)
    write(exported, metadata, tensors)
    with pytest.raises(ff.CorruptFileError, match=message) as caught:
        ff.load(exported)
    assert "\n" not in str(caught.value)


def test_files_of_the_version_before_are_loaded(run, exported, digits):
    write_older(exported, *read(exported))
    assert torch.equal(ff.load(exported)(digits.test.images[:9]), run.load()(digits.test.images[:9]))


def test_a_file_that_says_to_be_older_does_not_get_around_its_digest(exported):
    metadata, tensors = read(exported)
    tensors[WEIGHT] = tensors[WEIGHT] + 1
    save_file(tensors, exported, metadata | {"format": "ffstream-1"})
    with pytest.raises(ff.CorruptFileError, match="altered since it was exported"):
        ff.load(exported)


def test_a_network_does_not_change_when_its_files_do(run, exported, small_data, tmp_path, digits):
    for path in (exported, ff.train(run.config, tmp_path / "run").path):
        network, images = ff.load(path), digits.test.images[:9]
        wanted = network(images)
        for file in [path] if path.is_file() else path.rglob("*.safetensors"):
            with file.open("r+b") as opened:  # in place, as a map of it would see
                opened.write(b"\xff" * file.stat().st_size)
        assert torch.equal(network(images), wanted)


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_file_is_not_read(make, tmp_path):
    make(tmp_path / "e")
    with pytest.raises(ff.RunError, match="cannot be read"):
        ff.load(tmp_path / "e")
    with pytest.raises(ff.RunError, match="cannot be read"):
        ff.load(tmp_path / ("e" * 300))


# --- where it is written


def test_a_run_is_exported_again_onto_its_own_file_alone(run, readout_run, exported):
    before = exported.read_bytes()
    assert run_cli("export", run.path, exported)[0] == 0
    assert exported.read_bytes() == before
    code, _, error = run_cli("export", readout_run.path, exported)
    assert code == 1
    assert isinstance(error, OutputError)
    assert exported.read_bytes() == before
    assert run_cli("export", readout_run.path, exported, "--force")[0] == 0
    assert exported.read_bytes() != before


def test_a_file_of_the_version_before_is_replaced_by_force_alone(run, exported):
    write_older(exported, *read(exported))
    assert "--force" in str(run_cli("export", run.path, exported)[2])
    assert run_cli("export", run.path, exported, "--force")[0] == 0


def test_a_run_is_never_written_onto(run):
    for name in ("layers/000/weights.safetensors", "layers/009/new.safetensors"):
        before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
        assert isinstance(run_cli("export", run.path, run.path / name, "--force")[2], OutputError)
        assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before


def test_a_refusal_comes_before_the_work(run, tmp_path, monkeypatch):
    monkeypatch.setattr(model, "_load_run", lambda _: pytest.fail("was loaded"))
    (tmp_path / "theirs.safetensors").write_text("theirs")
    with pytest.raises(OutputError):
        export_network(run.directory, tmp_path / "theirs.safetensors")


@pytest.mark.parametrize("name", ["model.pt", "model.pth", "model.onnx", "model.bin", "model", "config.toml", ".pt"])
def test_a_file_is_never_of_another_format_than_its_name_says(run, tmp_path, name):
    for path in (tmp_path / name, run.path / name):
        there = path.read_bytes() if path.exists() else None
        _, _, error = run_cli("export", run.path, path, "--force")
        assert isinstance(error, ff.ConfigError)
        assert ".safetensors, which is what is written" in str(error)
        assert (path.read_bytes() if path.exists() else None) == there
    assert run_cli("export", run.path, tmp_path / "MODEL.SAFETENSORS")[0] == 0


def test_an_export_of_another_run_is_not_replaced_and_is_said_to_be_one(run, readout_run, exported):
    before, identity = exported.read_bytes(), run.directory.read_identity()
    with pytest.raises(OutputError, match=rf"the export of another run, whose identity is {identity}, of 2 layers"):
        readout_run.export(exported)
    metadata, tensors = read(exported)
    for data in ("{", "[]", "null", "3"):
        save_file(tensors, exported, metadata | {"data": data})
        with pytest.raises(OutputError, match=rf"the export of another run, whose identity is {identity};"):
            readout_run.export(exported)
    with pytest.raises(OutputError, match="not what the same command has written before"):
        run.export(exported)  # which was changed since
    exported.write_bytes(before)
    run.export(exported)
