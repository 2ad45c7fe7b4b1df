"""What every launcher needs when the dispatcher calls it."""

import functools
from collections.abc import Callable
from typing import Any

import torch


def on_device_of_tensors(launcher: Callable[..., Any]) -> Callable[..., Any]:
    """The launcher on the device of its tensors: Triton launches on the current one."""

    @functools.wraps(launcher)
    def launch(*arguments: Any) -> Any:
        tensors = (a for a in arguments if isinstance(a, torch.Tensor))
        with torch.cuda.device(next(tensor.device for tensor in tensors if tensor.is_cuda)):
            return launcher(*arguments)

    return launch
