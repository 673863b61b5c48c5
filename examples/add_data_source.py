"""Add a data source: points in two interleaved spirals."""

from pathlib import Path

import torch

import ffstream as ff


def spirals(_data_root: Path) -> ff.Dataset:
    """1200 training and 400 test points of 2 features, 2 classes. A source that reads files finds them in data_root."""
    generator = torch.Generator().manual_seed(0)
    angle = torch.rand(1600, generator=generator) * 4 + 0.5
    label = torch.randint(0, 2, (1600,), generator=generator)
    turned = angle + label * torch.pi
    points = torch.stack([angle * turned.cos(), angle * turned.sin()], dim=1)
    split = [ff.Split(points[part], label[part]) for part in (slice(1200), slice(1200, None))]
    return ff.Dataset("spirals", train=split[0], test=split[1], class_names=("left", "right"))


ff.SOURCES.register("spirals", spirals)

if __name__ == "__main__":
    config = ff.Config(data="spirals", layers=3, width=100, epochs=5).override({"negatives.per_step": 1})
    run = ff.train(config, "runs/add-data-source", resume=True)
    print(f"test error: {100 * run.evaluate().error:.2f} %")
