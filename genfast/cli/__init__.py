"""The command line: `genfast train | sample | evaluate | compare | info`.

Nothing here imports torch until a command runs, so that help and usage errors come at once.
"""

import os
from collections.abc import Sequence

# How long OpenMP threads spin before they sleep, in GNU OpenMP's rounds. Its default suits cores of
# one's own: two trainings side by side on 2 cores (taskset -c 0,1, digits, batch 64) took 7 to 20
# times as long as one; with this 2 times, and alone no longer than before. Read when torch loads.
_SPINS = "2000"


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        args: the words after the program's name; those of this process by default.

    Returns:
        The exit code: 0; 2 after an error that the user can mend, told in one line on standard
        error; 130 after Ctrl-C. SIGTERM while training raises SystemExit(143).
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)

    from genfast.cli._run import run

    return run(args)
