"""Clean sets of arrays, and the steps by which people's arrays differ from them."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

_NUM_TRAINING, _NUM_TEST = 300, 200


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


def make_arrays(draw: random.Random) -> Case:
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


def as_floats(case: Case) -> None:
    case.train, case.test = case.train.astype(np.float64), case.test.astype(np.float64)


def _is_table(case: Case) -> bool:
    return case.train.ndim == 2


def _feature(case: Case) -> int:
    return case.draw.randrange(case.train[0].size)


def _on_both(case: Case, change: Callable[[np.ndarray], np.ndarray]) -> None:
    as_floats(case)
    case.train, case.test = change(case.train), change(case.test)


def _set_feature(case: Case, change: Callable[[np.ndarray], np.ndarray], *, both: bool = True) -> int:
    """Change one feature of all images."""
    as_floats(case)
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
REWRITES: dict[str, Step] = {
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
    as_floats(case)
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
    as_floats(case)
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
        found = np.asarray(labels, dtype=float).reshape(len(images), -1)
        shade = 20 + 60 * (found.argmax(axis=1)[:, None] if found.shape[1] > 1 else found)  # of one-hot labels
        images[:] = np.broadcast_to(shade.reshape(-1, *[1] * (images.ndim - 1)), images.shape).astype(images.dtype)


@_says("test images", "units")
def _test_in_other_units(case: Case) -> None:
    as_floats(case)
    scale, offset = case.draw.choice([(255.0, 0.0), (1 / 255, 0.0), (1.0, 30.0), (0.1, 0.0), (1.0, -20.0)])
    case.test = case.test * scale + offset * _spread_of(case)


@_says("not finite")
def _not_finite(case: Case) -> None:
    as_floats(case)
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
    as_floats(case)
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
    as_floats(case)
    factor, images = case.draw.choice([255.0, 1000.0]), case.draw.choice([case.train, case.test])
    images[case.draw.randrange(3) :: case.draw.choice([3, 5])] /= factor


CHANGES: dict[str, Step] = {
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


def write_arrays(case: Case, folder: Path) -> Path:
    others = dict(case.others)
    arrays = {"x_train": case.train, "y_train": case.train_labels, "x_test": case.test, "y_test": case.test_labels}
    if others.pop("without test", False):
        del arrays["x_test"], arrays["y_test"]
    path = folder / f"data{case.suffix}"
    with path.open("wb") as file:
        np.savez(file, **{case.spelling(name): value for name, value in (arrays | others).items()})
    return path
