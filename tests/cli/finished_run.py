"""The options of a small run."""

from __future__ import annotations

SMALL = ["--layers", "2", "--width", "32", "--epochs", "4", "--device", "cpu"]
