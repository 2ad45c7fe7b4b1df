"""What a full forward pass says of given symbols, encoded here by other means than ours."""

import torch

from genfast.nn import evaluating


def model_input(model, shape, distribution, symbols):
    """Return symbols [N, *shape] as the model takes them: features before positions."""
    encoded = distribution.encode(symbols.unsqueeze(-1))
    # [N, T, 1] to [N, T], or [N, C, ..., E] to [N, C * E, ...]
    x = encoded[..., 0] if len(shape) == 1 else encoded.movedim(-1, 2).flatten(1, 2)
    dtype = next(model.parameters()).dtype
    return x.to(dtype) if x.is_floating_point() else x


def full_output(model, shape, distribution, symbols, conditions=None, forward=None):
    """Return the output of the model itself; its "logits" or first tensor of several."""
    x = model_input(model, shape, distribution, symbols)
    with torch.no_grad(), evaluating(model):
        out = forward(model, x, **(conditions or {})) if forward else model(x, **(conditions or {}))
    if isinstance(out, dict):
        out = out["logits"]
    return out[0] if isinstance(out, tuple) else out


def aligned(out, shape, offset=0, features_last=False):
    """Return an output [N, F, *positions] as the parameters of the symbol at each position.

    NaN for the first ones, which nothing predicts, when output t predicts symbol t + offset.
    """
    positions = len(shape[1:]) or 1
    if out.dim() <= positions:  # [N, F * positions] of a dense model
        out = out.reshape(len(out), -1, *(shape[1:] or shape))
    if features_last:
        out = out.movedim(-1, 1)
    if out.dim() <= positions:
        out = out.reshape(len(out), -1, *shape[-positions:])
    out = out.flatten(1, -positions - 1)
    return torch.nn.functional.pad(out, (offset, 0), value=torch.nan)[..., : shape[-1]]


def relative_error(found, wanted):
    """Return the largest difference over the range of `wanted`; both are NaN at the same places."""
    found = found.reshape(wanted.shape)
    known = wanted.isfinite()
    assert torch.equal(known, found.isfinite())
    found, wanted = found[known], wanted[known]
    span = (wanted.max() - wanted.min()).item() or 1.0
    return (found - wanted).abs().max().item() / span
