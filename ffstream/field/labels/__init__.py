"""How labels and a layer meet: by overlay on the input, by injection into every layer, or at its output alone."""

from ffstream.data.shape import DataShape
from ffstream.errors import ConfigError
from ffstream.field.goodness import GOODNESSES, LinearGoodness
from ffstream.field.labels.base import LabelMethod, take_rows
from ffstream.field.labels.injection import LabelInjection
from ffstream.field.labels.overlay import LabelOverlay
from ffstream.field.labels.read_off import LabelClassifier, LabelGroups
from ffstream.field.labels.unlabelled import Unlabelled, make_unlabelled
from ffstream.field.negatives import NEGATIVE_SAMPLERS
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
    num_classes, num_features = data.num_classes, data.num_features
    if config.objective.similarity != "none" and not LABEL_METHODS[config.labels.method].shares_row:
        free = [name for name in LABEL_METHODS if LABEL_METHODS[name].shares_row]
        raise ConfigError(
            f"config objective.similarity: found {config.objective.similarity!r}, allowed none with labels.method="
            f"{config.labels.method}; it compares samples by what a layer makes of rows that show no label, those of "
            f"{', '.join(free)}"
        )
    if config.labels.method == "none":
        return make_unlabelled(config.negatives, data.mixed_shape)
    if config.labels.method == "groups":
        if num_classes > config.width:
            raise ConfigError(
                f"config width: found {config.width}, allowed {num_classes} or more with labels.method=groups, which "
                "gives units to each class"
            )
        return LabelGroups(num_classes)
    if config.labels.method == "classifier":
        if not isinstance(GOODNESSES[config.objective.goodness], LinearGoodness):
            raise ConfigError(
                f"config objective.goodness: found {config.objective.goodness!r}, allowed mean or sum with "
                "labels.method=classifier, whose goodness is a product of activities and learnt weights"
            )
        return LabelClassifier(num_classes)
    sampler = NEGATIVE_SAMPLERS[config.negatives.sampler]
    num_wrong = num_classes - 1
    num_negatives = config.negatives.per_step
    if num_negatives > num_wrong:
        raise ConfigError(
            f"config negatives.per_step: found {num_negatives}, allowed at most {num_wrong}, "
            f"the wrong labels of {num_classes} classes"
        )
    if config.labels.method == "injection":
        return LabelInjection(num_classes, sampler, num_negatives)
    if num_classes > num_features:
        raise ConfigError(
            f"config labels.method: overlay needs a feature for each of the {num_classes} classes, found "
            f"{num_features} features; use labels.method=injection"
        )
    per_sample = config.negatives.per_sample
    num_cached = num_wrong if isinstance(per_sample, str) else per_sample
    if not num_negatives <= num_cached <= num_wrong:
        raise ConfigError(
            f"config negatives.per_sample: found {num_cached}, allowed {num_negatives} (negatives.per_step) to "
            f"{num_wrong} (the wrong labels of {num_classes} classes), or 'all'"
        )
    pool = config.negatives.pool
    num_in_pool = None if isinstance(pool, str) or pool >= num_cached else max(pool, num_negatives)
    return LabelOverlay(num_classes, sampler, num_negatives, num_cached, num_in_pool)
