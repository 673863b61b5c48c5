"""A folder of images by class: FOLDER/train/CLASS/*.png and FOLDER/test/CLASS/*.png, or FOLDER/CLASS/*.png."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import torch
from torchvision.datasets import ImageFolder

from ffstream.data.dataset import Dataset, Split, check_dataset
from ffstream.data.picture import PICTURES, Picture, read_picture
from ffstream.errors import DataError

_LEAVE_OUT = "resize all to one size, or leave such files out with --bad-images skip"


def load_folder(path: Path, *, skips_bad: bool = False) -> Dataset:
    """Read a folder of images, all of one size. Raises DataError naming the first file that does not fit.

    Images are grey when the first one for training is, else RGB. Without a `train` folder there is no test split. With
    `skips_bad`, files that cannot be read, and those of another size than most, are left out, and counted.
    """
    has_parts = (path / "train").is_dir()
    left_out: list[str] = []
    train, class_names = _load_part(path / "train" if has_parts else path, None, left_out, skips_bad=skips_bad)
    test = None
    if has_parts and (path / "test").is_dir():
        mode = "L" if train.images.dim() == 3 else "RGB"
        test, test_names = _load_part(path / "test", mode, left_out, skips_bad=skips_bad)
        if test_names != class_names:
            raise DataError(f"data {path}: classes of train {class_names} and test {test_names} differ")
    return check_dataset(str(path), train, test, class_names, left_out)


def _load_part(path: Path, mode: str | None, left_out: list[str], *, skips_bad: bool) -> tuple[Split, tuple[str, ...]]:
    """Pictures of one mode, by default the first one's. What is wrong with a file is added to `left_out`, or raised."""
    try:
        folder = ImageFolder(str(path), is_valid_file=lambda name: name.lower().endswith(PICTURES))
    except FileNotFoundError as error:
        raise DataError(f"data {path}: {' '.join(str(error).split())}; needs one folder of images a class") from error
    except OSError as error:
        raise DataError(f"data {path}: cannot be read ({error.strerror}); mend its permissions") from error
    found: list[tuple[str, Picture, int]] = []
    for name, label in folder.samples:
        try:
            mode, image = read_picture(Path(name), mode)
        except DataError as error:
            if not skips_bad:
                raise DataError(f"{error}, or leave such files out with --bad-images skip") from error
            left_out.append(str(error))
            continue
        if not skips_bad and found and image.shape != found[0][1].shape:
            raise DataError(f"{_of_another_shape(name, image, found[0][1].shape)}; {_LEAVE_OUT}")
        found.append((name, image, label))
    if not found:
        raise DataError(f"data {path}: found no image that can be read; the last of {len(folder)}: {left_out[-1]}")
    if skips_bad:
        ((shape, _),) = Counter(image.shape for _, image, _ in found).most_common(1)
        left_out += [_of_another_shape(name, image, shape) for name, image, _ in found if image.shape != shape]
        found = [sample for sample in found if sample[1].shape == shape]
    labels = torch.tensor([label for _, _, label in found], dtype=torch.int64)
    return Split(torch.from_numpy(np.stack([image for _, image, _ in found])), labels), tuple(folder.classes)


def _of_another_shape(name: str, image: Picture, shape: tuple[int, ...]) -> str:
    return f"data {name}: image of shape {image.shape}, others have {shape}"
