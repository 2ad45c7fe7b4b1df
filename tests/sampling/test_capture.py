"""Recording a model: what it finds, what it computes again, and that the model stays as it was."""

import copy
from collections import namedtuple
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genfast.errors import InputError, UnsupportedModelError
from genfast.ops import causal_conv1d
from genfast.sampling.capture.model import Evaluator, capture, pick_tensor
from genfast.sampling.capture.recording import Fixed, Node
from genfast.sampling.lower.lowering import lower
from genfast.sampling.values import Conv
from tests.sampling.graphs import compiled, run


class InPlaceMask(nn.Conv2d):
    """Multiplies its weight by a mask in every forward."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args, padding=1)
        mask = torch.ones_like(self.weight)
        mask[:, :, 1, 1:] = 0
        mask[:, :, 2] = 0
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        self.weight.data *= self.mask
        return super().forward(x)


class Stateful(nn.Module):
    """Everything that a careless compiler would change or trip over."""

    def __init__(self) -> None:
        super().__init__()
        self.masked = InPlaceMask(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.frozen = nn.BatchNorm2d(4).eval()
        self.drop = nn.Dropout2d(0.5)
        self.last = nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 6, 1))
        self.masked.weight.requires_grad_(False)
        self.calls = 0
        self.cache: Tensor | None = None

    def __deepcopy__(self, memo: Any) -> "Stateful":
        raise RuntimeError("this module cannot be copied")

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.cache is None:
            self.cache = torch.linspace(-1, 1, x.shape[-1])
        h = self.frozen(self.norm(self.masked(x + self.cache)))
        return self.last(F.relu(self.drop(h), inplace=True))


def test_the_model_stays_as_it_was() -> None:
    model = Stateful()
    model.train()
    model.frozen.eval()
    hooks = []
    model.norm.register_forward_hook(lambda *args: hooks.append(1))
    x = torch.randn(2, 1, 4, 5)
    with torch.no_grad():
        model.masked(x)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    addresses = {name: each.data_ptr() for name, each in model.named_parameters()}
    modes = [each.training for each in model.modules()]
    needs = [each.requires_grad for each in model.parameters()]
    loss = model(x).sum()
    random = torch.get_rng_state()
    loss.backward()
    grads = [each.grad for each in model.parameters()]
    kept = [None if each is None else each.clone() for each in grads]
    state["norm.running_mean"] = model.norm.running_mean.clone()
    state["norm.running_var"] = model.norm.running_var.clone()
    state["norm.num_batches_tracked"] = model.norm.num_batches_tracked.clone()
    before, calls, given = len(hooks), model.calls, x.clone()

    captured = capture(model, x)
    lower(captured)

    assert torch.equal(x, given)
    assert torch.equal(torch.get_rng_state(), random)
    assert model.calls == calls + 2
    assert len(hooks) == before + 2
    assert [each.training for each in model.modules()] == modes
    assert [each.requires_grad for each in model.parameters()] == needs
    assert {name: each.data_ptr() for name, each in model.named_parameters()} == addresses
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key]), key
    for each, old, grad in zip(model.parameters(), kept, grads, strict=True):
        assert each.grad is grad
        assert old is None or torch.equal(each.grad, old)
    hook_kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    for module in model.modules():
        expected = 1 if module is model.norm else 0
        assert sum(len(getattr(module, kind)) for kind in hook_kinds) == expected
    assert all(type(each) is nn.Parameter for each in model.parameters())
    with pytest.raises(RuntimeError, match="cannot be copied"):
        copy.deepcopy(model)


def test_the_recording_computes_what_the_model_does() -> None:
    model = Stateful().double()
    captured = capture(model, torch.randn(2, 1, 4, 5).double())
    x = torch.randn(2, 1, 4, 5).double()
    out = Evaluator({captured.input: x})(captured.output)
    assert torch.equal(out, model.eval()(x))
    assert captured.dtype == torch.float64
    assert captured.device == torch.device("cpu")


def test_weights_that_a_forward_masks_are_read_masked() -> None:
    conv = InPlaceMask(1, 2, 3).double()
    x = torch.randn(3, 1, 4, 5).double()
    graph, captured = compiled(conv, x)
    (value,) = [value for value in graph.values if hasattr(value.body, "taps")]
    assert len(value.body.taps) == 4
    torch.testing.assert_close(run(graph, captured, x), conv(x), rtol=0, atol=1e-12)


def test_only_what_depends_on_the_input_is_recorded() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

        def forward(self, x: Tensor) -> Tensor:
            table = (self.scale.exp().cumsum(0) / self.scale.sum()).view(1, 3, 1, 1)
            unused = x.sum() + torch.randn(5).sum()
            del unused
            if bool((self.scale > 0).all()) and self.scale.sum().item() > 2:
                return x * table
            return x

    captured = capture(Model(), torch.randn(2, 3, 2, 2))
    call = captured.output.call
    assert call is not None
    assert str(call.op) == "aten.mul.Tensor"
    assert isinstance(call.args[0], Node)
    assert isinstance(call.args[1], Fixed)
    assert call.args[0] is captured.input


def test_checks_by_assert_are_let_pass() -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            assert x.max() < 100, "too large"
            assert torch.isfinite(x).all()
            # fmt: off
            assert (  # noqa: PT018
                x.max() < 100
                and bool(x.min() > -100)
            ), (
                "out of range"
            )
            if len(x) == 2: assert(x.max() < 100)  # noqa: E701
            # fmt: on
            return x.exp()

    graph, captured = compiled(Model(), x := torch.randn(2, 1, 2, 2))
    torch.testing.assert_close(run(graph, captured, x), x.exp())


@pytest.mark.parametrize("name", ["beside an assertion", "named in one", "in its text"])
def test_what_only_looks_like_an_assertion(name: str) -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            # fmt: off
            if name == "beside an assertion":
                assert len(x) == 2; y = x.max().item()  # noqa: E702
            elif name == "named in one":
                assert (y := x.max().item()) < 100
            else:
                y = {"""
                assert ...""": x.max().item()}.popitem()[1]
            # fmt: on
            return x * y

    with pytest.raises(UnsupportedModelError, match="reads a number"):
        capture(Model(), torch.randn(2, 1, 2, 2))


def test_forward_that_fails() -> None:
    with pytest.raises(UnsupportedModelError, match=r"x of shape \(2, 3, 4, 4\).*RuntimeError"):
        capture(nn.Conv2d(1, 2, 3), torch.zeros(2, 3, 4, 4))
    with pytest.raises(InputError, match=r"expected x of shape \[2, \.\.\.\]"):
        capture(nn.Identity(), torch.zeros(3, 1, 4, 4))


def test_a_refusal_gives_the_mode_back() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Softmax(2)).train()
    with pytest.raises(UnsupportedModelError):
        compiled(model, torch.zeros(2, 1, 3, 3))
    assert model[1].training
    assert torch.zeros(1).add(1).item() == 1  # no mode is left on


# What models return


@dataclass
class Out:
    logits: Tensor
    loss: float = 0.0


@dataclass
class Unnamed:
    scores: Tensor
    count: int = 0


class Attributes:
    def __init__(self, logits: Tensor, hidden: Tensor) -> None:
        self.logits, self.hidden = logits, hidden


class Ordered(dict):  # type: ignore[type-arg]
    """A mapping with attributes, as some libraries return."""


Pair = namedtuple("Pair", ["hidden", "logits"])


def test_the_tensor_is_picked_out_of_what_a_model_returns() -> None:
    a, b = torch.zeros(1), torch.ones(1)
    for output in (
        a,
        (a, b),
        [a],
        (None, a),
        {"logits": a, "hidden": b},
        {"anything": a, "count": 3},
        Out(a),
        Unnamed(a),
        Attributes(a, b),
        Ordered(logits=a, other=b),
        Pair(b, a),
    ):
        assert pick_tensor(output, 1) is a
    for output in ({"x": a, "y": b}, {}, None, 3, {"loss": 1.0}):
        with pytest.raises(UnsupportedModelError, match="forward= can choose"):
            pick_tensor(output, 1)
    loss, each, scores = torch.tensor(0.0), torch.zeros(2), torch.zeros(2, 3)
    for output in ((loss, scores), (each, scores), {"a": torch.zeros(3), "b": scores}):
        assert pick_tensor(output, 2) is scores


def test_a_forward_of_the_users() -> None:
    class Model(nn.Module):
        def score(self, x: Tensor) -> Mapping[str, Tensor]:
            return {"a": x, "b": x * 3}

        def forward(self, x: Tensor) -> Tensor:
            raise NotImplementedError

    x = torch.randn(2, 1, 2, 3)
    graph, captured = compiled(Model(), x, forward=lambda model, x: model.score(x)["b"])
    torch.testing.assert_close(run(graph, captured, x), 3 * x)


# Conditions


class Conditioned(nn.Module):
    """A convolution with a label, a map, a gain shared by all images, and a text."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = InPlaceMask(3, 4, 3)
        self.label = nn.Embedding(5, 4)
        self.map = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(inplace=True))
        self.text = nn.LSTM(3, 4, batch_first=True)

    def forward(
        self, x: Tensor, label: Tensor, plane: Tensor, gain: Tensor, text: Tensor
    ) -> Tensor:
        one_hot = F.one_hot(label, 5).to(x.dtype)[:, :2, None, None].expand(-1, -1, *x.shape[2:])
        h = self.conv(torch.cat([x, one_hot], 1))
        h = h + self.label(label)[:, :, None, None]
        h = (h * torch.sigmoid(self.map(plane))).permute(0, 2, 3, 1)
        h = h + self.text(text)[0][:, -1, None, None]
        h = h.reshape(-1, 4) * gain.exp()
        return h.view(len(x), *x.shape[2:], 4).movedim(-1, 1)


def conditions(n: int) -> dict[str, Tensor]:
    return {
        "label": torch.randint(5, (n,)),
        "plane": torch.randn(n, 2, 3, 5, dtype=torch.float64),
        "gain": torch.randn(4, dtype=torch.float64),
        "text": torch.randn(n, 6, 3, dtype=torch.float64),
    }


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7])
def test_conditions(n: int) -> None:
    model = Conditioned().double()
    example = torch.randn(2, 1, 3, 5, dtype=torch.float64)
    captured = capture(model, example, conditions(2))
    graph = lower(captured)
    x, given = torch.randn(n, 1, 3, 5, dtype=torch.float64), conditions(n)
    expected = model.eval()(x, **given)
    torch.testing.assert_close(run(graph, captured, x, **given), expected, rtol=0, atol=1e-12)


def test_condition_tables_vary_where_the_conditions_do() -> None:
    captured = capture(Conditioned().double(), torch.randn(2, 1, 3, 5).double(), conditions(2))
    graph = lower(captured)
    tables = {(each.height, each.width, each.features, each.shared) for each in graph.conditions}
    assert tables == {(3, 5, 2, False), (1, 1, 4, False), (3, 5, 4, False), (1, 1, 4, True)}
    assert len(graph.conditions) == 5


def test_conditions_are_checked() -> None:
    captured = capture(Conditioned().double(), torch.randn(2, 1, 3, 5).double(), conditions(2))
    tables = lower(captured).conditions
    good = conditions(3)
    with pytest.raises(InputError, match=r"expected label of shape \(3,\), got none"):
        captured.condition_tensors(tables, {"plane": good["plane"]}, 3)
    with pytest.raises(
        InputError, match=r"expected label of shape \(3,\), got label\.shape=\(2,\)"
    ):
        captured.condition_tensors(tables, good | {"label": good["label"][:2]}, 3)
    with pytest.raises(InputError, match=r"got \['colour'\]"):
        captured.condition_tensors(tables, good | {"colour": good["label"]}, 3)
    with pytest.raises(InputError, match=r"expected gain of shape \(4,\)"):
        captured.condition_tensors(tables, good | {"gain": torch.zeros(3, 4)}, 3)


def test_conditions_may_have_another_dtype() -> None:
    captured = capture(Conditioned().double(), torch.randn(2, 1, 3, 5).double(), conditions(2))
    tables = lower(captured).conditions
    given = conditions(3)
    single = {
        name: each.to(torch.int32 if name == "label" else torch.float32)
        for name, each in given.items()
    }
    for a, b in zip(
        captured.condition_tensors(tables, given, 3),
        captured.condition_tensors(tables, single, 3),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


# Dtypes, devices and other ways of writing modules


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes(dtype: torch.dtype) -> None:
    model = nn.Sequential(InPlaceMask(1, 3, 3), nn.BatchNorm2d(3), nn.ELU()).to(dtype)
    nn.init.normal_(model[1].weight)
    captured = capture(model, torch.randn(2, 1, 3, 4, dtype=dtype))
    graph = lower(captured)
    assert captured.dtype == dtype
    tensors = [value.body.taps[0].weight for value in graph.values if hasattr(value.body, "taps")]
    origins = {
        source.origin
        for value in graph.values
        for operand in getattr(value.body, "operands", [])
        if isinstance(operand, tuple)
        for source in operand
    }
    tensors += [each.data for each in origins if hasattr(each, "data")]
    assert len(tensors) >= 2
    assert {each.dtype for each in tensors} == {dtype}


def test_scripted_modules() -> None:
    with pytest.warns(DeprecationWarning, match="script"):
        model = torch.jit.script(nn.Sequential(nn.Conv2d(1, 3, (1, 2)), nn.Tanh()).double())
    x = torch.randn(3, 1, 3, 4, dtype=torch.float64)
    graph, captured = compiled(model, x)
    torch.testing.assert_close(run(graph, captured, x), model(x), rtol=0, atol=1e-12)


def test_compiled_modules_are_seen_as_written() -> None:
    conv = InPlaceMask(1, 3, 3).double()
    model = torch.compile(conv, backend="eager")
    x = torch.randn(3, 1, 3, 4, dtype=torch.float64)
    graph, captured = compiled(model, x)
    torch.testing.assert_close(run(graph, captured, x), conv(x), rtol=0, atol=1e-12)


def test_inference_mode_around_the_capture() -> None:
    conv = InPlaceMask(1, 3, 3).double()
    x = torch.randn(3, 1, 3, 4, dtype=torch.float64)
    with torch.inference_mode():
        graph, captured = compiled(conv, x)
    torch.testing.assert_close(run(graph, captured, x), conv(x), rtol=0, atol=1e-12)


class Layered(nn.Module):
    """Calls an op that is a whole layer, with and without the residual."""

    def __init__(self) -> None:
        super().__init__()
        self.dilated = nn.ModuleList(nn.Conv1d(1 + 3 * i, 8, 2) for i in range(2))
        self.skip = nn.ModuleList(nn.Conv1d(4, 5, 1) for _ in range(2))
        self.residual = nn.Conv1d(4, 1, 1)
        self.widen = nn.Conv1d(1, 4, 1)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        shared = {"skip_bias": self.skip[0].bias, "dilation": 3}
        x, first = causal_conv1d(
            x,
            self.dilated[0].weight,
            residual_weight=self.residual.weight,
            skip_weight=self.skip[0].weight,
            **shared,
        )
        _, second = causal_conv1d(
            self.widen(x), self.dilated[1].weight, skip_weight=self.skip[1].weight, **shared
        )
        return first + second


def test_op_of_several_layers_is_recorded_as_its_layers() -> None:
    model = Layered()
    x = torch.randn(3, 1, 20, dtype=torch.float64)
    graph, captured = compiled(model, x)
    out = run(graph, captured, x)
    torch.testing.assert_close(out.reshape(3, 5, 20), model(x), rtol=1e-12, atol=1e-12)
    assert sum(isinstance(value.body, Conv) for value in graph.values) == 6
