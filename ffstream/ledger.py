"""Counting the bytes of live tensors while code runs on the meta device, where a tensor has a shape and no memory.

What the code would need is known before it is run: the same lines run on paper first.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

PAPER = torch.device("meta")


class Ledger(TorchDispatchMode):
    """While it is active, every storage that is made is entered, with its bytes, until it is freed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._entries: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak_bytes = 0

    @property
    def live_bytes(self) -> int:
        """Of the storages that are alive now."""
        self._strike_out()
        return sum(num_bytes for _, num_bytes in self._entries.values())

    def start_peak(self) -> None:
        """Count the peak from here on."""
        self.peak_bytes = self.live_bytes

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operator, enter what it made."""
        if func.overloadpacket in _WITHOUT_META:
            return None
        known = {storage._cdata for storage in _storages((args, kwargs))}
        found = func(*args, **(kwargs or {}))
        for storage in _storages(found):
            if storage._cdata not in known:  # neither a view nor written to
                self._entries[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        return found

    def _strike_out(self) -> None:
        for key in [key for key, (reference, _) in self._entries.items() if reference.expired()]:
            del self._entries[key]


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


# In place, on memory that is there: nothing to enter, and torch has no version of it without memory.
_WITHOUT_META = (torch.ops.aten._fused_sgd_,)
