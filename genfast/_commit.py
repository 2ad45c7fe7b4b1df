"""Which sources these are: stands beside every figure that is kept."""

import os
import subprocess
from pathlib import Path


def commit() -> str | None:
    """The commit of the sources, with "-dirty" when they were changed since; None outside git.

    A copy of the sources without git is told by GENFAST_COMMIT.
    """
    if "GENFAST_COMMIT" in os.environ:
        return os.environ["GENFAST_COMMIT"]
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
