"""A short training run of every family on the bundled digits, with samples drawn at the end.

`python -m benchmarks.cuda_machine.train DEVICE EPOCHS` prints a line for each. A run has failed
when it raises, when its loss is not finite, or, in the families that have one loss only, when the
last epoch's loss is not below the first logged one.
"""

import argparse
import json
import math
import sys
import tempfile
import time
import traceback
from pathlib import Path

import torch

import genfast
from genfast.evaluation.demo import DEMO

# Beside the families of the demo the two other models of images, for the ops that they use.
_OTHERS = {
    "gated_pixelcnn": {"channels": 32, "layers": 3, "head_channels": 64},
    "pixelcnn_plus_plus": {"filters": 16, "resnets": 1, "mixtures": 5},
}


def train(model: str, device: str, epochs: int, folder: Path) -> str:
    """Train a model and tell what it reached.

    Raises:
        ValueError: if the losses are not finite or do not fall.
    """
    options, settings = _OTHERS.get(model), {"learning_rate": 2e-3}
    if options is None:
        options, settings = DEMO[model]["model"], dict(DEMO[model]["training"])
    settings |= {"epochs": epochs, "device": device, "log_every": 1, "sample_count": 16}
    run = folder / model
    start = time.perf_counter()
    trained = genfast.fit(
        model, "digits", run=run, model_options=options, progress=False, **settings
    )
    seconds = time.perf_counter() - start
    found = next(trained.parameters()).device.type
    if found != device:
        raise ValueError(f"expected a model on {device}, got one on {found}")
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    losses = {name: value for name, value in rows[-1].items() if name.endswith("loss")}
    if not losses or not all(map(math.isfinite, losses.values())):
        raise ValueError(f"expected finite losses, got {losses}")
    if model != "gan" and not rows[-1]["loss"] < rows[0]["loss"]:
        raise ValueError(f"expected a loss that falls, got {rows[0]['loss']} to {rows[-1]['loss']}")
    told = ", ".join(f"{name} {rows[0][name]:.4g} to {losses[name]:.4g}" for name in losses)
    return f"{model}: {len(rows)} steps and samples in {seconds:.1f} s; {told}"


def main() -> None:
    """Train every family; the exit code is the number of those that failed."""
    parser = argparse.ArgumentParser(description="Train every family for a few epochs.")
    parser.add_argument("device", choices=("cuda", "cpu"))
    parser.add_argument("epochs", type=int)
    parser.add_argument("--families", action="store_true", help="one model of each family only")
    options = parser.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        for model in DEMO if options.families else (*DEMO, *_OTHERS):
            torch.manual_seed(0)
            try:
                print(train(model, options.device, options.epochs, Path(folder)), flush=True)
            except Exception:  # the next family's run is worth having
                failed += 1
                print(f"{model}: failed", flush=True)
                traceback.print_exc(file=sys.stdout)
    sys.exit(failed)


if __name__ == "__main__":
    main()
