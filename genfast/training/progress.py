"""Progress bars for terminals and notebooks."""

import logging
import sys

from genfast._progress import tqdm

_logger = logging.getLogger("genfast.training")


class Progress:
    """One bar for a whole run: steps done, epoch, loss, images (or sounds) per second."""

    def __init__(
        self, name: str, total: int | None, done: int, epochs: int, show: bool, noun: str = "images"
    ) -> None:
        self._name, self._epochs, self._show, self._noun = name, epochs, show, noun
        self._bar = tqdm(
            total=total, initial=done, desc=name, unit="step", disable=not show, dynamic_ncols=True
        )

    def step(self, epoch: int, losses: dict[str, float], per_second: float) -> None:
        """Advance by a step; the bar redraws only now and then."""
        self._bar.set_description(f"{self._name} {epoch}/{self._epochs}", refresh=False)
        shown = {name: value for name, value in losses.items() if name.endswith("loss")}
        text = {name: f"{value:.4g}" for name, value in shown.items()}
        self._bar.set_postfix(text | {f"{self._noun}/s": f"{per_second:,.0f}"}, refresh=False)
        self._bar.update()

    def close(self) -> None:
        """Leave the bar as it stands."""
        self._bar.close()


def say(message: str, show: bool) -> None:
    """Tell the user something above a progress bar that may be there; log it in any case."""
    _logger.info(message)
    if show:
        tqdm.write(message, file=sys.stderr)
