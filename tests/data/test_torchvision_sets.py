"""Data sets of torchvision: read as torchvision reads them, and fetched only when that is asked for."""

from __future__ import annotations

import os
import shutil
import urllib.error
from pathlib import Path

import pytest
import torch
import torchvision.datasets

import ffstream as ff
from ffstream.data import load_dataset
from tests.data.torchvision_sets import write_cifar, write_idx_set


def test_without_network_and_files_the_error_says_which_files_go_where(tmp_path, monkeypatch):
    def refuse(*_args, **_options):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", refuse)
    with pytest.raises(ff.DataError) as caught:
        load_dataset("mnist", str(tmp_path), download=True)
    for expected in ("train-images-idx3-ubyte.gz", "MNIST/raw", str(tmp_path), "--data digits"):
        assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


IDX_SETS = [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST"), ("kmnist", "KMNIST")]


@pytest.mark.parametrize(("name", "class_name"), [*IDX_SETS, ("cifar10", "CIFAR10")])
def test_torchvision_sets_are_read_as_torchvision_reads_them(name, class_name, tmp_path, monkeypatch):
    if name == "cifar10":
        write_cifar(tmp_path / "cifar-10-batches-py", monkeypatch)
    else:
        write_idx_set(tmp_path / class_name / "raw")
    before = sorted(tmp_path.rglob("*"))
    dataset = load_dataset(name, str(tmp_path))
    for split, is_train in ((dataset.train, True), (dataset.test, False)):
        wanted = getattr(torchvision.datasets, class_name)(str(tmp_path), train=is_train)
        assert torch.equal(split.images, torch.as_tensor(wanted.data))
        assert torch.equal(split.labels, torch.as_tensor(wanted.targets))
        assert dataset.class_names == tuple(wanted.classes)
    assert dataset.name == name
    assert split.images.dtype == torch.uint8
    assert split.images.is_contiguous()
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "kmnist", "cifar10"])
def test_nothing_is_fetched_or_made_unless_download_says_so(name, tmp_path, monkeypatch):
    fetched = []
    for module in ("mnist", "cifar"):
        monkeypatch.setattr(
            f"torchvision.datasets.{module}.download_and_extract_archive", lambda *given, **_: fetched.append(given)
        )
    with pytest.raises(ff.DataError, match=f"data {name}: .*add --download .*--data-root") as caught:
        load_dataset(name, str(tmp_path / "root"))
    assert "\n" not in str(caught.value)
    assert not fetched
    assert not (tmp_path / "root").exists()
    with pytest.raises(ff.DataError):  # what should have been fetched is not there either
        load_dataset(name, str(tmp_path / "root"), download=True)
    assert fetched


def test_download_fetches_what_is_missing(tmp_path, monkeypatch):
    def unpack(_url, download_root, **_options):
        write_idx_set(Path(download_root))

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", unpack)
    fetched = load_dataset("kmnist", str(tmp_path), download=True)
    assert fetched.digest() == load_dataset("kmnist", str(tmp_path)).digest()


@pytest.mark.skipif("FFSTREAM_TEST_MNIST" not in os.environ, reason="FFSTREAM_TEST_MNIST names no MNIST archives")
def test_mnist_from_its_official_archives_trains(tmp_path):
    source = Path(os.environ["FFSTREAM_TEST_MNIST"]) / "MNIST" / "raw"
    assert source.is_dir(), "FFSTREAM_TEST_MNIST names a folder that holds MNIST/raw"
    assert len(list(source.glob("*-ubyte.gz"))) == 4, "the four archives lie in MNIST/raw"
    shutil.copytree(source, tmp_path / "MNIST" / "raw", copy_function=shutil.copyfile)
    dataset = load_dataset("mnist", str(tmp_path), download=True)
    assert dataset.train.images.shape == (60000, 28, 28)
    assert len(dataset.test) == 10000
    assert load_dataset("mnist", str(tmp_path)).digest() == dataset.digest()
    config = ff.Config(data="mnist", data_root=str(tmp_path), layers=2, width=128, epochs=1, device="cpu")
    assert ff.train(config, tmp_path / "run").evaluate().error < 0.12
