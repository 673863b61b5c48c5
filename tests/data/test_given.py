"""Data that a program gives: what they become, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import ffstream as ff
from ffstream.data import as_dataset, load_dataset
from ffstream.errors import DataError
from tests.helpers import SMALL, layer_digests


class Endless(IterableDataset):
    """Samples that come one by one, and do not say how many there are."""

    def __init__(self, x, y):
        self.samples = list(zip(x, y, strict=True))

    def __iter__(self):
        return iter(self.samples)


WAYS = {
    "tensors": lambda x, y: (x, y),
    "numpy": lambda x, y: (x.numpy(), y.numpy().astype(np.int16)),
    "lists": lambda x, y: (x.tolist(), y.tolist()),
    "wide": lambda x, y: (x.double(), torch.nn.functional.one_hot(y)),
    "dataset": lambda x, y: ff.Dataset.from_arrays(x, y),
    "torch": lambda x, y: TensorDataset(x, y),
    "pairs": lambda x, y: Endless(x, y.tolist()),
    "loader": lambda x, y: DataLoader(TensorDataset(x, y), batch_size=17),
    "generator": lambda x, y: ((x[start : start + 7], y[start : start + 7]) for start in range(0, len(x), 7)),
}


@pytest.fixture(scope="module")
def samples(digits):
    return digits.train.images[:200].float(), digits.train.labels[:200]


@pytest.fixture(scope="module")
def of_files(samples, tmp_path_factory):
    """The digests of layers that were trained on files of these samples."""
    folder = tmp_path_factory.mktemp("files")
    x, y = samples
    save_file({"train.images": x, "train.labels": y}, folder / "data.safetensors")
    np.savez(folder / "data.npz", x_train=x.numpy(), y_train=y.numpy())
    found = []
    for path in folder.glob("data.*"):
        ff.train(ff.Config(data=str(path)).override(SMALL), folder / f"run-{path.suffix}")
        found.append(layer_digests(folder / f"run-{path.suffix}"))
    assert len(found) == 2
    assert found[0] == found[1]
    return found[0]


@pytest.mark.parametrize("way", WAYS)
def test_the_same_samples_give_the_same_layers_wherever_they_come_from(way, samples, of_files, tmp_path):
    run = ff.train(ff.Config().override(SMALL), tmp_path / "run", data=WAYS[way](*samples))
    assert layer_digests(tmp_path / "run") == of_files
    found = run.evaluate(split="validation", data=WAYS[way](*samples))
    assert found.num_samples == round(len(samples[0]) / 12)


def test_a_run_of_given_data_goes_on_with_them_or_with_a_file_of_them(samples, tmp_path):
    x, y = samples
    ff.train(ff.Config().override(SMALL | {"layers": 1}), tmp_path / "run", data=samples)
    with pytest.raises(ff.DataError, match="were given by a program.*give them again"):
        ff.resume(tmp_path / "run", layers=2)
    with pytest.raises(ff.RunMismatchError, match="other training data"):
        ff.resume(tmp_path / "run", layers=2, data=(x.flip(0), y))
    ff.resume(tmp_path / "run", layers=2, data=samples)
    save_file({"train.images": x, "train.labels": y}, tmp_path / "data.safetensors")
    run = ff.resume(tmp_path / "run", layers=3, data=str(tmp_path / "data.safetensors"))
    assert run.num_layers_done == 3
    whole = ff.train(ff.Config().override(SMALL), tmp_path / "whole", data=samples)
    assert layer_digests(run.path) == layer_digests(whole.path)


def test_given_splits_are_used_as_they_are(digits):
    x, y = digits.train.images, digits.train.labels
    found = ff.Dataset.from_arrays(
        x[:100],
        y[:100],
        x_val=x[100:130],
        y_val=y[100:130],
        x_test=x[130:150],
        y_test=y[130:150],
        class_names=[f"digit {number}" for number in range(10)],
    )
    assert [len(split) for split in (found.train, found.validation, found.test)] == [100, 30, 20]
    assert found.class_names[3] == "digit 3"
    assert torch.equal(found.validation.images, x[100:130])
    assert as_dataset(found).digest() == found.digest()


def put(x, place, value):
    x = x.clone()
    x[place] = value
    return x


def broken(x, y):
    """What is wrong with samples, and what is said of it."""
    yield (put(x, (170, 3, 3), torch.nan), y), "image 170 holds a value that is not finite"
    yield (put(x, (170, 3, 3), torch.inf), y), "image 170 holds a value that is not finite"
    yield (x, put(y, 5, -3)), "train label of sample 5 is -3"
    yield (x, put(y, 5, 5000)), "train label of sample 5 is 5000"
    yield (x, y[:-1]), "labels have shape"
    yield (x, y + 0.5), "holds targets such as"
    yield (x[0, 0], y[:8]), "images have shape"
    yield (x.to(torch.complex64), y), "allowed real numbers"


@pytest.mark.parametrize("number", range(8))
def test_what_is_wrong_is_named(number, samples, tmp_path):
    data, said = list(broken(*samples))[number]
    with pytest.raises(ff.DataError, match=said):
        ff.train(ff.Config().override(SMALL), tmp_path / "run", data=data)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("digits", "found a str, allowed a pair"),
        (np.zeros((3, 4)), "found a ndarray, allowed a pair"),
        ((1, 2, 3), "found a tuple of 3"),
        ([], "found no batch"),
        ([(np.zeros((3, 4)), np.zeros(3)), (np.zeros((3, 5)), np.zeros(3))], r"batch 1 \(sample 3 on\): images are"),
        ([(np.zeros((3, 4)), np.zeros(2))], r"batch 0 \(sample 0 on\): images have shape"),
        ([np.zeros((3, 4))], "batch 0: found a ndarray"),
        (Endless([np.zeros(4), np.zeros(5)], [0, 1]), "sample 1: has shapes"),
    ],
)
def test_what_is_no_data_is_refused(data, said):
    with pytest.raises(ff.DataError, match=said):
        as_dataset(data)


@pytest.mark.parametrize("part", ["val", "test"])
def test_images_of_a_split_need_labels(part, samples):
    part_name = {"val": "validation", "test": "test"}[part]
    with pytest.raises(ff.DataError, match=f"{part_name} labels are missing"):
        ff.Dataset.from_arrays(*samples, **{f"x_{part}": samples[0]})


def test_numbers_that_float32_does_not_hold_are_warned_of(samples):
    x, y = samples
    assert "subtract that offset" in as_dataset((x.double() * 1e-9 + 1e6, y)).warning
    assert load_dataset("digits").warning is None


def test_a_torch_dataset_without_a_length_is_named():
    class Endless(torch.utils.data.Dataset):
        def __getitem__(self, number):
            raise AssertionError("never asked")

    with pytest.raises(DataError, match="found a Endless without __len__, allowed a torch Dataset that knows"):
        as_dataset(Endless())
