"""genfast: fast kernels, models and samplers for the four classic families of generative models.

>>> import genfast
>>> digits = genfast.data.digits("train")
>>> model = genfast.fit("pixelcnn", digits, epochs=20)
>>> images = model.sample(16)
"""

import importlib
from typing import TYPE_CHECKING, Any

from genfast import errors as errors
from genfast import ops as ops
from genfast._version import __version__ as __version__
from genfast.errors import GenfastError as GenfastError

if TYPE_CHECKING:
    from genfast import data as data
    from genfast import evaluation as evaluation
    from genfast import models as models
    from genfast import nn as nn
    from genfast import sampling as sampling
    from genfast import training as training
    from genfast.evaluation import compare as compare
    from genfast.evaluation import evaluate as evaluate
    from genfast.models import create as create
    from genfast.training import fit as fit
    from genfast.training import load as load

# Imported when first used, so that `import genfast` for its ops alone costs milliseconds.
_SUBMODULES = ("data", "evaluation", "models", "nn", "sampling", "training")
_FUNCTIONS = {
    "compare": "evaluation",
    "create": "models",
    "evaluate": "evaluation",
    "fit": "training",
    "load": "training",
}


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return importlib.import_module(f"genfast.{name}")
    if name in _FUNCTIONS:
        return getattr(importlib.import_module(f"genfast.{_FUNCTIONS[name]}"), name)
    raise AttributeError(f"module 'genfast' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_SUBMODULES, *_FUNCTIONS])
