"""The command line: `genfast train | sample | evaluate | compare | info`.

Nothing here imports torch until a command runs, so that help and usage errors come at once.
"""

from collections.abc import Sequence


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        args: the words after the program's name; those of this process by default.

    Returns:
        The exit code: 0; 2 after an error that the user can mend, told in one line on standard
        error; 130 after Ctrl-C. SIGTERM while training raises SystemExit(143).
    """
    from genfast.cli._run import run

    return run(args)
