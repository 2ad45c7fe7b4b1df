"""One layer of a WaveNet: a dilated causal convolution, the gate, and what leaves it, in one pass.

Source: van den Oord et al., "WaveNet: a generative model for raw audio", 2016, equations 2 and 5,
and figure 4.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from genfast._extension import has_kernel, loaded
from genfast.errors import InputError
from genfast.ops._checks import check_alike, check_tensor, integer
from genfast.ops.gated_activation import gated_activation, gated_activation_reference

_Optional = torch.Tensor | None


def causal_conv1d(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    condition: torch.Tensor | None = None,
    *,
    skip_weight: torch.Tensor,
    skip_bias: torch.Tensor | None = None,
    residual_weight: torch.Tensor | None = None,
    residual_bias: torch.Tensor | None = None,
    dilation: int = 1,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Applies a gated, dilated, causal convolution with its two 1 x 1 convolutions.

    1. h[t] = bias + condition[t] + sum over taps j of weight[:, :, j] x[t - (k - 1 - j) dilation],
       where x is zero before the first moment
    2. z = tanh(the first G channels of h) * sigmoid(the others)
    3. out = x + residual_weight z + residual_bias, skip = skip_weight z + skip_bias

    The forward pass keeps nothing but its arguments; the backward pass computes h and z again. On
    the CPU time is cut into tiles, so that h and z never leave the cache. Elsewhere the layer is
    made of convolutions of PyTorch and `gated_activation`.

    Args:
        x: [N, R, T], floating point. On x86 processors numbers too small to be normal count as
            zero, as in `masked_conv2d`.
        weight: [2G, R, k], as that of an `nn.Conv1d`; this and all others of the dtype and device
            of `x`.
        bias: [2G] or None.
        condition: None, [N, 2G] (the same at every moment), or [N, 2G, T].
        skip_weight: [S, G, 1].
        skip_bias: [S] or None.
        residual_weight: [R, G, 1], or None for a layer that feeds the skips alone.
        residual_bias: [R] or None.
        dilation: Moments between two taps, an integer in 1 .. 2^31 - 1.

    Returns:
        `out` [N, R, T], which is `x` itself without a residual_weight, and `skip` [N, S, T]. Half
        types are computed in float32 on the CPU. Differentiable in every tensor to any order; the
        same bits for every number of threads. Under autocast the operands are cast as for conv1d.

    Raises:
        InputError: if an argument breaks a rule above.
    """
    given = (weight, bias, condition, residual_weight, residual_bias, skip_weight, skip_bias)
    _check_arguments(x, given)
    dilation = integer("causal_conv1d", "dilation", dilation, 1)
    if condition is not None and condition.dim() == 2:
        condition = condition.unsqueeze(2)
        given = (*given[:2], condition, *given[3:])
    if has_kernel("causal_conv1d", x.device):
        out, skip = torch.ops.genfast.causal_conv1d.default(x, *given, dilation)
    else:
        out, skip = composed(x, *given, dilation)
    return (x if residual_weight is None else out), skip


def causal_conv1d_reference(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    condition: torch.Tensor | None = None,
    *,
    skip_weight: torch.Tensor,
    skip_bias: torch.Tensor | None = None,
    residual_weight: torch.Tensor | None = None,
    residual_bias: torch.Tensor | None = None,
    dilation: int = 1,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`causal_conv1d` in plain PyTorch; differentiable to any order."""
    given = (weight, bias, condition, residual_weight, residual_bias, skip_weight, skip_bias)
    out, skip = composed(x, *given, dilation, gate=gated_activation_reference)
    return (x if residual_weight is None else out), skip


def composed(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    condition: torch.Tensor | None,
    residual_weight: torch.Tensor | None,
    residual_bias: torch.Tensor | None,
    skip_weight: torch.Tensor,
    skip_bias: torch.Tensor | None,
    dilation: int,
    gate: Callable[[torch.Tensor, _Optional], torch.Tensor] = gated_activation,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The operator made of its parts, with the signature of the operator."""
    reach = (weight.shape[2] - 1) * dilation
    h = F.conv1d(F.pad(x, (reach, 0)), weight, bias, dilation=dilation)
    z = gate(h, condition)
    skip = F.conv1d(z, skip_weight, skip_bias)
    if residual_weight is None:
        return x.new_empty((0,)), skip
    return x + F.conv1d(z, residual_weight, residual_bias), skip


def _check_arguments(x: torch.Tensor, given: tuple[_Optional, ...]) -> None:
    weight, bias, condition, residual_weight, residual_bias, skip_weight, skip_bias = given
    for name, needed in (("x", x), ("weight", weight), ("skip_weight", skip_weight)):
        check_tensor("causal_conv1d", name, needed)
    assert weight is not None
    assert skip_weight is not None
    if x.dim() != 3 or x.shape[1] < 1 or not x.is_floating_point():
        raise InputError(
            "causal_conv1d: expected floating point x of shape [N, R, T], got "
            f"x.shape={tuple(x.shape)}, x.dtype={x.dtype}"
        )
    N, R, T = x.shape
    width = weight.shape[0] if weight.dim() == 3 else 0
    if width < 2 or width % 2 or weight.shape[1] != R or weight.shape[2] < 1:
        raise InputError(
            f"causal_conv1d: expected weight of shape [2G, R={R}, k], got "
            f"weight.shape={tuple(weight.shape)}"
        )
    if skip_weight.dim() != 3 or skip_weight.shape[0] < 1:
        raise InputError(
            "causal_conv1d: expected skip_weight of shape [S, G, 1], got "
            f"skip_weight.shape={tuple(skip_weight.shape)}"
        )
    if residual_weight is None and residual_bias is not None:
        raise InputError(
            "causal_conv1d: expected no residual_bias without a residual_weight, got "
            f"residual_bias.shape={tuple(residual_bias.shape)}"
        )
    rules: dict[str, tuple[_Optional, list[tuple[int, ...]]]] = {
        "weight": (weight, [tuple(weight.shape)]),
        "bias": (bias, [(width,)]),
        "condition": (condition, [(N, width), (N, width, 1), (N, width, T)]),
        "residual_weight": (residual_weight, [(R, width // 2, 1)]),
        "residual_bias": (residual_bias, [(R,)]),
        "skip_weight": (skip_weight, [(skip_weight.shape[0], width // 2, 1)]),
        "skip_bias": (skip_bias, [(skip_weight.shape[0],)]),
    }
    for name, (tensor, shapes) in rules.items():
        if tensor is None:
            continue
        if tuple(tensor.shape) not in shapes:
            expected = " or ".join(str(shape) for shape in shapes)
            raise InputError(
                f"causal_conv1d: expected {name} of shape {expected}, got "
                f"{name}.shape={tuple(tensor.shape)}"
            )
        check_alike("causal_conv1d", name, tensor, "x", x)


if loaded():

    @torch.library.register_fake("genfast::causal_conv1d")
    def _causal_conv1d_fake(
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        condition: torch.Tensor | None,
        residual_weight: torch.Tensor | None,
        residual_bias: torch.Tensor | None,
        skip_weight: torch.Tensor,
        skip_bias: torch.Tensor | None,
        dilation: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        out = (0,) if residual_weight is None else x.shape
        return x.new_empty(out), x.new_empty((x.shape[0], skip_weight.shape[0], x.shape[2]))

    @torch.library.register_fake("genfast::_causal_conv1d_backward")
    def _causal_conv1d_backward_fake(
        grad_out: torch.Tensor | None,
        grad_skip: torch.Tensor,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        condition: torch.Tensor | None,
        residual_weight: torch.Tensor | None,
        residual_bias: torch.Tensor | None,
        skip_weight: torch.Tensor,
        skip_bias: torch.Tensor | None,
        dilation: int,
    ) -> tuple[torch.Tensor, ...]:
        heads = residual_weight, residual_bias, skip_weight, skip_bias
        return tuple(
            x.new_empty((0,) if each is None else each.shape)
            for each in (x, weight, bias, condition, *heads)
        )
