"""masked_conv2d with addend, activation and residual, against the same in plain PyTorch."""

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F

from genfast.errors import InputError
from genfast.ops import live_taps, masked_conv2d, masked_conv2d_reference
from tests.tolerances import assert_as_accurate_as_eager

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
ACTIVATIONS = [None, "relu", "elu", "concat_elu", "gate"]
OPS = torch.ops.genfast


@dataclass(frozen=True)
class Case:
    activation: str | None = "gate"
    addend: str | None = None  # "pixels" or "example"
    residual: bool = False
    bias: bool = True
    N: int = 2
    C_in: int = 3
    C_out: int = 6
    size: tuple[int, int] = (5, 7)
    kernel: int = 3
    scale: float = 1.0
    rectify: bool = False
    stride: int = 1

    @property
    def mask(self) -> torch.Tensor:
        position = torch.arange(self.kernel**2).view(self.kernel, self.kernel)
        return position <= self.kernel**2 // 2

    @property
    def options(self) -> dict:
        return {
            "activation": self.activation,
            "padding": self.kernel // 2,
            "rectify": self.rectify,
            "stride": self.stride,
        }

    @property
    def result_channels(self) -> int:
        return {"gate": self.C_out // 2, "concat_elu": 2 * self.C_out}.get(
            self.activation, self.C_out
        )

    def inputs(self, dtype=torch.float32, device="cpu") -> dict[str, torch.Tensor | None]:
        """Leaves x, weight, bias, addend and residual; some are None."""

        def leaf(*shape: int) -> torch.Tensor:
            values = self.scale * torch.randn(shape, dtype=torch.float64)
            return values.to(dtype=dtype, device=device).requires_grad_()

        pixels = {None: None, "example": (), "pixels": self.size}[self.addend]
        return {
            "x": leaf(self.N, self.C_in, *self.size),
            "weight": leaf(self.C_out, self.C_in, self.kernel, self.kernel),
            "bias": leaf(self.C_out) if self.bias else None,
            "addend": None if pixels is None else leaf(self.N, self.C_out, *pixels),
            "residual": (leaf(self.N, self.result_channels, *self.size) if self.residual else None),
        }

    def ours(self, inputs) -> torch.Tensor:
        return masked_conv2d(**inputs, mask=self.mask.to(inputs["x"].device), **self.options)

    def plain(self, inputs) -> torch.Tensor:
        """The definition, in operators of PyTorch."""
        weight = inputs["weight"] * self.mask.to(inputs["weight"])
        x = F.relu(inputs["x"]) if self.rectify else inputs["x"]
        out = F.conv2d(x, weight, inputs["bias"], padding=self.kernel // 2, stride=self.stride)
        if self.addend == "pixels":
            out = out + inputs["addend"]
        elif self.addend == "example":
            out = out + inputs["addend"][:, :, None, None]
        if self.activation == "gate":
            a, b = out.chunk(2, dim=1)
            out = torch.tanh(a) * torch.sigmoid(b)
        elif self.activation == "concat_elu":
            out = F.elu(torch.cat((out, -out), dim=1))
        elif self.activation is not None:
            out = {"relu": F.relu, "elu": F.elu}[self.activation](out)
        return out if inputs["residual"] is None else out + inputs["residual"]


def given(inputs) -> list[torch.Tensor]:
    return [tensor for tensor in inputs.values() if tensor is not None]


def copied(inputs, dtype) -> dict:
    return {
        name: None if t is None else t.detach().cpu().to(dtype).requires_grad_()
        for name, t in inputs.items()
    }


def with_gradients(function, inputs, grad) -> list[torch.Tensor]:
    out = function(inputs)
    return [out.detach(), *torch.autograd.grad(out, given(inputs), grad)]


def check_case(case: Case, dtype=torch.float32, device="cpu") -> None:
    """Result and gradients against eager at the dtype and in float64."""
    inputs = case.inputs(dtype, device)
    eager, exact = copied(inputs, dtype), copied(inputs, torch.float64)
    grad = torch.randn(case.plain(exact).shape, dtype=torch.float64).to(dtype)
    results = (
        with_gradients(case.ours, inputs, grad.to(device)),
        with_gradients(case.plain, eager, grad),
        with_gradients(case.plain, exact, grad.double()),
    )
    assert results[0][0].is_contiguous()
    for ours, at_dtype, in_double in zip(*results, strict=True):
        assert_as_accurate_as_eager(ours.cpu(), at_dtype, in_double)


COMBINATIONS = [
    Case(activation, addend, residual)
    for activation in ACTIVATIONS
    for addend in (None, "example", "pixels")
    for residual in (False, True)
]
SIZES = {
    "1x1": {"N": 1, "C_in": 1, "C_out": 2, "size": (1, 1), "kernel": 1},
    "one-column": {"size": (13, 1), "C_out": 2},
    "wide": {"C_out": 38, "size": (17, 19)},
    "large-plane": {"N": 1, "C_in": 1, "C_out": 4, "size": (67, 71)},
    "empty": {"N": 0},
    "no-bias": {"bias": False},
    "large-numbers": {"scale": 4.0},
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", COMBINATIONS, ids=str)
def test_matches_reference(device, case, dtype) -> None:
    check_case(case, dtype, device)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_matches_reference_at_other_sizes(device, activation, size) -> None:
    check_case(Case(activation, "pixels", residual=True, **SIZES[size]), device=device)
    check_case(Case(activation, "example", **SIZES[size]), device=device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_matches_reference_on_every_simd_level(simd_level, activation, dtype) -> None:
    for addend, residual in ((None, False), ("pixels", True), ("example", False)):
        check_case(Case(activation, addend, residual, **SIZES["wide"]), dtype)


@pytest.mark.parametrize("case", COMBINATIONS[::5], ids=str)
def test_reference_is_the_definition(case) -> None:
    inputs = case.inputs(torch.float64)
    out = masked_conv2d_reference(**inputs, mask=case.mask, **case.options)
    torch.testing.assert_close(out, case.plain(inputs))
    one = {
        name: t if t is None or name in ("weight", "bias") else t[0] for name, t in inputs.items()
    }
    for function in (masked_conv2d, masked_conv2d_reference):
        unbatched = function(**one, mask=case.mask, **case.options)
        torch.testing.assert_close(unbatched, out[0])


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_any_strides(device, activation) -> None:
    case = Case(activation, "pixels", residual=True)
    inputs = case.inputs(device=device)

    def sideways(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.detach().transpose(2, 3).contiguous().transpose(2, 3).requires_grad_()

    def last(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.detach().contiguous(memory_format=torch.channels_last).requires_grad_()

    grad = torch.randn_like(case.ours(inputs))
    plain = with_gradients(case.ours, inputs, grad)
    for layout in (sideways, last):
        moved = {
            name: layout(t) if name in ("x", "addend", "residual") else t
            for name, t in inputs.items()
        }
        assert not moved["addend"].is_contiguous()
        for a, b in zip(
            with_gradients(case.ours, moved, layout(grad).detach()), plain, strict=True
        ):
            torch.testing.assert_close(a, b)


def as_function(case: Case, inputs):
    names = [name for name, tensor in inputs.items() if tensor is not None]

    def function(*tensors: torch.Tensor) -> torch.Tensor:
        return case.ours({**inputs, **dict(zip(names, tensors, strict=True))})

    return function


SMALL = {"N": 2, "C_in": 1, "C_out": 2, "size": (2, 3)}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("addend", "residual"), [(None, False), ("example", True)])
def test_derivatives_of_first_and_second_order(device, activation, addend, residual) -> None:
    case = Case(activation, addend, residual, **SMALL)
    inputs = case.inputs(torch.float64, device)
    function = as_function(case, inputs)
    assert torch.autograd.gradcheck(function, given(inputs))
    assert torch.autograd.gradgradcheck(function, given(inputs))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", COMBINATIONS[1::2], ids=str)
def test_second_derivatives_match_reference(device, case, dtype) -> None:
    def penalty(function, inputs) -> list[torch.Tensor]:
        out = function(inputs)
        (slope,) = torch.autograd.grad(out.square().sum(), inputs["x"], create_graph=True)
        return list(
            torch.autograd.grad(slope.square().sum(), given(inputs), materialize_grads=True)
        )

    inputs = case.inputs(dtype, device)
    eager, exact = copied(inputs, dtype), copied(inputs, torch.float64)
    for ours, at_dtype, in_double in zip(
        penalty(case.ours, inputs),
        penalty(case.plain, eager),
        penalty(case.plain, exact),
        strict=True,
    ):
        assert_as_accurate_as_eager(ours.cpu(), at_dtype, in_double)


@pytest.mark.parametrize("case", COMBINATIONS[::3], ids=str)
def test_computes_only_the_gradients_asked_for(device, case) -> None:
    every = case.inputs(device=device)
    grad = torch.randn_like(case.ours(every))
    expected = dict(
        zip(
            [name for name, t in every.items() if t is not None],
            with_gradients(case.ours, every, grad)[1:],
            strict=True,
        )
    )
    for wanted in expected:
        inputs = {
            name: None if t is None else t.detach().requires_grad_(name == wanted)
            for name, t in every.items()
        }
        (found,) = torch.autograd.grad(case.ours(inputs), inputs[wanted], grad)
        assert torch.equal(found, expected[wanted])


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("residual", [False, True])
def test_keeps_what_the_backward_needs_and_no_more(device, activation, residual) -> None:
    case = Case(activation, "pixels", residual)
    inputs = case.inputs(device=device)
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        out = case.ours(inputs)
    known = {inputs["x"].data_ptr(), inputs["weight"].data_ptr()}
    shape = (case.N, case.C_out, *case.size)
    more = [t for t in kept if t.data_ptr() not in known and t.shape == shape]
    if activation is None:
        assert not more
    else:
        assert len(more) == 1
        is_output = more[0].data_ptr() == out.data_ptr()
        assert is_output == (activation in ("relu", "elu") and not residual)


def geometry(case: Case) -> tuple:
    side = case.kernel // 2
    return list(live_taps(case.mask)), (1, 1), (side,) * 4, (1, 1), 1


def operands(case: Case, device) -> tuple:
    inputs = case.inputs(device=device)
    if case.addend == "example":
        inputs["addend"] = inputs["addend"].detach()[:, :, None, None].requires_grad_()
    return (
        inputs["x"],
        inputs["weight"],
        case.mask.to(device),
        inputs["bias"],
        inputs["addend"],
        inputs["residual"],
        case.activation or "none",
        case.rectify,
    )


@pytest.mark.parametrize(
    "case",
    [
        Case(None, residual=True),
        Case("relu"),
        Case("elu", "example"),
        Case("concat_elu", "pixels", bias=False),
        Case("gate", "pixels", residual=True),
        Case("gate", N=0),
        Case("relu", rectify=True),
    ],
    ids=str,
)
def test_opcheck(device, case) -> None:
    arguments = operands(case, device)
    torch.library.opcheck(OPS.masked_conv2d_activation.default, (*arguments, *geometry(case)))
    detached = tuple(t.detach() if isinstance(t, torch.Tensor) else t for t in arguments)
    for keep in (False, True):
        torch.library.opcheck(
            OPS._masked_conv2d_activation.default, (*detached, *geometry(case), keep)
        )
    shape = (case.N, case.result_channels, *case.size)
    kept = torch.randn(case.N, case.C_out, *case.size, device=device, requires_grad=True)
    grad = torch.randn(shape, device=device, requires_grad=True)
    for of_output in {False, case.activation in ("relu", "elu")}:
        torch.library.opcheck(
            OPS._masked_conv2d_activation_backward.default,
            (grad, kept, case.activation or "none", of_output),
        )


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_compiles_without_graph_breaks(device, activation) -> None:
    case = Case(activation, "example", residual=True)
    compiled = torch.compile(case.ours, fullgraph=True, backend="aot_eager")
    for examples in (2, 3):
        inputs = Case(activation, "example", residual=True, N=examples).inputs(device=device)
        grad = torch.randn_like(case.ours(inputs))
        for a, b in zip(
            with_gradients(compiled, inputs, grad),
            with_gradients(case.ours, inputs, grad),
            strict=True,
        ):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_autocast_casts_like_conv2d(device, activation) -> None:
    case = Case(activation, "pixels", residual=True)
    inputs = case.inputs(device=device)
    with torch.autocast(device.type, torch.bfloat16):
        out = case.ours(inputs)
    expected = case.ours({name: t.bfloat16() for name, t in inputs.items()})
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, expected)
    grads = torch.autograd.grad(out.float().sum(), given(inputs))
    assert all(grad.dtype == torch.float32 for grad in grads)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("where", ["x", "bias", "addend", "residual"])
def test_nan_in_nan_out(device, activation, where) -> None:
    case = Case(activation, "pixels", residual=True)
    inputs = {name: t.detach() for name, t in case.inputs(device=device).items()}
    inputs[where][(1, 1, 4, 5)[: inputs[where].dim()] if where != "bias" else 1] = torch.nan
    expected = masked_conv2d_reference(**inputs, mask=case.mask.to(device), **case.options).isnan()
    if where == "x":  # at the last pixel but one of the last row, which no dead tap reaches
        spread = torch.zeros_like(inputs["x"])
        spread[1, 1, 4, 5] = 1
        ones = torch.ones_like(inputs["weight"])
        touched = masked_conv2d_reference(spread, ones, case.mask.to(device), padding=1) != 0
        expected = touched[:, :1].expand_as(expected)
    assert expected.any()
    assert torch.equal(case.ours(inputs).isnan(), expected)
    kept = torch.full((1, 2, 3, 3), torch.nan, device=device)
    grad = torch.ones(1, {"gate": 1, "concat_elu": 4}.get(activation, 2), 3, 3, device=device)
    name = activation or "none"
    for of_output in (False, True):
        of_pre, _ = OPS._masked_conv2d_activation_backward(grad, kept, name, of_output)
        if activation in (None, "relu"):  # whose slope knows the sign alone: PyTorch's is 1 here
            assert torch.equal(of_pre, torch.ones_like(of_pre))
        else:
            assert of_pre.isnan().all()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_extreme_numbers_stay_finite(device, simd_level, activation) -> None:
    """From 1e-30 to 1e4 of either sign: value and slopes against float64."""
    x = torch.cat((torch.logspace(-30, 4, 400), -torch.logspace(-30, 4, 400), torch.zeros(1)))
    x = x[:, None, None, None].to(device)
    weight = torch.tensor([1.0, -1.0], device=device).view(2, 1, 1, 1)
    mask = torch.ones(1, 1, dtype=torch.bool, device=device)

    def run(dtype, function):
        leaf = x.to(dtype).requires_grad_()
        out = function(leaf, weight.to(dtype), mask, activation=activation)
        return out.detach(), *torch.autograd.grad(out.sum(), leaf)

    for ours, exact in zip(
        run(torch.float32, masked_conv2d),
        run(torch.float64, masked_conv2d_reference),
        strict=True,
    ):
        assert ours.isfinite().all()
        torch.testing.assert_close(ours.double(), exact, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_same_bits_for_every_thread_count(threads, activation) -> None:
    case = Case(activation, "example", N=3, C_in=5, C_out=18, size=(70, 61))
    inputs = case.inputs()
    grad = torch.randn(3, case.result_channels, 70, 61)
    ours = with_gradients(case.ours, inputs, grad)
    torch.set_num_threads(4)  # the fixture restores the count
    for a, b in zip(ours, with_gradients(case.ours, inputs, grad), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_inputs_stay_unchanged(device, activation) -> None:
    case = Case(activation, "pixels", residual=True)
    inputs = case.inputs(device=device)
    before = [t.detach().clone() for t in given(inputs)]
    case.ours(inputs).sum().backward()
    with torch.no_grad():
        case.ours(inputs)
    for tensor, copy in zip(given(inputs), before, strict=True):
        assert torch.equal(tensor, copy)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_function_transforms_and_meta_tensors(activation) -> None:
    case = Case(activation, "example", residual=True)
    inputs = {name: t.detach() for name, t in case.inputs().items()}

    def loss(x: torch.Tensor) -> torch.Tensor:
        return case.ours({**inputs, "x": x}).square().sum()

    x = inputs["x"]
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(leaf), leaf)
    torch.testing.assert_close(torch.func.grad(loss)(x), expected)
    _, slope = torch.func.jvp(loss, (x,), (torch.ones_like(x),))
    torch.testing.assert_close(slope, expected.sum(), rtol=1e-4, atol=1e-3)
    meta = {name: t.to("meta") for name, t in inputs.items()}
    assert case.ours(meta).shape == (case.N, case.result_channels, *case.size)


def refusals() -> dict:
    x, addend = torch.zeros(2, 3, 5, 7), torch.zeros(2, 6, 5, 7)
    weight = torch.zeros(6, 3, 3, 3)
    good = {"x": x, "weight": weight, "mask": torch.ones(3, 3), "padding": 1}
    return {
        name: ({**good, **change}, message)
        for name, (change, message) in {
            "activation": ({"activation": "tanh"}, "expected activation None or one of .*tanh"),
            "odd-gate": (
                {"activation": "gate", "weight": weight[:5]},
                r"expected an even C_out for the gate, got weight.shape\[0\]=5",
            ),
            "addend": ({"addend": addend[:1]}, r"expected addend of shape \(2, 6, 5, 7\) or"),
            "addend-rank": ({"addend": addend[0, :, 0, 0]}, "expected addend of shape"),
            "addend-dtype": ({"addend": addend.double()}, "expected addend of the dtype and dev"),
            "residual": (
                {"residual": addend, "activation": "gate"},
                r"expected residual of the result's shape \(2, 3, 5, 7\), got residual.shape",
            ),
            "residual-dtype": ({"residual": addend.half()}, "expected residual of the dtype"),
        }.items()
    }


@pytest.mark.parametrize("name", refusals())
def test_refuses_bad_input(name) -> None:
    arguments, message = refusals()[name]
    with pytest.raises(InputError, match=f"masked_conv2d: {message}"):
        masked_conv2d(**arguments)


def test_operators_refuse_bad_input_too() -> None:
    case = Case("gate", "pixels", residual=True)
    x, weight, mask, bias, addend, residual, _, rectify = (
        t.detach() if isinstance(t, torch.Tensor) else t for t in operands(case, "cpu")
    )
    for arguments, message in (
        ((bias, addend, residual, "tanh"), "expected activation none, relu"),
        ((bias, addend[:1], residual, "gate"), "expected addend of shape"),
        ((bias, addend.double(), residual, "gate"), "expected addend of the dtype"),
        ((bias, addend, addend, "gate"), "expected residual of the result's shape"),
        ((bias.half(), addend, residual, "gate"), "dtype and device of weight"),
    ):
        with pytest.raises(RuntimeError, match=message):
            OPS.masked_conv2d_activation(x, weight, mask, *arguments, rectify, *geometry(case))
    with pytest.raises(RuntimeError, match="expected an even number of output channels"):
        OPS.masked_conv2d_activation(
            x, weight[:5], mask, bias[:5], None, None, "gate", rectify, *geometry(case)
        )
    with pytest.raises(RuntimeError, match="expected grad of the result's shape"):
        OPS._masked_conv2d_activation_backward(addend, addend, "gate", False)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_without_a_fused_kernel_the_parts_run(activation, monkeypatch) -> None:
    from genfast.ops import _masked_conv2d_epilogue as epilogue

    monkeypatch.setattr(epilogue, "_FUSED_ON_CUDA", False)
    parts = epilogue.operator_on(torch.device("cuda"))
    x, weight = torch.randn(2, 4, 5, 6), torch.randn(6, 4, 3, 3)
    mask, addend = torch.ones(3, 3, dtype=torch.bool), torch.randn(2, 6, 1, 1)
    geometry = (None, (1, 1), (1, 1, 1, 1), (1, 1), 1)
    name = activation or "none"
    ours = parts(x, weight, mask, None, addend, None, name, True, *geometry)
    fused = OPS.masked_conv2d_activation(x, weight, mask, None, addend, None, name, True, *geometry)
    torch.testing.assert_close(ours, fused)


RECTIFIED = {
    "odd": {"C_in": 17, "size": (9, 23)},
    "1x1": {"C_in": 5, "size": (12, 8), "kernel": 1},
    "large": {"N": 1, "C_in": 9, "size": (31, 37), "kernel": 5},
    "empty": {"N": 0},
    "strided": {"stride": 2, "size": (9, 8)},
    "large-image": {"N": 1, "C_in": 64, "C_out": 2, "size": (66, 65), "kernel": 1},
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", [None, "relu", "gate"])
@pytest.mark.parametrize("name", RECTIFIED)
def test_rectified_input_matches_reference(device, name, activation, dtype) -> None:
    check_case(Case(activation, rectify=True, **RECTIFIED[name]), dtype, device)


def test_rectified_input_on_every_simd_level(simd_level) -> None:
    for name in RECTIFIED:
        check_case(Case("relu", rectify=True, **RECTIFIED[name]))


@pytest.mark.parametrize("activation", [None, "elu"])
def test_rectified_input_derivatives(activation) -> None:
    case = Case(activation, rectify=True, size=(3, 4), C_in=2, C_out=2)
    inputs = case.inputs(torch.float64)
    with torch.no_grad():  # away from the kink
        inputs["x"] += 0.2 * inputs["x"].sign()
    leaves = given(inputs)

    def function(*tensors: torch.Tensor) -> torch.Tensor:
        names = [name for name, tensor in inputs.items() if tensor is not None]
        return case.ours(inputs | dict(zip(names, tensors, strict=True)))

    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves)


def test_rectified_nan_stays(device) -> None:
    case = Case(None, rectify=True, kernel=1, C_in=2)
    inputs = case.inputs(device=device)
    with torch.no_grad():
        inputs["x"][0, 1, 2, 3] = float("nan")
    out = case.ours(inputs)
    assert bool(out[0, :, 2, 3].isnan().all())
    assert int(out.isnan().sum()) == case.C_out
