"""What a label method is: three parts that fit each other."""

from __future__ import annotations

from dataclasses import dataclass

from ffstream.field.labels.candidates import Candidates
from ffstream.field.labels.reading import Reading
from ffstream.field.labels.rows import SampleRows


@dataclass(frozen=True)
class LabelMethod:
    """How labels and a layer meet: which rows are cached, what a step contrasts, and how goodness is read off."""

    rows: SampleRows
    candidates: Candidates
    reading: Reading
