"""Files in place of torchvision's: no pickle is run, and only what fits is read."""

from __future__ import annotations

import contextlib
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ffstream.data import load_dataset
from ffstream.data.pickled import Call, parse_pickle
from ffstream.errors import DataError
from tests.data.hostile_files import MIB, peak_bytes
from tests.data.torchvision_sets import CIFAR_META, write_cifar, write_idx, write_idx_set

pytestmark = pytest.mark.usefixtures("nothing_blocks", "nothing_is_started")


@pytest.mark.parametrize("change", ["cut", "appended", "wide", "axes", "type", "fifo", "device"])
@pytest.mark.parametrize("which", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
def test_an_idx_file_that_does_not_fit_its_head_is_refused_before_it_is_read(change, which, tmp_path):
    write_idx_set(tmp_path / "MNIST" / "raw")
    path = tmp_path / "MNIST" / "raw" / which
    data = path.read_bytes()
    altered = {
        "cut": data[:-1],
        "appended": data + b"\0",
        "wide": data[:4] + b"\x7f" + data[5:],
        "axes": data[:3] + b"\2" + data[4:],
        "type": data[:2] + b"\x0d" + data[3:],
    }
    if change in altered:
        path.write_bytes(altered[change])
    else:
        path.unlink()
        os.mkfifo(path) if change == "fifo" else path.symlink_to("/dev/zero")
    said = []

    def work():
        with pytest.raises(DataError) as caught:
            load_dataset("mnist", str(tmp_path))
        said.append(str(caught.value))

    assert peak_bytes(work) < 8 * MIB
    assert which in said[0]
    assert "--download" in said[0]
    assert "\n" not in said[0]


@pytest.mark.parametrize("name", ["data_batch_1", "data_batch_5", "test_batch", "batches.meta"])
def test_only_published_bytes_are_read(name, tmp_path, monkeypatch):
    folder = tmp_path / "cifar-10-batches-py"
    write_cifar(folder, monkeypatch)
    load_dataset("cifar10", str(tmp_path))
    (folder / name).write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    with pytest.raises(DataError, match=f"{name} is not the file that was published"):
        load_dataset("cifar10", str(tmp_path))
    assert not (tmp_path / "sprung").exists()


@settings(max_examples=50, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text() | st.integers(), inner),
        max_leaves=50,
    )
)
def test_plain_data_are_parsed_as_they_would_be_unpickled(value):
    assert parse_pickle(pickle.dumps(value, protocol=2)) == value
    assert repr(parse_pickle(pickle.dumps([value, value, value], protocol=2))) == repr([value] * 3)


class Trap:
    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return Path.touch, (self.place,)


def test_nothing_that_a_pickle_names_is_called(tmp_path):
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with contextlib.suppress(ValueError):
            parse_pickle(pickle.dumps({"data": Trap(str(tmp_path / "sprung"))}, protocol))
    assert isinstance(parse_pickle(pickle.dumps([Trap("sprung")], protocol=2))[0], Call)
    assert not (tmp_path / "sprung").exists()


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10_000), st.binary(min_size=1, max_size=3))
def test_a_damaged_pickle_is_parsed_or_refused(place, content):
    whole = CIFAR_META[: place % len(CIFAR_META)]
    with contextlib.suppress(ValueError):
        parse_pickle(whole + content + CIFAR_META[len(whole) + len(content) :])


def test_what_older_versions_of_torchvision_left_is_not_unpickled(tmp_path):
    write_idx_set(tmp_path / "MNIST" / "raw")
    wanted = load_dataset("mnist", str(tmp_path)).digest()
    (tmp_path / "MNIST" / "processed").mkdir()
    for name in ("training.pt", "test.pt"):
        torch.save((torch.zeros(3, 28, 28), torch.arange(3)), tmp_path / "MNIST" / "processed" / name)
    assert load_dataset("mnist", str(tmp_path)).digest() == wanted


def test_idx_files_of_no_image_are_refused(tmp_path):
    write_idx_set(tmp_path / "MNIST" / "raw")
    write_idx(tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte", np.zeros((0, 28, 28)))
    with pytest.raises(DataError, match="data mnist: train images have shape"):
        load_dataset("mnist", str(tmp_path))
