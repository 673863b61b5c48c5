"""Small data sets of which a held-out split is compared with the training split."""

from __future__ import annotations

import numpy as np
import torch

from ffstream.data import Split
from ffstream.data.class_means import ClassMeans
from ffstream.data.dataset import check_dataset


def table(num_rows, seed, num_features=16, gap=1.0, num_classes=2):
    """Rows of standard deviation 1 in all features, of which some tell the classes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, num_classes, (num_rows,), generator=generator)
    centres = torch.randn(num_classes, num_features, generator=torch.Generator().manual_seed(11)) * gap
    rows = torch.randn(num_rows, num_features, generator=generator) + centres[labels]
    return rows / (1 + gap**2) ** 0.5, labels


def colours(num_images, seed):
    """Images of bytes (n, 6, 6, 3), of which one class is reddish and the other bluish."""
    generator = np.random.default_rng(seed)
    labels = np.arange(num_images) % 2
    images = generator.normal(110, 20, (num_images, 6, 6, 3))
    images[labels == 0, ..., 0] += 60
    images[labels == 1, ..., 2] += 60
    return torch.from_numpy(images.clip(0, 255).astype(np.uint8)), torch.from_numpy(labels)


def find_other_classes(images, labels, trained, trained_labels):
    return ClassMeans.of(trained, trained_labels).find_other(images, labels)


def said_of(train, test):
    return check_dataset("mine", Split(*train), Split(*test)).warning
