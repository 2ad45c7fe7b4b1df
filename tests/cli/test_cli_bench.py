"""`genfast bench` on models small enough for a test, and what it refuses."""

import json
from dataclasses import replace

import pytest
import torch

from genfast.bench import sampling
from genfast.bench.cached_loops import CachedGatedPixelCNN
from genfast.bench.cases import CASES
from genfast.bench.measure import activation_bytes, digits, peak_bytes, time_together
from genfast.cli.bench import CASE_NAMES
from genfast.models import GatedPixelCNN, GatedPixelCNNConfig

SMALL = replace(
    CASES["gated"],
    title="small",
    event_shape=(1, 6, 5),
    make=lambda: GatedPixelCNN(GatedPixelCNNConfig((1, 6, 5), 256, 4, 2, 3, 3, 8)),
    batches=(4,),
    loop=lambda model: CachedGatedPixelCNN(model).sample,
    loop_symbols=30,
    memory=4,
)


def test_the_cases_in_the_help_are_the_cases():
    assert tuple(CASES) == CASE_NAMES


def test_it_checks_measures_writes_and_prints(genfast, tmp_path, monkeypatch):
    monkeypatch.setitem(sampling.CASES, "gated", SMALL)
    before = torch.get_num_threads()
    out = tmp_path / "deep" / "results.json"
    words = ("--case", "gated", "--threads", "1,2", "--seconds", "0.01", "--out", str(out))
    result = genfast("bench", "sampling", *words)
    assert result.code == 0, result.err
    assert torch.get_num_threads() == before
    results = json.loads(out.read_text())
    (case,) = results["cases"]
    assert [(row["batch"], row["threads"]) for row in case["rows"]] == [(4, 1), (4, 2)]
    assert case["agreement"]["symbols"] == case["agreement"]["same"] == 4 * 30
    assert case["agreement"]["error"] < 1e-5
    for row in case["rows"]:
        ratio = row["sample"]["median"] / row["forward"]["median"]
        assert row["forwards"] == pytest.approx(ratio, rel=1e-3)
        ratio = row["sample"]["median"] / row["own_forward"]["median"]
        assert row["own_forwards"] == pytest.approx(ratio, rel=1e-3)
        fastest = min(row["forward"]["fastest"], row["own_forward"]["fastest"])
        assert row["naive_seconds"] > 30 * fastest / 2
        assert row["loop"]["seconds"] > 0
    assert case["memory"]["activation_bytes"] > 0
    lines = result.out.splitlines()
    assert sum(line.startswith("| small | 4 |") for line in lines) == 2
    assert f"torch {torch.__version__}" in result.out
    assert "120 are what the forward's logits draw" in result.out


def test_a_sampler_that_is_wrong_is_not_timed(genfast, monkeypatch):
    monkeypatch.setitem(sampling.CASES, "gated", SMALL)
    monkeypatch.setattr(sampling, "_TOLERANCE", -1.0)
    result = genfast("bench", "sampling", "--case", "gated", "--threads", "1")
    assert result.code == 2
    assert "expected outputs within" in result.err
    assert result.out == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("kernels",), "expected WHAT in sampling, got 'kernels'"),
        (
            ("sampling", "--case", "big"),
            "expected --case in digits, gated, plain, plus-plus, wavenet, transformer",
        ),
        (("sampling", "--threads", "1,x"), "expected --threads as numbers from 1, got '1,x'"),
        (("sampling", "--threads", "0"), "expected --threads as numbers from 1"),
        (("sampling", "--seconds", "0"), "expected --seconds above 0"),
        (("sampling", "--out", "/"), "expected the name of a file"),
    ],
)
def test_refuses_bad_arguments_before_anything_runs(genfast, words, message):
    result = genfast("bench", *words)
    assert result.code == 2
    assert message in result.err


def test_activations_are_what_operations_make_without_views():
    model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Unflatten(1, (5, 1)))
    assert activation_bytes(model, torch.zeros(7, 3)) == 7 * 5 * 4


def test_peak_memory_of_a_call_is_seen():
    size = 64 * 2**20
    grown = peak_bytes(lambda: torch.ones(size, dtype=torch.uint8))
    if grown is None:
        pytest.skip("this system does not tell")
    assert 0.9 * size < grown < 1.5 * size
    assert peak_bytes(lambda: None) < 2**20


def test_calls_are_timed_in_turn():
    order = []
    timings = time_together({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 0, 3)
    assert order == ["a", "b"] * 4
    assert timings["a"].runs == 3
    assert timings["a"].fastest <= timings["a"].median <= timings["a"].slowest


@pytest.mark.parametrize(
    ("value", "text"), [(0.012345, "0.0123"), (123.4, "123"), (45678.9, "45,679"), (0.0, "0.0")]
)
def test_three_digits(value, text):
    assert digits(value) == text


@pytest.mark.parametrize("name", ["digits", "gated", "plain", "plus-plus", "wavenet"])
def test_the_plain_form_is_the_model(name: str) -> None:
    case = sampling.CASES[name]
    model = sampling.build(case)
    shape = (1, *case.event_shape[:-1], min(case.event_shape[-1], 2000))
    x = torch.randint(0, 16, shape).float()
    with torch.inference_mode():
        plain = sampling._run_plain(sampling.with_plain_convolutions(model), x)
        own = model(x)
    torch.testing.assert_close(plain, own, rtol=1e-4, atol=1e-4 * own.abs().max().item())
