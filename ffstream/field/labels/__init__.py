"""How labels and a layer meet: by overlay on the input, by injection into every layer, or at its output alone."""

from ffstream.data.shape import DataShape
from ffstream.errors import ConfigError
from ffstream.field.labels.base import LabelMethod, take_rows
from ffstream.field.labels.injection import LabelInjection
from ffstream.field.labels.overlay import LabelOverlay
from ffstream.field.labels.read_off import LabelClassifier, LabelGroups
from ffstream.field.labels.unlabelled import Unlabelled
from ffstream.ground.registry import Registry
from ffstream.settings.config import Config

LABEL_METHODS: Registry[type[LabelMethod]] = Registry("label method", "labels.method")
LABEL_METHODS.register("injection", LabelInjection)
LABEL_METHODS.register("overlay", LabelOverlay)
LABEL_METHODS.register("groups", LabelGroups)
LABEL_METHODS.register("classifier", LabelClassifier)
LABEL_METHODS.register("none", Unlabelled)

__all__ = ["LABEL_METHODS", "LabelMethod", "make_label_method", "take_rows"]


def make_label_method(config: Config, data: DataShape) -> LabelMethod:
    """The label method of a configuration. Raises ConfigError or DataError when it does not fit the data.

    The shape of an image may be unknown where no training or validation rows are made.
    """
    method = LABEL_METHODS[config.labels.method]
    if config.objective.similarity != "none" and not method.shares_row:
        free = [name for name in LABEL_METHODS if LABEL_METHODS[name].shares_row]
        raise ConfigError(
            f"config objective.similarity: found {config.objective.similarity!r}, allowed none with labels.method="
            f"{config.labels.method}; it compares samples by what a layer makes of rows that show no label, those of "
            f"{', '.join(free)}"
        )
    return method.make(config, data)
