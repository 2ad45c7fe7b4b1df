"""Which distributions the compiled engine draws from, and how they are described to it."""

import importlib
from collections.abc import Callable
from typing import Any

from genfast.sampling.distributions import Bernoulli, Categorical, Gaussian, LogisticMixture

_RULES: dict[type, Callable[[Any, Any], Any]] = {
    Categorical: lambda make, each: make.categorical(each.levels),
    Bernoulli: lambda make, each: make.bernoulli(),
    LogisticMixture: lambda make, each: make.logistic_mixture(
        each.levels, each.mixtures, each.colours, each.lowest_log_scale
    ),
    Gaussian: lambda make, each: make.gaussian(each.scale),
}


def draw_rule(distribution: object) -> Any | None:
    """The engine's own description of a distribution, or None where it has none.

    Only of these classes themselves: a class derived from one may draw otherwise.
    """
    rule = _RULES.get(type(distribution))
    if rule is None:
        return None
    return rule(importlib.import_module("genfast._C").SamplingDrawRule, distribution)
