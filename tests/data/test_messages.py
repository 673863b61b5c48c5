"""Messages that name what is wrong with an address, a name, labels, a limit on threads, or a folder for a run."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest
import torch

import ffstream as ff
from ffstream.data import load_dataset
from ffstream.device.memory import naming_lack_of_memory
from ffstream.ground import files
from ffstream.run import claim


@pytest.mark.parametrize("name", ["MNIST", "DIGITS", "Digits", "Cifar10", "FASHION-MNIST"])
def test_a_known_data_set_in_capitals_is_what_was_meant(name):
    with pytest.raises(ff.DataError, match=f"did you mean '{name.lower()}'"):
        load_dataset(name)


@pytest.mark.parametrize("address", ["https://example.org/mnist.npz", "http://example.org/", "s3://bucket/data"])
def test_an_address_is_named(address):
    with pytest.raises(ff.DataError, match="is an address, allowed what lies on this machine"):
        load_dataset(address)


LABELS = {
    "texts": [np.array(["cat", "dog"] * 10), np.array([b"cat", b"dog"] * 10)],
    "objects": [np.array(["cat", None] * 10, dtype=object)],
    "dates": [np.array(["2020-01-01", "2021-01-01"] * 10, dtype="datetime64[D]")],
    "another byte order": [np.arange(20, dtype=">c16")],
}


@pytest.mark.parametrize("words", LABELS)
def test_labels_of_other_kinds_are_to_be_numbered(words, tmp_path):
    for labels in LABELS[words]:
        np.savez(tmp_path / "d.npz", x_train=np.random.default_rng(0).random((20, 4)), y_train=labels)
        with pytest.raises(ff.DataError, match=f"y_train: holds .*{words} .*; number the classes from 0"):
            load_dataset(str(tmp_path / "d.npz"))


@pytest.mark.parametrize("words", ["can't start new thread", "Resource temporarily unavailable"])
def test_a_limit_on_threads_is_no_lack_of_memory(words):
    with pytest.raises(ff.DeviceError, match="ulimit -u") as error, naming_lack_of_memory(torch.device("cpu"), "free"):
        raise RuntimeError(words)
    assert "out of memory" not in str(error.value)


def test_a_folder_in_which_no_run_could_be_started_is_not_to_be_resumed(tmp_path, monkeypatch):
    def refuse(*_args, **_options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(claim, "make_folder", refuse)
    with pytest.raises(ff.StorageError, match="there is no run yet") as error:
        ff.train(ff.Config(data="digits", layers=1, width=8, epochs=1), tmp_path / "run")
    assert files.GO_ON not in str(error.value)
