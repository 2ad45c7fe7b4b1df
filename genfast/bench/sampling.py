"""`genfast bench sampling`: how many forward passes drawing a batch takes, and beside what."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from genfast._commit import commit
from genfast._extension import references
from genfast.bench.agreement import compare, require_agreement
from genfast.bench.cases import CASES, Case, build, with_plain_convolutions
from genfast.bench.measure import activation_bytes, peak_bytes, time_together
from genfast.evaluation.machine import machine, versions
from genfast.sampling import Sampler, compile_sampler
from genfast.sampling.distributions.categorical import invert_cdf
from genfast.sampling.surroundings import full_precision

Say = Callable[[str], None]

# The promise for float32: relative to the range of the logits, and of all symbols.
_TOLERANCE, _SAME = 1e-5, 0.999


def run(
    names: Sequence[str],
    threads: Sequence[int],
    seconds: float = 5.0,
    say: Say = lambda text: None,
    device: torch.device | None = None,
) -> dict[str, Any]:
    """Check, then time the cases named, with each number of threads.

    Args:
        names: keys of CASES.
        threads: numbers of threads of torch and of the sampler.
        seconds: about how long to time each case.
        say: told what is being done.
        device: where models and samplers run; the CPU by default. Forward passes on a GPU are timed
            without TF32, which samplers are exact without.

    Returns:
        JSON content: `render.render` writes it as Markdown.

    Raises:
        ExactnessError: a sampler and its model disagree; nothing wrong is timed.
    """
    device = device or torch.device("cpu")
    before = torch.get_num_threads()
    results: dict[str, Any] = {
        "commit": commit(),
        "machine": machine(device),
        "versions": versions(),
        "cases": [],
    }
    try:
        for name in names:
            torch.set_num_threads(max(threads))
            say(f"{name}: compiling")
            with full_precision:
                found = _measure_case(name, CASES[name], threads, seconds, say, device)
            results["cases"].append(found)
    finally:
        torch.set_num_threads(before)
    return results


def _measure_case(
    name: str,
    case: Case,
    threads: Sequence[int],
    seconds: float,
    say: Say,
    device: torch.device,
) -> dict[str, Any]:
    model = build(case).to(device)
    distribution = case.distribution()
    start = time.perf_counter()
    sampler = compile_sampler(model, case.event_shape, distribution)
    compiled = time.perf_counter() - start
    found: dict[str, Any] = {
        "name": name,
        "title": case.title,
        "symbols": case.symbols,
        "parameters": sum(each.numel() for each in model.parameters()),
        "compile_seconds": float(f"{compiled:.4g}"),
    }
    plain = with_plain_convolutions(model)
    if case.memory is not None:
        found["memory"] = _memory(case.memory, plain, sampler, device)
    say(f"{name}: checking")
    agreement = compare(model, sampler, distribution, n=min(case.batches), seed=0)
    require_agreement(agreement, _TOLERANCE, _SAME)
    found["agreement"] = asdict(agreement)
    found["rows"] = []
    for count in threads:
        torch.set_num_threads(count)
        for batch in case.batches:
            say(f"{name}: batch {batch}, threads {count}")
            row = _time_row(case, batch, model, plain, sampler, seconds)
            row["threads"] = count
            if case.loop is not None:
                row["loop"] = _time_loop(case, batch, case.loop(model), seconds, device)
            found["rows"].append(row)
    return found


@torch.inference_mode()
def _time_row(
    case: Case, batch: int, model: nn.Module, plain: nn.Module, sampler: Sampler, seconds: float
) -> dict[str, Any]:
    """Time forward passes and sampling of one batch size in turn, and a few steps of the loop."""
    x = sampler.sample(batch, seed=1)
    calls: dict[str, Callable[[], object]] = {
        "plain": lambda: _run_plain(plain, x),
        "own": lambda: model(x),
        "sample": lambda: sampler.sample(batch, seed=2),
    }
    timings = time_together(calls, seconds, device=x.device)
    unit, own, sample = timings["plain"], timings["own"], timings["sample"]
    faster = model if own.median < unit.median else partial(_run_plain, plain)
    steps = {"step": lambda: _naive_step(faster, x)}
    step = time_together(steps, 0.0, least=3, device=x.device)["step"]
    return {
        "batch": batch,
        "forward": unit.as_json(),
        "own_forward": own.as_json(),
        "sample": sample.as_json(),
        "forwards": float(f"{sample.median / unit.median:.4g}"),
        "own_forwards": float(f"{sample.median / own.median:.4g}"),
        "naive_seconds": float(f"{step.median * case.steps:.4g}"),
        "naive_steps_timed": step.runs,
    }


def _run_plain(model: nn.Module, x: Tensor) -> Tensor:
    """A forward pass in which nothing of ours computes."""
    with references():
        return cast(Tensor, model(x))


def _naive_step(model: Callable[[Tensor], Any], x: Tensor) -> Tensor:
    """One step of the naive loop: a full forward for the symbols at the last position."""
    parameters = cast(Tensor, model(x)).flatten(2)[:, :, -1]
    return invert_cdf(parameters, torch.rand(len(x), device=x.device))


def _time_loop(
    case: Case, batch: int, loop: Callable[..., Tensor], seconds: float, device: torch.device
) -> dict[str, Any]:
    def draw(logits: Tensor) -> Tensor:
        return invert_cdf(logits, torch.rand(len(logits), device=logits.device))

    timing = time_together({"loop": lambda: loop(batch, draw)}, seconds, 3, device)["loop"]
    return {
        "timed": timing.as_json(),
        "symbols_timed": case.loop_symbols,
        "seconds": float(f"{timing.median * case.symbols / case.loop_symbols:.4g}"),
    }


def _memory(batch: int, plain: nn.Module, sampler: Sampler, device: torch.device) -> dict[str, Any]:
    """Tell what sampling takes beyond the model, beside the activations of one eager forward."""
    drawn: list[Tensor] = []
    grown = peak_bytes(lambda: drawn.append(sampler.sample(batch, seed=3)), device)
    with references():
        activations = activation_bytes(plain, drawn[0])
    return {
        "batch": batch,
        "activation_bytes": activations,
        "sample_bytes": grown,
    }
