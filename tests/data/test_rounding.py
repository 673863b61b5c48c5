"""Differences that are lost where numbers of 64 bits are read as 32 are said, and nothing is said of others."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ffstream.data import SOURCES, Dataset, Scaling, Split, load_dataset
from ffstream.data.rounding import Rounding

LABELS = np.arange(300) % 2
ROWS = np.random.default_rng(0).random((300, 4))
TIMES = ROWS + np.array([0, 1, 0, 0]) * (1.7e9 + 30 * LABELS[:, None])


@pytest.mark.parametrize(("dtype", "is_said"), [("float64", True), ("int64", True), ("float32", False)])
@pytest.mark.parametrize("is_own", [False, True])
def test_times_in_seconds_are_named(dtype, is_said, is_own, tmp_path, monkeypatch):
    rows = (TIMES * (100 if dtype == "int64" else 1)).astype(dtype)
    np.savez(tmp_path / "d.npz", x_train=rows, y_train=LABELS)
    monkeypatch.setitem(SOURCES._parts, "own", lambda _: Dataset("own", Split(rows, LABELS), None, None))
    warning = load_dataset("own" if is_own else str(tmp_path / "d.npz")).warning
    assert (warning is not None) == is_said
    assert not is_said or "feature 1 vary by" in warning


def test_of_numbers_that_are_small_nothing_is_said(tmp_path):
    for rows in (ROWS, ROWS * 1e6, ROWS + 1000, np.round(ROWS * 100).astype(int)):
        np.savez(tmp_path / "d.npz", x_train=rows, y_train=LABELS)
        assert load_dataset(str(tmp_path / "d.npz")).warning is None


@pytest.mark.parametrize("is_own", [False, True])
@pytest.mark.parametrize(("factor", "is_said"), [(1e-50, True), (1e-44, True), (1e-36, False)])
def test_numbers_that_are_too_small_for_32_bits_are_not_said_to_have_an_offset(
    factor, is_said, is_own, tmp_path, monkeypatch
):
    rows = TIMES * np.array([1, 1, 1, factor])
    np.savez(tmp_path / "d.npz", x_train=rows, y_train=LABELS)
    monkeypatch.setitem(SOURCES._parts, "own", lambda _: Dataset("own", Split(rows, LABELS), None, None))
    warning = load_dataset("own" if is_own else str(tmp_path / "d.npz")).warning
    assert "feature 1 vary by" in warning
    assert ("feature 3 are" in warning) == is_said
    assert not is_said or "32 bits take for 0, or nearly so; bring them to larger units" in warning


def test_images_that_are_all_too_small_for_32_bits_are_not_divided_by_zero(monkeypatch):
    rows = ROWS * 1e-50
    monkeypatch.setitem(SOURCES._parts, "own", lambda _: Dataset("own", Split(rows, LABELS), None, None))
    dataset = load_dataset("own")
    assert bool((Scaling(dataset.scale()).apply(dataset.train.images) == 0).all())


def test_parts_that_end_within_a_row_are_looked_at_alike():
    values = torch.from_numpy(TIMES).flatten()
    whole, parts = Rounding(4), Rounding(4)
    whole.add(0, values)
    for start in range(0, len(values), 7):
        parts.add(start, values[start : start + 7])
    assert whole.describe() == parts.describe() is not None


@pytest.mark.parametrize("shape", [(60, 12), (60, 3, 4), (60, 2, 3, 2)])
def test_arrays_in_fortran_order_are_looked_at_too(shape, tmp_path):
    images = np.random.default_rng(0).random((60, 12))
    images[:, 7] += 1.7e9
    for order in "CF":
        arrays = {"x_train": np.asarray(images.reshape(shape), order=order), "y_train": np.arange(60) % 3}
        np.savez(tmp_path / f"{order}.npz", **arrays)
    found = [load_dataset(str(tmp_path / f"{order}.npz")) for order in "CF"]
    assert "feature 7 vary by" in found[0].warning
    assert found[0].warning == found[1].warning
    assert torch.equal(found[0].train.images, found[1].train.images)
