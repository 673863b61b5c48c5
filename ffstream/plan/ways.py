"""The sizes of shards and micro-batches that are tried for a run, the best first."""

from __future__ import annotations

from ffstream.cache import DTYPES
from ffstream.data.shape import DataShape
from ffstream.errors import ConfigError
from ffstream.field.labels import LabelMethod
from ffstream.field.layers import LAYER_KINDS
from ffstream.field.network import compute_layer_specs, read_lines
from ffstream.settings.config import Config

_SHARD_SAMPLES = 4096  # samples per shard, if the budget has room for it
# Of a shard of rows with places, which are long: up to four shards are staged at once.
_MOST_BYTES, _LEAST_BYTES = 64 << 20, 1 << 20
_GOOD_SHARD = 4  # batches per shard; with fewer, each batch always holds nearly the same samples
_SMALLEST_MICRO_BATCH = 32
_SMALLEST_SHARD = 128  # samples; each shard is a separate read, and a separate file


def list_ways(config: Config, data: DataShape, method: LabelMethod) -> list[Config]:
    """Configurations with sizes of shards and micro-batches to try, the best first; sizes that are given are kept.

    Large shards are shuffled well. Micro-batches learn what the whole batch would, but need room to sum gradients; with
    them, a batch may consist of several shards, which are staged one after another.
    """
    assert isinstance(config.batch, int), "the batch is decided before shards and parts of it are"
    sizes, parts = [config.cache.shard_samples], [config.micro_batch]
    least, most = _limit_shards(config, data, method)
    if config.objective.similarity != "none":
        _check_uncut(config, config.batch)
        parts = [config.batch]
    if sizes == ["auto"]:
        num_samples = max(data.num_samples.values())
        halves = list_halves(max(most, config.batch), config.batch)
        sizes = [size for size in halves if size < num_samples or size == halves[0]]
    if parts == ["auto"]:
        parts = [*list_halves(config.batch, _SMALLEST_MICRO_BATCH)]
    roomy = [size for size in sizes if isinstance(size, int) and size >= _GOOD_SHARD * config.batch] or sizes[:1]
    pairs = [(size, parts[0]) for size in roomy]
    pairs += [(roomy[-1], part) for part in parts[1:]]
    pairs += [(size, parts[0]) for size in sizes if size not in roomy]
    smaller = [(max(part, least), part) for part in parts if isinstance(part, int)]
    smaller = [(size, part) for size, part in smaller if 2 * size <= config.batch]
    pairs += smaller if config.cache.shard_samples == "auto" and smaller else [(sizes[-1], parts[-1])]
    return [config.override({"cache.shard_samples": size, "micro_batch": part}) for size, part in dict.fromkeys(pairs)]


def _limit_shards(config: Config, data: DataShape, method: LabelMethod) -> tuple[int, int]:
    """The fewest and the most samples of a shard; of rows with places, as many as are shuffled well are enough."""
    if not any(LAYER_KINDS[line.kind].has_places for line in read_lines(config)):
        return _SMALLEST_SHARD, _SHARD_SAMPLES
    assert isinstance(config.batch, int), "the batch is decided before shards"
    specs = compute_layer_specs(config, data.num_features, data.image_shape, method.reading.num_groups)
    number_bytes = DTYPES[config.cache.dtype].itemsize if config.cache.dtype in DTYPES else 1
    num_rows = method.rows.num_training_rows
    sample_bytes = max(spec.row.num_features for spec in specs) * num_rows * number_bytes
    least, most = (1 << max(size // sample_bytes, 1).bit_length() - 1 for size in (_LEAST_BYTES, _MOST_BYTES))
    return min(least, _SMALLEST_SHARD), min(max(most, _GOOD_SHARD * config.batch), _SHARD_SAMPLES)


def _check_uncut(config: Config, batch: int) -> None:
    """Raise ConfigError for micro-batches: a similarity compares groups of samples, which they would split."""
    if isinstance(config.micro_batch, int) and config.micro_batch < batch:
        raise ConfigError(
            f"config micro_batch: found {config.micro_batch}, allowed {batch} (batch) or more with "
            f"objective.similarity={config.objective.similarity}, which compares the samples of a batch"
        )


def list_halves(most: int, least: int) -> list[int]:
    """`most`, and half of it again and again, not below `least`."""
    found = [most]
    while found[-1] // 2 >= least:
        found.append(found[-1] // 2)
    return found
