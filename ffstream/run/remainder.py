"""What is left to train of a run, in either order of its schedule."""

from __future__ import annotations

from ffstream.errors import ConfigError, RunMismatchError
from ffstream.run.cycle import Cycle, find_cycle
from ffstream.settings.config import Config
from ffstream.storage.run_directory import RunDirectory


def is_open(directory: RunDirectory, config: Config) -> bool:
    """Whether anything is left to train of what a configuration asks for."""
    if config.in_rounds:
        return _find_asked_cycle(directory, config) is not None
    return directory.count_layers() < config.layers


def find_next_cycle(directory: RunDirectory, config: Config) -> Cycle | None:
    """The cycle of the next round of a run in rounds; None if none is left, and for sequential runs.

    A round that is under way ends in the cycle that it began in, so that all of its layers have one learning rate: what
    is asked for now holds from the round after it.
    """
    asked = _find_asked_cycle(directory, config) if config.in_rounds else None
    begun = directory.read_begun_cycle() if asked is not None else None
    return asked if begun is None else Cycle.from_mapping(begun)


def _find_asked_cycle(directory: RunDirectory, config: Config) -> Cycle | None:
    """The cycle of the next round if nothing of it was begun."""
    newest = directory.newest()
    if config.schedule.is_stream:
        return Cycle(newest.round, newest.round + 1) if newest.round < config.epochs else None
    last = Cycle.from_mapping(newest.read_round()["cycle"]) if newest.round else None
    return find_cycle(last, newest.round, config.epochs, config.optimiser)


def check_extension(directory: RunDirectory, config: Config) -> None:
    """Raise RunMismatchError where a run has more layers or rounds than are asked for, or cannot have more layers."""
    num_done = directory.count_layers()
    if config.layers < num_done:
        raise RunMismatchError(
            f"run {directory.path}: has {num_done} finished layers, asked for {config.layers}; allowed {num_done} or "
            "more (a new --run-dir starts a shallower one)"
        )
    if not config.in_rounds:
        return
    num_begun = max(num_done, directory.under_way().count_layers())
    saved = directory.read_config().layers if directory.exists() else config.layers
    if num_begun and saved != config.layers:
        raise RunMismatchError(
            f"run {directory.path}: trains {saved} layers in rounds, asked for {config.layers}; allowed {saved}, as "
            "all layers take every round (a new --run-dir starts a deeper one)"
        )
    num_rounds = directory.newest().round
    if config.epochs < num_rounds:
        raise RunMismatchError(
            f"run {directory.path}: has taken {num_rounds} rounds, asked for {config.epochs}; allowed {num_rounds} or "
            "more --epochs"
        )


def check_rounds(config: Config) -> None:
    """Raise ConfigError for what does not go with rounds."""
    if not config.in_rounds:
        if config.schedule.window_samples != "all":
            raise ConfigError(
                f"config schedule.window_samples: found {config.schedule.window_samples}, allowed all with "
                "schedule.order=sequential, in which a layer is trained to its end on all samples; add --order rounds"
            )
        return
    if config.schedule.is_stream:
        _check_stream(config)
    if config.init_from:
        raise ConfigError(
            f"config init_from: found {config.init_from!r}, allowed none with schedule.order="
            f"{config.schedule.order}, as layers go on from the round before; leave --init-from out"
        )
    if config.augmentation.views > 1:
        raise ConfigError(
            f"config augmentation.views: found {config.augmentation.views}, allowed 1 with schedule.order="
            f"{config.schedule.order}, in which images are changed anew for every round by --restream; add --set "
            "augmentation.views=1"
        )
    if any(line.num_epochs is not None for line in config.list_layers()):
        raise ConfigError(
            "config network.layers: found layers with epochs of their own, allowed none with schedule.order="
            f"{config.schedule.order}, in which all layers take as many as there are rounds; leave them out"
        )


def _check_stream(config: Config) -> None:
    """Raise ConfigError for what a stream cannot have, as nobody knows how long it is."""
    for name, found, allowed in (
        ("schedule.window_samples", config.schedule.window_samples, None),
        ("validation_fraction", config.validation_fraction, 0.0),
        ("optimiser.decay_start", config.optimiser.decay_start, 1.0),
        ("optimiser.patience", config.optimiser.patience, 0),
    ):
        if found == "all":
            raise ConfigError(f"config {name}: found all, allowed a number of samples with schedule.order=stream")
        if allowed is not None and found != allowed:
            raise ConfigError(
                f"config {name}: found {found:g}, allowed {allowed:g} with schedule.order=stream, which has no end; "
                "ask for that, or for it all by `ffstream stream`"
            )


def make_endless(config: Config) -> Config:
    """The configuration of a stream: a constant learning rate, for windows without end, none of which is held out."""
    return config.override(
        {
            "schedule.order": "stream",
            "validation_fraction": 0.0,
            "optimiser.decay_start": 1.0,
            "optimiser.patience": 0,
        }
    )
