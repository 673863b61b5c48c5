"""What the predictions of a finished network say of its data: that they are by chance, or where they fail."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ffstream.data import Dataset, Split
from ffstream.data.dataset import draw_order
from ffstream.data.sample import draw_sample
from ffstream.infer.chance import find_chance_of
from ffstream.infer.combination import plain_sum
from ffstream.infer.committed import CommittedLayers
from ffstream.infer.evaluation import Evaluation, error_rate, read_validation_goodness, stream_goodness
from ffstream.infer.gap import find_gap
from ffstream.infer.readout import evaluate_softmax
from ffstream.infer.stretch import find_stretch
from ffstream.settings.config import Config
from ffstream.training.faintness import find_faint

_MUCH = 0.25  # validation error from which it is said what else a layer hardly sees
_OFTEN = 0.15  # validation error from which training images are put through the network
_MOST_IMAGES, _MOST_VALUES = 2048, 1 << 20  # training images, and values of them, that are kept for that


@dataclass(frozen=True)
class Judgement:
    """What is known of the data of a run before it is trained, for judging the validation split when it is."""

    labels: Tensor  # (n,), the classes of the validation images
    places: Tensor  # (n,), their numbers in the file that they come from
    noun: str  # what they are, with their file
    faint: str | None  # what is far smaller than the rest in the training images
    sample: Split  # some of the training images
    sample_places: Tensor  # (m,), their numbers

    @classmethod
    def of(cls, dataset: Dataset, config: Config, validation: Split) -> Judgement:
        """Collect it. Validation images that were cut off the training images keep their numbers among these."""
        train = dataset.train
        faint = find_faint(train.images, config.standardise)
        num_kept = min(_MOST_IMAGES, _MOST_VALUES // dataset.num_features)
        index = draw_sample(len(train), num_kept).sort().values
        sample = Split(train.images[index], train.labels[index])
        places, noun = torch.arange(len(validation)), "validation images"
        if dataset.validation is None:
            order = draw_order(len(train), config.seed)
            places, noun = order[: len(validation)], f"{noun} among training images"
        return cls(validation.labels, places, noun, faint, sample, index)

    def judge(self, scores: Tensor, class_names: Sequence[str]) -> Iterator[str]:
        """Yield warnings of what the scores (n, C) of the validation images show."""
        chance, stretch = self._find_failure(scores, class_names)
        yield from filter(None, (chance, stretch))
        error = error_rate(scores, self.labels)
        if self.faint is not None and (chance is not None or error > _MUCH):
            yield f"the validation error is {error:.3f}, and {self.faint}"

    def _find_failure(self, scores: Tensor, class_names: Sequence[str]) -> tuple[str | None, str | None]:
        """That validation images are told apart by chance, or else where they are not; None each otherwise."""
        chance = find_chance_of(scores, self.labels, class_names, "validation")
        if chance is not None:
            return chance, None
        return None, find_stretch(scores.argmax(dim=1) != self.labels, self.labels, self.places, self.noun)

    def look_again(self, layers: CommittedLayers) -> str | None:
        """A warning if a finished network fails in a stretch of the training images.

        It has seen these images, so that its errors among them say less of one than those among validation images. But
        there are more of them. They are put through the network only where it fails often, for no other reason known.
        """
        num_layers = layers.count_usable(1)
        plain = plain_sum(num_layers, 2, 1.0, layers.config.network.stack_layers)
        scores = plain.logits(read_validation_goodness(layers.directory, num_layers))
        if error_rate(scores, self.labels) <= _OFTEN or any(self._find_failure(scores, layers.facts.class_names)):
            return None
        scores = plain.logits(stream_goodness(layers, num_layers, self.sample.images))
        wrong = scores.argmax(dim=1) != self.sample.labels
        return find_stretch(wrong, self.sample.labels, self.sample_places, "training images")


def judge_evaluation(
    found: Evaluation, layers: CommittedLayers, splits: Mapping[str, Split], first_layer: int
) -> str | None:
    """A warning of what an evaluation of a finished run shows, else None.

    The test split is compared with the validation split by the same method, and in the order of its file.
    """
    labels = splits[found.split].labels
    assert found.scores is not None, "every evaluation has scores"
    chance = find_chance_of(found.scores, labels, found.class_names, found.split)
    if chance is not None or found.split != "test":
        return chance
    wrong = found.scores.argmax(dim=1) != labels
    stretch = find_stretch(wrong, labels, torch.arange(len(labels)), "test images")
    if stretch is not None or "validation" not in splits:
        return stretch
    held_out, scores = splits["validation"], None
    if found.combination is not None:
        num_layers = len(found.combination.weights)
        scores = found.combination.logits(read_validation_goodness(layers.directory, num_layers))
    elif found.warning is None:  # the readout is kept, and need not be fitted again
        scores = evaluate_softmax(layers, "validation", held_out, splits["train"], first_layer).scores
    return None if scores is None else find_gap(wrong, scores.argmax(dim=1) != held_out.labels)
