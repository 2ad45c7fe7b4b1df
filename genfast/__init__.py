"""genfast: fast kernels, models and samplers for the four classic families of generative models.

>>> import genfast
>>> digits = genfast.data.digits("train")
>>> model = genfast.fit("pixelcnn", digits, epochs=20)
>>> images = model.sample(16)

Names are imported when they are first used, so that the command line's help does not wait for
torch. `import genfast.ops` registers the operators `torch.ops.genfast.*`.
"""

import importlib
from typing import TYPE_CHECKING, Any

from genfast import errors as errors
from genfast._version import __version__ as __version__
from genfast.errors import GenfastError as GenfastError

if TYPE_CHECKING:
    from genfast import data as data
    from genfast import evaluation as evaluation
    from genfast import images as images
    from genfast import info as info
    from genfast import models as models
    from genfast import nn as nn
    from genfast import ops as ops
    from genfast import sampling as sampling
    from genfast import training as training
    from genfast.evaluation.compare import compare as compare
    from genfast.evaluation.evaluate import evaluate as evaluate
    from genfast.models import create as create
    from genfast.sampling import Bernoulli as Bernoulli
    from genfast.sampling import Categorical as Categorical
    from genfast.sampling import CustomDistribution as CustomDistribution
    from genfast.sampling import Gaussian as Gaussian
    from genfast.sampling import LogisticMixture as LogisticMixture
    from genfast.sampling import check_causality as check_causality
    from genfast.sampling import compile_sampler as compile_sampler
    from genfast.training import load as load
    from genfast.training.fit import fit as fit

_SUBMODULES = (
    "data", "evaluation", "images", "info", "models", "nn", "ops", "sampling", "training"
)  # fmt: skip
_FUNCTIONS = {
    "Bernoulli": "sampling",
    "Categorical": "sampling",
    "CustomDistribution": "sampling",
    "Gaussian": "sampling",
    "LogisticMixture": "sampling",
    "check_causality": "sampling",
    "compare": "evaluation",
    "compile_sampler": "sampling",
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
    return sorted({*globals(), *_SUBMODULES, *_FUNCTIONS})
