"""The command line: `genfast train | sample | evaluate | compare | bench | info`.

Nothing here imports torch until a command runs, so that help and usage errors come at once.
"""

import os
from collections.abc import Sequence

# How long OpenMP threads spin before they sleep, in GNU OpenMP's rounds. Its default suits cores of
# one's own. Measured on a 4-core Xeon under `taskset -c 0,1`: four epochs of `genfast.fit` on the
# digits, batch 64, two processes side by side against one alone. By default the autoencoder and the
# PixelCNN took 7 to 30 times as long; with this all families took 2 to 3 times. What it costs a
# process alone lies within those runs' noise: 0.7 to 1.3 times as long. Read when torch loads.
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
