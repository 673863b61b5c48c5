"""One picture file, as an array of bytes."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS

from ffstream.errors import DataError

PICTURES = (*IMG_EXTENSIONS, ".gif")  # what a file of a picture ends with
WHITE = 255

Picture = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]


def read_picture(path: Path, mode: str | None = None) -> tuple[str, Picture]:
    """A picture file as "L", (height, width), or "RGB", (height, width, 3): its own mode if none is given.

    Palettes, CMYK and the like become RGB, and transparency is left out. Raises DataError for what cannot be read as
    one picture of 8 bits: damaged files, those of more than 89 million pixels, 16 bits, several frames.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.simplefilter("ignore", UserWarning)  # of oddities in what is not read, such as EXIF
            with Image.open(path) as image:
                if image.mode.startswith(("I", "F")):  # Pillow clips them at 255 when it converts
                    raise ValueError(f"mode {image.mode}, more than 8 bits a channel; convert it to 8 bits")
                if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:  # in which cameras keep a preview
                    raise ValueError("several frames; save the one that is meant")
                mode = mode or ("L" if image.mode in ("1", "L") else "RGB")
                return mode, np.array(image.convert(mode), dtype=np.uint8)
    except Exception as error:  # decoders raise whatever a damaged file leads them to
        if isinstance(error, MemoryError):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"data {path}: cannot be read as an image ({reason}); mend or remove it") from error
