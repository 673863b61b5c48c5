"""Negatives that are written ahead, or that data bring of their own."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import ffstream as ff
from ffstream.cli import app
from ffstream.data import Scaling, load_dataset
from ffstream.data.augmentation import Augmentation
from ffstream.data.facts import DataFacts
from ffstream.data.shape import DataShape
from ffstream.field.labels import make_label_method
from ffstream.field.normalisation import length_normalise
from ffstream.settings.sections import AugmentationConfig
from ffstream.studies.doctor import examine_run
from ffstream.studies.offline import draw_negatives
from ffstream.training.input_rows import InputRows
from tests.helpers import InterruptAt, layer_digests, write_pictures


@pytest.fixture(scope="module")
def written(small_data, tmp_path_factory):
    """The small data with three negatives an image, and the file that holds them."""
    path = tmp_path_factory.mktemp("offline") / "negatives.safetensors"
    assert ff.write_negatives(path, str(small_data), per_sample=3, seed=5) == (300, 3, 8, 8)
    return path


def settings(path, **more):
    return {"recipe": "unsupervised", "data": str(path), "negatives__per_sample": 3} | more


def test_the_file_holds_the_data_and_hybrids_of_their_images(written, small_data):
    arrays, own = load_file(written), load_file(small_data)
    for name, tensor in own.items():
        assert torch.equal(arrays[name], tensor), name
    images, negatives = arrays["train.images"], arrays["train.negatives"]
    assert negatives.dtype == images.dtype
    every = images.flatten(1).float()
    for image, hybrids in zip(images[:40], negatives[:40], strict=True):
        for hybrid in hybrids:  # of the image and one other: a pixel is the image's or that one's
            rest = (hybrid != image).flatten()
            assert (every[:, rest] == hybrid.flatten()[rest].float()).all(dim=1).any()
    assert (negatives != images.unsqueeze(1)).flatten(2).any(dim=2).float().mean() > 0.9


def test_what_is_written_is_a_function_of_the_seed(written, small_data, tmp_path):
    for seed, same in ((5, True), (6, False)):
        ff.write_negatives(tmp_path / "again.safetensors", str(small_data), per_sample=3, seed=seed, force=True)
        assert (written.read_bytes() == (tmp_path / "again.safetensors").read_bytes()) is same


@pytest.mark.parametrize("held_out", [False, True])
def test_layers_read_the_negatives_that_are_given(held_out, written, small_config):
    data = load_dataset(str(written))
    method = make_label_method(small_config(**settings(written)), DataShape(64, 10))
    rows = InputRows(method.rows, data.train, Scaling(16.0), 0, held_out=held_out).make()(slice(20, 60))
    images, negatives = (tensor[20:60].float() / 16 for tensor in (data.train.images, data.train.negatives))
    every = torch.cat([images.unsqueeze(1), negatives[:, : 1 if held_out else 3]], dim=1).flatten(2)
    assert torch.equal(rows, length_normalise(every))


def test_data_without_a_plane_can_bring_negatives(small_config, tmp_path):
    numbers = torch.rand(200, 4, 30, generator=torch.Generator().manual_seed(0))
    numbers[:, 0, :15] *= 0.2  # images are dark where negatives are not, and the other way round
    numbers[:, 1:, 15:] *= 0.2
    arrays = {"train.images": numbers[:, 0].clone(), "train.labels": torch.arange(200) % 2}
    save_file(arrays | {"train.negatives": numbers[:, 1:].clone()}, tmp_path / "vectors.safetensors")
    run = ff.train(small_config(**settings(tmp_path / "vectors.safetensors")), tmp_path / "run")
    assert run.layers[0].separation > 0.9
    assert examine_run(run.path).seconds["training"] > 0


@pytest.mark.parametrize("ways", [{}, {"augmentation__restream": True}, {"augmentation__views": 3}])
def test_a_run_on_given_negatives_resumes_bitwise(ways, written, small_config, tmp_path):
    config = small_config(**settings(written, cache__tier="disk", **ways))
    whole = ff.train(config, tmp_path / "whole")
    for event, number in (("on_epoch", 1), ("on_step", 2)):
        with pytest.raises(KeyboardInterrupt):
            ff.train(config, tmp_path / event, observer=InterruptAt(event, number))
        assert layer_digests(ff.resume(tmp_path / event).path) == layer_digests(whole.path)


def test_shifts_move_negatives_as_their_image(written, small_config):
    data = load_dataset(str(written))
    method = make_label_method(small_config(**settings(written)), DataShape(64, 10))
    doubled = dataclasses.replace(data.train, negatives=data.train.images.unsqueeze(1).repeat(1, 3, 1, 1))
    shifts, augmentation = (torch.arange(300) % 9).unsqueeze(1), Augmentation(AugmentationConfig(views=2, max_shift=1))
    rows = InputRows(method.rows, doubled, Scaling(16.0), 0).make(augmentation, shifts)(slice(0, 300))
    assert torch.equal(rows, rows[:, :1].expand_as(rows))


def test_a_run_chooses_negatives_that_it_likes_more(small_config, small_data, tmp_path):
    run = ff.train(small_config("unsupervised"), tmp_path / "run")
    network, images = run.load(), load_dataset(str(small_data)).train.images

    def liked(negatives):
        return torch.stack(network.goodness_by_layer(negatives.flatten(0, 1))).sum(dim=0).mean()

    drawn = draw_negatives(images, 2, 6, seed=0)
    chosen = draw_negatives(images, 2, 6, seed=0, network=network, num_draws=8)
    assert liked(chosen) > liked(drawn)


def test_the_command_says_how_to_go_on(small_data, tmp_path):
    path = tmp_path / "n.safetensors"
    found = CliRunner().invoke(app, ["negatives", str(path), "--data", str(small_data), "--per-sample", "2"])
    assert found.exit_code == 0, found.output
    assert "2 negatives for each of 300 images" in found.output
    command = found.output.split("Next: ffstream ")[1].split()
    extra = ["--layers", "1", "--width", "20", "--epochs", "1", "--run-dir", str(tmp_path / "run")]
    assert CliRunner().invoke(app, command + extra).exit_code == 0


def test_what_does_not_fit_is_refused_by_name(written, small_config, small_data, tmp_path):
    arrays = load_file(written)

    def train(negatives, **changes):
        save_file(arrays | {"train.negatives": negatives.contiguous()}, tmp_path / "bad.safetensors")
        ff.train(small_config(**settings(tmp_path / "bad.safetensors", **changes)), tmp_path / "run")

    good = arrays["train.negatives"]
    with pytest.raises(ff.DataError, match=r"negatives have shape \(299, 3, 8, 8\), allowed \(300, R, 8, 8\)"):
        train(good[:299])
    with pytest.raises(ff.DataError, match=r"negatives have shape \(300, 0, 8, 8\)"):
        train(good[:, :0])
    with pytest.raises(ff.DataError, match=r"negatives are torch.float32, allowed torch.uint8"):
        train(good.float())
    with pytest.raises(ff.DataError, match=r"brings 3 negatives per image, allowed 4 or more.*per-sample 3"):
        train(good, negatives__per_sample=4)
    with pytest.raises(ff.DataError, match=r"brings negatives of its own, which layers that see labels do not read"):
        ff.train(small_config(data=str(written)), tmp_path / "run")
    with pytest.raises(ff.DataError, match=r"ends in \.safetensors"):
        ff.write_negatives(tmp_path / "n.npz", str(small_data))
    run = ff.train(small_config(), tmp_path / "labelled")
    with pytest.raises(ff.DataError, match="its layers see labels"):
        ff.write_negatives(tmp_path / "n.safetensors", str(small_data), run=run.path)
    path = tmp_path / "n.safetensors"
    for wrong in ({"per_sample": 0}, {"blurs": 0}, {"blurs": 10**30}, {"draws": 0}):
        with pytest.raises(ff.ConfigError, match="allowed"):
            ff.write_negatives(path, str(small_data), **wrong)
    with pytest.raises(ff.DataError, match=r"out of memory for \d+.* TiB of negatives; use a smaller --per-sample"):
        ff.write_negatives(path, str(small_data), per_sample=10**12)
    with pytest.raises(ff.DataError, match="out of memory"):
        ff.write_negatives(path, str(small_data), per_sample=2**63 - 1)
    assert not (tmp_path / "run").exists()
    assert not path.exists()


def test_negatives_are_never_written_onto_what_they_are_made_of_or_what_is_not_theirs(
    written, small_config, small_data, tmp_path
):
    data = tmp_path / "mine.safetensors"
    data.write_bytes(small_data.read_bytes())
    (tmp_path / "link.safetensors").symlink_to(data)
    run = ff.train(small_config("unsupervised"), tmp_path / "run")
    network = tmp_path / "network.safetensors"
    run.export(network)
    theirs = tmp_path / "theirs.safetensors"
    theirs.write_bytes(b"theirs")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for path in (data, tmp_path / "link.safetensors", network, run.path / "layers" / "000" / "weights.safetensors"):
        with pytest.raises(ff.FFStreamError, match=r"is an input|is a file of the run"):
            ff.write_negatives(path, str(data), run=network, force=True)
    with pytest.raises(ff.FFStreamError, match="add --force"):
        ff.write_negatives(theirs, str(data))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    ff.write_negatives(theirs, str(data), per_sample=1, force=True)
    ff.write_negatives(theirs, str(small_data), per_sample=1)  # of the same images, by the same options: its own
    arrays = load_file(data)
    arrays["train.images"] = arrays["train.images"].flip(0)
    save_file(arrays, data)
    with pytest.raises(ff.FFStreamError, match="add --force"):
        ff.write_negatives(theirs, str(data), per_sample=1)


def test_other_negatives_are_other_data(written, small_config, small_data, tmp_path):
    path = tmp_path / "n.safetensors"
    path.write_bytes(written.read_bytes())
    config = small_config(**settings(path))
    with pytest.raises(KeyboardInterrupt):
        ff.train(config, tmp_path / "run", observer=InterruptAt("on_epoch", 0))
    ff.write_negatives(path, str(small_data), per_sample=3, seed=6, force=True)
    with pytest.raises(ff.RunMismatchError, match="other training data"):
        ff.resume(tmp_path / "run")


def test_negatives_are_read_from_the_data_set_once(written, small_config, tmp_path, monkeypatch):
    """In one stack, that of the first layer; each further one reads what a layer handed on."""
    made, make = [], InputRows.make
    monkeypatch.setattr(InputRows, "make", lambda self, *shifts: made.append(self) or make(self, *shifts))
    ff.train(small_config(**settings(written, layers=3)), tmp_path / "run")
    assert len(made) == 2  # of the training and of the validation split


@pytest.mark.parametrize("brings", [False, True])
def test_fresh_rows_are_planned_for_on_a_machine_that_is_described(brings, written, small_data, small_config):
    """Where nothing runs, the shape of images is that of the data, and hybrids are made of them or not."""
    config = small_config(**settings(written if brings else small_data, augmentation__restream=True))
    machine = "device=8GiB,30TFLOP/s;h2d=12GB/s;host=32GiB;disk=1TiB,3GB/s"
    assert ff.make_plan(config, machine=machine).device.num_bytes > 0


def test_the_file_keeps_what_arrays_cannot_say(tmp_path):
    """Pictures that are all dark have the white of a picture; classes their names; a validation split is still one."""
    shades = np.random.default_rng(0).integers(0, 40, (3, 2, 20, 6, 6), dtype=np.uint8)
    for part, of_part in zip(("train", "val", "test"), shades, strict=True):
        write_pictures(tmp_path / "pictures" / part, dict(zip(("cats", "dogs"), of_part, strict=True)))
    ff.write_negatives(tmp_path / "n.safetensors", str(tmp_path / "pictures"), per_sample=2)
    found, wanted = (load_dataset(str(tmp_path / name)) for name in ("n.safetensors", "pictures"))
    assert (found.class_names, found.white) == (wanted.class_names, 255) == (("cats", "dogs"), 255)
    for own, other in ((found.validation, wanted.validation), (found.test, wanted.test)):
        assert torch.equal(own.images, other.images)
    facts = [DataFacts.of(each, each.train, "none") for each in (found, wanted)]
    assert facts[0].white == facts[1].white == 255


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"ffstream.class_names": "cats"}, "is no JSON"),
        ({"ffstream.class_names": '["a", "a"]'}, "'a' twice"),
        ({"ffstream.class_names": '["a", "b"]'}, "train label of sample \\d+ is 9, allowed 0 to 1"),
        ({"ffstream.white": "-1"}, "is -1, allowed a number above 0"),
        ({"ffstream.white": "NaN"}, "is nan, allowed a number above 0"),
    ],
)
def test_a_head_that_says_what_cannot_be_is_refused(metadata, message, small_data, tmp_path):
    save_file(load_file(small_data), tmp_path / "odd.safetensors", metadata)
    with pytest.raises(ff.DataError, match=message):
        load_dataset(str(tmp_path / "odd.safetensors"))
