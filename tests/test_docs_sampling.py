"""The Python of docs/sampling.md runs as it stands, and says nothing that is not so."""

import re
from pathlib import Path

import pytest
import torch

from genfast.nn import evaluating
from genfast.sampling import sample_naive

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "sampling.md"


@pytest.fixture(scope="module")
def names():
    """The names that the page's blocks leave, and the samplers in the order they were made."""
    found = {}
    samplers = []
    for block in re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE):
        exec(block, found)
        if "sampler = " in block:
            samplers.append(found["sampler"])
    found["samplers"] = samplers
    return found


def test_the_first_example(names):
    images, logits, model = names["images"], names["logits"], names["model"]
    assert images.shape == (16, 1, 8, 8)
    assert logits.shape == (16, 17, 1, 8, 8)
    with torch.no_grad(), evaluating(model):
        full = model(images)
    assert (logits - full).abs().max() <= 1e-5 * (full.max() - full.min())
    assert "Once per row" in str(names["samplers"][0])


@pytest.mark.parametrize(
    ("number", "symbols", "conditions", "offset"),
    [(1, "digits", {}, 0), (2, "codes", {"label": "labels"}, 0), (3, "sound", {}, 1)],
)
def test_models_found_in_the_wild_draw_what_the_naive_loop_draws(
    names, number, symbols, conditions, offset
):
    sampler, drawn = names["samplers"][number], names[symbols]
    naive = sample_naive(
        sampler.model,
        len(drawn),
        seed=0,
        event_shape=sampler.event_shape,
        distribution=sampler.distribution,
        conditions={name: names[value] for name, value in conditions.items()},
        offset=offset,
    )
    assert (drawn == naive).double().mean() > 0.99
    assert len(drawn.unique()) > 2


def test_the_rule_that_is_shown_is_the_rule():
    shown = re.findall(r"^```\n(@rule.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert len(shown) == 1
    rules = (ROOT / "genfast" / "sampling" / "lower" / "rules" / "arithmetic.py").read_text()
    assert shown[0] in rules


def test_the_page_names_files_that_exist():
    text = PAGE.read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert (PAGE.parent / target).exists(), target
    package = ROOT / "genfast" / "sampling"
    rows = dict(re.findall(r"^\| `(\w+)/` \|(.*)", text, re.MULTILINE))
    folders = {path.parent.name for path in package.glob("*/__init__.py")}
    assert set(rows) == folders
    for folder, row in rows.items():
        for name in re.findall(r"`([./\w]+\.py)`", row):
            assert (package / folder / name).exists(), name
    for name in re.findall(r"`(\w+\.py)`", text):
        assert list(package.rglob(name)), name
    for path in re.findall(r"`((?:benchmarks|genfast|tests)/[\w/.]+)`", text):
        assert (ROOT / path).exists(), path
