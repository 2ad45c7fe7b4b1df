"""An interpreter of `values.Graph` on whole tensors, as plain as its definition."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from genfast.sampling.capture.model import Captured, capture
from genfast.sampling.lower.lowering import lower
from genfast.sampling.pointwise import POINTWISE
from genfast.sampling.values import (
    Attend,
    Condition,
    Constant,
    Conv,
    Flatten,
    Graph,
    Input,
    Lookup,
    Pointwise,
    Previous,
    Reduce,
    Source,
    Unflatten,
    Value,
)


class Interpreter:
    """Values of a graph as tensors [n, height, width, features], each computed once."""

    def __init__(self, graph: Graph, x: Tensor, tables: Sequence[Tensor], dtype: torch.dtype):
        self.n, self.dtype = len(x), dtype
        grid = x.to(dtype)
        if grid.dim() == 2:
            grid = grid[:, None, None, :, None]
        if grid.dim() == 3:
            grid = grid[:, :, None]
        grid = grid.flatten(4) if grid.dim() == 5 else grid.permute(0, 2, 3, 1)
        self.tables = dict(zip(graph.conditions, tables, strict=True))
        # States of recurrences begin with zeros; each round another position becomes right.
        loops = [value.body for value in graph.values if isinstance(value.body, Previous)]
        self.values: dict[Value, Tensor] = {
            state: torch.zeros(len(x), state.height, state.width, state.features, dtype=dtype)
            for state in (each.state for each in loops)
        }
        rounds = max([1, *(state.height * state.width * len(loops) for state in self.values)])
        for value in graph.values * rounds:
            if isinstance(value.body, Input):
                result = grid[:, :, :, :, 0].permute(0, 1, 2, 3) if grid.dim() == 5 else grid
                result = result.reshape(len(x), value.height, value.width, value.features)
            else:
                result = self.compute(value)
            assert result.shape[1:] == (value.height, value.width, value.features), value.where
            self.values[value] = result

    def read(self, source: Source, height: int, width: int) -> Tensor:
        """What positions of a height x width grid see: [n, height, width, count]."""
        origin = source.origin
        if isinstance(origin, Constant):
            data = origin.data.to(self.dtype)[None]
        elif isinstance(origin, Condition):
            data = self.tables[origin].to(self.dtype)
        else:
            data = self.values[origin]
            assert 0 <= source.top <= source.bottom <= origin.height
            assert 0 <= source.left <= source.right <= origin.width
        features = [source.start + i * source.step for i in range(source.count)]
        assert source.step >= 0
        out = torch.full((self.n, height, width, source.count), source.fill, dtype=self.dtype)
        for i in range(height):
            for j in range(width):
                row, column = i + source.dy, j + source.dx
                if source.top <= row < source.bottom and source.left <= column < source.right:
                    row = 0 if data.shape[1] == 1 and not isinstance(origin, Value) else row
                    column = 0 if data.shape[2] == 1 and not isinstance(origin, Value) else column
                    out[:, i, j] = data[:, row, column][:, features]
        return out

    def join(self, sources: Sequence[Source], height: int, width: int) -> Tensor:
        return torch.cat([self.read(source, height, width) for source in sources], dim=3)

    def compute(self, value: Value) -> Tensor:
        body, height, width = value.body, value.height, value.width
        if isinstance(body, Pointwise):
            operands = [
                torch.tensor(each, dtype=self.dtype)
                if isinstance(each, float | int)
                else self.join(each, height, width)
                for each in body.operands
            ]
            return operands[0] if body.op == "copy" else POINTWISE[body.op](*operands)
        if isinstance(body, Reduce):
            x = self.join(body.inputs, height, width)
            x = x.reshape(*x.shape[:3], body.outer, body.size, body.inner)
            x = x.sum(4) if body.op == "sum" else x.amax(4)
            return x.flatten(3)
        if isinstance(body, Lookup):
            indices = self.join(body.indices, height, width)
            return body.weight.to(self.dtype)[indices.long()].flatten(3)
        if isinstance(body, Attend):
            return self.attend(body, height, width)
        if isinstance(body, Flatten):
            return self.join(body.inputs, body.height, body.width).reshape(self.n, 1, 1, -1)
        if isinstance(body, Unflatten):
            return self.join(body.inputs, 1, 1).reshape(self.n, height, width, -1)
        assert isinstance(body, Conv)
        return self.convolve(body, height, width)

    def attend(self, body: Attend, height: int, width: int) -> Tensor:
        query, key, value = (
            self.join(each, height, width).reshape(self.n, height * width, body.heads, -1)
            for each in (body.queries, body.keys, body.values)
        )
        bias = body.bias.to(self.dtype).flatten(0, 1).transpose(0, 1)
        scores = torch.einsum("npht,nqht->nhpq", query, key) * body.scale + bias
        weights = scores.softmax(-1).nan_to_num(0)
        return torch.einsum("nhpq,nqht->npht", weights, value).reshape(self.n, height, width, -1)

    def convolve(self, body: Conv, height: int, width: int) -> Tensor:
        inputs = self.join(body.inputs, body.height, body.width)
        count = body.taps[0].weight.shape[1] if body.taps else len(body.bias)
        out = torch.zeros(self.n, height, width, count, dtype=self.dtype)
        if body.bias is not None:
            out += body.bias.to(self.dtype)
        for tap in body.taps:
            weight = tap.weight.to(self.dtype)
            for i in range(height):
                for j in range(width):
                    row = i // body.up * body.down + tap.dy
                    column = j // body.up * body.down + tap.dx
                    inside = 0 <= row < body.height and 0 <= column < body.width
                    if inside and (i % body.up, j % body.up) == tap.phase:
                        out[:, i, j] += inputs[:, row, column] @ weight
        return out


def run(graph: Graph, captured: Captured, x: Tensor, **conditions: Tensor) -> Tensor:
    """The graph's output [n, *output_sizes, output_height, output_width] for inputs x."""
    tables = captured.condition_tensors(graph.conditions, conditions, len(x))
    for table, condition in zip(tables, graph.conditions, strict=True):
        images = 1 if condition.shared else len(x)
        sizes = (images, condition.height, condition.width, condition.features)
        assert table.shape == sizes
    dtype = captured.dtype if captured.dtype != torch.float16 else torch.float32
    interpreter = Interpreter(graph, x, tables, dtype)
    out = interpreter.join(graph.outputs, graph.output_height, graph.output_width)
    out = out.permute(0, 3, 1, 2)
    return out.reshape(len(x), *graph.output_sizes, graph.output_height, graph.output_width)


def compiled(model: nn.Module, x: Tensor, forward: Any = None, **conditions: Tensor) -> Any:
    captured = capture(model, x[:2], {name: each[:2] for name, each in conditions.items()}, forward)
    return lower(captured), captured
