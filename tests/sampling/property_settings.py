"""Settings of the property tests: examples from a fixed seed, and no clock."""

import os
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, Phase, settings


def checked(examples: int) -> Callable[[Any], Any]:
    """Decorate a property with a number of examples, times GENFAST_EXAMPLES if that is set.

    A number above 1 there also draws new examples each time: a search, not a test.
    """
    times = int(os.environ.get("GENFAST_EXAMPLES", "1"))
    return settings(
        max_examples=examples * times,
        derandomize=times == 1,
        database=None,
        deadline=None,
        print_blob=False,
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )
