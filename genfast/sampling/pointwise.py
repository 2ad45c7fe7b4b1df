"""The operations of `program.Pointwise`: their names, and what they mean in PyTorch.

Truth values are numbers: 0 is false, 1 is true, and anything but 0 counts as true.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def _truth(compare: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda a, b: compare(a, b).to(a.dtype)


def _softplus(x: Tensor, beta: Tensor, threshold: Tensor) -> Tensor:
    soft = torch.log1p(torch.exp(x * beta)) / beta
    return torch.where(x * beta > threshold, x, soft)


POINTWISE: dict[str, Callable[..., Tensor]] = {
    # one operand
    "neg": torch.neg,
    "abs": torch.abs,
    "sign": torch.sign,
    "reciprocal": torch.reciprocal,
    "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt,
    "exp": torch.exp,
    "expm1": torch.expm1,
    "log": torch.log,
    "log1p": torch.log1p,
    "sin": torch.sin,
    "cos": torch.cos,
    "erf": torch.erf,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "relu": torch.relu,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "floor": torch.floor,
    "ceil": torch.ceil,
    "round": torch.round,
    "trunc": torch.trunc,
    "not": lambda x: (x == 0).to(x.dtype),
    # two operands
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "pow": torch.pow,
    "remainder": torch.remainder,
    "fmod": torch.fmod,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "eq": _truth(torch.eq),
    "ne": _truth(torch.ne),
    "lt": _truth(torch.lt),
    "le": _truth(torch.le),
    "gt": _truth(torch.gt),
    "ge": _truth(torch.ge),
    "elu": lambda x, alpha: torch.where(x > 0, x, alpha * torch.expm1(x)),
    "leaky_relu": lambda x, slope: torch.where(x > 0, x, slope * x),
    # three operands
    "where": lambda condition, a, b: torch.where(condition != 0, a, b),
    "softplus": _softplus,
}
