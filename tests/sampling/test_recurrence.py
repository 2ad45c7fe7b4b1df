"""Recurrent layers: lowered, planned and run against PyTorch's own; and which are refused."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genfast import Categorical, check_causality, compile_sampler
from genfast.errors import CausalityError, UnsupportedModelError
from genfast.sampling import sample_naive
from tests.sampling.graphs import compiled, run
from tests.sampling.test_plan import check, whole

IN, OUT, STEPS, LEVELS = 3, 4, 7, 5
KINDS: dict[str, Callable[..., nn.Module]] = {
    "lstm": nn.LSTM,
    "lstm with projections": lambda *sizes, **given: nn.LSTM(*sizes, proj_size=2, **given),
    "gru": nn.GRU,
    "tanh": nn.RNN,
    "relu": lambda *sizes, **given: nn.RNN(*sizes, nonlinearity="relu", **given),
}


class Sequence(nn.Module):
    """Features [N, IN, T] or [N, IN, H, W] through recurrent layers in raster order."""

    def __init__(self, layers: nn.Module, initial: bool = False, moved: bool = False) -> None:
        super().__init__()
        self.layers, self.moved = layers, moved
        states = layers.num_layers * (1 + layers.bidirectional)
        shown = getattr(layers, "proj_size", 0) or layers.hidden_size
        self.shown = shown * (1 + layers.bidirectional)
        sizes = [shown, layers.hidden_size][: 1 + isinstance(layers, nn.LSTM)]
        self.first = nn.ParameterList(torch.randn(states, 1, size) for size in sizes)
        self.initial = initial

    def forward(self, x: Tensor) -> Tensor:
        h = x.flatten(2)
        h = (F.pad(h, (1, -1)) if self.moved else h).transpose(1, 2)
        state: Any = [each.expand(-1, len(x), -1).contiguous() for each in self.first]
        state = (tuple(state) if len(state) > 1 else state[0]) if self.initial else None
        batch_first = self.layers.batch_first
        out, _ = self.layers(h if batch_first else h.transpose(0, 1), state)  # here it recurs
        out = out if batch_first else out.transpose(0, 1)
        return out.transpose(1, 2).reshape(len(x), self.shown, *x.shape[2:])


@pytest.mark.parametrize("shape", [(5,), (2, 3), (4, 1), (1, 1)])
@pytest.mark.parametrize("kind", KINDS)
def test_values_of_both_directions(kind: str, shape: tuple[int, ...]) -> None:
    for bidirectional, bias, batch_first, depth, initial in [
        (False, True, True, 1, False),
        (False, False, False, 2, True),
        (True, True, False, 2, False),
        (True, False, True, 1, True),
    ]:
        given = {"bias": bias, "batch_first": batch_first, "bidirectional": bidirectional}
        model = Sequence(KINDS[kind](IN, OUT, depth, **given), initial).double()
        x = torch.randn(3, IN, *shape, dtype=torch.float64)
        graph, captured = compiled(model, x)
        wanted = model(x).detach()
        found = run(graph, captured, x).reshape(wanted.shape)
        torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("shape", [(1, 1, STEPS), (1, 3, 4), (1, 4, 1)])
@pytest.mark.parametrize("kind", KINDS)
def test_plans(kind: str, shape: tuple[int, ...]) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(1, IN, 1)
            self.layers = Sequence(KINDS[kind](IN, OUT, 2), initial=True, moved=True)
            self.head = nn.Conv2d(self.layers.shown, LEVELS, 1)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.layers(self.first(x)))
            return out

    program = check(Model(), shape, whole(LEVELS))
    kept = [buffer for buffer in program.buffers if "in layers.layers" in buffer.name]
    assert kept
    # The end of a row is the state before the first of the next.
    assert max(buffer.rows * buffer.columns for buffer in kept) <= max(2, shape[2])


def characters(kind: str = "lstm", steps: int = 12, **given: Any) -> nn.Module:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(LEVELS, 9)
            self.layers = KINDS[kind](9, 33, batch_first=True, **given)
            self.head = nn.Linear(getattr(self.layers, "proj_size", 0) or 33, LEVELS)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.layers(self.embed(x.long()))[0])
            return out

    torch.manual_seed(0)
    return Model().eval()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("executor", ["reference", "auto"])
def test_float32_symbols_and_bits(kind: str, executor: str) -> None:
    model = characters(kind)
    sampler = compile_sampler(model, (12,), Categorical(LEVELS), executor=executor)
    drawn = sampler.sample(5, seed=3)
    given = {"event_shape": (12,), "distribution": Categorical(LEVELS)}
    assert torch.equal(drawn, sample_naive(model, 5, seed=3, offset=1, **given))
    logits = sampler.logits(drawn)
    wanted = model(drawn).detach().mT[:, :, :-1]
    error = (logits[:, :, 1:] - wanted).abs().max() / (wanted.max() - wanted.min())
    assert error <= 1e-5
    if executor == "auto":
        assert torch.equal(sampler.logits(drawn[:1])[0, :, 1:], logits[0, :, 1:])
        assert torch.equal(sampler.logits(drawn[1:])[:, :, 1:], logits[1:, :, 1:])


def test_a_first_state_from_conditions() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.label = nn.Embedding(3, 6)
            self.embed, self.layers = nn.Embedding(LEVELS, 4), nn.LSTM(4, 6, 1, batch_first=True)
            self.head = nn.Linear(6, LEVELS)

        def forward(self, x: Tensor, label: Tensor) -> Tensor:
            state = self.label(label)[None]
            out: Tensor = self.head(self.layers(self.embed(x.long()), (state, state.tanh()))[0])
            return out

    model, label = Model().double().eval(), torch.tensor([2, 0, 1, 2])
    given = {"event_shape": (8,), "distribution": Categorical(LEVELS)}
    sampler = compile_sampler(
        model, (8,), Categorical(LEVELS), conditioning={"label": torch.tensor([0, 1])}
    )
    drawn = sampler.sample(4, seed=1, label=label)
    naive = sample_naive(model, 4, seed=1, offset=1, conditions={"label": label}, **given)
    assert torch.equal(drawn, naive)
    logits = sampler.logits(drawn, label=label)
    wanted = model(drawn, label).detach().mT[:, :, :-1]
    torch.testing.assert_close(logits[:, :, 1:], wanted, rtol=0, atol=1e-12)


class Refused(nn.Module):
    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function
        self.gru = nn.GRU(IN, OUT, batch_first=True)
        self.late = nn.GRU(IN, OUT)
        self.cell = nn.GRUCell(IN, OUT)
        self.lstm_cell = nn.LSTMCell(IN, OUT)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x.transpose(1, 2)).transpose(1, 2)


def _looped(model: Any, x: Tensor) -> Tensor:
    state, states = x.new_zeros(len(x), OUT), []
    for step in x.unbind(1):
        state = model.cell(step, state)
        states.append(state)
    return torch.stack(states, 1)


def _packed(model: Any, x: Tensor) -> Tensor:
    packed = nn.utils.rnn.pack_padded_sequence(x, [STEPS] * len(x), batch_first=True)
    return nn.utils.rnn.pad_packed_sequence(model.gru(packed)[0], batch_first=True)[0]


def _ending(model: Any, x: Tensor) -> Tensor:
    out, last = model.gru(x)
    return out + last.transpose(0, 1)


REASONS: dict[str, tuple[Callable[..., Tensor], str]] = {
    "a loop": (_looped, r"gru_cell in cell .*test_recurrence\.py.*loop over time steps.*nn\.GRU"),
    "a step": (
        lambda m, x: m.lstm_cell(x.flatten(0, 1))[0].unflatten(0, x.shape[:2]),
        r"lstm_cell in lstm_cell .*loop over time steps.*nn\.LSTM",
    ),
    "a packed sequence": (_packed, r"_pack_padded_sequence .*packed sequences are not supported"),
    "the state at the end": (_ending, r"uses result 1 of aten\.gru\.input in gru"),
    "a first state from the input": (
        lambda m, x: m.gru(x, x[:, :1, :1].repeat(1, 1, OUT).transpose(0, 1).contiguous())[0],
        r"aten\.gru\.input in gru .*initial state depends on the input",
    ),
    "images for time steps": (
        lambda m, x: m.late(x)[0],
        r"expected a sequence \[T, N, features\] of all positions .*got \[2 images, 7 columns",
    ),
    "some of the steps": (
        lambda m, x: F.pad(m.gru(x[:, ::2])[0], (0, 0, 0, 3)),
        r"sequence|columns",
    ),
}


@pytest.mark.parametrize("name", REASONS)
def test_refused(name: str) -> None:
    function, reason = REASONS[name]
    model = Refused(function).double()
    with pytest.raises(UnsupportedModelError, match=f"(?s){reason}"):
        compiled(model, torch.randn(3, IN, STEPS, dtype=torch.float64))


@pytest.mark.parametrize("kind", KINDS)
def test_both_directions_are_not_causal(kind: str) -> None:
    class Model(Sequence):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.double()[:, None].expand(-1, IN, -1)).mT

    model = Model(KINDS[kind](IN, LEVELS, bidirectional=True), moved=True).double()
    report = check_causality(model, (STEPS,), distribution=Categorical(model.shown))
    assert not report.causal
    assert report.leak is not None
    assert report.leak.where.startswith("aten.")
    assert " in layers (" in report.leak.where
    assert "here it recurs" in report.leak.where


def test_a_direction_that_no_output_uses_is_no_dependence() -> None:
    class Model(Sequence):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.double()[:, None].expand(-1, IN, -1))[:, :LEVELS].mT

    model = Model(nn.GRU(IN, LEVELS, bidirectional=True)).double().eval()
    sampler = compile_sampler(model, (STEPS,), Categorical(LEVELS))
    drawn = sampler.sample(3, seed=0)
    wanted = model(drawn).detach().mT[:, :, :-1]
    torch.testing.assert_close(sampler.logits(drawn)[:, :, 1:], wanted, rtol=0, atol=1e-12)


def test_a_backward_direction_that_depends_on_nothing_has_no_order() -> None:
    class Model(Sequence):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.double()[:, None].expand(-1, IN, -1)).mT

    model = Model(nn.RNN(IN, LEVELS, bidirectional=True), moved=True).double()
    with torch.no_grad():
        model.layers.weight_ih_l0_reverse.zero_()
    with pytest.raises(UnsupportedModelError, match=r"runs forwards.* got .* backwards"):
        compile_sampler(model, (STEPS,), Categorical(2 * LEVELS))


@pytest.mark.parametrize("before", [0, 1, 2])
def test_tokens_before_the_first_symbol(before: int) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Parameter(torch.randn(1, before, 6))
            self.embed, self.gru = nn.Embedding(LEVELS, 6), nn.GRU(6, 6, batch_first=True)
            self.head = nn.Linear(6, LEVELS)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.cat((self.first.expand(len(x), -1, -1), self.embed(x.long())), dim=1)
            out: Tensor = self.head(self.gru(h)[0])[:, max(before - 1, 0) :]
            return out[:, : x.shape[1]]

    model, levels = Model().double().eval(), torch.arange(3 * STEPS).view(3, STEPS) % LEVELS
    if before > 1:
        with pytest.raises(UnsupportedModelError, match=r"gru.* at most one position before"):
            compile_sampler(model, (STEPS,), Categorical(LEVELS))
        return
    found = compile_sampler(model, (STEPS,), Categorical(LEVELS)).logits(levels)
    wanted = F.pad(model(levels).detach().mT, (1 - before, 0))[:, :, :STEPS]
    torch.testing.assert_close(
        found[:, :, 1 - before :], wanted[:, :, 1 - before :], rtol=0, atol=1e-12
    )


def test_both_directions_are_refused_by_the_sampler() -> None:
    model = characters("gru", bidirectional=True)
    model.head = nn.Linear(66, LEVELS)
    with pytest.raises(CausalityError, match=r"looks ahead in aten\.gru\.input in layers"):
        compile_sampler(model, (6,), Categorical(LEVELS))


def test_the_compiled_engine_runs_it() -> None:
    sampler = compile_sampler(characters(), (12,), Categorical(LEVELS))
    assert "Executor: native" in str(sampler)
