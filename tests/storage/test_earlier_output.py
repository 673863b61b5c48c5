"""An earlier output is known again, unless somebody has edited it since."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import ffstream as ff
from ffstream.data import load_dataset
from ffstream.errors import OutputError
from ffstream.ground.files import open_regular
from ffstream.storage.earlier_output import read_json, read_metadata, read_png_text, to_json, to_png
from tests.helpers import run_cli

PROFILE = ["--width", "16", "--batch", "32", "--methods", "resident", "--device", "cpu"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two runs of one configuration, and images."""
    from tests.helpers import write_small_data

    folder = tmp_path_factory.mktemp("made")
    write_small_data(folder / "data.safetensors")
    for seed in range(2):
        config = ff.Config(data=str(folder / "data.safetensors"), layers=2, width=24, epochs=1, batch=96, seed=seed)
        ff.train(config, folder / f"run-{seed}")
    np.save(folder / "images.npy", load_dataset(str(folder / "data.safetensors")).test.images[:5].numpy())
    return folder


def predict(made, path, run="run-0"):
    return run_cli("predict", made / run, made / "images.npy", "--output", path)


def export(made, path):
    return run_cli("export", made / "run-0", path)


def write_negatives(made, path):
    return run_cli("negatives", path, "--data", made / "data.safetensors", "--per-sample", "1")


def plot(made, path):
    return run_cli("plot", made / "run-0", "--output", path)


def profile(_made, path):
    return run_cli("profile", "--depths", "1", *PROFILE, "--output", path.parent)


def correct_label(path):
    lines = path.read_text().splitlines()
    name, label, probability = lines[1].split(",")
    path.write_text("\n".join([lines[0], f"{name},{(int(label) + 1) % 10},{probability}", *lines[2:]]) + "\n")


def change_json(path):
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"notes": "mine"}))


def correct_json(path):
    content = json.loads(path.read_text())
    content["predictions"][0]["label"] = "by hand"
    path.write_text(json.dumps(content))


def change_tensors(path):
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    name = min(tensors)
    save_file(tensors | {name: torch.zeros_like(tensors[name])}, path, metadata)


def add_tensor(path):
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    save_file(load_file(path) | {"mine": torch.zeros(3)}, path, metadata)


def crop(path):
    with Image.open(path) as picture:
        texts = PngImagePlugin.PngInfo()
        for key, text in picture.text.items():
            texts.add_text(key, text)
        picture.crop((0, 0, 100, 100)).save(path, pnginfo=texts)


CASES = [
    ("labels.csv", predict, correct_label),
    ("labels.json", predict, correct_json),
    ("labels.json", predict, change_json),
    ("net.safetensors", export, change_tensors),
    ("negatives.safetensors", write_negatives, change_tensors),
    ("negatives.safetensors", write_negatives, add_tensor),
    ("errors.png", plot, crop),
    ("profile.json", profile, change_json),
]


@pytest.mark.parametrize(("name", "write", "edit"), CASES, ids=lambda each: getattr(each, "__name__", each))
def test_what_was_edited_since_is_not_replaced_without_force(name, write, edit, made, tmp_path):
    path = tmp_path / name
    for _ in range(2):  # its own output is replaced
        code, _, error = write(made, path)
        assert code == 0, error
    edit(path)
    edited = path.read_bytes()
    code, _, error = write(made, path)
    assert code == 1
    assert "--force" in str(error)
    assert path.read_bytes() == edited


def test_predictions_of_another_run_are_another_output(made, tmp_path):
    for name in ("labels.csv", "labels.json"):
        assert predict(made, tmp_path / name)[0] == 0
        with pytest.raises(OutputError, match="--force"):
            raise predict(made, tmp_path / name, "run-1")[2]


def test_pictures_of_other_commands_are_other_outputs(made, tmp_path):
    assert plot(made, tmp_path / "demo.png")[0] == 0
    with pytest.raises(OutputError, match="--force"):  # before anything is trained
        raise run_cli("demo", "--output", tmp_path)[2]
    assert [path.name for path in tmp_path.iterdir()] == ["demo.png"]


def test_negatives_of_other_options_are_other_negatives(made, tmp_path):
    path, data = tmp_path / "n.safetensors", str(made / "data.safetensors")
    for _ in range(2):
        ff.write_negatives(path, data, per_sample=2)
    for options in ({"per_sample": 3}, {"per_sample": 2, "seed": 1}, {"per_sample": 2, "blurs": 2}):
        with pytest.raises(OutputError, match="--force"):
            ff.write_negatives(path, data, **options)


@pytest.mark.parametrize("content", [{}, {"a": [1, 0.1, None, "é"]}, {"a": {"b": 1}}])
def test_json_is_read_back_unless_it_has_other_content(content, tmp_path):
    path = tmp_path / "a"
    for text, wanted in (
        (to_json(content), content),
        (json.dumps(json.loads(to_json(content))), content),  # in other lines, which lose nothing
        (json.dumps(json.loads(to_json(content)) | {"mine": 1}), None),
        (json.dumps(content), None),
        ("[" * 100_000, None),
        ("[]", None),
    ):
        path.write_text(text)
        with open_regular(path) as file:
            assert read_json(file) == wanted


def test_a_picture_is_known_by_all_its_bytes(tmp_path):
    texts, buffer, path = PngImagePlugin.PngInfo(), io.BytesIO(), tmp_path / "a"
    texts.add_text("key", "text")
    Image.new("L", (3, 3)).save(buffer, "png", pnginfo=texts)
    whole = to_png(buffer.getvalue())
    path.write_bytes(whole)
    with Image.open(path) as picture:
        assert picture.getpixel((0, 0)) == 0
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 1
        path.write_bytes(changed)
        with open_regular(path) as file:
            assert read_png_text(file, "key") is None
    path.write_bytes(whole)
    with open_regular(path) as file:
        assert read_png_text(file, "key") == "text"


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", b"\x89PNG\r\n\x1a\n" + b"\0" * 5000, b"%!PS"])
def test_no_text_is_read_from_what_is_no_picture(content, tmp_path):
    (tmp_path / "a").write_bytes(content)
    with open_regular(tmp_path / "a") as file:
        assert read_png_text(file, "ffstream") is None


def test_metadata_of_a_safetensors_file_are_read_and_nothing_is_made_of_other_files(tmp_path):
    save_file({"x": torch.zeros(3)}, tmp_path / "a", metadata={"format": "pt", "key": "é"})
    contents = [
        b"",
        b"\xff" * 20,
        b"\x02" + b"\0" * 7 + b"[]",
        b"\x02" + b"\0" * 7 + b"{}",
        b"text",
        b"\x09" + b"\0" * 7,
    ]
    for number, content in enumerate(contents):
        (tmp_path / f"{number}").write_bytes(content)
        with open_regular(tmp_path / f"{number}") as file:
            assert read_metadata(file) == {}
    with open_regular(tmp_path / "a") as file:
        assert read_metadata(file) == {"format": "pt", "key": "é"}
