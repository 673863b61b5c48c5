"""Pictures that lie about what they are: no other format is decoded, and none takes more than it may."""

from __future__ import annotations

import contextlib
import os
import struct
import zlib

import pytest
from PIL import Image

import ffstream.data.picture_file
from ffstream.data.images import load_images
from ffstream.data.picture_file import read_picture
from ffstream.errors import DataError
from tests.data.hostile_files import MIB, peak_bytes

pytestmark = pytest.mark.usefixtures("nothing_blocks", "nothing_is_started")

DISGUISES = {
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n",
    "pdf": b"%PDF-1.4\n1 0 obj\n",
    "fits": b"".join(line.ljust(80) for line in (b"SIMPLE  = T", b"BITPIX  = 8", b"END")).ljust(2880),
    "psd": b"8BPS\0\1" + bytes(8) + b"\0\3\0\0\0\10\0\0\0\10\0\10\0\3" + bytes(300),
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "wmf": b"\xd7\xcd\xc6\x9a\x00\x00" + bytes(60),
    "ico": "ICO",
    "icns": "ICNS",
    "tga": "TGA",
    "pcx": "PCX",
    "sgi": "SGI",
    "dds": "DDS",
    "msp": "MSP",
    "spider": "SPIDER",
    "jpeg2000": "JPEG2000",
    "written eps": "EPS",
    "written pdf": "PDF",
}


@pytest.mark.parametrize("name", DISGUISES)
@pytest.mark.parametrize("ending", ["png", "jpg", "tif"])
def test_no_other_format_is_decoded_whatever_the_file_is_called(name, ending, tmp_path):
    path, content = tmp_path / f"a.{ending}", DISGUISES[name]
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        mode = {"MSP": "1", "SPIDER": "F"}.get(content, "RGB")
        try:
            Image.new(mode, (16, 16)).save(tmp_path / "written", format=content)
        except (OSError, KeyError, ValueError):
            pytest.skip(f"this Pillow writes no {content}")
        (tmp_path / "written").rename(path)
    for read in (lambda: read_picture(path), lambda: load_images([path], (16, 16), 255)):
        with pytest.raises(DataError, match="cannot be read as an image .*none of PNG, JPEG") as caught:
            read()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ending", ["png", "jpg", "bmp", "ppm", "tiff", "webp", "gif"])
def test_the_formats_that_are_allowed_are_told_by_their_content(ending, tmp_path):
    path = tmp_path / "a.jpg"
    Image.new("RGB", (16, 12), (200, 10, 10)).save(tmp_path / f"b.{ending}")
    (tmp_path / f"b.{ending}").rename(path)
    assert read_picture(path, "RGB")[1].shape == (12, 16, 3)


def test_the_two_pictures_of_a_camera_are_the_first_of_them(tmp_path):
    Image.new("RGB", (16, 12), (200, 10, 10)).save(
        tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[Image.new("RGB", (8, 6))]
    )
    assert read_picture(tmp_path / "a.jpg")[1].shape == (12, 16, 3)


def png_chunk(name, content):
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def test_text_that_inflates_is_not_inflated(tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    bomb = zlib.compress(bytes(64 * MIB))
    for chunk in (png_chunk(b"zTXt", b"a\0\0" + bomb), png_chunk(b"iTXt", b"a\0\1\0\0\0" + bomb)):
        (tmp_path / "a.png").write_bytes(data[:33] + chunk * 4 + data[33:])

        def work():
            with contextlib.suppress(DataError):
                read_picture(tmp_path / "a.png")

        assert peak_bytes(work) < 16 * MIB


def test_parts_of_a_picture_that_lie_over_each_other_do_not_add_up(tmp_path):
    """65 thousand tags of 2 MiB each, all the same bytes."""
    count = 65_000
    tags = b"".join(struct.pack("<HHII", 1 + number, 7, 2 * MIB, 8 + 2 + 12 * count + 4) for number in range(count))
    path = tmp_path / "a.tif"
    path.write_bytes(b"II*\0" + struct.pack("<IH", 8, count) + tags + bytes(4) + bytes(2 * MIB))

    def work():
        with pytest.raises(DataError, match="cannot be read as an image"):
            read_picture(path)

    assert peak_bytes(work) < 100 * MIB


def test_what_is_read_of_a_picture_is_bounded_by_its_file():
    content = ffstream.data.picture_file._Content(bytes(MIB))
    with pytest.raises(ValueError, match="overlap"):
        for _ in range(20):
            content.seek(0)
            content.read(MIB)


def test_a_picture_of_implausible_size_is_not_read(tmp_path):
    path = tmp_path / "a.png"
    Image.new("L", (8, 8)).save(path)
    os.truncate(path, 6 << 30)
    with pytest.raises(DataError, match=r"has 6,442,450,944 bytes, allowed 536,870,912"):
        read_picture(path)
