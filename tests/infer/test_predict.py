"""Predictions: the labels that an evaluation counts, with probabilities; images of any origin, taken or refused."""

from __future__ import annotations

import csv
import io
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import ffstream as ff
from ffstream.data import Dataset, Split, load_dataset
from ffstream.data.facts import DataFacts
from ffstream.ground.folder import Folder
from ffstream.infer.combination import measure_probabilities
from ffstream.run.run import make_splits
from ffstream.storage.manifest import read_manifest, write_manifest
from tests.helpers import InterruptAt, make_older, run_cli, run_process, write_pictures


@pytest.fixture(scope="module")
def run(tmp_path_factory, small_data):
    config = ff.Config(data=str(small_data), layers=3, width=48, epochs=8, batch=32, device="cpu", precision="fp32")
    return ff.train(config, tmp_path_factory.mktemp("predict") / "run")


@pytest.fixture(scope="module")
def test_split(small_data):
    arrays = load_file(small_data)
    return arrays["test.images"], arrays["test.labels"]


@pytest.fixture
def copy(run, tmp_path):
    shutil.copytree(run.path, tmp_path / "copy")
    return ff.Run(tmp_path / "copy")


@pytest.mark.parametrize("method", ["goodness", "fitted"])
@pytest.mark.parametrize("first_layer", [1, 2])
def test_what_is_predicted_is_what_an_evaluation_counts(method, first_layer, run, test_split):
    images, labels = test_split
    found = run.predict(images, method, first_layer=first_layer)
    counted = run.evaluate(method, first_layer=first_layer)
    assert float((found.labels != labels).double().mean()) == counted.error
    figures = measure_probabilities(found.probabilities.log(), labels)
    assert figures.negative_log_likelihood == pytest.approx(counted.calibrated.negative_log_likelihood)
    assert figures.expected_calibration_error == pytest.approx(counted.calibrated.expected_calibration_error)
    assert found.combination == counted.combination
    assert found.probabilities.sum(dim=1).tolist() == pytest.approx([1.0] * len(labels))
    assert found.names == [found.class_names[label] for label in found.labels]


@pytest.mark.parametrize("settings", [{}, {"recipe": "unsupervised"}, {"network__stack_layers": 2}])
def test_the_softmax_readout_predicts_what_it_was_evaluated_at(settings, small_config, test_split, tmp_path):
    images, labels = test_split
    run = ff.train(small_config(layers=4, **settings), tmp_path / "run")
    with pytest.raises(ff.RunError, match="holds no softmax readout of its 4 layers from layer 2 on; fit one by"):
        run.predict(images, "softmax")
    counted = run.evaluate("softmax")
    plain = run.predict(images, "softmax", calibrated=False)
    assert float((plain.labels != labels).double().mean()) == counted.error
    figures = measure_probabilities(plain.probabilities.log(), labels)
    assert figures.negative_log_likelihood == pytest.approx(counted.uncalibrated.negative_log_likelihood)
    found = run.predict(images, "softmax")
    assert (found.method, found.is_calibrated, plain.is_calibrated) == ("softmax", True, False)
    assert torch.equal(found.labels, plain.labels)
    logits, temperature = plain.probabilities.log(), found.combination.temperature
    torch.testing.assert_close(found.probabilities, torch.softmax(logits / temperature, dim=1))
    held_out = make_splits(load_dataset(run.config.data), run.config)["validation"]
    by_method = [
        measure_probabilities(
            run.predict(held_out.images, "softmax", calibrated=flag).probabilities.log(), held_out.labels
        )
        for flag in (True, False)
    ]
    assert by_method[0].negative_log_likelihood <= by_method[1].negative_log_likelihood + 0.02
    with pytest.raises(ff.RunError, match="of its 4 layers from layer 3 on"):
        run.predict(images, "softmax", first_layer=3)
    if "recipe" in settings:
        assert run.predict(images).method == "softmax"
        with pytest.raises(ff.ConfigError, match=r"trained without labels .*allowed softmax, or auto"):
            run.predict(images, "goodness")


def test_labels_are_those_of_the_resident_module(run, test_split):
    assert torch.equal(run.predict(test_split[0]).labels, run.load().predict(test_split[0]))


@pytest.mark.parametrize("recipe", ["inject", "hinton"])
def test_predictions_do_not_depend_on_the_tier_or_on_tiles_and_leave_the_run_as_it_is(
    recipe, small_config, test_split, tmp_path
):
    found = []
    for tier in ("host", "disk"):
        run = ff.train(small_config(recipe, cache__tier=tier), tmp_path / tier)
        before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*")}
        found.append(run.predict(test_split[0], "fitted").probabilities)
        assert {path: path.stat().st_mtime_ns for path in run.path.rglob("*")} == before
    assert torch.equal(*found)
    tiled = ff.train(small_config(recipe, network__tile_units=10), tmp_path / "tiled")
    assert torch.equal(tiled.predict(test_split[0]).labels, tiled.load().predict(test_split[0]))


def test_a_run_in_training_predicts_with_the_layers_that_are_finished(small_config, test_split, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        ff.train(small_config(), tmp_path / "run", observer=InterruptAt("on_epoch", 7))
    shallow = ff.train(small_config(layers=2), tmp_path / "shallow")
    for method in ("goodness", "fitted"):
        found = ff.Run(tmp_path / "run").predict(test_split[0], method)
        assert len(found.combination.weights) == 2
        assert torch.equal(found.probabilities, shallow.predict(test_split[0], method).probabilities)


def test_the_data_set_is_not_needed(small_data, small_config, test_split, tmp_path):
    data = shutil.copy(small_data, tmp_path / "data.safetensors")
    run = ff.train(small_config(data=str(data), layers=1), tmp_path / "run")
    before = run.predict(test_split[0]).probabilities
    (tmp_path / "data.safetensors").unlink()
    assert torch.equal(run.predict(test_split[0]).probabilities, before)


def test_a_run_that_kept_no_validation_labels_takes_them_from_its_data(copy, test_split):
    before = copy.predict(test_split[0]).probabilities
    make_older(copy.path)
    data = read_manifest(Folder(copy.path), "data.json", {})
    del data["validation_labels_digest"]
    write_manifest(Folder(copy.path), "data.json", data)
    (copy.path / "validation.safetensors").unlink()
    assert torch.equal(copy.predict(test_split[0]).probabilities, before)


def test_altered_validation_labels_are_refused(copy, test_split):
    path = copy.path / "validation.safetensors"
    save_file({"labels": load_file(path)["labels"].flip(0)}, path)
    with pytest.raises(ff.CorruptFileError, match=r"validation\.safetensors"):
        copy.predict(test_split[0])


def test_without_a_validation_split_probabilities_are_given_only_when_asked_for(small_config, test_split, tmp_path):
    run = ff.train(small_config(validation_fraction=0.0), tmp_path / "run")
    for method in ("goodness", "fitted"):
        with pytest.raises(ff.RunError, match="has no validation split to calibrate.*--uncalibrated"):
            run.predict(test_split[0], method)
    found = run.predict(test_split[0], calibrated=False)
    assert not found.is_calibrated
    assert found.combination.temperature == 1 / run.config.objective.scale
    assert run.evaluate().calibrated is None
    with pytest.raises(ff.RunError, match="has no validation split to fit weights on.*--method goodness"):
        run.evaluate("fitted")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"method": "sum"}, ff.ConfigError, "method 'sum': unknown; allowed: auto, fitted, goodness, softmax"),
        ({"method": "fitted", "calibrated": False}, ff.ConfigError, "leave --uncalibrated out"),
        ({"first_layer": 0}, ff.ConfigError, "allowed an integer >= 1"),
        ({"first_layer": 9}, ff.RunError, "has 3 layers, allowed first layer 1 to 3"),
        ({"device": "tpu"}, ff.DeviceError, "allowed: auto, cpu, cuda"),
    ],
)
def test_what_cannot_be_predicted_is_refused(arguments, error, message, run, test_split):
    with pytest.raises(error, match=message):
        run.predict(test_split[0], **arguments)


def test_images_whose_shape_says_how_to_bring_them_to_the_runs_are_taken(run, test_split):
    images = test_split[0][:8]
    wanted = run.predict(images).probabilities
    for form in (images.unsqueeze(1), images.unsqueeze(3), images.flatten(1), images.float(), images.double()):
        assert torch.equal(run.predict(form).probabilities, wanted)
    for form in (images[0], images[0].flatten(), images[0].unsqueeze(0)):
        assert torch.equal(run.predict(form).probabilities[0], run.predict(images[:1]).probabilities[0])


BAD_IMAGES = {
    "larger": (torch.zeros(3, 28, 28), r"images have shape \(3, 28, 28\), allowed \(n, 8, 8\), as the run was trained"),
    "channels": (torch.zeros(3, 8, 8, 3), r"images have shape \(3, 8, 8, 3\), allowed \(n, 8, 8\)"),
    "none": (torch.zeros(0, 8, 8), "found no image"),
    "nan": (torch.full((2, 8, 8), float("nan")), "image 0 holds a value that is not finite"),
    "scalar": (torch.tensor(1.0), r"images have shape \(\)"),
}


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_other_images_are_refused(name, run):
    images, message = BAD_IMAGES[name]
    with pytest.raises(ff.DataError, match=message):
        run.predict(images)


def write_digits(folder, images):
    """Image files of digits, white where the digits have 16."""
    folder.mkdir(parents=True)
    for number, image in enumerate(images.double() * 255 / 16):
        Image.fromarray(image.round().numpy().astype(np.uint8)).save(folder / f"{number}.png")


def test_image_files_are_read_in_the_units_of_the_training_data(run, test_split, tmp_path):
    images = test_split[0][:9]
    write_digits(tmp_path / "images" / "below", images)
    found = run.load_images([tmp_path / "images"])
    assert found.names == [str(tmp_path / f"images/below/{number}.png") for number in range(9)]
    assert float((found.images - images.float()).abs().max()) < 0.04  # of 16, as a file keeps 256 shades
    with Image.open(tmp_path / "images/below/0.png") as image:
        image.convert("RGB").save(tmp_path / "colour.png")
    assert torch.equal(run.load_images([tmp_path / "colour.png"]).images, found.images[:1])


@pytest.mark.parametrize("shape", [(5, 6, 3), (3, 5, 6)])
def test_pictures_in_colour_are_brought_to_either_order_of_axes(shape, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (12, 5, 6, 3), dtype=np.uint8)
    images = pixels if shape[-1] == 3 else np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
    np.savez(tmp_path / "data.npz", x_train=images, y_train=np.arange(12) % 2)
    config = ff.Config(data=str(tmp_path / "data.npz"), layers=1, width=8, epochs=1, validation_fraction=0.25)
    run = ff.train(config.override({"negatives.per_step": 1}), tmp_path / "run")
    Image.fromarray(pixels[3]).save(tmp_path / "3.png")
    assert torch.equal(run.load_images([tmp_path / "3.png"]).images, torch.from_numpy(images[3:4]))
    other = torch.from_numpy(images).permute(0, 3, 1, 2) if shape[-1] == 3 else torch.from_numpy(images.swapaxes(1, 3))
    with pytest.raises(ff.DataError, match="put the axes of each image in that order"):
        run.predict(other)


def test_a_folder_of_dim_images_is_read_as_it_was_for_training(tmp_path):
    shades = np.random.default_rng(0).integers(0, 40, (2, 10, 4, 4), dtype=np.uint8)
    write_pictures(tmp_path / "data", dict(zip(("cat", "dog"), shades, strict=True)))
    config = ff.Config(data=str(tmp_path / "data"), layers=1, width=8, epochs=1).override({"negatives.per_step": 1})
    run = ff.train(config, tmp_path / "run")
    found = run.load_images([tmp_path / "data" / "dog"])
    assert torch.equal(found.images, torch.from_numpy(shades[1]))
    assert set(run.predict(found.images).names) <= {"cat", "dog"}


def test_arrays_are_found_by_their_names_or_alone(run, test_split, tmp_path):
    images = test_split[0][:3]
    np.save(tmp_path / "a.npy", images.numpy())
    np.savez(tmp_path / "b.npz", x_train=np.zeros((2, 8, 8)), x_test=images.numpy(), y_test=np.zeros(3))
    save_file({"images": images, "more": torch.zeros(1)}, tmp_path / "c.safetensors")
    np.savez(tmp_path / "d.npz", anything=images.numpy())
    paths = [tmp_path / name for name in ("a.npy", "b.npz", "c.safetensors", "d.npz")]
    found = run.load_images(paths)
    assert found.names[:4] == [f"{tmp_path}/a.npy[0]", f"{tmp_path}/a.npy[1]", f"{tmp_path}/a.npy[2]", f"{paths[1]}[0]"]
    assert torch.equal(found.images, images.repeat(4, 1, 1))


def make_bad_files(folder):
    Image.new("L", (9, 8)).save(folder / "wide.png")
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(folder / "deep.png")
    (folder / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n????")
    (folder / "notes.txt").write_text("no image")
    (folder / "empty").mkdir()
    np.save(folder / "channels.npy", np.zeros((2, 8, 8, 3)))
    np.save(folder / "objects.npy", np.array([{}]), allow_pickle=True)
    np.save(folder / "complex.npy", np.zeros((1, 8, 8), complex))
    (folder / "torn.npz").write_bytes(b"PK\x03\x04")
    np.savez(folder / "two.npz", a=np.zeros((1, 8, 8)), b=np.zeros((1, 8, 8)))


BAD_FILES = {
    "wide.png": r"found 9 x 8 pixels \(width x height\), allowed 8 x 8, as the run was trained on; resize it",
    "deep.png": "16 bits per channel, allowed 8",
    "torn.png": "cannot be read as an image",
    "notes.txt": r"found '.txt', allowed an image \(.jpg",
    "empty": "found no image in this folder",
    "absent.png": "no such file or folder",
    "a" * 300: "cannot be read: File name too long",
    "absent.npy": "no such file",
    "channels.npy": r"images have shape \(2, 8, 8, 3\), allowed \(n, 8, 8\)",
    "objects.npy": "cannot be read as .npy",
    "complex.npy": "allowed real numbers",
    "torn.npz": "cannot be read as .npz",
    "two.npz": r"found arrays \['a', 'b'\], needs images or test.images, or one array alone",
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_files_that_do_not_fit_are_refused_in_one_line(name, run, tmp_path):
    make_bad_files(tmp_path)
    code, output, error = run_cli("predict", run.path, tmp_path / name)
    assert code != 0
    assert output == ""
    assert isinstance(error, ff.DataError)
    with pytest.raises(ff.DataError, match=BAD_FILES[name]):
        raise error
    assert str(tmp_path / name) in str(error)
    assert "\n" not in str(error)


def test_a_picture_for_a_run_of_flat_arrays_is_refused(tmp_path, digits):
    content = {"train.images": digits.train.images[:60].flatten(1), "train.labels": digits.train.labels[:60]}
    save_file(content, tmp_path / "flat.safetensors")
    run = ff.train(ff.Config(data=str(tmp_path / "flat.safetensors"), layers=1, width=8, epochs=1), tmp_path / "run")
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(ff.DataError, match=r"trained on arrays of shape \(64,\)"):
        run.load_images([tmp_path / "a.png"])
    assert len(run.predict(digits.test.images[:2]).labels) == 2


def test_the_command_prints_csv_or_json_and_writes_what_it_would_print(run, test_split, tmp_path):
    np.save(tmp_path / "x.npy", test_split[0][:5].numpy())
    wanted = run.predict(test_split[0][:5])
    code, text, _ = run_cli("predict", run.path, tmp_path / "x.npy")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert code == 0
    assert [row["label"] for row in rows] == wanted.names
    assert [float(row["probability"]) for row in rows] == pytest.approx(wanted.probabilities.amax(dim=1), abs=1e-6)
    in_json = run_cli("predict", run.path, tmp_path / "x.npy", "--json")[1]
    found = json.loads(in_json)
    assert [row["probabilities"] for row in found["predictions"]] == wanted.probabilities.tolist()
    assert [row["image"] for row in found["predictions"]] == [f"{tmp_path}/x.npy[{number}]" for number in range(5)]
    assert found["class_names"] == list(wanted.class_names)
    for name, content in (("out/a.csv", text), ("out/a.json", in_json)):
        _, said, _ = run_cli("predict", run.path, tmp_path / "x.npy", "--output", tmp_path / name)
        assert (tmp_path / name).read_text() == content
        assert said == f"5 predictions written to {tmp_path / name}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "a.txt"], "found '.txt', allowed .csv or .json"),
        (["--output", "a.csv", "--json"], "found with --output a.csv, allowed with a .json file"),
        (["--method", "fited"], "did you mean 'fitted'"),
    ],
)
def test_options_that_do_not_fit_are_refused(arguments, message, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.zeros((1, 8, 8)))
    code, _, error = run_cli("predict", run.path, "x.npy", *arguments)
    assert code != 0
    assert isinstance(error, ff.ConfigError)
    with pytest.raises(ff.ConfigError, match=message):
        raise error
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy"]


def test_images_of_other_units_are_read_with_a_note_beside_the_output(run, test_split, tmp_path):
    np.save(tmp_path / "x.npy", test_split[0][:5].numpy() / 16)
    done = run_process("predict", run.path, tmp_path / "x.npy", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout.startswith("image,label,probability\n")
    assert done.stderr.count("\n") == 1
    assert "their values (0 to 1, " in done.stderr


def test_white_is_a_byte_only_where_nothing_is_negative(tmp_path):
    values = torch.linspace(-115.0, 139.0, 64).repeat(40, 1).view(40, 8, 8)
    split = Split(values, torch.arange(40) % 2)
    facts = DataFacts.of(Dataset("d", split, None, ("a", "b")), split, "none")
    assert facts.white == pytest.approx(139.0)


def test_without_an_observer_a_warning_is_pythons(small_data, tmp_path):
    arrays = load_file(small_data) | {"junk": torch.zeros(3)}
    save_file(arrays, tmp_path / "d.safetensors")
    config = ff.Config(data=str(tmp_path / "d.safetensors"), layers=1, width=16, epochs=1, device="cpu")
    with pytest.warns(UserWarning, match="not read: .*junk"):
        run = ff.train(config, tmp_path / "run")
    assert "--split" not in str(run)
    images = [image.numpy() for image in load_dataset(str(small_data)).test.images[:3]]
    assert run.load().predict(images).shape == (3,)
