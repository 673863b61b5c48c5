"""Negatives written ahead of training: hybrid images, in one file with the images that they are contrasted with.

Positives and negatives may be made at different times (Hinton 2022, section 8). If a run is given too, its layers
choose each negative: of several hybrids drawn, the one with the most goodness.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from warnings import warn

import torch
from torch import Tensor

from ffstream.data import SOURCES, Dataset, find_path, load_dataset, sources
from ffstream.data.array_source import describe_in_metadata
from ffstream.data.hybrids import check_plane, draw_with_others, make_hybrids
from ffstream.device.environment import plain_torch
from ffstream.device.memory import is_out_of_memory
from ffstream.errors import ConfigError, DataError
from ffstream.ground import seeding
from ffstream.ground.files import expand_home, to_absolute
from ffstream.ground.units import format_bytes
from ffstream.infer.model import FFNetwork, load_network
from ffstream.settings.limits import check_fields
from ffstream.settings.sections import NegativesConfig
from ffstream.storage.earlier_output import DIGEST, digest_tensors_and_text, is_earlier_tensors, read_metadata
from ffstream.storage.outputs import Output
from ffstream.storage.tensor_file import save_tensors

_CHUNK_IMAGES = 4096  # hybrids that exist at once besides those that are kept
_MOST_BYTES = 1 << 62  # from this size on, torch's error does not say that memory is missing
_FORMAT = "ffstream-negatives-1"  # in the metadata of a file of negatives


@plain_torch()
def write_negatives(
    path: str | Path,
    data: str,
    *,
    data_root: str = "",
    per_sample: int = 8,
    blurs: int = 6,
    seed: int = 0,
    run: str | Path | None = None,
    draws: int = 4,
    force: bool = False,
    skips_bad: bool = False,
    on_warning: Callable[[str], None] = warn,
) -> tuple[int, ...]:
    """Write the arrays of a data set, and `per_sample` negatives for each training image, to a .safetensors file.

    `data` is as in a Config. `blurs` is how often the random bits that become a mask are blurred. `run` is a run, or an
    exported file, of layers that learnt without labels; each negative is then the one of `draws` hybrids whose
    goodness, summed over these layers, is the largest. The file replaces negatives of the same data and options, and
    any other file only with `force`. With `skips_bad`, files of a folder that cannot be read are left out. `on_warning`
    is told what `train` would warn of. Returns the shape of the negatives, (n, per_sample, *image shape). Raises
    DataError for data that hybrids cannot be made of, ConfigError, RunError, OutputError, StorageError.
    """
    path = Path(path)
    if path.suffix.lower() != ".safetensors":
        raise DataError(f"file {path}: allowed a name that ends in .safetensors, as ffstream train reads it")
    check_fields(NegativesConfig(per_sample=per_sample, blurs=blurs), prefix="negatives.")
    if not 1 <= draws <= _CHUNK_IMAGES:
        raise ConfigError(f"draws: found {draws}, allowed an integer >= 1 and <= {_CHUNK_IMAGES}")
    inputs = [*list_data_files(data, data_root), *([Path(run)] if run is not None else [])]
    output = Output(path, inputs, force=force, is_own=lambda file: read_metadata(file).get("format") == _FORMAT)
    dataset = load_dataset(data, data_root, skips_bad=skips_bad, download=True)
    if dataset.warning is not None:
        on_warning(dataset.warning)
    options: dict[str, int | str] = {
        "per_sample": per_sample,
        "blurs": blurs,
        "seed": seed,
        "draws": draws if run is not None else 0,
    }
    options |= {"run": str(to_absolute(Path(run)).resolve())} if run is not None else {}
    metadata = {"format": _FORMAT, "data": dataset.digest(), "options": json.dumps(options)}
    output.is_own = lambda file: is_earlier_tensors(file, metadata)
    output.check()
    network = _load_judge(run, dataset) if run is not None else None
    try:
        negatives = draw_negatives(dataset.train.images[:], per_sample, blurs, seed, network, draws)
    except (RuntimeError, MemoryError) as error:
        num_bytes = per_sample * dataset.train.images.nbytes
        if not is_out_of_memory(error) and num_bytes < _MOST_BYTES:
            raise
        size = format_bytes(num_bytes)
        raise DataError(f"data {data}: out of memory for {size} of negatives; use a smaller --per-sample") from error
    arrays = {
        "train.images": dataset.train.images[:],
        "train.labels": dataset.train.labels,
        "train.negatives": negatives,
    }
    for name, split in (("validation", dataset.validation), ("test", dataset.test)):
        if split is not None:
            arrays |= {f"{name}.images": split.images[:], f"{name}.labels": split.labels}
    tensors = {name: tensor.contiguous() for name, tensor in arrays.items()}
    text = metadata | describe_in_metadata(dataset)
    with output.writing() as file:
        save_tensors(file, tensors, text | {DIGEST: digest_tensors_and_text(text, tensors)})
    return tuple(negatives.shape)


def list_data_files(data: str, data_root: str) -> list[Path]:
    """The files, and folders of files, that a data set is read from; `data` is as in a Config."""
    if data not in SOURCES:
        return [find_path(data, data_root)]
    root = Path(data_root) if data_root else sources.default_data_root()
    return [Path(sources.__file__).parent, *([expand_home(root)] if root is not None else [])]


@torch.no_grad()
def draw_negatives(
    images: Tensor, per_sample: int, num_blurs: int, seed: int, network: FFNetwork | None = None, num_draws: int = 1
) -> Tensor:
    """Hybrids of each image with other images, (n, *shape) -> (n, per_sample, *shape) in the same dtype.

    With a network, each is the one of `num_draws` hybrids that has the most goodness in it. Raises DataError if images
    have no plane.
    """
    plane, shape = check_plane(images.shape[1:]), images.shape[1:]
    num_drawn = per_sample * (num_draws if network is not None else 1)
    generator = seeding.generator(seed, 0, 0, "offline negatives")
    others = seeding.generator(seed, 0, 0, "offline negatives, others")
    kept = torch.empty(len(images), per_sample, *shape, dtype=images.dtype)
    step = max(1, _CHUNK_IMAGES // num_drawn)
    for start in range(0, len(images), step):
        part = slice(start, min(start + step, len(images)))
        index = draw_with_others(part, len(images), num_drawn, others)
        mixed = images[index.flatten()].view(*index.shape, -1)
        hybrids = make_hybrids(mixed[:, 0], mixed[:, 1:], plane, num_blurs, generator).flatten(0, 1)
        if network is not None:
            liked = torch.stack(network.goodness_by_layer(hybrids.view(-1, *shape))).sum(dim=0)
            best = liked.view(-1, num_draws).argmax(dim=1) + torch.arange(0, len(hybrids), num_draws)
            hybrids = hybrids[best]
        kept[part] = hybrids.view(-1, per_sample, *shape)
    return kept


def _load_judge(run: str | Path, dataset: Dataset) -> FFNetwork:
    network = load_network(run)
    if network.config.labels.method != "none":
        raise DataError(
            f"run {run}: its layers see labels (labels.method={network.config.labels.method}), allowed one that learnt "
            "without, such as --recipe unsupervised"
        )
    if network.image_shape != dataset.image_shape:
        raise DataError(
            f"data {dataset.name}: images have shape {dataset.image_shape}, allowed {network.image_shape}, what run "
            f"{run} was trained on"
        )
    return network
