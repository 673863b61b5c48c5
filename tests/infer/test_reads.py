"""What layers hand on where they name what they read, beside the same network in torch's own functions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

import ffstream as ff

NETS = {
    "dense": "dense24 dense24 dense24(reads=below+1,join=sum) dense20(reads=-2+image)",
    "residual": "conv6 conv6 conv6(reads=below+1,join=sum) conv4(reads=below+image+1) dense20(reads=below+2)",
    "of unlike places": "conv6 pool conv4(reads=image) conv6(kernel=5,reads=image+below) pool dense20(reads=below+1+2)",
    "fields": "local4(field=3) local4(field=3,reads=image+below) conv6(reads=below+1,join=sum) dense9(reads=1)",
    "separable": "conv6 conv6(groups=6,reads=1) conv6(kernel=1) conv6(reads=below+1,join=sum)",
}


@pytest.fixture(scope="module", params=[(8, 8), (3, 8, 8), (8, 8, 3)], ids=str)
def data(request, tmp_path_factory):
    """Sixty images of noise: what is learnt of them does not matter here."""
    generator, path = torch.Generator().manual_seed(0), tmp_path_factory.mktemp("data") / "noise.safetensors"
    tensors = {}
    for split in ("train", "test"):
        tensors[f"{split}.images"] = torch.rand(60, *request.param, generator=generator)
        tensors[f"{split}.labels"] = torch.arange(60) % 10
    save_file(tensors, path)
    return path


def as_planes(images):
    """(n, channels, height, width)"""
    if images.dim() == 3:
        return images.unsqueeze(1)
    return images if images.shape[1] == 3 else images.permute(0, 3, 1, 2)


def flat(value):
    """As rows lie: all channels of a place side by side."""
    return value.permute(0, 2, 3, 1).flatten(1) if value.dim() == 4 else value


def of_length(rows):
    return rows / (rows.square().mean(dim=1, keepdim=True).sqrt() + 1e-5)  # which none of these images is near to


def pass_plainly(line, weights, read):
    """What a layer hands on of what it reads, (n, channels, height, width) or (n, features)."""
    options = dict(line.options)
    if line.kind == "linear":
        return of_length(torch.relu(flat(read) @ weights["weight"].t() + weights["bias"]))
    mean, spread = weights["handed_mean"], weights["handed_spread"]
    if line.kind == "conv":
        kernel = options.get("kernel", 3)
        made = F.conv2d(read, weights["weight"], weights["bias"], 1, kernel // 2, 1, options.get("groups", 1))
        made = F.max_pool2d(torch.relu(made), options.get("pool", 1))
        return (made - mean.view(1, -1, 1, 1)) / (spread.view(1, -1, 1, 1) + 1e-5)
    height, width = read.shape[2:]
    squares = F.unfold(read, options["field"], padding=options["field"] // 2).unflatten(1, (read.shape[1], -1))
    squares = squares.unflatten(2, (options["field"], options["field"])).permute(0, 4, 3, 2, 1).flatten(2)
    weight = weights["weight"].unflatten(0, (height * width, line.width))
    made = torch.relu(torch.einsum("npf,puf->npu", squares, weight).flatten(1) + weights["bias"])
    return ((made - mean) / spread).view(-1, height, width, line.width).permute(0, 3, 1, 2)


def join_plainly(values, rows, *, is_sum):
    """Several planes side by side or added, where they have the same places; else the rows, one after the other."""
    if is_sum:
        return sum(values[1:], values[0])
    if len({value.shape[2:] if value.dim() == 4 else value for value in values}) == 1:
        return torch.cat(values, dim=1)
    return torch.cat(rows, dim=1)


@pytest.mark.parametrize("net", NETS)
def test_what_is_handed_on_is_what_the_same_network_in_plain_torch_hands_on(net, data, tmp_path):
    config = ff.Config(recipe="mono", epochs=1, batch=30, device="cpu", precision="fp32", data=str(data))
    settings = {"network.layers": NETS[net], "cache.dtype": "fp32", "standardise": "none"}
    run = ff.train(config.override(settings), tmp_path / "run")
    images = ff.load_dataset(str(data)).test.images
    run.export(tmp_path / "model.safetensors")
    found = ff.load(tmp_path / "model.safetensors").features(images)
    rows = [of_length(images.flatten(1))]
    outputs = [as_planes(rows[0].view(images.shape))]
    for number, line in enumerate(run.config.list_layers(), 1):
        weights, reads = load_file(run.path / f"layers/{number - 1:03d}/weights.safetensors"), line.find_reads(number)
        of_sources = [[each[source] for source in reads.sources] for each in (outputs, rows)]
        read = join_plainly(*of_sources, is_sum=reads.is_sum)
        if line.kind == "linear" and len(reads.sources) == 1:
            read = of_sources[1][0]
        outputs.append(pass_plainly(line, weights, read))
        rows.append(flat(outputs[-1]))
        torch.testing.assert_close(found[number - 1], rows[-1], rtol=1e-3, atol=1e-3)
