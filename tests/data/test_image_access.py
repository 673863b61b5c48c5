"""Images that are read part by part: the same as in memory, and never more than a part at once."""

from __future__ import annotations

import os

import pytest
import torch
from safetensors.torch import save_file

import ffstream as ff
from ffstream.data import Dataset, Split, load_dataset
from ffstream.data.image_access import ChosenImages, ReadAhead, ReadImages
from ffstream.data.scan import SCANNED_VALUES
from tests.data.array_files import save
from tests.helpers import SMALL, layer_digests, write_pictures

INDICES = [3, -1, slice(None), slice(5, 9), slice(2, 40, 7), slice(50, 60), torch.tensor([7, 7, 0, 19])]


class CountedImages(ReadImages):
    """Images in memory that note how many values were asked for at once."""

    def __init__(self, images):
        super().__init__(images.shape, images.dtype)
        self.images, self.most = images, 0

    def read(self, numbers):
        found = self.images[numbers]
        self.most = max(self.most, found.numel())
        return found


@pytest.mark.parametrize("index", INDICES, ids=str)
def test_reading_some_is_reading_all_and_taking_some(index):
    images = torch.arange(40 * 6).view(40, 2, 3)
    assert torch.equal(CountedImages(images)[index], images[index])
    numbers = torch.randperm(40)[:30]
    chosen = ChosenImages(ChosenImages(images, numbers), torch.arange(20).flip(0))
    expected = images[numbers][:20].flip(0)
    assert torch.equal(chosen[index] if index != slice(50, 60) else chosen[20:], expected[index])
    assert torch.equal(chosen[expected[:, 0, 0] > 99], expected[expected[:, 0, 0] > 99])
    assert chosen.images is images


@pytest.mark.parametrize("kind", ["bytes", "floats", "table"])
@pytest.mark.parametrize("standardise", ["none", "features"])
def test_a_run_reads_images_part_by_part_and_learns_the_same(kind, standardise, digits, tmp_path):
    """Of 2.2 million values, of which no more than half are asked for at once."""
    images, labels = digits.train.images, digits.train.labels
    images = images.repeat_interleave(3, dim=-1).repeat_interleave(3, dim=1)
    images = {"bytes": images, "floats": images.float() / 3, "table": images.flatten(1).float()}[kind]
    config = ff.Config().override(SMALL | {"standardise": standardise, "layers": 2, "epochs": 1, "width": 10})
    counted = CountedImages(images)
    dataset = Dataset("read", Split(counted, labels), Split(counted, labels), digits.class_names)
    ff.train(config, tmp_path / "read", data=dataset)
    ff.train(config, tmp_path / "held", data=(images, labels))
    assert layer_digests(tmp_path / "read") == layer_digests(tmp_path / "held")
    assert 0 < counted.most <= SCANNED_VALUES < images.numel()


STORED = [getattr(torch, name) for name in "uint8 float32 float16 bfloat16 float64 int16 uint16 bool".split()]


@pytest.mark.parametrize("dtype", STORED, ids=str)
def test_a_file_is_read_by_position_as_it_is_read_at_once(dtype, tmp_path):
    least = 0 if dtype in (torch.uint8, torch.uint16) else 60
    images = (torch.arange(70 * 12).view(70, 3, 4) % 200 - least).to(dtype)
    save_file({"x_train": images, "y_train": torch.arange(70) % 3, "other": torch.ones(5)}, tmp_path / "d.safetensors")
    read, held = (load_dataset(str(tmp_path / "d.safetensors"), is_held=is_held) for is_held in (False, True))
    for index in (4, slice(None), slice(60, 99), slice(9, 9), torch.tensor([69, 0, 1, 2, 2, 30])):
        assert torch.equal(read.train.images[index], held.train.images[index])
    read.check_values()
    assert (read.digest(), read.scale(), read.warning) == (held.digest(), held.scale(), held.warning)
    assert (read.is_held, held.is_held) == (False, True)
    assert read.num_bytes == 70 * 8


@pytest.mark.parametrize("change", ["cut", "appended", "overwritten"])
def test_a_file_that_changes_after_it_was_opened_is_refused(change, tmp_path):
    path = tmp_path / "d.safetensors"
    save_file({"x_train": torch.rand(300, 8, 8), "y_train": torch.arange(300) % 3}, path)
    read = load_dataset(str(path), is_held=False)
    read.check_values()
    if change == "cut":
        os.truncate(path, path.stat().st_size // 2)
    elif change == "appended":
        path.write_bytes(path.read_bytes() + b"more")
    else:
        path.write_bytes(b"x" * path.stat().st_size)
        os.utime(path, (0, 0))
    with pytest.raises(ff.DataError, match="d.safetensors: cannot be read as .safetensors .(altered|cut short)"):
        read.train.images[200:]


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", "given"])
@pytest.mark.parametrize("part", ["train", "validation", "test"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_value_that_is_not_finite_is_named_with_its_image_wherever_it_comes_from(
    suffix, part, value, tmp_path, monkeypatch
):
    monkeypatch.setattr("ffstream.data.scan.SCANNED_VALUES", 64 * 8)
    images = {name: torch.rand(40, 8, 8) for name in ("train", "validation", "test")}
    images[part][31, 7, 7] = value
    labels = torch.arange(40) % 3
    if suffix == "given":
        own = {"x_val": images["validation"], "y_val": labels, "x_test": images["test"], "y_test": labels}
        data = {"data": ff.Dataset.from_arrays(images["train"], labels, **own)}
        config = ff.Config()
    else:
        arrays = {f"{name}.images": own for name, own in images.items()} | dict.fromkeys(
            (f"{name}.labels" for name in images), labels
        )
        arrays = {name: own.clone() if suffix == ".safetensors" else own.numpy() for name, own in arrays.items()}
        path = tmp_path / f"d{suffix}"
        config, data = ff.Config(data=str(path)), {}
        save_file(arrays, path) if suffix == ".safetensors" else save(path, arrays)
    with pytest.raises(ff.DataError, match=f"{part} image 31 holds a value that is not finite"):
        ff.train(config.override(SMALL), tmp_path / "run", **data)
    assert not (tmp_path / "run").exists()


def test_ranges_are_the_same_whether_they_were_read_ahead_or_not():
    images = torch.arange(100 * 3).view(100, 3)
    ahead = ReadAhead(CountedImages(images))
    for start, stop in ((0, 10), (10, 20), (20, 27), (27, 40), (40, 60), (0, 10), (95, 120), (100, 110), (3, 4)):
        assert torch.equal(ahead.read(start, stop), images[start:stop])


@pytest.mark.parametrize("colours", [False, True])
def test_a_folder_is_decoded_as_it_is_read_to_the_same_layers(colours, digits, tmp_path, monkeypatch):
    pictures = (digits.train.images[:120] * 15).numpy()
    pictures = pictures.repeat(3).reshape(*pictures.shape, 3) * [[[1, 0, 1]]] if colours else pictures
    by_class = {str(label): pictures[label * 40 : label * 40 + 40].astype("u1") for label in range(3)}
    write_pictures(tmp_path / "data", by_class)
    monkeypatch.chdir(tmp_path)
    read, held = (load_dataset("data", is_held=is_held) for is_held in (False, True))
    assert torch.equal(read.train.images[:], held.train.images)
    assert list(read.files) == list(held.files)
    assert (read.is_held, read.digest(), read.warning) == (False, held.digest(), held.warning)
    config = ff.Config(data="data").override(SMALL | {"layers": 2, "epochs": 1})
    run = ff.train(config, tmp_path / "read")
    ff.train(config, tmp_path / "held", data=held)
    assert layer_digests(tmp_path / "read") == layer_digests(tmp_path / "held")
    assert run.evaluate(split="validation").num_samples == 10


def test_a_picture_that_is_gone_by_the_time_it_is_read_is_named(tmp_path):
    write_pictures(tmp_path, {name: torch.rand(30, 6, 6).mul(255).byte().numpy() for name in "ab"})
    read = load_dataset(str(tmp_path), is_held=False)
    (tmp_path / "b" / "3.png").unlink()
    with pytest.raises(ff.DataError, match="b/3.png: cannot be read as an image"):
        read.digest()
