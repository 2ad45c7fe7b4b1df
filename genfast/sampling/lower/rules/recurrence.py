"""Rules of recurrent layers: one step of each, from its states one position before.

What a step reads of the layer's input is a product of its own, which waits for no state. The
equations are those of `torch.nn.LSTM`, `GRU` and `RNN`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from genfast.sampling.capture.recording import Node
from genfast.sampling.lower.layout import Axis, Signal, describe, features_dim, is_features
from genfast.sampling.lower.lowering import Lowering, Operand, rule
from genfast.sampling.lower.rearrange import join_features, take_range
from genfast.sampling.lower.rules.convolutions import dense
from genfast.sampling.lower.scores import is_positions
from genfast.sampling.values import Previous, Value

aten = torch.ops.aten


@dataclass(frozen=True)
class _Weights:
    """The weights of one layer in one direction, [in, out] each."""

    of_input: Tensor
    of_state: Tensor
    of_output: Tensor | None
    input_bias: Tensor | None
    state_bias: Tensor | None

    @staticmethod
    def among(params: Sequence[Tensor]) -> "_Weights":
        """Take PyTorch's flat list: two matrices, two biases or none, a projection or none."""
        of_input, of_state, *projection = (each.t() for each in params if each.dim() == 2)
        biases: list[Tensor | None] = [each for each in params if each.dim() == 1]
        input_bias, state_bias = biases or (None, None)
        of_output = projection[0] if projection else None
        return _Weights(of_input, of_state, of_output, input_bias, state_bias)


# The states of a step from the layer's product with its input and from the states before.
Step = Callable[[Lowering, _Weights, Signal, list[Signal]], list[Signal]]


def _lstm_step(low: Lowering, weights: _Weights, x: Signal, before: list[Signal]) -> list[Signal]:
    output, cell = before
    gates = low.pointwise("add", x, dense(low, output, 2, weights.of_state, weights.state_bias))
    take, forget, new, show = _parts(low, gates, 4)
    kept = low.pointwise("mul", low.pointwise("sigmoid", forget), cell)
    added = low.pointwise("mul", low.pointwise("sigmoid", take), low.pointwise("tanh", new))
    cell = low.pointwise("add", kept, added)
    output = low.pointwise("mul", low.pointwise("sigmoid", show), low.pointwise("tanh", cell))
    if weights.of_output is not None:
        output = dense(low, output, 2, weights.of_output)
    return [output, cell]


def _gru_step(low: Lowering, weights: _Weights, x: Signal, before: list[Signal]) -> list[Signal]:
    (state,) = before
    size = 2 * state.shape[2]
    gates, candidate = (
        dense(low, state, 2, weight, bias)
        for weight, bias in zip(
            weights.of_state.tensor_split([size], 1),
            (None, None) if weights.state_bias is None else weights.state_bias.tensor_split([size]),
            strict=True,
        )
    )
    gates = low.pointwise("add", take_range(low, x, 2, 0, size), gates)
    reset, update = (low.pointwise("sigmoid", each) for each in _parts(low, gates, 2))
    seen = low.pointwise("mul", reset, candidate)
    seen = low.pointwise("add", take_range(low, x, 2, size, x.shape[2]), seen)
    new = low.pointwise("tanh", seen)
    kept = low.pointwise("mul", update, low.pointwise("sub", state, new))
    return [low.pointwise("add", new, kept)]


def _rnn_step(
    activation: str, low: Lowering, weights: _Weights, x: Signal, before: list[Signal]
) -> list[Signal]:
    (state,) = before
    seen = low.pointwise("add", x, dense(low, state, 2, weights.of_state, weights.state_bias))
    return [low.pointwise(activation, seen)]


def _parts(low: Lowering, x: Signal, count: int) -> list[Signal]:
    size = x.shape[2] // count
    return [take_range(low, x, 2, k * size, (k + 1) * size) for k in range(count)]


def _direction(
    low: Lowering,
    step: Step,
    x: Signal,
    params: Sequence[Tensor],
    initial: Sequence[Tensor | Node],
    backwards: bool,
) -> Signal:
    """One layer [N, positions, features] in one direction; initial states [N, 1, size]."""
    weights = _Weights.among(params)
    x = dense(low, x, 2, weights.of_input, weights.input_bias)
    loops, before = [], []
    for first in initial:
        dims = (*x.dims[:2], features_dim(first.shape[2]))
        if x.height * x.width == 1:
            before.append(low.as_signal(first, dims, x))
            continue
        loops.append(Previous("copy", [], x.features.sources(), backwards))
        state = replace(x, dims=dims, features=low.emit(loops[-1], first.shape[2], x))
        if low.uniform(first) != 0:
            start = _at_start(low.as_signal(first, dims, state), backwards)
            state = low.pointwise("add", state, start)
        before.append(state)
    states = step(low, weights, x, before)
    for loop, state in zip(loops, states, strict=False):
        origin = state.features.views[0].origin
        assert isinstance(origin, Value)
        loop.carry(origin)
    return states[0]


def _at_start(x: Signal, backwards: bool) -> Signal:
    """What is the same at all positions, at the first one alone (backwards: the last)."""
    top, left = (x.height - 1, x.width - 1) if backwards else (0, 0)
    views = tuple(
        replace(view, top=top, bottom=top + 1, left=left, right=left + 1)
        for view in x.features.views
    )
    return replace(x, features=replace(x.features, views=views))


def _state(low: Lowering, states: Any, number: int) -> Tensor | Node:
    """The initial state of one layer in one direction, [N, 1, size]."""
    if isinstance(states, Signal):
        low.refuse("its initial state depends on the input")
    if isinstance(states, Node):
        chosen = low.derived(aten.select.int, states, 0, number)
        return low.derived(aten.unsqueeze.default, chosen, 1)
    state: Tensor = states[number].unsqueeze(1)
    return state


def _recurrent(
    step: Step,
    low: Lowering,
    input: Operand,
    hx: Any,
    params: Sequence[Any],
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Signal | None, ...]:
    """All layers; the states at the end, which follow all positions, are not given."""
    if not isinstance(input, Signal):
        low.refuse("its initial state or its weights depend on the input, but not its sequence")
    if not all(isinstance(each, Tensor) for each in params):
        low.refuse("its weights depend on the input or on conditions")
    if train and dropout > 0 and num_layers > 1:
        low.refuse("its dropout uses random numbers")
    x = input if batch_first else input.permute((1, 0, 2))
    images, steps, features = x.dims
    alone = [atom.axis for atom in images if atom.size > 1] == [Axis.BATCH]
    if not alone or not is_positions(x, steps) or not is_features(features):
        order = "[N, T, features]" if batch_first else "[T, N, features]"
        low.refuse(
            f"expected a sequence {order} of all positions in raster order, got "
            f"{describe(input.dims)}"
        )
    states = hx if isinstance(hx, list | tuple) else [hx]
    directions = 2 if bidirectional else 1
    each = len(params) // (num_layers * directions)
    for layer in range(num_layers):
        parts = []
        for way in range(directions):
            number = layer * directions + way
            own = params[number * each : (number + 1) * each]
            initial = [_state(low, state, number) for state in states]
            parts.append(_direction(low, step, x, own, initial, backwards=way == 1))
        x = join_features(parts, 2) if bidirectional else parts[0]
    out = x if batch_first else x.permute((1, 0, 2))
    return (out, *(None for _ in states))


def _register(op: Any, step: Step) -> None:
    @rule(op)
    def layers(low: Lowering, **given: Any) -> tuple[Signal | None, ...]:
        del given["has_biases"]  # as the weights show
        return _recurrent(step, low, **given)


_register(aten.lstm.input, _lstm_step)
_register(aten.gru.input, _gru_step)
_register(aten.rnn_tanh.input, partial(_rnn_step, "tanh"))
_register(aten.rnn_relu.input, partial(_rnn_step, "relu"))
