"""A folder of images by class: FOLDER/train/CLASS/*.png and FOLDER/test/CLASS/*.png, or FOLDER/CLASS/*.png."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.datasets import ImageFolder

from ffstream.data.dataset import Dataset, Split, check_dataset
from ffstream.errors import DataError


def load_folder(path: Path) -> Dataset:
    """Read a folder of images, all of one size. Raises DataError naming the first file that does not fit.

    Images are grey when the first one is, else RGB. Without a `train` folder there is no test split.
    """
    has_parts = (path / "train").is_dir()
    train, class_names = _load_part(path / "train" if has_parts else path)
    test = None
    if has_parts and (path / "test").is_dir():
        test, test_names = _load_part(path / "test")
        if test_names != class_names:
            raise DataError(f"data {path}: classes of train {class_names} and test {test_names} differ")
    return check_dataset(str(path), train, test, class_names)


def _load_part(path: Path) -> tuple[Split, tuple[str, ...]]:
    try:
        folder = ImageFolder(str(path))
    except FileNotFoundError as error:
        raise DataError(f"data {path}: {' '.join(str(error).split())}; needs one folder of images a class") from error
    images: list[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]] = []
    mode: str | None = None
    for name, _ in folder.samples:
        mode, image = read_picture(Path(name), mode)
        images.append(image)
        if images[-1].shape != images[0].shape:
            raise DataError(
                f"data {name}: image of shape {images[-1].shape}, the first one has {images[0].shape}; "
                "resize all to one size"
            )
    labels = torch.tensor([label for _, label in folder.samples], dtype=torch.int64)
    return Split(torch.from_numpy(np.stack(images)), labels), tuple(folder.classes)


def read_picture(path: Path, mode: str | None = None) -> tuple[str, np.ndarray[tuple[int, ...], np.dtype[np.uint8]]]:
    """An image file as "L", (height, width), or "RGB", (height, width, 3): its own mode if none is given.

    Raises DataError for what cannot be read.
    """
    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):  # Pillow clips them at 255 when it converts
                raise ValueError(f"mode {image.mode}, more than 8 bits a channel; convert it to 8 bits")
            mode = mode or ("L" if image.mode in ("1", "L") else "RGB")
            return mode, np.array(image.convert(mode), dtype=np.uint8)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"data {path}: cannot be read as an image ({error}); mend or remove it") from error
