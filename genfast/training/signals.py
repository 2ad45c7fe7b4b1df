"""Ctrl-C and SIGTERM as a wish to stop after the current step."""

import signal
import threading
from types import FrameType
from typing import Any

SIGTERM_EXIT_CODE = 128 + signal.SIGTERM


class StopRequest:
    """Notes the first SIGINT or SIGTERM while in use; a second one takes effect at once.

    After the first, SIGINT raises KeyboardInterrupt where it strikes and SIGTERM kills the process,
    also inside compiled code. The handlers found are put back at the end. Outside the main thread,
    where Python allows no handlers, nothing is noted.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._found: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._found[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._found.items():
            # A handler that was not set from Python reads as None and cannot be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def __bool__(self) -> bool:
        return self.received is not None

    def exception(self) -> BaseException:
        """Return what ends the program: KeyboardInterrupt, or SystemExit(143) for SIGTERM."""
        if self.received == signal.SIGINT:
            return KeyboardInterrupt()
        return SystemExit(SIGTERM_EXIT_CODE)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
