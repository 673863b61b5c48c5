"""A label method: three parts that have to fit each other."""

from __future__ import annotations

from dataclasses import dataclass

from ffstream.field.labels.candidates import Candidates
from ffstream.field.labels.reading import Reading
from ffstream.field.labels.rows import SampleRows


@dataclass(frozen=True)
class LabelMethod:
    """How a layer meets labels: which rows are cached, what a step contrasts, and how goodness is read off."""

    rows: SampleRows
    candidates: Candidates
    reading: Reading
