"""Commands of a step: run side by side, stopped at a limit, their output kept.

A command that reaches the limit is interrupted as by Ctrl-C, so that pytest still tells what it
found and the benchmarks still write what they timed; what does not end then is killed.
"""

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

# Of the limit: how long an interrupted command may take to tell what it has, in seconds.
_GRACE = 15.0


@dataclass(frozen=True)
class Command:
    """What to run, what its environment has beside that of this process, and how it may end."""

    name: str
    words: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    good_codes: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class Outcome:
    """How a command ended.

    Attributes:
        code: its exit code; minus the number of a signal that ended it.
        stopped: whether the limit ended it.
        output: standard output and standard error, as they came.
    """

    command: Command
    code: int
    seconds: float
    stopped: bool
    output: str

    @property
    def ok(self) -> bool:
        return self.code in self.command.good_codes and not self.stopped


def run_together(
    commands: Sequence[Command], folder: Path, scratch: Path, limit: float
) -> list[Outcome]:
    """Run commands side by side; none outlives the call.

    Args:
        commands: at least one.
        folder: working directory.
        scratch: folder for their output while they run.
        limit: seconds until the last one must have ended.
    """
    start = time.monotonic()
    interrupt_at = start + limit - min(_GRACE, limit / 4)
    running = [
        _Running(command, folder, scratch / f"{i}.log") for i, command in enumerate(commands)
    ]
    try:
        while sum(not each.ended() for each in running) and time.monotonic() < start + limit:
            if time.monotonic() >= interrupt_at:
                for each in running:
                    each.interrupt()
            time.sleep(0.05)
    finally:
        for each in running:
            each.kill()
    return [each.outcome() for each in running]


class _Running:
    """A command as a process group of its own, so that its children end with it."""

    def __init__(self, command: Command, folder: Path, log: Path) -> None:
        self._command, self._log = command, log
        self._start = time.monotonic()
        self._seconds: float | None = None
        self._stopped = False
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                list(command.words),
                cwd=folder,
                env=os.environ | dict(command.environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def ended(self) -> bool:
        if self._seconds is None and self._process.poll() is not None:
            self._seconds = time.monotonic() - self._start
        return self._seconds is not None

    def interrupt(self) -> None:
        if not self._stopped and not self.ended():
            self._stopped = True
            self._signal(signal.SIGINT)

    def kill(self) -> None:
        self._stopped = self._stopped or not self.ended()
        self._signal(signal.SIGKILL)  # children too, where the command itself has ended
        self._process.wait()
        self.ended()

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    def outcome(self) -> Outcome:
        assert self._seconds is not None
        text = self._log.read_text(encoding="utf-8", errors="replace")
        code = self._process.returncode
        return Outcome(self._command, code, round(self._seconds, 1), self._stopped, text)
