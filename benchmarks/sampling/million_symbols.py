"""Compares a million drawn symbols with what the full forward pass draws from the same noise.

    python benchmarks/sampling/million_symbols.py [--symbols 1000000] [--out FILE]

Two comparisons, in float32 and float64. Teacher-forced: the forward pass sees the symbols that the
sampler drew, so each symbol counts by itself; at least 99.99 % are to be the same in float32, all
in float64. Free-running: the naive loop draws by itself from the same seed, and after the first
symbol that rounding decides otherwise the rest of an event differs; reported, for fewer events.
Exits with 1 if a promise is broken.
"""

import argparse
import json
import shlex
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from genfast import compile_sampler
from genfast._commit import commit
from genfast.bench.agreement import Agreement, compare
from genfast.evaluation.machine import machine, versions
from genfast.models import (
    GatedPixelCNN,
    GatedPixelCNNConfig,
    PixelCNN,
    PixelCNNConfig,
    PixelCNNPlusPlus,
    PixelCNNPlusPlusConfig,
    WaveNet,
    WaveNetConfig,
)
from genfast.sampling import Categorical, LogisticMixture, sample_naive

PROMISED = {torch.float32: 0.9999, torch.float64: 1.0}
BATCH = 64


def models():
    """Small models with weights that make sharp and flat distributions: name to (model, theirs)."""
    torch.manual_seed(0)
    gated = GatedPixelCNN(GatedPixelCNNConfig((1, 28, 28), 256, 24, 6, 7, 3, 32))
    colours = PixelCNN(PixelCNNConfig((3, 16, 16), 64, 24, 4, 5, 48))
    sound = WaveNet(WaveNetConfig(length=2048, residual_channels=24, layers=12, cycle=8))
    mixture = PixelCNNPlusPlus(PixelCNNPlusPlusConfig((3, 16, 16), 256, 16, 2, 5))
    found = {
        "gated": (gated, Categorical(256)),
        "colours": (colours, Categorical(64)),
        "sound": (sound, Categorical(256)),
        "mixture": (mixture, LogisticMixture(256, 5, values=None)),
    }
    for model, _ in found.values():
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.6)
    return found


def teacher_forced(model, distribution, shape, symbols):
    """Draw until there are enough symbols; return their sums."""
    sampler = compile_sampler(model, shape, distribution)
    batch = min(BATCH, -(-symbols // torch.Size(shape).numel()))
    error, drawn, same, first = 0.0, 0, 0, 0
    while drawn < symbols:
        found = compare(model, sampler, distribution, n=batch, seed=0, first=first)
        error, drawn, same = max(error, found.error), drawn + found.symbols, same + found.same
        first += batch
    return sampler, Agreement(error, drawn, same)


def main(words=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--symbols", type=int, default=1_000_000, help="for each model and dtype")
    parser.add_argument("--free", type=int, default=2, help="events of the free-running comparison")
    parser.add_argument("--out", type=Path, help="file for the results as JSON")
    options = parser.parse_args(words)
    rows, broken = [], False
    for name, (model, distribution) in models().items():
        shape = getattr(model, "event_shape", None) or model.config.image_shape
        for dtype, promised in PROMISED.items():
            model = model.to(dtype).eval()
            sampler, found = teacher_forced(model, distribution, shape, options.symbols)
            drawn = sampler.sample(options.free, seed=0)
            naive = sample_naive(
                model, options.free, event_shape=shape, distribution=distribution, seed=0
            )
            free = (drawn == naive).double().mean().item()
            kept = found.same >= promised * found.symbols
            broken |= not kept
            rows.append({"model": name, "dtype": str(dtype), **asdict(found), "free_running": free})
            print(
                f"{name} {dtype}: {found.same} of {found.symbols} the same, outputs within "
                f"{found.error:.1e}; free-running {free:.4%} of {drawn.numel()}"
                f"{'' if kept else '; BROKEN'}",
                flush=True,
            )
    if options.out is not None:
        content = {
            "command": shlex.join(["python", *sys.argv]),
            "commit": commit(),
            "machine": machine(torch.device("cpu")),
            "versions": versions(),
            "rows": rows,
        }
        options.out.write_text(json.dumps(content, indent=1) + "\n")
    return int(broken)


if __name__ == "__main__":
    sys.exit(main())
