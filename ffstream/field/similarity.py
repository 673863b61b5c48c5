"""Similarity terms: a layer's activities should point in one direction for each class, and differ between classes.

Goodness measures how much activity a layer has, but the next layer receives only the direction of the activities. A
term on the directions is added to the layer-local objective and needs nothing from other layers either (Nokland and
Eidnes 2019, section 2; for Forward-Forward, Hierarchical Contrastive Learning). It reads the label-free output.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ffstream.device.workspace import Buffer, Workspace
from ffstream.field.layers import Layer
from ffstream.ground.registry import Registry

# How many samples are compared with each other: larger groups cost more and teach no better.
GROUP_SAMPLES = 64
_TEMPERATURE = 0.1
_COMPARED, _GRADIENT = Buffer("compared", "activities"), Buffer("similarity", "activities")
_LEAST = 1e-12  # least squared length; shorter activities have no direction


class Similarity(Protocol):
    """A term on the cosines between the samples of each group."""

    def __call__(self, cosines: Tensor, alike: Tensor) -> tuple[Tensor, Tensor]:
        """The term of each sample (groups, n), and the gradient of their sum with respect to the cosines.

        The cosines and the gradient are (groups, n, n); the diagonal of the cosines has no effect. `alike` has the same
        shape: 1 between two samples of one class, else 0, and 0 on the diagonal. Both arguments may be overwritten.
        """
        ...


def matching(cosines: Tensor, alike: Tensor) -> tuple[Tensor, Tensor]:
    """mean_j (cos(h_i, h_j) - [y_i = y_j])^2: similarity matching (Nokland and Eidnes 2019, eq. 1)."""
    num_others = max(cosines.shape[-1] - 1, 1)
    gaps = cosines.sub_(alike)
    gaps.diagonal(dim1=1, dim2=2).zero_()
    return gaps.square().sum(dim=2).div_(num_others), gaps.mul_(2 / num_others)


def contrastive(cosines: Tensor, alike: Tensor) -> tuple[Tensor, Tensor]:
    """-mean_p log softmax_a(cos(h_i, h_a) / 0.1) at p: supervised contrast (Khosla et al. 2020, eq. 2).

    Here a runs over all other samples, and p over those of i's class. A sample that is the only one of its class has no
    term of its own.
    """
    least = torch.finfo(cosines.dtype).min  # -infinity would give NaN for the sample of a group of one
    logits = cosines.div_(_TEMPERATURE)
    logits.diagonal(dim1=1, dim2=2).fill_(least)
    log_share = torch.log_softmax(logits, dim=2)
    num_alike = alike.sum(dim=2, keepdim=True)
    targets = alike.div_(num_alike.clamp(min=1.0))
    by_cosine = log_share.exp().mul_(num_alike > 0).sub_(targets).div_(_TEMPERATURE)
    log_share.diagonal(dim1=1, dim2=2).zero_()
    return log_share.mul_(targets).sum(dim=2).neg_(), by_cosine


SIMILARITIES: Registry[Similarity] = Registry("similarity", "objective.similarity")
SIMILARITIES.register("matching", matching)
SIMILARITIES.register("contrastive", contrastive)


def compare(
    layer: Layer,
    term: Similarity,
    preactivations: Tensor,
    labels: Tensor,
    workspace: Workspace,
) -> tuple[Tensor, Tensor]:
    """The sum of all samples' terms, and its gradient with respect to the preactivations, (n, num_units).

    The gradient lies in the workspace. Samples are compared within groups of `GROUP_SAMPLES` that follow each other;
    the last group may be smaller. What is compared is what the layer's `outline` makes of its activities. These are in
    the layer's `compute_dtype`, or in the preactivations' own type if that is float16, in which sums of squares are
    soon infinite; the two products of a group run in the type of the outline. The preactivations are not changed.
    """
    shape, compute_dtype = tuple(preactivations.shape), layer.compute_dtype
    wide = torch.promote_types(preactivations.dtype, torch.float32)
    if compute_dtype == torch.float16:
        compute_dtype = wide
    activities = layer.activate_(workspace.take(_COMPARED, shape, compute_dtype).copy_(preactivations))
    outlines, *kept = layer.outline(activities)
    gradient = workspace.take(_GRADIENT, shape, preactivations.dtype)
    num_grouped = len(labels) // GROUP_SAMPLES * GROUP_SAMPLES
    total = gradient.new_zeros((), dtype=wide)
    for part, num_in_group in (
        (slice(0, num_grouped), GROUP_SAMPLES),
        (slice(num_grouped, len(labels)), len(labels) - num_grouped),
    ):
        of_part = labels[part].unflatten(0, (-1, max(num_in_group, 1)))
        if of_part.numel():
            rows = outlines[part].unflatten(0, of_part.shape)
            terms, by_product = _differentiate(term, torch.bmm(rows, rows.mT).to(wide), of_part)
            total += terms.sum()
            found = torch.bmm(by_product.to(rows.dtype), rows).flatten(0, 1)
            own = [each[part] for each in kept]
            gradient[part].copy_(layer.through_outline_(activities[part], found, own))
    return total, gradient


def _differentiate(term: Similarity, products: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The terms, and the matrix (groups, n, n) whose product with the activities is the gradient of their sum.

    cos_ij = h_i h_j / (|h_i| |h_j|), where the squared lengths are the diagonal of the products. Its derivative with
    respect to h_i is h_j / (|h_i| |h_j|) - cos_ij h_i / |h_i|^2.
    """
    scale = products.diagonal(dim1=1, dim2=2).clamp(min=_LEAST).rsqrt()
    cosines = products.mul_(scale.unsqueeze(1)).mul_(scale.unsqueeze(2))
    alike = labels.unsqueeze(1).eq(labels.unsqueeze(2)).to(cosines.dtype)
    alike.diagonal(dim1=1, dim2=2).zero_()
    terms, by_cosine = term(cosines.clone(), alike)
    by_cosine = by_cosine + by_cosine.mT  # the terms of both samples depend on the cosine of a pair
    along = cosines.mul_(by_cosine).sum(dim=2)
    by_cosine.diagonal(dim1=1, dim2=2).sub_(along)
    return terms, by_cosine.mul_(scale.unsqueeze(1)).mul_(scale.unsqueeze(2))
