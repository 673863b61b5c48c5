"""Randomness as a pure function of (seed, layer, epoch, purpose).

No global generator is read or written anywhere in the package, so that resuming needs only the position of a run and
no saved state of a generator.
"""

from __future__ import annotations

import hashlib

import torch


def derive_seed(seed: int, layer: int, epoch: int, purpose: str) -> int:
    """A 63-bit seed for one purpose of one epoch of one layer."""
    text = f"{seed}/{layer}/{epoch}/{purpose}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def generator(seed: int, layer: int, epoch: int, purpose: str, device: str | torch.device = "cpu") -> torch.Generator:
    """A fresh generator on `device`, seeded by `derive_seed`."""
    made = torch.Generator(device=device)
    made.manual_seed(derive_seed(seed, layer, epoch, purpose))
    return made
