"""The sections of a configuration: frozen dataclasses, each field with its default, its limits and a line of help."""

from __future__ import annotations

from dataclasses import dataclass

from ffstream.settings.limits import documented, setting

MOST_SAMPLES = 10_000_000  # of a batch or a shard; planning a run allocates labels for them


@documented
@dataclass(frozen=True)
class NetworkConfig:
    """The kind and the shape of the layers, and what each of them reads."""

    kind: str = setting("linear", "The kind of the layers: linear (dense), or local (windows of the image).")
    layers: tuple[str, ...] = setting(
        (),
        "The layers one by one, if they differ: a text such as 'conv64 pool conv128x2 dense512', a form such as vgg or "
        "vgg8, or a list. They make one stack. Empty: all have one kind and width.",
    )
    input_skip: bool = setting(False, "Every layer also reads the normalised image, beside the layer below.")
    stack_layers: int = setting(
        4, "Layers in a stack: the next layer reads the images again. 0 makes all layers one stack.", at_least=0
    )
    stack_features: float = setting(
        1.0, "Share of an image's features that each stack but the first reads, drawn anew.", above=0.0, at_most=1.0
    )
    tile_units: int | str = setting(
        "auto",
        "Units on the device at once; a wider layer grows by tiles. auto: all, or as many as the budget has room for.",
        at_least=1,
        word="auto",
    )
    dropout: float = setting(
        0.3, "Share of the features that a layer reads that is dropped while it trains.", at_least=0.0, at_most=0.99
    )


@documented
@dataclass(frozen=True)
class LabelsConfig:
    """How a layer learns from the labels."""

    method: str = setting(
        "injection",
        "injection and overlay show a layer the true label and wrong ones; groups and classifier read the goodness of "
        "every label off one pass without labels; none shows images against hybrids of two.",
    )
    embedding_std: float = setting(
        1.0, "Standard deviation of each label's row at the start (injection and classifier).", above=0.0
    )
    head_layers: int = setting(
        1,
        "Layers of a convolution's local classifier: the last one is linear, and those before it are convolutions of 3 "
        "x 3 that are used for nothing else.",
        at_least=1,
        at_most=9,
    )


@documented
@dataclass(frozen=True)
class NegativesConfig:
    """Which wrong labels a layer is trained against, or which mixed images where there are no labels."""

    sampler: str = setting("hard", "How wrong labels are chosen: hard (by their goodness), or uniform.")
    per_step: int = setting(1, "Wrong labels, or hybrids, for each sample in each step.", at_least=1)
    per_sample: int | str = setting(
        "all", "Wrong labels (overlay), or hybrids, that are cached for each sample.", at_least=1, word="all"
    )
    pool: int | str = setting(
        "all",
        "Wrong labels, drawn at random, from which a hard one is chosen (overlay); each is a row to multiply.",
        at_least=1,
        word="all",
    )
    images: str = setting(
        "hybrids",
        "What an image is contrasted with where there are no labels: hybrids (regions of it and regions of another "
        "image), or sums (of it and another image).",
        choices=("hybrids", "sums"),
    )
    blurs: int = setting(
        6, "How often a hybrid's random mask is blurred; more make larger regions.", at_least=1, at_most=1000
    )


@documented
@dataclass(frozen=True)
class ObjectiveConfig:
    """The objective of a layer: objective(scale * (goodness - threshold))."""

    name: str = setting("cross_entropy", "The objective: cross_entropy, logistic (Hinton 2022) or pairwise.")
    goodness: str = setting("mean_squares", "The goodness: a sum or mean over a layer's units of h or h squared.")
    threshold: float | str = setting("auto", "The threshold theta. auto: the width for sums, 1 for means.", word="auto")
    scale: float = setting(10.0, "What goodness is multiplied by: one over the temperature.", above=0.0)
    perturbation: float = setting(
        0.05,
        "How far each feature that a layer reads (of unit RMS) is moved in the direction that raises the loss.",
        at_least=0.0,
    )
    similarity: str = setting(
        "none", "A term on the cosines between samples' outputs: none, matching or contrastive.", word="none"
    )
    similarity_weight: float = setting(0.1, "What the similarity term is multiplied by.", above=0.0)
    peer_normalisation: float = setting(
        0.0,
        "How strongly each unit's mean activity is pulled to that of its peers (Hinton's program: 0.03).",
        at_least=0.0,
    )
    peer_momentum: float = setting(0.9, "Momentum of each unit's running mean activity.", at_least=0.0, below=1.0)


@documented
@dataclass(frozen=True)
class OptimiserConfig:
    """The optimiser of a layer; its learning rate is constant at first, then falls linearly to zero."""

    name: str = setting("adam", "The optimiser: adam, adamw or sgd.")
    learning_rate: float = setting(2e-3, "The learning rate at the start.", above=0.0)
    weight_decay: float = setting(0.0, "The weight decay.", at_least=0.0)
    momentum: float = setting(0.9, "The momentum of sgd.", at_least=0.0, below=1.0)
    decay_start: float = setting(
        0.5, "Share of a layer's steps after which the learning rate falls.", at_least=0.0, at_most=1.0
    )
    patience: int = setting(
        0,
        "Epochs in a row without a lower validation error after which a layer's learning rate begins to fall, so that "
        "the layer is done early. 0: never.",
        at_least=0,
    )
    state_dtype: str = setting(
        "fp32", "The type of the optimiser's averages; bf16 takes half the memory.", choices=("fp32", "bf16")
    )


@documented
@dataclass(frozen=True)
class ScheduleConfig:
    """In which order layers learn."""

    order: str = setting(
        "sequential",
        "sequential trains each layer to its end before the next one; rounds gives every layer one epoch in turn, for "
        "as many rounds as there are epochs; stream is the order of `ffstream stream`.",
        choices=("sequential", "rounds", "stream"),
    )
    window_samples: int | str = setting(
        "all",
        "Samples that pass through all layers before the next ones do, in each round. all: the whole data set.",
        at_least=1,
        at_most=MOST_SAMPLES,
        word="all",
    )
    replays: int = setting(4, "How often each window of a stream passes through all layers.", at_least=1)
    follow: bool = setting(False, "Whether a stream waits for more files where its folder has no new one.")

    @property
    def is_stream(self) -> bool:
        """Whether every round has training samples of its own."""
        return self.order == "stream"

    def count_windows(self, num_samples: int) -> int:
        """The number of passes through the layers that make a round of so many training samples.

        A data set passes window by window. Of a stream, a round has one window, which passes again and again.
        """
        if self.is_stream:
            return self.replays
        return 1 if isinstance(self.window_samples, str) else -(-num_samples // self.window_samples)


@documented
@dataclass(frozen=True)
class CacheConfig:
    """The activation cache, from which a layer reads."""

    tier: str = setting(
        "auto", "Where the cache lies. auto: the fastest that has room.", choices=("auto", "device", "host", "disk")
    )
    folder: str = setting("", "Where the disk tier makes a folder of the run's own. Empty: RUN/cache.")
    dtype: str = setting(
        "bf16", "The type of cached rows; int8 has a scale for each row.", choices=("bf16", "fp16", "fp32", "int8")
    )
    shard_samples: int | str = setting(
        "auto",
        "Samples in a shard, which is also a block of the shuffle. auto: 4096, or as many as the budget has room for.",
        at_least=1,
        at_most=MOST_SAMPLES,
        word="auto",
    )


@documented
@dataclass(frozen=True)
class AugmentationConfig:
    """Changed training images: some views of each, cached once, or fresh ones for every epoch."""

    views: int = setting(1, "Views of each image that are cached, itself included; an epoch reads one.", at_least=1)
    restream: bool = setting(
        False,
        "Change the images anew for every epoch, and put them through the finished layers; in rounds, for every round.",
    )
    max_shift: int = setting(
        2, "Pixels by which a shift moves an image at most, in each direction; without transforms.", at_least=0
    )
    transforms: tuple[str, ...] = setting(
        (),
        "How images are changed, in place of shifts: a text such as 'crop4 flip', or a list, of crop, flip, cutout and "
        "randaugment. Empty: by shifts.",
    )


@documented
@dataclass(frozen=True)
class MemoryConfig:
    """The memory and disk space that a run may take, as sizes such as 1.5GiB. auto: 80 % of what the machine has."""

    budget: str = setting(
        "auto",
        "Memory of the device, such as 1.5GiB; on a CPU, of a layer's work. auto: 80 % of what there is.",
        size=True,
    )
    host_budget: str = setting(
        "auto", "Memory of this process, the interpreter included. auto: 80 % of what there is.", size=True
    )
    disk_budget: str = setting("auto", "Disk space of the run directory. auto: 80 % of what is free.", size=True)


@documented
@dataclass(frozen=True)
class ReadoutConfig:
    """The softmax readout on the normalised activities of all layers but the first."""

    epochs: int = setting(5, "Epochs for each layer.", at_least=1)
    batch: int = setting(256, "Samples in a step.", at_least=1)
    learning_rate: float = setting(0.01, "The learning rate at the start.", above=0.0)
    weight_decay: float | str = setting(
        0.003, "The weight decay. auto: 3, and less for layers of fewer than 2000 units.", at_least=0.0, word="auto"
    )
