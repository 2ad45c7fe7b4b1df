"""One call of the command line: exit codes, and errors and warnings as single lines."""

import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

import typer

from genfast.errors import GenfastError

USER_ERROR = 2
INTERRUPTED = 130
TRACEBACK = "--traceback"


def run(args: Sequence[str] | None = None) -> int:
    """Run the command that the arguments name and return the exit code."""
    from genfast.cli._app import app

    given = sys.argv[1:] if args is None else list(args)
    # Taken out wherever it stands: whoever repeats a failed command adds it at the end.
    words = [word for word in given if word != TRACEBACK]
    traceback = len(words) < len(given) or os.environ.get("GENFAST_TRACEBACK", "0") not in ("", "0")
    command = typer.main.get_command(app)
    with _plain_warnings():
        try:
            code = command.main(words or ["--help"], prog_name="genfast", standalone_mode=False)
            sys.stdout.flush()
        except (KeyboardInterrupt, typer.Abort):
            return INTERRUPTED
        except BrokenPipeError:  # the reader, `head` perhaps, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except Exception as error:
            message = explain(error)
            if traceback or message is None:
                raise
            print(f"genfast: {message}", file=sys.stderr)
            return USER_ERROR
    return code if isinstance(code, int) else 0


def explain(error: BaseException) -> str | None:
    """Say in one line what the user can mend; None for what is a fault of the program."""
    if isinstance(error, GenfastError):
        text = str(error).removeprefix("genfast: ")
    elif hasattr(error, "format_message"):  # a usage error; typer's versions differ in its class
        context = getattr(error, "ctx", None)
        text = error.format_message().rstrip(".")
        text += f" (see {getattr(context, 'command_path', 'genfast')} --help)"
    elif isinstance(error, OSError):
        text = error.strerror or str(error)
        text = text if error.filename is None else f"{error.filename}: {text}"
    elif isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        text = f"out of memory: {error}".partition("\n")[0] + "; try a smaller --batch-size"
    else:
        return None
    return one_line(text)


def one_line(text: object) -> str:
    """Join lines, and escape what could move the cursor: names of files may hold anything."""
    joined = " ".join(line.strip() for line in str(text).splitlines())
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in joined)


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Show each warning as one line, without the place in the code that gave it."""

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        text = one_line(message).removeprefix("genfast: ")
        print(f"genfast: warning: {text}", file=file or sys.stderr)

    with warnings.catch_warnings():
        module: Any = warnings
        module.showwarning = show
        yield
