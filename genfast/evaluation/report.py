"""Results and pictures into one self-contained HTML page."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import jinja2

from genfast.evaluation.plots import Theme

PALETTE = (
    ("#2b6cb0", "#7db4ee"),
    ("#0f7f6c", "#52c9b1"),
    ("#a3660a", "#e2ae5a"),
    ("#b03a6b", "#ee8fb4"),
    ("#6a51a3", "#b6a3ea"),
    ("#55606e", "#aab4c0"),
)
"""Colour of each model on a light and on a dark page; all pass 4.5:1 against their background."""

CONTROL = "Real images"
"""What the control is called: real training images in the place of samples."""

CLASSIFIER_TEXT = {
    "mlp": "neural network",
    "logistic": "logistic regression",
    "forest": "random forest",
    "knn": "nearest neighbours",
}

LIGHT = Theme(text="#5a5f68", rule="#e3e4e8", lines=tuple(light for light, _ in PALETTE))
DARK = Theme(text="#a2a8b3", rule="#33373e", lines=tuple(dark for _, dark in PALETTE))


@dataclass
class Picture:
    """An image of the page: addresses that carry their content, and what it shows in words."""

    light: str
    alt: str
    dark: str | None = None


@dataclass
class Art:
    """The pictures of a report.

    Attributes:
        real: A grid of test images.
        samples: Model to its grid of samples.
        curves: Model to its loss curves.
        reconstructions: Model to test images over their reconstructions.
        interpolations: Model to walks through its latent space.
    """

    real: Picture
    samples: dict[str, Picture] = field(default_factory=dict)
    curves: dict[str, Picture] = field(default_factory=dict)
    reconstructions: dict[str, Picture] = field(default_factory=dict)
    interpolations: dict[str, Picture] = field(default_factory=dict)


def render(results: Mapping[str, Any], art: Art) -> str:
    """The page for the content of a `results.json`, with its pictures, as HTML."""
    models, control = results["models"], results["control"]
    tests = {name: model["two_sample"] for name, model in models.items()}
    tests[CONTROL] = control["two_sample"]
    colours = {name: f"c{index % len(PALETTE)}" for index, name in enumerate(models)}
    ratios = {name: model["sharpness"]["ratio"] for name, model in models.items()}
    ratios[CONTROL] = control["sharpness"]["ratio"]
    scored = [name for name, model in models.items() if model["likelihood"]]
    bounded = [name for name in scored if models[name]["likelihood"]["kind"] != "exact"]
    lowest = min(each["low"] for judged in tests.values() for each in judged.values())
    return _template().render(
        {
            **results,
            "art": art,
            "palette": PALETTE,
            "colours": {**colours, CONTROL: "real"},
            "control_name": CONTROL,
            "classifier_names": CLASSIFIER_TEXT,
            "scored": scored,
            "bounded": bounded,
            "unscored": [name for name in models if name not in scored],
            "tests": tests,
            "ratios": {name: ratio for name, ratio in ratios.items() if ratio is not None},
            "axis": next(start for start in (0.4, 0.2, 0.0) if start <= max(0.0, lowest)),
        }
    )


@lru_cache(maxsize=1)
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("genfast.evaluation"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Callable[..., str]] = {
        "seconds": seconds,
        "count": count,
        "percent": percent,
        "fixed": fixed,
        "words": words,
        "small": small,
    }
    environment.filters.update(filters)
    return environment.get_template("report.html.j2")


def seconds(value: float) -> str:
    """A duration in the unit that suits its size: "310 µs", "4.1 ms", "12.3 s", "2 min 5 s"."""
    for limit, factor, unit in ((1e-3, 1e6, "µs"), (1.0, 1e3, "ms"), (100.0, 1.0, "s")):
        if value < limit:
            scaled = value * factor
            return f"{scaled:.{_digits(scaled)}f} {unit}"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest} s"


def count(value: int) -> str:
    """An integer with its thousands set apart."""
    return f"{value:,}"


def percent(value: float, digits: int = 0) -> str:
    """A share as percent."""
    return f"{100 * value:.{digits}f}%"


def fixed(value: float, digits: int = 2) -> str:
    """A number with this many decimals and a true minus sign."""
    return f"{value:.{digits}f}".replace("-", "\N{MINUS SIGN}")


def words(names: list[str]) -> str:
    """Names as running text: "a", "a and b", "a, b and c"."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def small(value: float) -> str:
    """A probability, or the bound below which its digits mean nothing."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _digits(value: float) -> int:
    """Decimals that leave about two significant digits."""
    return max(0, 1 - math.floor(math.log10(value))) if 0 < value < 10 else 0
