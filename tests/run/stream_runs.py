"""Short runs that learn from a stream, and what they tell of it."""

from __future__ import annotations

import ffstream as ff

NUM_SAMPLES, WINDOW = 330, 100


class Listener(ff.Observer):
    """Remembers what is told of windows."""

    def __init__(self):
        self.windows, self.warnings = [], []

    def on_window(self, figures):
        self.windows.append(figures)

    def on_warning(self, text):
        self.warnings.append(text)


def learn(config, source, path, **options):
    """The run, and what was told while it learnt."""
    listener = Listener()
    return ff.stream(config, source, path, observer=listener, **options), listener


def cut(samples, size=33):
    """Images and labels in batches."""
    yield from zip(*(each.split(size) for each in samples), strict=True)
