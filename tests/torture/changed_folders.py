"""Clean folders of pictures, and the steps by which people's folders differ from them."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from tests.helpers import write_pictures


def make_pictures(draw: random.Random, folder: Path) -> None:
    """Three classes of grey pictures, each with a pattern, in train/ and test/."""
    drawn = np.random.default_rng(draw.randrange(1 << 32))
    size = draw.randint(6, 9)
    patterns = [drawn.random((size, size)) < 0.4]
    while len(patterns) < 3:  # as unlike as classes should be
        pattern = drawn.random((size, size)) < 0.4
        if min(float((pattern != other).mean()) for other in patterns) > 0.4:
            patterns.append(pattern)
    for split, number in (("train", 60), ("test", 25)):
        for label, pattern in zip("abc", patterns, strict=True):
            values = np.clip(pattern * 200 + drawn.normal(30, 20, (number, size, size)), 0, 255)
            write_pictures(folder / split, {label: values.astype(np.uint8)}, "{:02d}.png")


def _some(draw: random.Random, folder: Path, pattern: str = "train/*/*") -> Path:
    return draw.choice(sorted(path for path in folder.glob(pattern) if path.is_file()))


def _rename_splits(draw: random.Random, folder: Path) -> None:
    train, test = draw.choice(
        [
            ("Train", "Test"),
            ("Training", "Testing"),
            ("seg_train", "seg_test"),
            ("TRAIN", "TEST"),
            ("train_set", "test_set"),
        ]
    )
    (folder / "train").rename(folder / train)
    (folder / "test").rename(folder / test)


def _nest_splits(draw: random.Random, folder: Path) -> None:
    for split in ("train", "test"):
        (folder / split).rename(folder / "aside")
        (folder / split).mkdir()
        (folder / "aside").rename(folder / split / split)


def _other_suffixes(draw: random.Random, folder: Path) -> None:
    suffix = draw.choice(["", ".PNG", ".jfif", ".avif", ".dat", ".jpeg"])
    for path in sorted(folder.glob("*/*/*")):
        path.rename(path.with_suffix(suffix))


def _system_files(draw: random.Random, folder: Path) -> None:
    (folder / draw.choice(["train", "test", "."]) / draw.choice([".DS_Store", "Thumbs.db", "desktop.ini"])).write_bytes(
        b"\0"
    )


def _bmp(draw: random.Random, folder: Path) -> None:
    for path in sorted(folder.glob("*/a/*")):
        with Image.open(path) as picture:
            picture.save(path.with_suffix(".bmp"))
        path.unlink()


def _linked_class(draw: random.Random, folder: Path) -> None:
    away = folder.parent / "away"
    shutil.move(folder / "train" / "b", away)
    (folder / "train" / "b").symlink_to(away)


def _turned(draw: random.Random, folder: Path) -> None:
    """Some pictures lie turned in their files, and say by EXIF data how they are shown."""
    lying = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    for path in sorted(folder.glob("*/*/*"))[:: draw.choice([1, 2, 3])]:
        with Image.open(path) as picture:
            orientation = draw.choice(sorted(lying))
            turned = picture.convert("L").transpose(lying[orientation])
        exif = Image.Exif()
        exif[0x0112] = orientation
        turned.save(path, exif=exif)


def _grey_palette(draw: random.Random, folder: Path) -> None:
    for path in sorted(folder.glob("*/*/*"))[:: draw.choice([1, 3])]:
        with Image.open(path) as picture:
            picture.convert("L").convert("P").save(path)


LAYOUTS: dict[str, Callable[[random.Random, Path], None]] = {
    "turned by EXIF": _turned,
    "palettes of greys": _grey_palette,
    "splits of other names": _rename_splits,
    "splits in splits": _nest_splits,
    "other suffixes": _other_suffixes,
    "files of the system": _system_files,
    "one class as BMP": _bmp,
    "a class elsewhere": _linked_class,
}


# Which write pictures anew, and so undo what a mishap has done to one.
REWRITTEN = ("other suffixes", "one class as BMP", "turned by EXIF", "palettes of greys")


def _checkpoints(draw: random.Random, folder: Path) -> list[str]:
    place = folder / draw.choice(["train", "train/a", "."]) / ".ipynb_checkpoints"
    place.mkdir()
    shutil.copy(_some(draw, folder), place / "copy.png")
    return [".ipynb_checkpoints"]


def _apple_double(draw: random.Random, folder: Path) -> list[str]:
    path = _some(draw, folder)
    (path.parent / f"._{path.name}").write_bytes(b"\0\5\26\7")
    return ["._"]


def _stray(draw: random.Random, folder: Path) -> list[str]:
    path = _some(draw, folder).parent / draw.choice(["notes.txt", "labels.csv", "a.zip", "x.npy"])
    path.write_bytes(b"text")
    return [path.name]


def _loop(draw: random.Random, folder: Path) -> list[str]:
    (folder / "train" / "a" / "again").symlink_to(folder)
    return ["again"]


def _colour(draw: random.Random, folder: Path) -> list[str]:
    path = _some(draw, folder, draw.choice(["train/*/*", "test/*/*"]))
    with Image.open(path) as picture:
        coloured = np.stack([np.asarray(picture)] * 3, axis=2)
    coloured[0, 0] = (255, 0, 0)
    Image.fromarray(coloured).save(path)
    return ["colour"]


def _two_classes(draw: random.Random, folder: Path) -> list[str]:
    path = _some(draw, folder, "train/a/*")
    shutil.copy(path, folder / "train" / "b" / f"of a {path.name}")
    return ["several classes"]


def _copies(draw: random.Random, folder: Path) -> list[str]:
    for path in sorted(folder.glob("train/a/*")):
        shutil.copy(path, path.with_name(f"{path.stem} (1){path.suffix}"))
    return ["copies"]


def _masks(draw: random.Random, folder: Path) -> list[str]:
    for path in sorted(folder.glob("train/*/*")):
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("L"))
        drawn = np.random.default_rng(draw.randrange(1 << 32)).random(pixels.shape) < 0.5
        Image.fromarray(np.where(drawn, 255, 0).astype(np.uint8)).save(path.with_name(f"{path.stem}_mask.png"))
    return ["masks"]


def _deep(draw: random.Random, folder: Path) -> list[str]:
    path = _some(draw, folder)
    with Image.open(path) as picture:
        Image.fromarray(np.asarray(picture).astype(np.uint16) * 3).save(path)
    return [path.name, "16"]


def _alpha(draw: random.Random, folder: Path) -> list[str]:
    path = _some(draw, folder)
    with Image.open(path) as picture:
        grey = np.asarray(picture)
    Image.fromarray(np.stack([grey, 255 - grey], axis=2)).save(path)
    return [path.name]


def _cut(draw: random.Random, folder: Path) -> list[str]:
    path = _some(draw, folder)
    os.truncate(path, path.stat().st_size // 2)
    return [path.name]


def _other_size(draw: random.Random, folder: Path) -> list[str]:
    path = _some(draw, folder)
    with Image.open(path) as picture:
        larger = picture.resize((17, 12))
    larger.save(path)
    return [path.name]


def _no_pictures(draw: random.Random, folder: Path) -> list[str]:
    (folder / draw.choice(["train", "test"]) / "d").mkdir()
    return ["d"]


def _class_of_one_split(draw: random.Random, folder: Path) -> list[str]:
    split = draw.choice(["train", "test"])
    shutil.copytree(folder / split / "a", folder / split / "d")
    return ["d"]


def _validation_beside(draw: random.Random, folder: Path) -> list[str]:
    name = draw.choice(["val", "valid", "validation", "Val", "dev"])
    if draw.random() < 0.5:
        shutil.copytree(folder / "test", folder / name)
    else:
        (folder / "test").rename(folder / name)
    return [name, "validation"]


def _class_below(draw: random.Random, folder: Path) -> list[str]:
    (folder / "train" / "a" / "more").mkdir()
    for path in sorted((folder / "train" / "a").glob("*.png"))[: draw.choice([5, 100])]:
        path.rename(path.parent / "more" / path.name)
    return ["more", "below", "a"]


def _no_test(draw: random.Random, folder: Path) -> list[str]:
    (folder / "test").rename(folder / draw.choice(["unknown", "extra"]))
    return ["unknown", "extra", "test"]


MISHAPS: dict[str, Callable[[random.Random, Path], list[str]]] = {
    "checkpoints of a notebook": _checkpoints,
    "AppleDouble": _apple_double,
    "a stray file": _stray,
    "a loop": _loop,
    "one in colour": _colour,
    "one under two classes": _two_classes,
    "copies": _copies,
    "masks": _masks,
    "one of 16 bits": _deep,
    "one that is transparent": _alpha,
    "one cut": _cut,
    "one of another size": _other_size,
    "a folder without pictures": _no_pictures,
    "a class of one split": _class_of_one_split,
    "a validation split": _validation_beside,
    "a class with folders below": _class_below,
    "no test split": _no_test,
}
