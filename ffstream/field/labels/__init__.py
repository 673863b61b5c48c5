"""How a layer meets labels: overlaid on the input, injected into every layer, only at its output, or not at all."""

from collections.abc import Callable

from ffstream.data.shape import DataShape
from ffstream.errors import ConfigError
from ffstream.field.labels.candidates import Candidates, take_rows
from ffstream.field.labels.injection import make_injection
from ffstream.field.labels.method import LabelMethod
from ffstream.field.labels.overlay import make_overlay
from ffstream.field.labels.read_off import make_classifier, make_groups
from ffstream.field.labels.reading import Reading
from ffstream.field.labels.rows import SampleRows
from ffstream.field.labels.unlabelled import make_unlabelled
from ffstream.field.layers import LAYER_KINDS
from ffstream.field.network import read_lines
from ffstream.ground.registry import Registry
from ffstream.settings.config import Config

# Each function makes a label method from a configuration and the shape of the data, or raises ConfigError or DataError.
LABEL_METHODS: Registry[Callable[[Config, DataShape], LabelMethod]] = Registry("label method", "labels.method")
LABEL_METHODS.register("injection", make_injection)
LABEL_METHODS.register("overlay", make_overlay)
LABEL_METHODS.register("groups", make_groups)
LABEL_METHODS.register("classifier", make_classifier)
LABEL_METHODS.register("none", make_unlabelled)

__all__ = ["LABEL_METHODS", "Candidates", "LabelMethod", "Reading", "SampleRows", "make_label_method", "take_rows"]


def make_label_method(config: Config, data: DataShape) -> LabelMethod:
    """The label method of a configuration. Raises ConfigError or DataError when it does not fit the data.

    `data.image_shape` may be None if no training or validation rows are made.
    """
    method = LABEL_METHODS.of(config)(config, data)
    if config.objective.similarity != "none" and not method.candidates.shares_row:
        raise ConfigError(
            f"config objective.similarity: found {config.objective.similarity!r}, allowed none with labels.method="
            f"{config.labels.method}; it compares samples by what a layer makes of rows that show no label, as those "
            "of labels.method=injection do"
        )
    if config.labels.head_layers > 1:
        if not method.reading.reads_summary:
            raise ConfigError(
                f"config labels.head_layers: found {config.labels.head_layers}, allowed 1 with labels.method="
                f"{config.labels.method}, which has no local classifier; use labels.method=classifier"
            )
        kinds = sorted({line.kind for line in read_lines(config)})
        if not any(LAYER_KINDS[kind].takes_head for kind in kinds):
            raise ConfigError(
                f"config labels.head_layers: found {config.labels.head_layers}, allowed 1 with layers of kind "
                f"{', '.join(kinds)}, whose local classifier is linear; use layers of kind conv"
            )
    return method
