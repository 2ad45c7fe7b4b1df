"""Build, test and measure on a CUDA machine: `python -m benchmarks.cuda_machine --out FOLDER`.

The machine has torch (a CUDA build), nvcc and Triton, and needs no network: nothing is downloaded.
The Python that runs this is the one that genfast is built for and installed in, as an editable
package. `--dry-run` takes the same way on the CPU.
"""

import argparse
import datetime
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.cuda_machine import summary
from benchmarks.cuda_machine.processes import Command, Outcome, run_together
from benchmarks.cuda_machine.steps import ROOT, STEPS, Absent, Machine, Step, search_path
from genfast._commit import commit

# In the build folder: it can be written to, git ignores it, and its name is the same everywhere.
_SCRATCH = Path("build/cuda_machine")
_FACTS_LIMIT = 120.0
_LEAST = 10.0  # seconds left of the budget that make a step worth starting


def main() -> int:
    """Run the steps; 0 when all of them were good."""
    options = _options()
    start = time.monotonic()
    # Steps are ended by Ctrl-C, which a start in the background leaves ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ["PATH"] = search_path()
    os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = str(ROOT / _SCRATCH / "hypothesis")
    if options.commit:
        os.environ["GENFAST_COMMIT"] = options.commit
    device = "cpu" if options.dry_run else "cuda"
    shutil.rmtree(ROOT / _SCRATCH, ignore_errors=True)
    (ROOT / _SCRATCH).mkdir(parents=True)
    facts = _facts(device)
    run = {
        "command": " ".join(["python", "-m", "benchmarks.cuda_machine", *sys.argv[1:]]),
        "commit": commit(),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    results = summary.Folder(options.out, facts, run)
    for problem in facts["problems"]:
        print(f"genfast: {problem}", file=sys.stderr)
    if facts["problems"]:
        return 2
    if facts["missing"]:
        print(f"not installed, some tests need them: {', '.join(facts['missing'])}", flush=True)
    machine = Machine(device, facts, _SCRATCH)
    good = True
    for step in STEPS:
        if step.name in options.steps:
            left = options.budget - (time.monotonic() - start)
            good &= _run_step(step, machine, results, min(step.limit, left))
    print(f"results: {options.out}")
    return 0 if good else 1


def _run_step(step: Step, machine: Machine, results: summary.Folder, limit: float) -> bool:
    start = time.monotonic()
    outcomes: list[Outcome] = []
    result = "good"
    rounds = step.rounds(machine)
    absent = isinstance(rounds, Absent)
    if isinstance(rounds, Absent):
        rounds, result = [], f"not run: {rounds.reason}"
    elif limit < _LEAST:
        rounds, result = [], "not run: the time is used up"
    for commands in rounds:
        left = limit - (time.monotonic() - start)
        outcomes += run_together(commands, ROOT, ROOT / machine.scratch, max(1.0, left))
        if not all(each.ok for each in outcomes):
            result = "stopped at its limit" if any(e.stopped for e in outcomes) else "FAILED"
            break
    told = summary.told(outcomes)
    found = {
        "meaning": step.meaning,
        "result": result,
        "seconds": round(time.monotonic() - start, 1),
        "told": told,
        "commands": [
            {"name": e.command.name, "code": e.code, "seconds": e.seconds, "stopped": e.stopped}
            for e in outcomes
        ],
    }
    results.add(step.name, found, summary.log_of(outcomes), ROOT / machine.scratch)
    print("; ".join([f"{step.name}: {result}, {found['seconds']} s", *told]), flush=True)
    return result == "good" or absent


def _facts(device: str) -> dict[str, Any]:
    words = (sys.executable, "-m", "benchmarks.cuda_machine.facts", device)
    (outcome,) = run_together([Command("facts", words)], ROOT, ROOT / _SCRATCH, _FACTS_LIMIT)
    try:
        lines = [line for line in outcome.output.splitlines() if line.startswith("{")]
        facts: dict[str, Any] = json.loads(lines[-1])
    except (IndexError, ValueError):
        sys.exit(f"genfast: cannot tell what this machine is:\n{outcome.output[-4000:]}")
    return facts


def _options() -> argparse.Namespace:
    names = [step.name for step in STEPS]

    def steps(text: str) -> list[str]:
        chosen = [name.strip() for name in text.split(",")]
        unknown = [name for name in chosen if name not in names]
        if unknown:
            raise argparse.ArgumentTypeError(f"expected some of {', '.join(names)}, got {text}")
        return chosen

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cuda_machine",
        description="Build, test and measure genfast on a CUDA machine, without a network.",
        epilog="steps: " + "; ".join(f"{s.name} ({s.limit:g} s): {s.meaning}" for s in STEPS),
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FOLDER", help="where the results go: few files"
    )
    parser.add_argument(
        "--steps", type=steps, default=names, metavar="A,B", help="only these (default: all)"
    )
    parser.add_argument(
        "--budget", type=float, default=900, metavar="S",
        help="seconds for everything; steps that no longer fit are not run (default 900)",
    )  # fmt: skip
    parser.add_argument(
        "--commit", metavar="TEXT", help="what the results call the sources, where git cannot tell"
    )
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, a little of every step")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
