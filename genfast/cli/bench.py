"""`genfast bench`."""

import json
import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from genfast.cli._help import option
from genfast.errors import InputError

WHAT = ("sampling",)
CASE_NAMES = ("digits", "gated", "plain", "plus-plus", "wavenet", "transformer")


def bench(
    what: Annotated[str, typer.Argument(metavar="WHAT", help="What to measure: sampling.")],
    cases: Annotated[
        list[str] | None,
        option(
            "--case",
            metavar="NAME",
            help=f"One of {', '.join(CASE_NAMES)}; may be repeated (default: all of them).",
        ),
    ] = None,
    threads: Annotated[
        str | None,
        option(
            metavar="LIST",
            help="Numbers of threads, separated by commas (default: 1, 2 and all cores).",
        ),
    ] = None,
    seconds: Annotated[
        float,
        option(metavar="S", help="About how long to time each batch size, in seconds (default 5)."),
    ] = 5,
    device: Annotated[
        str,
        option(metavar="NAME", help="'cpu', 'cuda', 'cuda:N' or 'auto' (default cpu)."),
    ] = "cpu",
    out: Annotated[
        Path | None,
        option(metavar="FILE", help="File for the results as JSON (default: none)."),
    ] = None,
    progress: Annotated[
        bool, option(help="Say on standard error what is being done (default yes).")
    ] = True,
) -> None:
    """Measure samplers on this machine, beside eager forward passes and loops in PyTorch.

    Results are checked before they are timed. The table goes to standard output, as Markdown.
    """
    if what not in WHAT:
        raise InputError(f"bench: expected WHAT in {', '.join(WHAT)}, got {what!r}")
    names = list(cases or CASE_NAMES)
    for name in names:
        if name not in CASE_NAMES:
            raise InputError(f"bench: expected --case in {', '.join(CASE_NAMES)}, got {name!r}")
    counts = _counts(threads)
    if not seconds > 0:
        raise InputError(f"bench: expected --seconds above 0, got {seconds}")
    if out is not None:
        from genfast._files import make_folder

        make_folder(out.parent)
        if out.is_dir():
            raise InputError(f"bench: expected the name of a file, got the folder {out}")

    from genfast.bench.render import render
    from genfast.bench.sampling import run
    from genfast.training.config import resolve_device

    def say(text: str) -> None:
        if progress:
            print(f"genfast: {text}", file=sys.stderr)

    results = run(names, counts, seconds, say, resolve_device(device))
    results = {"command": shlex.join(["genfast", *sys.argv[1:]]), **results}
    if out is not None:
        from genfast._files import write_atomic

        write_atomic(out, (json.dumps(results, indent=1) + "\n").encode())
    print(render(results), end="")


def _counts(threads: str | None) -> list[int]:
    """Read "1,4" as numbers of threads; 1, 2 and all of this process's cores by default."""
    if threads is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        return sorted({1, min(2, cores or 1), cores or 1})
    words = [word.strip() for word in threads.split(",")]
    if not all(word.isdigit() and int(word) > 0 for word in words):
        raise InputError(f"bench: expected --threads as numbers from 1, got {threads!r}")
    return [int(word) for word in words]
