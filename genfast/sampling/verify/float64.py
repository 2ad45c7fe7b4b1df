"""A model and its plan in float64: how far are their float32 or half numbers from exact ones?"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from genfast.nn import evaluating
from genfast.sampling.distributions.distribution import DrawSpec
from genfast.sampling.model_call import TRACED_BATCH, ModelCall
from genfast.sampling.run.reference import ReferenceExecutor
from genfast.sampling.surroundings import ordinary_tensors


def run_in_float64(
    call: ModelCall,
    conditions: Mapping[str, Tensor],
    draws: Sequence[DrawSpec],
    predicts: str | None,
    batches: Sequence[Tensor],
) -> tuple[list[Tensor], Tensor] | None:
    """Plan the model anew with float64 copies of its weights, and run both.

    Args:
        call: the model.
        conditions: examples of its conditioning, for two events.
        draws: as for the plan in the model's own dtype.
        predicts: likewise.
        batches: two events each, as the model sees them, [2, features, H, W].

    Returns:
        Parameters [n, P, H, W] of every draw by the plan, and outputs of the model, of all batches;
        None for a model that does not compute in float64 when its weights are.
    """
    if call.placed()[0] == torch.float64:
        return None
    try:
        return _run(call, _wider(conditions), draws, predicts, batches)
    except Exception:  # whatever else a model does with numbers of a dtype that it never saw
        return None
    finally:
        # What a forward keeps in the module, such as a mask, is of its own dtype again.
        call.run(call.as_input(batches[0]), conditions)


def _run(
    call: ModelCall,
    conditions: dict[str, Tensor],
    draws: Sequence[DrawSpec],
    predicts: str | None,
    batches: Sequence[Tensor],
) -> tuple[list[Tensor], Tensor]:
    from genfast.sampling.capture.model import capture
    from genfast.sampling.capture.precision import require_plain_numbers
    from genfast.sampling.lower.lowering import lower
    from genfast.sampling.plan.planner import plan

    adapter = _Adapter(call)
    weights = _wider({**dict(adapter.named_parameters()), **dict(adapter.named_buffers())})

    def forward(model: nn.Module, x: Tensor, **given: Tensor) -> Tensor:
        output: Tensor = functional_call(adapter, weights, (x,), given)
        if output.dtype != torch.float64:
            raise TypeError(f"expected an output in float64, got {output.dtype}")
        return output

    inputs = [_wide(call.as_input(each)) for each in batches]
    captured = capture(call.model, inputs[0], conditions, forward)
    captured = replace(captured, dtype=torch.float64)
    graph = lower(captured)
    symbols = call.symbol_values()
    require_plain_numbers(captured, None if symbols is None else _wide(symbols))
    size = (captured.dtype, captured.device)
    program = plan(graph, call.grid[0], call.encoded, draws, predicts, *size)
    tables = [
        each if len(each) == 1 else torch.cat([each] * len(batches))
        for each in captured.condition_tensors(graph.conditions, conditions, TRACED_BATCH)
    ]
    planes = torch.cat([x.view(batch.shape) for x, batch in zip(inputs, batches, strict=True)])
    found = ReferenceExecutor(program).begin(len(planes), tables).forced(planes)
    with ordinary_tensors(), evaluating(call.model):
        outputs = [forward(call.model, x.clone(), **conditions) for x in inputs]
    return found, torch.cat(outputs)


class _Adapter(nn.Module):
    """The user's way to call a model, as a module."""

    def __init__(self, call: ModelCall) -> None:
        super().__init__()
        self.model, self._call = call.model, call.call

    def forward(self, x: Tensor, **conditions: Any) -> Tensor:
        return self._call(self.model, x, **conditions)


def _wider(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: _wide(each.detach()) for name, each in tensors.items()}


def _wide(tensor: Tensor) -> Tensor:
    """A copy, in float64 if it holds real numbers."""
    return tensor.double() if tensor.is_floating_point() else tensor.clone()
