"""Arrays of small data sets, and files of them."""

from __future__ import annotations

import numpy as np

CLASSES = np.arange(30) % 3


def arrays(num_samples=30, **changes):
    generator = np.random.default_rng(0)
    made = {
        "train.images": generator.integers(0, 256, (num_samples, 4, 4), dtype=np.uint8),
        "train.labels": np.arange(num_samples) % 3,
        "test.images": generator.integers(0, 256, (6, 4, 4), dtype=np.uint8),
        "test.labels": np.arange(6) % 3,
    }
    return {key: value for key, value in (made | changes).items() if value is not None}


def save(path, content):
    np.savez(path, **content)
    return str(path)


def labelled(tmp_path, labels, **others):
    images = np.random.default_rng(0).integers(0, 256, (30, 4, 4), dtype=np.uint8)
    return save(tmp_path / "d.npz", {"x_train": images, "y_train": labels} | others)
