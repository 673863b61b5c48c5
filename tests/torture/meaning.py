"""People's data, changed as people's data are: each is read as it was meant, or refused, or spoken of by name.

A clean set of arrays, or folder of pictures, is changed by one or two steps that a seed draws. Some steps change how it
is written and not what it says; of these nothing may be said, and the figures are those of the clean twin. The others
change what it says, or hide it: then the figures are those of the clean twin all the same, or an error or a warning
names what was changed. Nothing else is allowed.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import ffstream as ff
from tests.helpers import write_pictures
from tests.torture.crash import Counts

_NUM_TRAINING, _NUM_TEST = 300, 200
_TOLERANCE = 0.06  # of the test error: that of another seed
_CLEAN_ERROR = 0.12  # at most, so that what is lost shows
_NUM_DRAWS, _SHARE_UNLEARNT = 4, 0.03  # draws of a set until one is learnt, and the share that may be drawn anew
_SHARE_FOLDERS, _SHARE_ENVIRONMENTS = 0.25, 0.03  # of the cases; the latter start processes
_SETTINGS = {"layers": 2, "width": 48, "epochs": 10, "device": "cpu", "precision": "fp32"}


@dataclass
class Case:
    """Data as they are about to be written, and what the steps so far have done to them."""

    draw: random.Random
    train: np.ndarray
    test: np.ndarray
    train_labels: Any
    test_labels: Any
    others: dict[str, Any] = field(default_factory=dict)  # arrays beside
    spelling: Callable[[str], str] = str  # of the names of arrays
    suffix: str = ".npz"
    words: list[str] = field(default_factory=list)  # one of them must be said, where anything is
    done: list[str] = field(default_factory=list)
    may_differ: bool = False  # by what was done, something may be said


Step = Callable[[Case], None]


# --- arrays


def _make_arrays(draw: random.Random) -> Case:
    """A table, or small images, of two to four classes that are easily told apart."""
    drawn = np.random.default_rng(draw.randrange(1 << 32))
    num_classes = draw.randint(2, 4)
    labels = np.arange(_NUM_TRAINING + _NUM_TEST) % num_classes
    if draw.random() < 0.5:
        images = drawn.normal(size=(len(labels), draw.randint(6, 24)))
        for label in range(num_classes):
            images[labels == label, label] += 6
        if draw.random() < 0.3:
            images = np.abs(images)
    else:
        size = draw.randint(5, 8)
        patterns = drawn.random((num_classes, size, size)) < 0.4
        images = np.clip(patterns[labels] * 200 + drawn.normal(30, 20, (len(labels), size, size)), 0, 255)
        images = images.astype(np.uint8) if draw.random() < 0.5 else images / 255
    split = slice(_NUM_TRAINING), slice(_NUM_TRAINING, None)
    return Case(draw, images[split[0]], images[split[1]], labels[split[0]], labels[split[1]])


def _as_floats(case: Case) -> None:
    case.train, case.test = case.train.astype(np.float64), case.test.astype(np.float64)


def _is_table(case: Case) -> bool:
    return case.train.ndim == 2


def _feature(case: Case) -> int:
    return case.draw.randrange(case.train[0].size)


def _on_both(case: Case, change: Callable[[np.ndarray], np.ndarray]) -> None:
    _as_floats(case)
    case.train, case.test = change(case.train), change(case.test)


def _set_feature(case: Case, change: Callable[[np.ndarray], np.ndarray], *, both: bool = True) -> int:
    """Change one feature of all images."""
    _as_floats(case)
    number = _feature(case)
    for images in (case.train, case.test) if both else (case.train,):
        flat = images.reshape(len(images), -1)
        flat[:, number] = change(flat[:, number])
    return number


def _spread_of(case: Case) -> float:
    return float(case.train.std(dtype=np.float64)) or 1.0  # in half precision, its squares would be infinite


def _numbers(labels: Any) -> np.ndarray:
    """The number of each label, in whatever way they are written by now."""
    labels = np.asarray(labels)
    is_one_hot = labels.ndim == 2 and labels.shape[1] > 1
    return labels.argmax(axis=1) if is_one_hot else labels.reshape(-1).astype(int)


def _other_float(case: Case) -> None:
    fits = float(np.abs(case.train).max()) < 1000  # in half precision, whose steps are 1/1000 of a value
    kind = case.draw.choice([np.float32, np.float64, *([np.float16] if fits else [])])
    case.train, case.test = case.train.astype(kind), case.test.astype(kind)


def _labels_as(kind: Any) -> Step:
    def change(case: Case) -> None:
        case.train_labels, case.test_labels = (
            np.asarray(y).astype(kind) for y in (case.train_labels, case.test_labels)
        )

    return change


def _labels_in_a_column(case: Case) -> None:
    case.train_labels, case.test_labels = (np.asarray(y).reshape(-1, 1) for y in (case.train_labels, case.test_labels))


def _labels_one_hot(case: Case) -> None:
    num_classes = int(np.max(case.train_labels)) + 1
    case.train_labels, case.test_labels = (
        np.eye(num_classes, dtype=np.float32)[np.asarray(y, dtype=int).ravel()]
        for y in (case.train_labels, case.test_labels)
    )


def _spell(case: Case) -> None:
    ways = [str.upper, str.capitalize, lambda name: name.replace("x_", "X_").replace("y_", "Y_")]
    case.spelling = case.draw.choice(ways)


def _larger_all(case: Case) -> None:
    factor = 10.0 ** case.draw.uniform(-4, 5)
    _on_both(case, lambda images: images * factor)


def _suffix_in_capitals(case: Case) -> None:
    case.suffix = ".NPZ"


def _other_order(case: Case) -> None:
    order = np.random.default_rng(case.draw.randrange(1 << 32)).permutation(len(case.train))
    case.train, case.train_labels = case.train[order], np.asarray(case.train_labels)[order]


# Of which nothing may be said.
_REWRITES: dict[str, Step] = {
    "another type": _other_float,
    "labels as int8": _labels_as(np.int8),
    "labels as uint64": _labels_as(np.uint64),
    "labels as floats": _labels_as(np.float32),
    "labels in a column": _labels_in_a_column,
    "labels one-hot": _labels_one_hot,
    "names in other letters": _spell,
    "all times a factor": _larger_all,
    "a suffix in capitals": _suffix_in_capitals,
    "another order": _other_order,
}


def _says(*words: str) -> Callable[[Step], Step]:
    """A step of which something may be said, by one of the words."""

    def mark(step: Step) -> Step:
        def change(case: Case) -> None:
            case.may_differ = True
            case.words += words
            step(case)

        return change

    return mark


@_says("feature", "common", "larger", "smaller", "small")
def _other_units_of_a_feature(case: Case) -> None:
    factor = 10.0 ** case.draw.choice([-5, -4, -3, 3, 4, 5, 6])
    case.words.append(f"feature {_set_feature(case, lambda values: values * factor)}")


@_says("feature", "common")
def _offset_of_a_feature(case: Case) -> None:
    offset = case.draw.choice([-1, 1]) * 10.0 ** case.draw.randint(2, 6) * _spread_of(case)
    case.words.append(f"feature {_set_feature(case, lambda values: values + offset)}")


@_says("in common")
def _offset(case: Case) -> None:
    offset = case.draw.choice([-1, 1]) * 10.0 ** case.draw.uniform(0.3, 4) * _spread_of(case)
    _on_both(case, lambda images: images + offset)


def _code_for_missing(case: Case) -> None:
    _as_floats(case)
    code = case.draw.choice([-9999.0, -999.0, 9999.0, 1e20, -99999.0, 65535.0]) * (
        1 if np.abs(case.train).max() < 60 else 1e3
    )
    code = code if abs(code) in (9999.0, 999.0, 99999.0, 1e20, 65535.0) else np.sign(code) * 999999.0
    case.words.append(f"{code:g}")
    share, drawn = case.draw.choice([0.02, 0.1, 0.3]), np.random.default_rng(case.draw.randrange(1 << 32))
    for images in (case.train, case.test):
        images[drawn.random(images.shape) < share] = code


@_says("holds", "image", "value")
def _outliers(case: Case) -> None:
    _as_floats(case)
    for _ in range(case.draw.choice([1, 1, 5, 30])):
        row, value = case.draw.randrange(len(case.train)), 10.0 ** case.draw.uniform(3, 12)
        case.train.reshape(len(case.train), -1)[row, _feature(case)] = value * float(np.abs(case.train).max() < 1e6)


@_says("zero", "equal")
def _empty_images(case: Case) -> None:
    share = case.draw.choice([0.1, 0.4, 1.0])
    rows = np.random.default_rng(case.draw.randrange(1 << 32)).random(len(case.train)) < share
    case.train = np.where(rows.reshape(-1, *[1] * (case.train.ndim - 1)), 0, case.train)


@_says("equal")
def _one_image(case: Case) -> None:
    case.train = np.repeat(case.train[:1], len(case.train), axis=0)


@_says("brightness", "common")
def _brightness_alone(case: Case) -> None:
    for images, labels in ((case.train, case.train_labels), (case.test, case.test_labels)):
        shade = 20 + 60 * np.asarray(labels, dtype=float).reshape(len(images), -1)[:, :1]
        images[:] = np.broadcast_to(shade.reshape(-1, *[1] * (images.ndim - 1)), images.shape).astype(images.dtype)


@_says("test images", "units")
def _test_in_other_units(case: Case) -> None:
    _as_floats(case)
    scale, offset = case.draw.choice([(255.0, 0.0), (1 / 255, 0.0), (1.0, 30.0), (0.1, 0.0), (1.0, -20.0)])
    case.test = case.test * scale + offset * _spread_of(case)


@_says("not finite")
def _not_finite(case: Case) -> None:
    _as_floats(case)
    images = case.draw.choice([case.train, case.test])
    images.reshape(-1)[case.draw.randrange(images.size)] = case.draw.choice([np.nan, np.inf, -np.inf])


@_says("labels")
def _labels_with_gaps(case: Case) -> None:
    add = case.draw.choice([1, -1, 3])
    case.train_labels, case.test_labels = (np.asarray(y) + add for y in (case.train_labels, case.test_labels))


@_says("y_train", "train_labels", "labels")
def _labels_of_another_kind(case: Case) -> None:
    def as_objects(labels: Any) -> np.ndarray:
        return np.array([f"class {label}" for label in np.ravel(labels)], dtype=object)

    change = case.draw.choice(
        [
            lambda y: np.array([f"class {label}" for label in np.ravel(y)]),
            as_objects,
            lambda y: np.asarray(y, dtype=float) + 0.5,
            lambda y: np.stack([np.ravel(y), np.ravel(y)], axis=1) + 0.25,
            lambda y: np.asarray(y, dtype=float) * np.nan,
            lambda y: np.ravel(y).astype("datetime64[D]"),
            lambda y: np.ravel(y)[: len(np.ravel(y)) // 2],
            lambda y: np.ones((len(np.ravel(y)), 3)),
        ]
    )
    case.train_labels = change(case.train_labels)


@_says("other")
def _arrays_beside(case: Case) -> None:
    case.others["other"] = case.draw.choice([np.arange(5), np.array(["text"]), np.array([None, {}], dtype=object)])


@_says("validation", "val")
def _validation_and_no_test(case: Case) -> None:
    case.others |= {"x_val": case.test, "y_val": case.test_labels}
    case.others["without test"] = True


@_says("complex", "dates", "objects", "numbers", "x_train")
def _images_of_another_kind(case: Case) -> None:
    change = case.draw.choice(
        [lambda x: x.astype(complex), lambda x: x.astype(object), lambda x: x.astype(str), lambda x: x.astype("M8[s]")]
    )
    _as_floats(case)
    case.train = change(case.train)


@_says("shape")
def _test_of_another_shape(case: Case) -> None:
    case.test = case.test[..., :-1]


@_says("column")
def _fewer_columns(case: Case) -> None:
    train, test = _numbers(case.train_labels), _numbers(case.test_labels)
    lacking = case.draw.randrange(int(train.max()) + 1)
    case.train_labels, keep = np.eye(int(train.max()) + 1)[train], test != lacking
    case.test, kept = case.test[keep], [label for label in range(int(train.max()) + 1) if label != lacking]
    case.test_labels = (test[keep][:, None] == np.array(kept)).astype(int)


@_says("labels")
def _test_labels_from_one(case: Case) -> None:
    train, test = _numbers(case.train_labels), _numbers(case.test_labels)
    keep = test < train.max()
    case.train_labels, case.test, case.test_labels = train, case.test[keep], test[keep] + 1


@_says("are training images")
def _test_of_training_images(case: Case) -> None:
    labels = np.asarray(case.train_labels).reshape(len(case.train), -1)
    rows = np.random.default_rng(case.draw.randrange(1 << 32)).permutation(len(case.train))[: len(case.test)]
    case.test, case.test_labels = (
        case.train[rows].copy(),
        labels[rows].squeeze(1) if labels.shape[1] == 1 else labels[rows],
    )


@_says("several classes")
def _contradicting_labels(case: Case) -> None:
    labels = _numbers(case.train_labels)
    some = np.random.default_rng(case.draw.randrange(1 << 32)).permutation(len(labels))[: len(labels) // 3]
    case.train = np.concatenate([case.train, case.train[some]])
    case.train_labels = np.concatenate([labels, (labels[some] + 1) % (labels.max() + 1)])


@_says("vary by", "feature", "common")
def _times(case: Case) -> None:
    offset = case.draw.choice([1.7e9, 1e12, 2.4e6])
    case.train, case.test = case.train.astype(np.float64), case.test.astype(np.float64)
    case.words.append(f"feature {_set_feature(case, lambda values: values + offset)}")


@_says("other units", "units", "small")
def _some_in_other_units(case: Case) -> None:
    _as_floats(case)
    factor, images = case.draw.choice([255.0, 1000.0]), case.draw.choice([case.train, case.test])
    images[case.draw.randrange(3) :: case.draw.choice([3, 5])] /= factor


_CHANGES: dict[str, Step] = {
    "one-hot labels of fewer columns": _fewer_columns,
    "labels of the test split from one": _test_labels_from_one,
    "a test split of training images": _test_of_training_images,
    "labels that contradict": _contradicting_labels,
    "times in 64 bits": _times,
    "a part in other units": _some_in_other_units,
    "a feature in other units": _other_units_of_a_feature,
    "a feature far from zero": _offset_of_a_feature,
    "all far from zero": _offset,
    "a code for what is missing": _says("occur")(_code_for_missing),
    "outliers": _outliers,
    "images of zeros": _empty_images,
    "one image throughout": _one_image,
    "brightness alone": _brightness_alone,
    "a test split in other units": _test_in_other_units,
    "values that are not finite": _not_finite,
    "labels with gaps": _labels_with_gaps,
    "labels of another kind": _labels_of_another_kind,
    "arrays beside": _arrays_beside,
    "validation and no test": _validation_and_no_test,
    "images of another kind": _images_of_another_kind,
    "a test split of another shape": _test_of_another_shape,
}


def _write_arrays(case: Case, folder: Path) -> Path:
    others = dict(case.others)
    arrays = {"x_train": case.train, "y_train": case.train_labels, "x_test": case.test, "y_test": case.test_labels}
    if others.pop("without test", False):
        del arrays["x_test"], arrays["y_test"]
    path = folder / f"data{case.suffix}"
    with path.open("wb") as file:
        np.savez(file, **{case.spelling(name): value for name, value in (arrays | others).items()})
    return path


# --- folders


def _make_pictures(draw: random.Random, folder: Path) -> None:
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


_LAYOUTS: dict[str, Callable[[random.Random, Path], None]] = {
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
_REWRITTEN = ("other suffixes", "one class as BMP", "turned by EXIF", "palettes of greys")


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


_MISHAPS: dict[str, Callable[[random.Random, Path], list[str]]] = {
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


# --- environments


_ENVIRONMENTS: dict[str, dict[str, str | None]] = {
    "ASCII": {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"},
    "cp1252": {"PYTHONIOENCODING": "cp1252"},
    "latin-1": {"PYTHONIOENCODING": "latin-1", "LANG": "C"},
    "no home": {"HOME": None},
    "a home that is not there": {"HOME": "/nonexistent/home"},
    "a terminal of 40 columns": {"COLUMNS": "40"},
    "no terminal": {"TERM": "dumb", "NO_COLOR": "1"},
    "a backend of a notebook": {"MPLBACKEND": "module://nowhere.backend"},
    "a temporary folder that is not there": {"TMPDIR": "/nonexistent/tmp"},
    "passive threads": {"OMP_WAIT_POLICY": "passive"},
    "no path": {"PATH": None},
    "warnings as errors of others": {"PYTHONWARNINGS": "error::DeprecationWarning:nowhere"},
    "an own cache": {"XDG_CACHE_HOME": "/nonexistent/cache"},
}
_PLACES = [
    "plain",
    "with space",
    "$HOME",
    "_leading",
    "-dash",
    "quote'",
    "ünïcode",
    "per%cent",
    "semi;colon",
    "new\nline",
]


# --- what becomes of them


class _Listener(ff.Observer):
    def __init__(self) -> None:
        self.said: list[str] = []

    def on_warning(self, text: str) -> None:
        self.said.append(text)


@dataclass(frozen=True)
class _Outcome:
    """Of a training and an evaluation."""

    error: float | None  # None: refused
    class_names: list[str]
    num_test: int
    said: str


def _use(data: Path, folder: Path, standardise: str = "none") -> _Outcome:
    shutil.rmtree(folder, ignore_errors=True)
    listener = _Listener()
    try:
        settings = _SETTINGS | {"standardise": standardise}
        run = ff.train(ff.Config(data=str(data)).override(settings), folder, observer=listener)
        found = run.evaluate()
    except ff.FFStreamError as error:
        text = str(error)
        if "\n" in text:
            raise AssertionError(f"several lines: {text}") from error
        return _Outcome(None, [], 0, "; ".join([*listener.said, text]))
    said = [*listener.said, *([found.warning] if found.warning else [])]
    return _Outcome(found.error, found.class_names, found.num_samples, "; ".join(said))


def _judge(clean: _Outcome, found: _Outcome, *, may_differ: bool, words: list[str]) -> str | None:
    """What is wrong; None if nothing is."""
    if found.said and not may_differ:
        return f"said of what means the same: {found.said[:300]}"
    if found.said and any(word.lower() in found.said.lower() for word in words):
        return None
    if found.error is None:
        return f"refused without a word of {words}: {found.said[:300]}"
    same = (found.class_names, found.num_test) == (clean.class_names, clean.num_test)
    if same and clean.error is not None and found.error <= clean.error + _TOLERANCE:
        return None
    return (
        f"error {found.error:.2f} of {found.num_test} in classes {found.class_names}, the clean twin has {clean.error} "
        f"of {clean.num_test} in {clean.class_names}; said: {found.said[:300] or 'nothing'}"
    )


def mistake(folder: Path, num_cases: int, first_seed: int, counts: Counts) -> None:
    """Try so many cases, each a function of its seed."""
    unlearnt: list[float] = []
    for number in range(num_cases):
        draw = random.Random(f"{first_seed} {number}")
        place = folder / "meaning"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        chance = draw.random()
        try:
            if chance < _SHARE_ENVIRONMENTS:
                what, problem, refused = _try_environment(draw, place)
            elif chance < _SHARE_ENVIRONMENTS + _SHARE_FOLDERS:
                what, problem, refused = _try_folder(draw, place)
            else:
                what, problem, refused = _try_arrays(draw, place, unlearnt)
        except Exception as error:
            what, problem, refused = "a traceback", f"{type(error).__name__}: {error}", False
        counts.add(f"case {number} of seed {first_seed}, {what}", problem, refused=refused)
    many = f"{len(unlearnt)} of {num_cases} were drawn anew, with errors of {sorted(unlearnt)}"
    counts.add("clean sets", many if len(unlearnt) > max(_SHARE_UNLEARNT * num_cases, 1) else None)


def _try_arrays(draw: random.Random, place: Path, unlearnt: list[float]) -> tuple[str, str | None, bool]:
    for _ in range(_NUM_DRAWS):  # a set that so small a network does not learn would show no loss
        case = _make_arrays(draw)
        standardise = draw.choice(["none", "none", "features", "channels"])
        clean = _use(_write_arrays(case, place), place / "clean", standardise)
        if clean.said or clean.error is None or clean.error <= _CLEAN_ERROR:
            break
        unlearnt.append(clean.error)
    if clean.said or clean.error is None or clean.error > _CLEAN_ERROR:
        return "a clean set", f"error {clean.error}, said: {clean.said}", False
    if case.train.dtype == np.uint8 and draw.random() < 0.5:  # what hides values wants some that can be hidden
        _as_floats(case)
    names = draw.sample(sorted(_REWRITES), draw.randint(0, 2))
    if not names or draw.random() < 0.7:
        names.append(draw.choice(sorted(_CHANGES)))
    changed = [name for name in names if name.startswith("labels")]
    names = [name for name in names if name not in changed[:-1]]  # one way of writing them
    for name in names:
        (_CHANGES | _REWRITES)[name](case)
    found = _use(_write_arrays(case, place), place / "run", standardise)
    problem = _judge(clean, found, may_differ=case.may_differ, words=case.words)
    return f"arrays {case.train.shape} standardised by {standardise}: {', '.join(names)}", problem, found.error is None


def _try_folder(draw: random.Random, place: Path) -> tuple[str, str | None, bool]:
    data = place / "data"
    _make_pictures(draw, data)
    clean = _use(data, place / "clean")
    if clean.said or clean.error is None or clean.error > _CLEAN_ERROR:
        return "a clean folder", f"error {clean.error}, said: {clean.said}", False
    mishap = draw.choice([None, *sorted(_MISHAPS)])
    words = _MISHAPS[mishap](draw, data) if mishap else []
    layout = draw.choice(sorted(_LAYOUTS))
    if not mishap or (draw.random() < 0.4 and layout not in _REWRITTEN):
        with contextlib.suppress(FileNotFoundError, FileExistsError):  # what the mishap has moved
            _LAYOUTS[layout](draw, data)
    else:
        layout = ""
    found = _use(data, place / "run")
    problem = _judge(clean, found, may_differ=mishap is not None, words=words)
    return f"a folder: {mishap}, {layout}", problem, found.error is None


def _try_environment(draw: random.Random, place: Path) -> tuple[str, str | None, bool]:
    name, other = draw.choice(sorted(_ENVIRONMENTS)), draw.choice(_PLACES)
    where = place / other
    where.mkdir()
    data = where / "data.npz"
    case = _make_arrays(draw)
    _write_arrays(case, where)
    clean = _use(data, place / "clean")
    environment = {key: value for key, value in os.environ.items() if key != "LD_PRELOAD"}
    for key, value in _ENVIRONMENTS[name].items():
        environment.pop(key, None)
        if value is not None:
            environment[key] = value
    said = []
    for command in (
        ["train", "--data", "data.npz", "--run-dir", "run", *_options()],
        ["evaluate", "run", "--json"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "ffstream", *command],
            cwd=where,
            env=environment,
            capture_output=True,
            check=False,
        )
        said.append(done.stderr.decode(errors="replace"))
        if done.returncode or "Traceback" in said[-1] or "warning" in said[-1]:
            return f"{name} in {other!r}", f"{command[0]} ended with {done.returncode}: {said[-1][-300:]}", False
    found = json.loads(done.stdout)
    problem = None if found["error"] == clean.error else f"error {found['error']}, the clean twin has {clean.error}"
    return f"{name} in {other!r}", problem, False


def _options() -> Iterator[str]:
    for name, value in _SETTINGS.items():
        yield from (f"--{name}", str(value))
