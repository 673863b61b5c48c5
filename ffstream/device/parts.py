"""How much of a step is computed at once on a kind of device."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PartSizes:
    """Sizes of the parts in which a step is computed.

    Small parts stay in the caches of a CPU's cores, and need less memory. On an accelerator, every part costs the
    launch of its operators, which takes as long as the work of small parts.
    """

    dropped_rows: int  # whose dropout mask exists at once
    product_units: int  # that are multiplied at once
    gradient_units: int  # that have a gradient in float32 at once
    # Features of the input that have their gradient at once, or a quarter of them if that is more, as every group of
    # features takes a pass over all groups of units.
    gradient_features: int
    # Rows in one product of a pass through a frozen layer. The last bit of a product may depend on it, and a cache that
    # is computed again must equal the lost one.
    chunk_rows: int
    coded_rows: int  # that are coded in 8 bits at once, so that so many scales exist at a time
    # Rows of a parameter whose state in bfloat16 is in float32 at once; a multiple of those that noise is drawn for.
    wide_rows: int
    # Numbers of a local layer's squares that are copied side by side for a product whose operands are not in float32:
    # oneDNN would copy them all, which no plan knows. 0: they are read where they overlap, as cuBLAS can.
    square_values: int


# Fewer units make narrow products, which are slow: on a CPU with AMX, a step of 1000 units takes 20 % longer with 256
# for both, and no longer with these. The activities of a chunk under each label stay in a core's own cache.
_ON_CPU = PartSizes(
    dropped_rows=128,
    product_units=1024,
    gradient_units=512,
    gradient_features=1024,
    chunk_rows=1024,
    coded_rows=1024,
    wide_rows=128,
    square_values=1 << 20,
)
# Not measured on a GPU yet: chosen by counting. With recipe inject, 4096 units and batches of 4096 samples, a step has
# 216 operators, where it has 444 in a CPU's parts, for 8 % more memory. Twice these sizes save 36 for another 13 %.
# A state in bfloat16 adds 132 (of a CPU's parts, 564) for 12 MiB. Passes are short beside training: chunks of 2048 rows
# halve their operators, and take 10 MiB more at 1000 units, where chunks of 4096 take 29.
_ON_ACCELERATOR = PartSizes(
    dropped_rows=1024,
    product_units=2048,
    gradient_units=1024,
    gradient_features=2048,
    chunk_rows=2048,
    coded_rows=16384,
    wide_rows=512,
    square_values=0,
)


def part_sizes(device_type: str) -> PartSizes:
    """The sizes for a kind of device; they are the same on every machine, as they may decide bits."""
    return _ON_CPU if device_type == "cpu" else _ON_ACCELERATOR
