"""Classes: a column of a label is the same class in every split, and names are text in an order."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import ffstream as ff
from ffstream.data import SOURCES, Dataset, Split, load_dataset
from ffstream.data.classes import check_columns, find_label_feature, find_lacking, to_class_names

RNG = np.random.default_rng(0)
LABELS = np.arange(60) % 4
IMAGES = RNG.random((60, 6)).astype(np.float32)


def write(path, **arrays):
    np.savez(path, **arrays)
    return str(path)


def test_labels_of_fewer_columns_in_another_split_are_refused(tmp_path):
    there = LABELS != 2
    few = (LABELS[there][:, None] == np.array([0, 1, 3])).astype(int)  # as pandas.get_dummies makes them
    data = write(tmp_path / "d.npz", x_train=IMAGES, y_train=np.eye(4)[LABELS], x_test=IMAGES[there], y_test=few)
    with pytest.raises(ff.DataError, match="test labels have 3 columns, allowed 4, as train labels have"):
        load_dataset(data)
    data = write(tmp_path / "e.npz", x_train=IMAGES[there], y_train=few, x_test=IMAGES, y_test=np.eye(4)[LABELS])
    with pytest.raises(ff.DataError, match="test labels have 4 columns, allowed 3"):
        load_dataset(data)


def test_columns_beside_numbers_are_the_same_classes(tmp_path):
    data = write(tmp_path / "d.npz", x_train=IMAGES, y_train=np.eye(4)[LABELS], x_test=IMAGES, y_test=LABELS)
    found = load_dataset(data)
    assert found.test.labels.tolist() == found.train.labels.tolist() == LABELS.tolist()


def test_a_column_that_is_empty_is_a_class_all_the_same(tmp_path):
    data = write(tmp_path / "d.npz", x_train=IMAGES, y_train=np.eye(5)[LABELS])
    assert load_dataset(data).num_classes == 5
    with pytest.raises(ff.DataError, match="no training image of class '4'"):
        ff.train(ff.Config(data=data, layers=1, width=8, epochs=1), tmp_path / "run")


def test_columns_are_counted_of_labels_that_have_them():
    ones, numbers = torch.ones(4, dtype=torch.int64), torch.tensor([0, 1, 2, 1])
    assert check_columns("d", {"train": (4,), "test": (4, 1)}, {"train": numbers, "test": ones}) is None
    assert check_columns("d", {"train": (4, 3), "test": (4,)}, {"train": numbers, "test": ones}, 3) == 3
    assert check_columns("d", {"train": (4, 3), "test": (4, 1)}, {"train": numbers, "test": numbers}) == 3
    with pytest.raises(ff.DataError, match="train labels have 3 columns, allowed 4, one a class"):
        check_columns("d", {"train": (4, 3)}, {"train": numbers}, 4)
    with pytest.raises(ff.DataError, match="test labels have 1 column, allowed 3, as train labels have"):
        check_columns("d", {"train": (4, 3), "test": (4, 1)}, {"train": numbers, "test": ones})


@pytest.mark.parametrize("names", [{"a", "b"}, "ab", None, 2, {"a": 0, "b": 1}])
def test_names_without_an_order_are_refused(names):
    with pytest.raises(ff.DataError, match="class_names is a"):
        to_class_names(names, "data d")


@pytest.mark.parametrize(("names", "words"), [(["a", "a"], "'a' twice"), (["a", 0.5], "holds 0.5"), ([["a"]], "holds")])
def test_names_that_are_no_names_of_classes_are_refused(names, words):
    with pytest.raises(ff.DataError, match=words):
        to_class_names(names, "data d")


def test_numbers_are_names_too():
    assert to_class_names(range(3), "d") == to_class_names(np.arange(3), "d") == ("0", "1", "2")


# --- data sets of a user's own


@pytest.fixture
def own(monkeypatch):
    def register(found):
        monkeypatch.setitem(SOURCES._parts, "own", lambda _: found)

    return register


GOOD = Split(IMAGES, LABELS)
REFUSED = {
    "nothing": (None, "its source gives NoneType, allowed a Dataset"),
    "pairs": (((IMAGES, LABELS), (IMAGES, LABELS)), "its source gives tuple"),
    "pairs as splits": (Dataset("own", (IMAGES, LABELS), None, tuple("abcd")), "its train split is tuple"),
    "no training split": (Dataset("own", None, GOOD, tuple("abcd")), "gives no training split"),
    "a set of names": (Dataset("own", GOOD, None, set("abcd")), "class_names is a set"),
    "too few columns": (
        Dataset("own", Split(IMAGES, np.eye(4)[LABELS]), None, tuple("abcde")),
        "4 columns",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_data_set_is_refused_in_one_line(name, own):
    found, words = REFUSED[name]
    own(found)
    with pytest.raises(ff.DataError, match=words) as raised:
        load_dataset("own")
    assert "\n" not in str(raised.value)


def test_images_of_every_real_type_are_trained_on(own, tmp_path):
    import torch

    config = ff.Config(data="own", layers=1, width=8, epochs=1, batch=16)
    images = torch.from_numpy(IMAGES)
    for number, each in enumerate((images.bfloat16(), images.half(), images.double(), images.clone().requires_grad_())):
        own(Dataset("own", Split(each, LABELS), None, None))
        assert ff.train(config, tmp_path / f"{number}").num_layers_done == 1


def test_a_sentence_is_one_note(own):
    own(Dataset("own", GOOD, None, tuple("abcd"), notes="read as it is"))
    assert load_dataset("own").warning == "read as it is"


# --- labels that cannot be meant


def warn_of(tmp_path, **arrays):
    return load_dataset(write(tmp_path / "d.npz", **arrays)).warning


def test_a_split_that_lacks_a_class_is_named(tmp_path, digits):
    (x, y), (tx, ty) = ((split.images.numpy(), split.labels.numpy()) for split in (digits.train, digits.test))
    assert "none of 1797 is class '1'" in warn_of(tmp_path, x_train=x, y_train=y, x_test=tx, y_test=0 * ty)
    below = ty < 9
    warning = warn_of(tmp_path, x_train=x, y_train=y, x_test=tx[below], y_test=ty[below] + 1)
    assert "test labels: none of 1617 is class '0'" in warning
    assert warn_of(tmp_path, x_train=x, y_train=y, x_test=tx[:20], y_test=ty[:20]) is None


@pytest.mark.parametrize("num_classes", [2, 10, 300])
def test_a_split_with_fewer_classes_than_chance_leaves_out_is_named(num_classes):
    """The head of a file that is sorted by class is named, and no random part, whatever its size."""
    generator = torch.Generator().manual_seed(0)
    train = torch.randint(num_classes, (6000,), generator=generator)
    names = [str(label) for label in range(num_classes)]
    for num in (1, 3, 12, 30, 100, 300):
        for seed in range(50):
            taken = train[torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:num]]
            assert find_lacking(taken, train, names) is None
        said = find_lacking(train.sort().values[:num], train, names)
        assert (said is not None) == (num >= 30 or (num >= 12 and num_classes > 2))


def test_of_the_head_of_sorted_digits_the_only_class_is_named(tmp_path, digits):
    (x, y), (tx, ty) = ((split.images.numpy(), split.labels.numpy()) for split in (digits.train, digits.test))
    head = np.argsort(ty, kind="stable")[:12]
    warning = warn_of(tmp_path, x_train=x, y_train=y, x_test=tx[head], y_test=ty[head])
    assert "test labels: all 12 are of 1 of the 10 classes, '0' (label 0), of which 10% of the training" in warning


def test_a_column_that_is_the_label_is_named(tmp_path):
    rows = np.concatenate([IMAGES, LABELS[:, None]], axis=1)
    assert "feature 6 of the training images is their label" in warn_of(tmp_path, x_train=rows, y_train=LABELS)
    assert warn_of(tmp_path, x_train=IMAGES, y_train=LABELS) is None


LABELS_IN_OTHER_UNITS = {
    "from 1": lambda y: y + 1,
    "the other way round": lambda y: 9 - y,
    "standardised": lambda y: (y - y.mean()) / y.std(),
    "in disorder": lambda y: np.array([3.5, 1, 4, 15, 9, 2, 6, 5, 35, 8])[y],
}


@pytest.mark.parametrize("name", LABELS_IN_OTHER_UNITS)
def test_a_column_that_tells_the_label_in_other_units_is_named(name):
    labels = np.arange(200) % 10
    rows = np.random.default_rng(0).random((200, 4)).astype(np.float32)
    rows[:, 2] = LABELS_IN_OTHER_UNITS[name](labels)
    said = find_label_feature(torch.from_numpy(rows), torch.from_numpy(labels))
    assert said.startswith("feature 2 of the training images is their label")


@pytest.mark.parametrize("values", [(1, 0), (0, 1), (-1, 1)])
def test_columns_that_tell_one_class_each_are_named(values):
    labels = torch.arange(120) % 3
    rows = torch.rand(120, 7, generator=torch.Generator().manual_seed(0))
    for label, column in enumerate((4, 1, 6)):
        rows[:, column] = torch.where(labels == label, float(values[0]), float(values[1]))
    assert "features 4, 1, 6 of the training images are their label" in find_label_feature(rows, labels)
    rows[0, 1] += 0.5
    assert find_label_feature(rows, labels) is None


def test_columns_that_tell_some_classes_are_none():
    """As whether an animal has feathers, which tells birds from all others."""
    labels = torch.arange(120) % 4
    rows = torch.rand(120, 5, generator=torch.Generator().manual_seed(0))
    rows[:, 0], rows[:, 1], rows[:, 2] = (labels == 2).float(), (labels >= 2).float(), 7.0
    assert find_label_feature(rows, labels) is None
