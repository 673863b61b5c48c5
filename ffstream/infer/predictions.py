"""Predictions of a run for images whose labels are not known, streamed: a label, and probabilities of all labels."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ffstream.data import Split
from ffstream.data.image_access import Images
from ffstream.errors import printable
from ffstream.ground.files import read_up_to
from ffstream.infer.combination import Combination, fit_temperature, plain_sum
from ffstream.infer.committed import CommittedLayers
from ffstream.infer.evaluation import stream_goodness
from ffstream.infer.model import check_finite_rows
from ffstream.infer.readout import read_softmax
from ffstream.storage.earlier_output import read_json

_COLUMNS = ["image", "label", "probability"]
_MOST_BYTES = 1 << 30  # the largest file of predictions that is read back
# A text that a spreadsheet takes for a formula, unless it is a number.
_FORMULA = re.compile(r"[\s]*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
_PLAIN_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?", re.IGNORECASE)


@dataclass(frozen=True)
class Predictions:
    """Probabilities of the named classes, (n, C) float64 on the host; each row adds up to one."""

    class_names: tuple[str, ...]
    probabilities: Tensor
    method: str  # goodness, fitted or softmax
    combination: Combination  # of the layers' goodness, or their logits, that gives the probabilities
    is_calibrated: bool
    warning: str | None = None  # such as that images seem to be in other units than the training images

    @property
    def labels(self) -> Tensor:
        """The most probable label of each image: (n,) int64."""
        return self.probabilities.argmax(dim=1)

    @property
    def names(self) -> list[str]:
        """The name of the most probable class of each image."""
        return [self.class_names[label] for label in self.labels.tolist()]

    def to_mapping(self, images: Sequence[str]) -> dict[str, Any]:
        """Plain values; `images` names the rows."""
        rows = zip(images, self.names, self.probabilities.tolist(), strict=True)
        return {
            "method": self.method,
            "is_calibrated": self.is_calibrated,
            "num_layers": len(self.combination.weights),
            "weights": list(self.combination.weights),
            "temperature": self.combination.temperature,
            "class_names": list(self.class_names),
            "predictions": [
                {"image": image, "label": name, "probability": max(row), "probabilities": row}
                for image, name, row in rows
            ],
        }

    def to_csv(self, images: Sequence[str]) -> str:
        """One line per image: its name in `images`, the label, and the probability of that label.

        Names are made harmless for terminals and spreadsheets, as `to_cell` does.
        """
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(_COLUMNS)
        best = self.probabilities.max(dim=1).values.tolist()
        writer.writerows(
            [to_cell(image), to_cell(name), f"{value:.6f}"]
            for image, name, value in zip(images, self.names, best, strict=True)
        )
        return text.getvalue()


def to_cell(text: str) -> str:
    """Text as a cell of a spreadsheet that is shown as text: an apostrophe precedes what would be a formula."""
    is_formula = _FORMULA.match(text) is not None and _PLAIN_NUMBER.fullmatch(text) is None
    return ("'" if is_formula else "") + printable(text)


def is_earlier_csv(file: io.FileIO, class_names: Sequence[str], images: Sequence[str] | None = None) -> bool:
    """Whether `to_csv` wrote an open file, for these classes and for these images or, if none are given, for any.

    A file in which a label is no class, or a number is written otherwise, was edited since; one with another label of
    the same classes cannot be told from the file alone. Raises OSError.
    """
    labels = {to_cell(name) for name in class_names}
    try:
        text = read_up_to(file, _MOST_BYTES).decode()
        header, *rows = csv.reader(io.StringIO(text, newline=""))
        names = [row[0] for row in rows]
        are_ours = all(row[1] in labels and f"{float(row[2]):.6f}" == row[2] and len(row) == 3 for row in rows)
    except (ValueError, IndexError, csv.Error):
        return False
    return are_ours and header == _COLUMNS and (images is None or names == [to_cell(image) for image in images])


def is_earlier_json(file: io.FileIO, run: str, images: Sequence[str] | None = None) -> bool:
    """Whether an open file holds predictions of a run for the same images, in JSON, as written. Raises OSError."""
    found = read_json(file)
    if found is None or found.get("run") != run or "predictions" not in found:
        return False
    return images is None or [row["image"] for row in found["predictions"]] == list(images)


def predict(
    layers: CommittedLayers, images: Images, method: str, combination: Combination, *, is_calibrated: bool
) -> Predictions:
    """Probabilities of all labels for images (n, *image_shape), by as many committed layers as there are weights.

    Raises DataError for an image whose probabilities are not finite.
    """
    num_layers = len(combination.weights)
    goodness = stream_goodness(layers, num_layers, images)
    probabilities = torch.softmax(combination.logits(goodness), dim=1)
    check_finite_rows(probabilities)
    return Predictions(layers.facts.class_names, probabilities, method, combination, is_calibrated)


def predict_softmax(layers: CommittedLayers, images: Images, held_out: Split | None, first_layer: int) -> Predictions:
    """The same by the softmax readout of the layers, calibrated on the `held_out` split if one is given."""
    logits = read_softmax(layers, images, first_layer)
    temperature = 1.0
    if held_out is not None:
        of_held_out = read_softmax(layers, held_out.images, first_layer)
        temperature = fit_temperature(plain_sum(1, 1, 1.0), [of_held_out], held_out.labels).temperature
    num_layers, num_in_stack = layers.directory.count_layers(), layers.config.network.stack_layers
    combination = plain_sum(num_layers, first_layer, temperature, num_in_stack)
    probabilities = torch.softmax(logits.double() / temperature, dim=1)
    check_finite_rows(probabilities)
    names = layers.facts.class_names
    return Predictions(names, probabilities, "softmax", combination, is_calibrated=held_out is not None)
