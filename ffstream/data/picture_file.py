"""Reads one picture file, which may come from anywhere and is not trusted, as an array of bytes.

A file is read once and whole, so that it cannot change while it is decoded. It is decoded only as one of the formats
that are allowed here, as Pillow knows many more and starts other programs for some of them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import re
import threading
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import (
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)
from torchvision.datasets.folder import IMG_EXTENSIONS

from ffstream.data.colours import is_coloured
from ffstream.data.room import Room
from ffstream.errors import DataError, FFStreamError
from ffstream.ground.files import UnsuitableFileError, open_regular, read_up_to
from ffstream.ground.plain_globals import plain_globals

PICTURES = (*IMG_EXTENSIONS, ".gif", ".jfif", ".jpe", ".pbm", ".pnm")  # suffixes of picture files
_OPAQUE = 255
_PNG_BITS_AT = 24  # offset (PNG specification, section 11.2.1): after signature, length, IHDR, width and height
_TIFF_BITS, _TIFF_SAMPLE_FORMAT = 258, 339  # BitsPerSample, SampleFormat
_PPM_HEAD_BYTES = 1 << 12  # bytes that are searched for the largest value, as there may be comments
_PPM_GAP = rb"\s+(?:#[^\n]*\n\s*)*"
_PPM_HEAD = re.compile(rb"P[2356]" + 2 * (_PPM_GAP + rb"\d+") + _PPM_GAP + rb"(\d{1,9})")  # group: largest value
# The same up to the first byte, or the white space before the first number, of the pixels.
_PPM_START = re.compile(rb"P[14]" + 2 * (_PPM_GAP + rb"\d+") + rb"\s|P[2356]" + 3 * (_PPM_GAP + rb"\d+") + rb"\s")

Picture = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]

# The JPEG plugin also reads MPO, in which cameras store a preview beside the picture.
_PLUGINS = (
    PngImagePlugin.PngImageFile,
    JpegImagePlugin.JpegImageFile,
    BmpImagePlugin.BmpImageFile,
    PpmImagePlugin.PpmImageFile,
    TiffImagePlugin.TiffImageFile,
    WebPImagePlugin.WebPImageFile,
    GifImagePlugin.GifImageFile,
)
_FORMATS = tuple(plugin.format for plugin in _PLUGINS)
# How to turn a picture upright, by the orientation in its EXIF data (EXIF 2.32, section 4.6.4).
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAPPING = tuple(_TURNS[number] for number in (5, 6, 7, 8))  # these swap height and width
# The first bytes of files of these formats.
_BEGINNINGS = re.compile(
    rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|GIF8|II\*\0|MM\0\*|RIFF.{4}WEBP|BM.{4}\0{4}|P[1-6]\s+[#\d]", re.DOTALL
)
_BEGINNING_BYTES = 12
_MAX_PIXELS = 1024 * 1024 * 1024 // 4 // 3  # Pillow's own limit: a quarter of a GiB at 24 bits per pixel
_MAX_FILE_BYTES = 512 << 20  # more than _MAX_PIXELS take in any of the formats, except numbers as text
_JPEG_END = b"\xff\xd9"
_ZEROS = 64  # at the end of a JPEG file, before which its end is looked for
# Memory per pixel while a picture is decoded: in the decoder, in Pillow, and converted.
_DECODING_BYTES = 28


def _check_whole(image: Image.Image, content: bytes) -> None:
    """Raise ValueError for damage that decoders pass over: of PNG by its checksums, of JPEG by its end."""
    if image.format == "PNG":
        position = len(b"\x89PNG\r\n\x1a\n")
        while position < len(content):
            length = int.from_bytes(content[position : position + 4], "big")
            kind = content[position + 4 : position + 8]
            end = position + 8 + length
            is_critical = kind[:1].isupper()  # the others, such as texts, change no pixel
            if is_critical and zlib.crc32(content[position + 4 : end]) != int.from_bytes(content[end : end + 4], "big"):
                raise ValueError("it is damaged: a checksum is wrong")
            if kind == b"IEND":
                return
            position = end + 4
        raise ValueError("it is cut short")
    if image.format == "JPEG":
        before_end = content.removesuffix(_JPEG_END)
        if before_end[-_ZEROS:] == bytes(_ZEROS) and not before_end.rstrip(b"\0").endswith(_JPEG_END):
            raise ValueError("it is damaged: its end is all zeros")
    if image.format == "PPM" and _holds_more_than(image, content):
        raise ValueError("more than one picture, or other data after it; save the one that is meant")


def _holds_more_than(image: Image.Image, content: bytes) -> bool:
    """Whether a file of numbers (PBM, PGM, PPM) goes on after its first picture, of which Pillow reads no more."""
    head = _PPM_START.match(content[:_PPM_HEAD_BYTES])
    if head is None:
        return False
    kind, after = content[:2], content[head.end() :]
    width, height = image.size
    if kind in (b"P4", b"P5", b"P6"):
        row_bytes = {b"P4": -(-width // 8), b"P5": width, b"P6": 3 * width}[kind]
        row_bytes *= 2 if count_bits(image, content) > 8 else 1
        return bool(after[row_bytes * height :].strip(b"\0 \t\r\n"))
    text = re.sub(rb"#[^\n]*", b"", after)
    num_numbers = len(re.sub(rb"\s", b"", text)) if kind == b"P1" else len(text.split())
    return num_numbers > width * height * (3 if kind == b"P3" else 1)


@dataclass(frozen=True)
class OpenPicture:
    """A picture of which only the header has been parsed."""

    path: Path
    mode: str  # "L" or "RGB", to which it is decoded
    shape: tuple[int, ...]  # (height, width), or (height, width, 3)
    image: Image.Image
    file_bytes: int
    turn: Image.Transpose | None = None  # the turn or flip that brings it upright

    def decode(self, room: Room) -> Picture:
        """Decode its pixels. Raises DataError for a damaged file, BudgetError where there is no room to decode it."""
        self.check_is_opaque(room)
        with _errors(self.path):
            image = self.image.convert(self.mode)
            return np.array(image if self.turn is None else image.transpose(self.turn), dtype=np.uint8)

    def shows_colours(self, room: Room) -> bool:
        """Whether its pixels are not all grey. Raises as `decode` does."""
        if self.image.mode in ("1", "L", "LA"):
            return False
        colours = dataclasses.replace(self, mode="RGB").decode(room)
        return bool(is_coloured(torch.from_numpy(colours)[None])[0])

    def check_is_opaque(self, room: Room) -> None:
        """Raise DataError for a picture that is transparent in parts, as the file does not say what shows through.

        A picture that may be transparent is decoded for this. Raises BudgetError where there is no room to decode it.
        """
        room.check(f"data {self.path}", _DECODING_BYTES * self.shape[0] * self.shape[1] + 2 * self.file_bytes)
        with _errors(self.path):
            if is_transparent(self.image):
                raise ValueError("it is partly transparent; flatten it onto the background that is meant")


def open_picture(path: Path, room: Room, mode: str | None = None) -> OpenPicture:
    """Open a picture file as "L", (height, width), or "RGB", (height, width, 3); by default "L" if it is grey.

    Palettes with colours, CMYK and the like become RGB. Raises DataError for anything but one picture of 8 bits per
    channel: no regular file, other formats, more than 89 million pixels, more bits, signed numbers, several frames.
    """
    with _errors(path):
        with open_regular(path) as file:
            num_bytes = os.fstat(file.fileno()).st_size
            if num_bytes > _MAX_FILE_BYTES:
                raise ValueError(f"has {num_bytes:,} bytes, allowed {_MAX_FILE_BYTES:,}")
            room.check(f"data {path}", 2 * num_bytes)  # in parts, and then joined
            content = read_up_to(file, num_bytes)
        image = Image.open(_Content(content), formats=_FORMATS)
        _check_whole(image, content)
        width, height = image.size
        if width * height > _MAX_PIXELS:
            raise ValueError(f"{width} x {height} pixels, allowed {_MAX_PIXELS:,} in all")
        num_bits = count_bits(image, content)
        if num_bits > 8:  # Pillow would clip some at 255, and keep only the upper byte of others
            raise ValueError(
                f"{num_bits} bits per channel, allowed 8; convert it to 8 bits with the range of brightness that is "
                "meant"
            )
        if has_frames(image):
            raise ValueError("several frames; save the one that is meant")
        if image.format == "TIFF" and is_signed(image):
            raise ValueError(
                "signed numbers, allowed unsigned ones; convert it to 8 bits with the range of brightness that is meant"
            )
        mode = mode or ("L" if image.mode in ("1", "L", "LA") or _has_grey_palette(image) else "RGB")
    turn = find_turn(image)
    if turn in _SWAPPING:
        height, width = width, height
    shape = (height, width) if mode == "L" else (height, width, 3)
    return OpenPicture(path, mode, shape, image, num_bytes, turn)


def begins_like_picture(path: Path) -> bool:
    """Whether the first bytes of a file, whatever its name, are those of a picture in a supported format."""
    try:
        with open_regular(path) as file:
            start = read_up_to(file, _BEGINNING_BYTES)
    except OSError:
        return False
    return _BEGINNINGS.match(start) is not None


def has_frames(image: Image.Image) -> bool:
    """Whether a picture is one of several, other than a camera's preview."""
    return image.format != "MPO" and bool(getattr(image, "is_animated", False))


def is_transparent(image: Image.Image) -> bool:
    """Whether a picture is transparent in parts. One that may be is decoded for this."""
    return image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema() != (_OPAQUE, _OPAQUE)


def find_turn(image: Image.Image) -> Image.Transpose | None:
    """How a picture must be turned or flipped, by the EXIF data of cameras; None if it is upright or unknown."""
    if image.format == "TIFF":  # Pillow turns TIFF files by itself
        return None
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # viewers show a picture with damaged EXIF data unturned
        return None


def _has_grey_palette(image: Image.Image) -> bool:
    """Whether a picture has a palette that holds only greys, as every grey GIF has."""
    palette = image.getpalette("RGB") if image.mode == "P" else None
    return palette is not None and palette[0::3] == palette[1::3] == palette[2::3]


def is_signed(image: Image.Image) -> bool:
    """Whether a TIFF has numbers other than unsigned integers; Pillow reads all numbers of 8 bits as unsigned."""
    formats = cast(TiffImagePlugin.TiffImageFile, image).tag_v2.get(_TIFF_SAMPLE_FORMAT, 1)
    return any(each != 1 for each in (formats if isinstance(formats, tuple) else (formats,)))


def count_bits(image: Image.Image, content: bytes) -> int:
    """The bits per channel in the file, which may be more than Pillow keeps."""
    if image.mode.startswith(("I", "F")):
        return 16 if image.mode.startswith("I;16") else 32
    if image.format == "PNG":
        return content[_PNG_BITS_AT]
    if image.format == "TIFF":
        bits = cast(TiffImagePlugin.TiffImageFile, image).tag_v2.get(_TIFF_BITS, 8)
        return max(bits) if isinstance(bits, tuple) else int(bits)
    if image.format == "PPM":
        found = _PPM_HEAD.match(content[:_PPM_HEAD_BYTES])
        return int(found[1]).bit_length() if found is not None else 8
    return 8


def read_picture(path: Path, mode: str | None = None) -> tuple[str, Picture]:
    """The mode and the pixels of a picture file. Raises DataError, BudgetError."""
    room = Room()
    picture = open_picture(path, room, mode)
    return picture.mode, picture.decode(room)


# Settings for the whole process by which a program may have Pillow read other pixels, or take other files. Notebooks
# often let it take pictures that are cut short.
_PILLOW: tuple[tuple[Any, str, Any], ...] = (
    (ImageFile, "LOAD_TRUNCATED_IMAGES", False),
    (Image, "MAX_IMAGE_PIXELS", None),  # _MAX_PIXELS is checked instead
    (GifImagePlugin, "LOADING_STRATEGY", GifImagePlugin.LoadingStrategy.RGB_AFTER_FIRST),
    (TiffImagePlugin, "READ_LIBTIFF", False),
    (PngImagePlugin, "MAX_TEXT_CHUNK", 1 << 20),
    (PngImagePlugin, "MAX_TEXT_MEMORY", 64 << 20),
    # About unused parts such as EXIF. (Filters of warnings are lost where threads set and restore them at once.)
    (warnings, "warn", lambda *given, **named: _warn(*given, **named)),
)
_python_warn, _decoding = warnings.warn, threading.local()


def _warn(message: Any, category: Any = None, stacklevel: int = 1, *others: Any, **named: Any) -> None:
    """Say nothing while this thread decodes a picture; what other threads warn of meanwhile is said."""
    if not getattr(_decoding, "is_on", False):
        _python_warn(message, category, stacklevel + 2, *others, **named)


class _Content(io.BytesIO):
    """A file in memory that may be read only a few times over.

    A damaged file may point at the same bytes again and again, and each time a decoder would keep another copy.
    """

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self._left_bytes = 8 * len(content) + (1 << 20)

    def read(self, size: int | None = -1, /) -> bytes:
        """Read up to `size` bytes. Raises ValueError once the file has been read too often."""
        part = super().read(size)
        self._left_bytes -= len(part)
        if self._left_bytes < 0:
            raise ValueError("its parts overlap")
        return part


@contextlib.contextmanager
def _errors(path: Path) -> Iterator[None]:
    """Turn whatever is raised for a file into a DataError; meanwhile Pillow has the settings that it comes with."""
    was_on, _decoding.is_on = getattr(_decoding, "is_on", False), True
    try:
        with plain_globals(_PILLOW):
            yield
    except (FFStreamError, MemoryError):
        raise
    except UnsuitableFileError as error:
        raise DataError(f"data {path}: {error.strerror}; remove it") from error
    except Exception as error:  # decoders raise errors of many types for damaged files
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            reason = f"it is damaged, or none of {', '.join(_FORMATS)}"
        raise DataError(f"data {path}: cannot be read as an image ({reason}); mend or remove it") from error
    finally:
        _decoding.is_on = was_on
