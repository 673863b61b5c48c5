"""Folders of pictures: what is read, what is refused or skipped by the user's rule, and counted."""

from __future__ import annotations

import zlib
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

import ffstream as ff
from ffstream.data import load_dataset


def write_images(folder, mode="L", size=(6, 5), classes=("cat", "dog"), num_images=4):
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for index in range(num_images):
            Image.new(mode, size, (40 * number + index) if mode == "L" else (index, number, 7)).save(
                folder / name / f"{index}.png"
            )


@pytest.mark.parametrize(("mode", "shape"), [("L", (5, 6)), ("RGB", (5, 6, 3))])
def test_a_folder_of_images_by_class(mode, shape, tmp_path):
    write_images(tmp_path / "train", mode)
    write_images(tmp_path / "test", mode, num_images=2)
    dataset = load_dataset(str(tmp_path))
    assert dataset.image_shape == shape
    assert dataset.class_names == ("cat", "dog")
    assert (len(dataset.train), len(dataset.test)) == (8, 4)
    assert dataset.train.labels.tolist() == [0] * 4 + [1] * 4


def test_a_folder_without_a_train_folder_has_no_test_split(tmp_path):
    write_images(tmp_path / "data", num_images=20)
    config = ff.Config(data=str(tmp_path / "data"), layers=1, width=8, epochs=1).override({"negatives.per_step": 1})
    run = ff.train(config, tmp_path / "run")
    assert run.evaluate(split="validation").num_samples == 3
    with pytest.raises(ff.DataError, match="has no test split; found train, validation"):
        run.evaluate()


def test_bad_image_folders_are_refused_naming_the_file(tmp_path):
    write_images(tmp_path / "sizes")
    Image.new("L", (3, 3)).save(tmp_path / "sizes" / "dog" / "small.png")
    write_images(tmp_path / "corrupt")
    (tmp_path / "corrupt" / "dog" / "1.png").write_bytes(b"\x89PNG\r\n\x1a\n????")
    write_images(tmp_path / "hollow")
    (tmp_path / "hollow" / "empty").mkdir()
    (tmp_path / "none").mkdir()
    for name, message in (
        ("sizes", r"small\.png.*resize all"),
        ("corrupt", r"1\.png.*cannot be read as an image"),
        ("hollow", "empty"),
        ("none", "needs one folder of images a class"),
    ):
        with pytest.raises(ff.DataError, match=message) as caught:
            load_dataset(str(tmp_path / name))
        assert "\n" not in str(caught.value)


def test_truncated_images_are_refused_naming_the_file(tmp_path):
    write_images(tmp_path, size=(40, 40))
    path = tmp_path / "cat" / "2.png"
    noise = np.random.default_rng(0).integers(0, 256, (40, 40), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    data = path.read_bytes()
    for keep in (0, 20, len(data) // 2, len(data) - 200):
        path.write_bytes(data[:keep])
        with pytest.raises(ff.DataError, match=r"cat/2\.png: cannot be read as an image"):
            load_dataset(str(tmp_path))


def test_one_class_of_images_and_classes_that_differ_are_refused(tmp_path):
    write_images(tmp_path / "one", classes=("cat",))
    with pytest.raises(ff.DataError, match="one class only"):
        load_dataset(str(tmp_path / "one"))
    write_images(tmp_path / "two" / "train")
    write_images(tmp_path / "two" / "test", classes=("cat", "fish"))
    with pytest.raises(ff.DataError, match="differ"):
        load_dataset(str(tmp_path / "two"))


def save_noise(path, mode="L", size=(6, 5), **options):
    channels = len(Image.new(mode, (1, 1)).getbands())
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], channels), dtype=np.uint8)
    bands = [Image.fromarray(noise[..., band]) for band in range(channels)]
    image = Image.merge(mode, bands) if channels > 1 else bands[0].convert(mode)
    image.save(path, **options)


def save_frames(path):
    frames = [Image.new("L", (6, 5), shade) for shade in (0, 100, 200)]
    frames[0].save(path, save_all=True, append_images=frames[1:])


def claim_size(path, width, height):
    """A picture whose header claims to be larger than it is."""
    save_noise(path)
    data = bytearray(path.read_bytes())
    data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    path.write_bytes(data)


BAD_PICTURES = {
    "empty.png": lambda path: path.write_bytes(b""),
    "text.jpg": lambda path: path.write_text("no picture"),
    "huge.png": lambda path: claim_size(path, 60_000, 60_000),
    "large.png": lambda path: claim_size(path, 10_000, 10_000),  # Pillow itself would only warn
    "without_pixels.png": lambda path: claim_size(path, 0, 5),
    "sixteen_bits.png": lambda path: Image.fromarray(np.arange(30, dtype=np.uint16).reshape(5, 6)).save(path),
    "floats.tiff": lambda path: Image.fromarray(np.ones((5, 6), np.float32)).save(path),
    "animated.gif": save_frames,
    "animated.png": save_frames,
    "animated.webp": save_frames,
    "pages.tiff": save_frames,
    "wide.png": lambda path: save_noise(path, size=(7, 5)),
}
GOOD_PICTURES = {
    "palette.png": lambda path: Image.open(path.parent / "0.png").convert("P").save(path),
    "still.gif": lambda path: save_noise(path, "P"),
    "one_bit.png": lambda path: save_noise(path, "1"),
    "transparent.png": lambda path: save_noise(path, "RGBA"),
    "grey_transparent.png": lambda path: save_noise(path, "LA"),
    "cmyk.jpg": lambda path: save_noise(path, "CMYK"),
    "cmyk.tiff": lambda path: save_noise(path, "CMYK"),
    "ycbcr.jpg": lambda path: save_noise(path, "YCbCr"),
    "upper.PNG": save_noise,
}


@pytest.mark.parametrize("name", BAD_PICTURES)
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_bad_picture_is_refused_by_name_or_left_out_and_counted(name, mode, tmp_path):
    write_images(tmp_path, mode)
    whole = load_dataset(str(tmp_path))
    BAD_PICTURES[name](tmp_path / "cat" / name)
    with pytest.raises(ff.DataError, match=f"{name}.*; .*--bad-images skip") as caught:
        load_dataset(str(tmp_path))
    assert "\n" not in str(caught.value)
    dataset = load_dataset(str(tmp_path), skips_bad=True)
    assert dataset.digest() == whole.digest()
    assert len(dataset.left_out) == 1
    assert dataset.warning.startswith("left out 1 of 9 images; the first: data")
    assert name in dataset.warning


@pytest.mark.parametrize("name", GOOD_PICTURES)
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_picture_of_any_mode_of_eight_bits_is_read(name, mode, tmp_path):
    write_images(tmp_path, mode)
    GOOD_PICTURES[name](tmp_path / "cat" / name)
    for skips_bad in (False, True):
        dataset = load_dataset(str(tmp_path), skips_bad=skips_bad)
        assert len(dataset.train) == 9
        assert not dataset.left_out
    assert dataset.image_shape == ((5, 6) if mode == "L" else (5, 6, 3))


def test_a_run_tells_what_it_left_out_and_goes_on_without_it(tmp_path):
    write_images(tmp_path / "data", num_images=20)
    for name in ("a.png", "b.png"):
        (tmp_path / "data" / "cat" / name).write_bytes(b"")
    config = ff.Config(data=str(tmp_path / "data"), layers=1, width=8, epochs=1).override({"negatives.per_step": 1})
    with pytest.raises(ff.DataError, match="cat/a.png"):
        ff.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    config = config.override({"bad_images": "skip"})
    assert "left out 2 of 42 images" in ff.make_plan(config).warning
    observer = Mock(spec=ff.Observer)
    ff.train(config, tmp_path / "run", observer=observer)
    (told,) = observer.on_warning.call_args.args
    assert told.startswith("left out 2 of 42 images; the first: data")
    assert ff.Run(tmp_path / "run").evaluate(split="validation").num_samples == 3
    assert ff.resume(tmp_path / "run", layers=2).num_layers_done == 2


def test_a_folder_of_bad_pictures_alone_is_refused_either_way(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.png").write_bytes(b"no picture")
    with pytest.raises(ff.DataError, match="found no image that can be read; the last of 2: .*dog/0.png"):
        load_dataset(str(tmp_path), skips_bad=True)


def test_the_size_that_most_have_counts_not_that_of_the_first(tmp_path):
    write_images(tmp_path)
    save_noise(tmp_path / "cat" / "!.png", size=(9, 9))
    dataset = load_dataset(str(tmp_path), skips_bad=True)
    assert dataset.image_shape == (5, 6)
    assert len(dataset.left_out) == 1


def test_the_test_pictures_are_read_as_the_training_pictures_are(tmp_path):
    write_images(tmp_path / "train", "RGB")
    write_images(tmp_path / "test", "L")
    assert load_dataset(str(tmp_path)).test.images.shape[1:] == (5, 6, 3)
