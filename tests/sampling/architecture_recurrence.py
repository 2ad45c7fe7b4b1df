"""Recurrent layers of random models of sequences, and the direction in which they may not run."""

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor, nn


@dataclass(frozen=True)
class RecurrentLayer:
    """A stack of recurrent layers, with states of `size` numbers (`shown` of them, if not 0)."""

    kind: str
    size: int
    shown: int
    depth: int
    bias: bool
    batch_first: bool
    initial: bool
    residual: bool


class Recurrence(nn.Module):
    """A recurrent stack on [N, P, C]."""

    def __init__(self, plan: RecurrentLayer, width: int):
        super().__init__()
        self.plan, self.width = plan, width
        self.run(both=False)
        self.back = nn.Linear(plan.shown or plan.size, width)

    def run(self, both: bool) -> None:
        """Make the layers anew, which run forwards or both ways."""
        plan = self.plan
        given = {
            "LSTM": {"proj_size": plan.shown},
            "RNN tanh": {"nonlinearity": "tanh"},
            "RNN relu": {"nonlinearity": "relu"},
        }
        kind = getattr(nn, plan.kind.split()[0])
        self.layers = kind(
            self.width, plan.size, plan.depth, bias=plan.bias, batch_first=plan.batch_first,
            bidirectional=both, **given.get(plan.kind, {}),
        ).double()  # fmt: skip
        states = plan.depth * (1 + both)
        self.first = nn.Parameter(
            torch.randn(states, 1, plan.shown or plan.size, dtype=torch.double)
        )
        self.cell = nn.Parameter(torch.randn(states, 1, plan.size, dtype=torch.double))

    def forward(self, h: Tensor, _x: Tensor) -> Tensor:
        plan, state = self.plan, None
        if plan.initial:
            state = self.first.expand(-1, len(h), -1).contiguous()
            if plan.kind == "LSTM":
                state = (state, self.cell.expand(-1, len(h), -1).contiguous())
        y = self.layers(h if plan.batch_first else h.transpose(0, 1), state)[0]
        y = y if plan.batch_first else y.transpose(0, 1)
        new = self.back(y.unflatten(2, (-1, self.back.in_features)).sum(2))
        return h + new if plan.residual else new


@st.composite
def recurrent_layers(draw: st.DrawFn) -> RecurrentLayer:
    kind = draw(st.sampled_from(["LSTM", "GRU", "RNN tanh", "RNN relu"]))
    size = draw(st.integers(1, 5))
    shown = draw(st.integers(0, size - 1)) if kind == "LSTM" else 0
    bias, batch_first, initial, residual = (draw(st.booleans()) for _ in range(4))
    return RecurrentLayer(
        kind, size, shown, draw(st.integers(1, 2)), bias, batch_first, initial, residual
    )
