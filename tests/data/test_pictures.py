"""Pictures of a folder: what is read, what is refused or skipped by the user's rule, and counted."""

from __future__ import annotations

import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import GifImagePlugin, Image, ImageFile, ImageOps

import ffstream as ff
from ffstream.data import load_dataset
from ffstream.data.picture_file import open_picture
from ffstream.data.room import Room
from tests.helpers import write_pictures, write_plain_pictures

# --- modes and damage


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


def save_deep_png(path, num_channels):
    """16 bits a channel, as Pillow itself writes of one channel alone."""
    head = (
        (6).to_bytes(4, "big") + (5).to_bytes(4, "big") + bytes([16, {1: 0, 2: 4, 3: 2, 4: 6}[num_channels], 0, 0, 0])
    )
    rows = 5 * (b"\0" + 6 * num_channels * b"\x01\xff")
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    data = b"".join(
        len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")
        for kind, content in chunks
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)


def cut_short(path, mode):
    save_noise(path, mode)
    path.write_bytes(path.read_bytes()[:-40])


def save_opaque(path, mode):
    """A picture with alpha that hides nothing."""
    save_noise(path, mode)
    image = Image.open(path).copy()
    image.putalpha(255)
    image.save(path)


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
    "cut.png": lambda path: cut_short(path, "RGB"),
    "transparent.png": lambda path: save_noise(path, "RGBA"),
    "grey_transparent.png": lambda path: save_noise(path, "LA"),
    "one_shade_is_clear.png": lambda path: Image.new("L", (6, 5), 3).save(path, transparency=3),
    "one_colour_is_clear.gif": lambda path: Image.new("P", (6, 5), 3).save(path, transparency=3),
    **{f"deep_{channels}.png": partial(save_deep_png, num_channels=channels) for channels in (1, 2, 3, 4)},
    "deep.ppm": lambda path: path.write_bytes(b"P6 # deep\n6 5\n# as cameras do\n4095\n" + bytes(180)),
    "deep.pgm": lambda path: path.write_bytes(b"P5\n6 5 65535\n" + bytes(60)),
}
GOOD_PICTURES = {
    "palette.png": lambda path: Image.open(path.parent / "0.png").convert("P").save(path),
    "still.gif": lambda path: save_noise(path, "P"),
    "one_bit.png": lambda path: save_noise(path, "1"),
    "opaque.png": lambda path: save_opaque(path, "RGB"),
    "grey_opaque.png": lambda path: save_opaque(path, "L"),
    "nothing_is_clear.png": lambda path: Image.new("L", (6, 5), 3).save(path, transparency=4),
    "jpeg.jfif": lambda path: save_noise(path, format="JPEG"),
    "jpeg without a suffix": lambda path: save_noise(path, format="JPEG"),
    "scan.0001": lambda path: save_noise(path, format="TIFF"),
    "sixteen_shades.pgm": lambda path: path.write_bytes(b"P5\n6 5 15\n" + bytes(30)),
    "cmyk.jpg": lambda path: save_noise(path, "CMYK"),
    "cmyk.tiff": lambda path: save_noise(path, "CMYK"),
    "ycbcr.jpg": lambda path: save_noise(path, "YCbCr"),
    "upper.PNG": save_noise,
}
COLOURED = ("opaque.png", "cmyk.jpg", "cmyk.tiff", "ycbcr.jpg")


@pytest.mark.parametrize("name", BAD_PICTURES)
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_bad_picture_is_refused_by_name_or_left_out_and_counted(name, mode, tmp_path):
    write_plain_pictures(tmp_path, mode=mode)
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
    write_plain_pictures(tmp_path, mode=mode)
    GOOD_PICTURES[name](tmp_path / "cat" / name)
    for skips_bad in (False, True):
        dataset = load_dataset(str(tmp_path), skips_bad=skips_bad)
        assert len(dataset.train) == 9
        assert not dataset.left_out
    is_grey = dataset.image_shape == (5, 6)
    is_coloured = name in COLOURED or (mode == "RGB" and name == "palette.png")
    assert is_grey == (mode == "L" and not is_coloured)
    assert (dataset.warning is None) == ((mode == "RGB" and is_coloured) or is_grey)


def test_photographs_of_which_a_few_show_greys_alone_are_no_surprise(tmp_path):
    shades = np.random.default_rng(0).integers(0, 256, (20, 5, 6, 1), dtype=np.uint8).repeat(3, axis=-1)
    tint = np.array([0, 60, 120], np.uint8)
    for num_grey, is_said in ((0, False), (2, False), (4, False), (18, True), (20, False)):
        pictures = np.where(np.arange(20).reshape(-1, 1, 1, 1) % 10 < num_grey / 2, shades, shades + tint)
        folder = write_pictures(tmp_path / str(num_grey), {"a": pictures[:10], "b": pictures[10:]})
        warning = load_dataset(str(folder)).warning
        assert (warning is not None) == is_said
        assert warning is None or "2 of 20 images are in colour" in warning
    save_noise(tmp_path / "2" / "a" / "grey.png", "L")
    assert "18 of 21 images are in colour" in load_dataset(str(tmp_path / "2")).warning


@pytest.mark.parametrize("name", ["0.png", "9.png"])
def test_one_picture_in_colour_makes_all_be_read_so_wherever_it_stands(name, tmp_path):
    write_plain_pictures(tmp_path / "train")
    save_noise(tmp_path / "train/cat" / name, "RGB")
    write_plain_pictures(tmp_path / "test")
    dataset = load_dataset(str(tmp_path))
    assert dataset.image_shape == (5, 6, 3)
    assert "in colour, such as" in dataset.warning
    assert f"cat/{name}" in dataset.warning


def test_a_run_tells_what_it_left_out_and_goes_on_without_it(tmp_path):
    write_plain_pictures(tmp_path / "data", num_images=20)
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
    (told,) = observer.on_warning.call_args_list[0].args  # before what is said of pictures of one shade
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
    write_plain_pictures(tmp_path)
    save_noise(tmp_path / "cat" / "!.png", size=(9, 9))
    dataset = load_dataset(str(tmp_path), skips_bad=True)
    assert dataset.image_shape == (5, 6)
    assert len(dataset.left_out) == 1


@pytest.mark.parametrize("modes", [("RGB", "L"), ("L", "RGB")])
def test_the_test_pictures_are_read_as_the_training_pictures_are(modes, tmp_path):
    write_plain_pictures(tmp_path / "train", mode=modes[0])
    write_plain_pictures(tmp_path / "test", mode=modes[1])
    dataset = load_dataset(str(tmp_path))
    assert dataset.train.images.shape[1:] == dataset.test.images.shape[1:] == (5, 6, 3)


def test_truncated_images_are_refused_naming_the_file(tmp_path):
    write_plain_pictures(tmp_path, size=(40, 40))
    path = tmp_path / "cat" / "2.png"
    noise = np.random.default_rng(0).integers(0, 256, (40, 40), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    data = path.read_bytes()
    for keep in (0, 20, len(data) // 2, len(data) - 200):
        path.write_bytes(data[:keep])
        with pytest.raises(ff.DataError, match=r"cat/2\.png: cannot be read as an image"):
            load_dataset(str(tmp_path))


@pytest.mark.parametrize("suffix", ["gif", "png"])
def test_a_palette_of_greys_is_grey(suffix, tmp_path):
    for label in "ab":
        for name in ("grey", "palette"):
            (tmp_path / name / label).mkdir(parents=True)
        for number in range(3):
            grey = Image.fromarray(
                np.random.default_rng(10 * number + ord(label)).integers(0, 255, (6, 5), dtype=np.uint8)
            )
            grey.save(tmp_path / "grey" / label / f"{number}.png")
            grey.convert("P").save(tmp_path / "palette" / label / f"{number}.{suffix}")
    found, expected = (load_dataset(str(tmp_path / name)) for name in ("palette", "grey"))
    assert torch.equal(found.train.images, expected.train.images)
    assert found.warning is None


def test_signed_numbers_are_refused(tmp_path):
    for label in "ab":
        (tmp_path / label).mkdir()
        pixels = np.random.default_rng(ord(label)).integers(0, 255, (6, 5), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / label / "0.tif", tiffinfo={339: 2} if label == "b" else {})
    with pytest.raises(ff.DataError, match=r"b.0\.tif.*signed numbers"):
        load_dataset(str(tmp_path))


def test_damage_that_a_decoder_passes_over_is_refused(tmp_path):
    """Of PNG by its checksums, of JPEG by its end; a text beside the pixels, and what follows a picture, may be odd."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40), dtype=np.uint8))
    for name, options in (("a.png", {}), ("a.jpg", {"quality": 95})):
        noise.save(tmp_path / name, **options)
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content + b"trailer")
        whole = open_picture(tmp_path / name, Room()).decode(Room())
        cut = len(content) // 2
        for damaged in (content[:cut] + bytes(len(content) - cut), content[:cut]):
            (tmp_path / name).write_bytes(damaged)
            with pytest.raises(ff.DataError, match="damaged|cut|truncated|cannot be read"):
                open_picture(tmp_path / name, Room()).decode(Room())
        (tmp_path / name).write_bytes(content)
        assert (open_picture(tmp_path / name, Room()).decode(Room()) == whole).all()
    png = bytearray((tmp_path / "a.png").read_bytes())
    png[len(png) // 2] ^= 1
    (tmp_path / "a.png").write_bytes(png)
    with pytest.raises(ff.DataError, match="a checksum is wrong"):
        open_picture(tmp_path / "a.png", Room())


@pytest.mark.parametrize("suffix", ["jpg", "gif", "bmp", "tiff", "pgm", "png", "webp"])
def test_what_a_program_has_told_pillow_decides_nothing(suffix, tmp_path, monkeypatch):
    """A notebook may have it take pictures that are cut short, which would be black below."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 40), dtype=np.uint8)
    path, cut = tmp_path / f"a.{suffix}", tmp_path / f"cut.{suffix}"
    Image.fromarray(noise).save(path)
    cut.write_bytes(path.read_bytes()[: path.stat().st_size * 11 // 20])
    expected = open_picture(path, Room()).decode(Room())
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    monkeypatch.setattr(GifImagePlugin, "LOADING_STRATEGY", GifImagePlugin.LoadingStrategy.RGB_ALWAYS)
    found = open_picture(path, Room())
    assert found.mode == ("RGB" if suffix == "webp" else "L")
    assert (found.decode(Room()) == expected).all()
    with pytest.raises(ff.DataError):
        open_picture(cut, Room()).decode(Room())
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True
    assert Image.MAX_IMAGE_PIXELS == 10


@pytest.mark.parametrize("kind", ["P1", "P2", "P3", "P4", "P5", "P6"])
def test_a_file_of_numbers_that_holds_a_second_picture_is_refused(kind, tmp_path):
    rows = np.random.default_rng(0).integers(0, 2, (5, 9 * (3 if kind in ("P3", "P6") else 1)), dtype=np.uint8)
    head = f"{kind}\n# made by hand\n9 5\n" + ("" if kind in ("P1", "P4") else "255\n")
    if kind in ("P1", "P2", "P3"):
        body = "\n".join(" ".join(map(str, row)) for row in rows).encode()
    else:
        body = np.packbits(rows, axis=1).tobytes() if kind == "P4" else rows.tobytes()
    picture = head.encode() + body
    path = tmp_path / "a.pnm"
    for content in (picture, picture + b"\n"):
        path.write_bytes(content)
        assert open_picture(path, Room()).decode(Room()).shape[:2] == (5, 9)
    for content in (picture + b"\n" + picture, picture + b"\n7 7 7"):
        path.write_bytes(content)
        with pytest.raises(ff.DataError, match="more than one picture"):
            open_picture(path, Room())


@pytest.mark.parametrize("head", ["P5 4 4 65535 ", "P6 4 4 65535 ", "P5 4 4 1023 "])
def test_a_file_of_numbers_of_more_than_eight_bits_is_refused_for_that(head, tmp_path):
    (tmp_path / "a.pnm").write_bytes(head.encode() + bytes(range(32)) * (3 if head.startswith("P6") else 1))
    with pytest.raises(ff.DataError, match="bits per channel, allowed 8"):
        open_picture(tmp_path / "a.pnm", Room())


def test_warnings_of_the_program_are_not_lost_where_threads_read_pictures(tmp_path):
    Image.new("L", (4, 4), 7).save(tmp_path / "a.png")
    before = list(warnings.filters)
    with ThreadPoolExecutor(5) as pool:
        list(pool.map(lambda _: open_picture(tmp_path / "a.png", Room()).decode(Room()), range(300)))
    assert warnings.filters == before
    with pytest.warns(UserWarning, match="still here"):
        warnings.warn("still here", stacklevel=1)


def test_zeros_before_the_end_of_a_jpeg_are_damage_too(tmp_path):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40), dtype=np.uint8))
    noise.save(tmp_path / "a.jpg", quality=95)
    content = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(content[: len(content) // 2] + bytes(len(content) // 2) + b"\xff\xd9")
    with pytest.raises(ff.DataError, match="its end is all zeros"):
        open_picture(tmp_path / "a.jpg", Room())


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_grey_pictures_among_others_that_are_saved_with_colours_are_no_mixture(mode, tmp_path):
    shades = np.random.default_rng(0).integers(0, 256, (2, 6, 6, 5), dtype=np.uint8)
    write_pictures(tmp_path, {"a": shades[0], "b": shades[1]})
    for path in tmp_path.glob("*/[0-2].png"):
        with Image.open(path) as picture:
            picture.convert(mode).save(path)
    assert load_dataset(str(tmp_path)).warning is None


# --- pictures that a camera says how to turn


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
def test_a_picture_is_read_as_it_is_shown(suffix, orientation, tmp_path):
    pixels = np.kron(np.random.default_rng(0).integers(0, 2, (3, 4), dtype=np.uint8) * 255, np.ones((8, 8), np.uint8))
    for name, number in (("turned", orientation), ("upright", 1)):
        image = Image.fromarray(pixels)
        exif = image.getexif()
        exif[0x0112] = number
        if name == "upright":  # as it would be saved by a program that has turned it
            exif[0x0112] = orientation
            image.save(tmp_path / "turned.png", exif=exif)
            with Image.open(tmp_path / "turned.png") as turned:
                image = Image.fromarray(np.array(ImageOps.exif_transpose(turned)))
            exif = Image.Exif()
        for label in "ab":
            folder = tmp_path / name / label
            folder.mkdir(parents=True)
            for index in range(2):
                options = {"quality": 95} if suffix == "jpg" else {"lossless": True} if suffix == "webp" else {}
                image.save(folder / f"{index}.{suffix}", exif=exif, **options)
    found, expected = (load_dataset(str(tmp_path / name)).train.images for name in ("turned", "upright"))
    assert found.shape == expected.shape
    assert (found.int() - expected.int()).abs().max() < 40  # a JPEG is compressed once more


def test_damaged_orientations_are_none(tmp_path):
    for label in "ab":
        (tmp_path / label).mkdir()
        Image.new("L", (6, 5), ord(label)).save(tmp_path / label / "0.jpg", exif=b"Exif\0\0MM\0*nonsense")
        Image.new("L", (6, 5), ord(label)).save(tmp_path / label / "1.jpg")
    assert load_dataset(str(tmp_path)).image_shape == (5, 6)
