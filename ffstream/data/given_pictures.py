"""Checks pictures that a program has opened with Pillow, and whose numbers may not be what is seen.

They are refused for what a picture in a file is refused for or turned by.
"""

from __future__ import annotations

from PIL import Image

from ffstream.data.picture_file import count_bits, find_turn, has_frames, is_signed, is_transparent
from ffstream.errors import DataError

_MODES = ("L", "RGB")  # of pictures whose numbers are what is seen, in bytes


def check_picture(picture: Image.Image, noun: str) -> None:
    """Raise DataError for a picture of which an array of its numbers does not show what is seen, or that is damaged."""
    if picture.mode not in _MODES:
        raise DataError(
            f"{noun}: found a picture of mode {picture.mode}, allowed {' or '.join(_MODES)}; give its file to "
            'load_images, or the picture as picture.convert("L"), or "RGB"'
        )
    try:
        # Once the pixels are decoded, nothing says any longer how many bits they had, and the file is closed.
        has_more_bits, is_one_of_several = _has_more_bits(picture), has_frames(picture)
        picture.load()
    except Exception as error:  # decoders raise errors of many types for damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"{noun}: found a picture that cannot be read ({reason}), allowed one that is open and whole; mend it"
        ) from error
    if has_more_bits:
        raise DataError(
            f"{noun}: found a picture of more than 8 bits per channel, or of signed numbers, allowed 8 bits; convert "
            "it with the range of brightness that is meant"
        )
    if is_one_of_several:
        raise DataError(f"{noun}: found a picture of several frames, allowed one; give a copy of the one that is meant")
    if find_turn(picture) is not None:
        raise DataError(
            f"{noun}: found a picture that its EXIF data say to turn, allowed an upright one; give its file to "
            "load_images, or the picture as PIL.ImageOps.exif_transpose(picture)"
        )
    if is_transparent(picture):
        raise DataError(
            f"{noun}: found a picture that is partly transparent, allowed an opaque one; flatten it onto the "
            "background that is meant"
        )


def _has_more_bits(picture: Image.Image) -> bool:
    if picture.format == "TIFF":
        return count_bits(picture, b"") > 8 or is_signed(picture)
    tiles = getattr(picture, "tile", [])  # (decoder, box, offset, arguments) of what is still to be decoded
    arguments = [tile[3] if isinstance(tile[3], tuple) else (tile[3],) for tile in tiles]
    is_deep = any(isinstance(each, str) and ";16" in each for own in arguments for each in own)
    return is_deep or (
        picture.format == "PPM" and any(isinstance(each, int) and each > 255 for own in arguments for each in own)
    )
