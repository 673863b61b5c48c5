"""ffstream: train deep Forward-Forward networks one layer at a time.

    import ffstream as ff
    run = ff.train(ff.Config(layers=40, width=500, data="mnist"), run_dir="runs/a")
    run.evaluate().error, ff.load("runs/a")

Names are imported when they are first used, so that `ffstream --help` need not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ffstream.config import Config as Config
    from ffstream.data import SOURCES as SOURCES
    from ffstream.data import Dataset as Dataset
    from ffstream.data import Split as Split
    from ffstream.errors import BudgetError as BudgetError
    from ffstream.errors import ConfigError as ConfigError
    from ffstream.errors import CorruptFileError as CorruptFileError
    from ffstream.errors import DataError as DataError
    from ffstream.errors import DeviceError as DeviceError
    from ffstream.errors import DivergedError as DivergedError
    from ffstream.errors import FFStreamError as FFStreamError
    from ffstream.errors import OutputError as OutputError
    from ffstream.errors import RunError as RunError
    from ffstream.errors import RunLockedError as RunLockedError
    from ffstream.errors import RunMismatchError as RunMismatchError
    from ffstream.errors import StorageError as StorageError
    from ffstream.evaluate import Evaluation as Evaluation
    from ffstream.goodness import GOODNESSES as GOODNESSES
    from ffstream.goodness import Goodness as Goodness
    from ffstream.layers import LAYER_KINDS as LAYER_KINDS
    from ffstream.layers import Layer as Layer
    from ffstream.model import FFNetwork as FFNetwork
    from ffstream.model import load_network
    from ffstream.negatives import NEGATIVE_SAMPLERS as NEGATIVE_SAMPLERS
    from ffstream.objectives import OBJECTIVES as OBJECTIVES
    from ffstream.objectives import Objective as Objective
    from ffstream.observer import LayerFigures as LayerFigures
    from ffstream.observer import Observer as Observer
    from ffstream.offline import write_negatives as write_negatives
    from ffstream.plan import Plan as Plan
    from ffstream.predictions import Predictions as Predictions
    from ffstream.recipes import register_recipe as register_recipe
    from ffstream.run import Run as Run
    from ffstream.session import make_plan as make_plan
    from ffstream.session import resume as resume
    from ffstream.session import train as train

    load = load_network

__version__ = "0.1.0"

# Public name: (module, name there).
_PUBLIC = {
    "BudgetError": ("errors", "BudgetError"),
    "Config": ("config", "Config"),
    "ConfigError": ("errors", "ConfigError"),
    "CorruptFileError": ("errors", "CorruptFileError"),
    "DataError": ("errors", "DataError"),
    "Dataset": ("data", "Dataset"),
    "DeviceError": ("errors", "DeviceError"),
    "DivergedError": ("errors", "DivergedError"),
    "Evaluation": ("evaluate", "Evaluation"),
    "FFNetwork": ("model", "FFNetwork"),
    "FFStreamError": ("errors", "FFStreamError"),
    "GOODNESSES": ("goodness", "GOODNESSES"),
    "Goodness": ("goodness", "Goodness"),
    "LAYER_KINDS": ("layers", "LAYER_KINDS"),
    "Layer": ("layers", "Layer"),
    "LayerFigures": ("observer", "LayerFigures"),
    "NEGATIVE_SAMPLERS": ("negatives", "NEGATIVE_SAMPLERS"),
    "OBJECTIVES": ("objectives", "OBJECTIVES"),
    "Objective": ("objectives", "Objective"),
    "Observer": ("observer", "Observer"),
    "OutputError": ("errors", "OutputError"),
    "Plan": ("plan", "Plan"),
    "Predictions": ("predictions", "Predictions"),
    "Run": ("run", "Run"),
    "RunError": ("errors", "RunError"),
    "RunLockedError": ("errors", "RunLockedError"),
    "RunMismatchError": ("errors", "RunMismatchError"),
    "SOURCES": ("data", "SOURCES"),
    "Split": ("data", "Split"),
    "StorageError": ("errors", "StorageError"),
    "load": ("model", "load_network"),
    "register_recipe": ("recipes", "register_recipe"),
    "make_plan": ("session", "make_plan"),
    "resume": ("session", "resume"),
    "train": ("session", "train"),
    "write_negatives": ("offline", "write_negatives"),
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'ffstream' has no attribute {name!r}")
    module, attribute = _PUBLIC[name]
    return getattr(importlib.import_module(f"ffstream.{module}"), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
