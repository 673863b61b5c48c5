"""What the tests share: a small data set of real digits, and small configurations."""

from __future__ import annotations

import functools
import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported; of the processes that tests start as well

import pytest
import torch
from safetensors.torch import save_file

import ffstream as ff
from ffstream import probe, session
from ffstream.config import Config
from ffstream.data import load_dataset


@pytest.fixture(scope="session")
def digits():
    return load_dataset("digits")


@pytest.fixture(scope="session")
def small_data(tmp_path_factory, digits):
    """A file of 300 training and 100 test digits."""
    path = tmp_path_factory.mktemp("data") / "small.safetensors"
    save_file(
        {
            "train.images": digits.train.images[:300].clone(),
            "train.labels": digits.train.labels[:300].clone(),
            "test.images": digits.test.images[:100].clone(),
            "test.labels": digits.test.labels[:100].clone(),
        },
        path,
    )
    return path


@pytest.fixture
def small_config(small_data):
    """Three layers of 24 units, three epochs, four shards: everything a large run has, in a tenth of a second."""

    def make(recipe="inject", **settings):
        base = {
            "data": str(small_data),
            "layers": 3,
            "width": 24,
            "epochs": 3,
            "batch": 32,
            "device": "cpu",
            "precision": "fp32",
            "cache.shard_samples": 80,
        }
        return ff.Config(recipe=recipe).override(base | {key.replace("__", "."): v for key, v in settings.items()})

    return make


@pytest.fixture(autouse=True)
def _one_thread():
    """In every test, whichever ran before: tests run side by side, and two processes of two threads each on two cores
    slow each other many times.
    """
    torch.set_num_threads(1)


@functools.cache
def _rates_once(precision, device, folder):
    return probe.measure_rates(Config(precision=precision), device, folder)


@pytest.fixture(autouse=True)
def _rates_are_measured_once(monkeypatch, tmp_path_factory):
    """The machine's rates are the same in every test, and take seconds to measure."""
    folder = tmp_path_factory.getbasetemp()
    monkeypatch.setattr(
        session, "measure_rates", lambda config, device, _: _rates_once(config.precision, device, folder)
    )
