"""The exponential moving average of a model's weights."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class EMA:
    """An average of the parameters over the steps taken, the recent ones weighing most.

    average <- d * average + (1 - d) * parameter, with d = min(decay, (1 + step) / (10 + step)), so
    that a short run is not dominated by its initial weights. Buffers are used as they are.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.parameters = dict(model.named_parameters())
        self.averages = {name: p.detach().clone() for name, p in self.parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the parameters after a step, counted from 1."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(
            list(self.averages.values()), list(self.parameters.values()), 1 - decay
        )

    @torch.no_grad()
    def load(self, averages: Mapping[str, Tensor]) -> None:
        """Replace the averages."""
        for name, average in self.averages.items():
            average.copy_(averages[name])

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Lend the averages to the model; its own weights come back bit for bit."""
        with torch.no_grad():
            own = {name: p.detach().clone() for name, p in self.parameters.items()}
            self.copy_to_model()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, parameter in self.parameters.items():
                    parameter.copy_(own[name])

    @torch.no_grad()
    def copy_to_model(self) -> None:
        """Overwrite the model's weights with the averages."""
        for name, parameter in self.parameters.items():
            parameter.copy_(self.averages[name])
