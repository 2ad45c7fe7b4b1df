"""Evaluation mode for the length of a block."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Run a block in evaluation mode without gradients; give every submodule its own mode back.

    Submodules that were frozen in evaluation mode inside a training model stay so afterwards.
    """
    # A TorchScript module that was frozen has no mode.
    modes = [(each, each.training) for each in module.modules() if hasattr(each, "training")]
    if modes:
        module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for each, mode in modes:
            each.training = mode
