"""ffstream: train deep Forward-Forward networks one layer at a time.

    import ffstream as ff
    run = ff.train(ff.Config(layers=40, width=512, data="mnist"), run_dir="runs/a")
    run.evaluate().error, ff.load("runs/a")

Names are imported when they are first used, so that `ffstream --help` need not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ffstream.data import SOURCES as SOURCES
    from ffstream.data import Dataset as Dataset
    from ffstream.data import Split as Split
    from ffstream.data import load_dataset as load_dataset
    from ffstream.data.images import load_images as load_images
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
    from ffstream.field.goodness import GOODNESSES as GOODNESSES
    from ffstream.field.goodness import Goodness as Goodness
    from ffstream.field.labels import LABEL_METHODS as LABEL_METHODS
    from ffstream.field.labels import LabelMethod as LabelMethod
    from ffstream.field.layers import LAYER_KINDS as LAYER_KINDS
    from ffstream.field.layers import Activations as Activations
    from ffstream.field.layers import Layer as Layer
    from ffstream.field.layers import LayerShape as LayerShape
    from ffstream.field.layers import Mode as Mode
    from ffstream.field.negatives import NEGATIVE_SAMPLERS as NEGATIVE_SAMPLERS
    from ffstream.field.objectives import OBJECTIVES as OBJECTIVES
    from ffstream.field.objectives import Objective as Objective
    from ffstream.field.optimisers import OPTIMISERS as OPTIMISERS
    from ffstream.field.optimisers import Optimiser as Optimiser
    from ffstream.field.similarity import SIMILARITIES as SIMILARITIES
    from ffstream.infer.evaluation import Evaluation as Evaluation
    from ffstream.infer.model import FFNetwork as FFNetwork
    from ffstream.infer.model import load_network
    from ffstream.infer.predictions import Predictions as Predictions
    from ffstream.plan.plan import Plan as Plan
    from ffstream.run.launch import resume as resume
    from ffstream.run.launch import stream as stream
    from ffstream.run.launch import train as train
    from ffstream.run.preparation import make_plan as make_plan
    from ffstream.run.run import Run as Run
    from ffstream.settings.config import Config as Config
    from ffstream.settings.limits import setting as setting
    from ffstream.settings.recipes import register_recipe as register_recipe
    from ffstream.studies.charts import draw_errors as draw_errors
    from ffstream.studies.offline import write_negatives as write_negatives
    from ffstream.training.observer import LayerFigures as LayerFigures
    from ffstream.training.observer import Observer as Observer
    from ffstream.training.observer import RunOutline as RunOutline
    from ffstream.training.observer import WindowFigures as WindowFigures

    load = load_network

__version__ = "0.1.0"

# Public name: (module, name there).
_PUBLIC = {
    "Activations": ("field.layers", "Activations"),
    "BudgetError": ("errors", "BudgetError"),
    "Config": ("settings.config", "Config"),
    "ConfigError": ("errors", "ConfigError"),
    "CorruptFileError": ("errors", "CorruptFileError"),
    "DataError": ("errors", "DataError"),
    "Dataset": ("data", "Dataset"),
    "DeviceError": ("errors", "DeviceError"),
    "DivergedError": ("errors", "DivergedError"),
    "Evaluation": ("infer.evaluation", "Evaluation"),
    "FFNetwork": ("infer.model", "FFNetwork"),
    "FFStreamError": ("errors", "FFStreamError"),
    "GOODNESSES": ("field.goodness", "GOODNESSES"),
    "Goodness": ("field.goodness", "Goodness"),
    "LABEL_METHODS": ("field.labels", "LABEL_METHODS"),
    "LAYER_KINDS": ("field.layers", "LAYER_KINDS"),
    "LabelMethod": ("field.labels", "LabelMethod"),
    "Layer": ("field.layers", "Layer"),
    "LayerFigures": ("training.observer", "LayerFigures"),
    "LayerShape": ("field.layers", "LayerShape"),
    "Mode": ("field.layers", "Mode"),
    "NEGATIVE_SAMPLERS": ("field.negatives", "NEGATIVE_SAMPLERS"),
    "OBJECTIVES": ("field.objectives", "OBJECTIVES"),
    "OPTIMISERS": ("field.optimisers", "OPTIMISERS"),
    "Objective": ("field.objectives", "Objective"),
    "Observer": ("training.observer", "Observer"),
    "Optimiser": ("field.optimisers", "Optimiser"),
    "OutputError": ("errors", "OutputError"),
    "Plan": ("plan.plan", "Plan"),
    "Predictions": ("infer.predictions", "Predictions"),
    "Run": ("run.run", "Run"),
    "RunError": ("errors", "RunError"),
    "RunLockedError": ("errors", "RunLockedError"),
    "RunMismatchError": ("errors", "RunMismatchError"),
    "RunOutline": ("training.observer", "RunOutline"),
    "SIMILARITIES": ("field.similarity", "SIMILARITIES"),
    "SOURCES": ("data", "SOURCES"),
    "Split": ("data", "Split"),
    "StorageError": ("errors", "StorageError"),
    "WindowFigures": ("training.observer", "WindowFigures"),
    "draw_errors": ("studies.charts", "draw_errors"),
    "load": ("infer.model", "load_network"),
    "load_dataset": ("data", "load_dataset"),
    "load_images": ("data.images", "load_images"),
    "register_recipe": ("settings.recipes", "register_recipe"),
    "make_plan": ("run.preparation", "make_plan"),
    "resume": ("run.launch", "resume"),
    "setting": ("settings.limits", "setting"),
    "stream": ("run.launch", "stream"),
    "train": ("run.launch", "train"),
    "write_negatives": ("studies.offline", "write_negatives"),
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'ffstream' has no attribute {name!r}")
    module, attribute = _PUBLIC[name]
    return getattr(importlib.import_module(f"ffstream.{module}"), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
