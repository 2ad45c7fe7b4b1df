"""causal_conv1d: the reference, gradients, registrations, refusals, properties."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from genfast.errors import InputError
from genfast.ops import causal_conv1d, causal_conv1d_reference
from tests.tolerances import assert_as_accurate_as_eager

OP = torch.ops.genfast.causal_conv1d.default
BACKWARD = torch.ops.genfast._causal_conv1d_backward.default


@dataclass(frozen=True)
class Sizes:
    """One layer: sizes, and which of the optional tensors there are."""

    N: int
    R: int
    G: int
    S: int
    T: int
    taps: int = 2
    dilation: int = 1
    condition: str = "none"  # or "example" or "full"
    without: tuple[str, ...] = ()


LAYERS = [
    Sizes(1, 1, 1, 1, 1),
    Sizes(2, 3, 5, 7, 300, 3, 2, "full"),
    Sizes(3, 17, 9, 33, 40, 2, 16, "example"),
    Sizes(1, 32, 33, 15, 517, 2, 300, "full", ("bias",)),
    Sizes(2, 4, 6, 3, 10, 2, 64, "example", ("skip_bias", "residual_bias")),  # sees no other moment
    Sizes(2, 8, 7, 5, 257, 4, 5, "none", ("residual_weight", "residual_bias")),
    Sizes(1, 5, 4, 6, 256, 1, 3, "full", ("residual_weight", "residual_bias", "skip_bias")),
]


def layer_of(sizes: Sizes, dtype=torch.float32, device="cpu") -> dict[str, torch.Tensor | None]:
    """Random tensors by name, all of which require gradients."""
    s = sizes
    condition = {"none": None, "example": (s.N, 2 * s.G), "full": (s.N, 2 * s.G, s.T)}
    shapes = {
        "x": (s.N, s.R, s.T),
        "weight": (2 * s.G, s.R, s.taps),
        "bias": (2 * s.G,),
        "condition": condition[s.condition],
        "residual_weight": (s.R, s.G, 1),
        "residual_bias": (s.R,),
        "skip_weight": (s.S, s.G, 1),
        "skip_bias": (s.S,),
    }

    def tensor(name, shape):
        # Sums of products of about 1.
        scale = math.prod(shape[1:]) ** -0.5 if name.endswith("weight") else 1.0
        numbers = scale * torch.randn(shape, dtype=torch.float64)
        return numbers.to(dtype).to(device).requires_grad_()

    return {
        name: None if shape is None or name in s.without else tensor(name, shape)
        for name, shape in shapes.items()
    }


def copies(layer, change):
    """The layer with every tensor changed, as leaves that require gradients."""
    return {
        name: None if each is None else change(each.detach()).requires_grad_()
        for name, each in layer.items()
    }


def present(layer) -> list[torch.Tensor]:
    return [each for each in layer.values() if each is not None]


def slopes_of(outputs):
    return [
        torch.linspace(-1, 2, each.numel(), dtype=torch.float64).view(each.shape).to(each)
        for each in outputs
    ]


def outputs_and_gradients(function, layer, dilation):
    outputs = function(**layer, dilation=dilation)
    grads = torch.autograd.grad(outputs, present(layer), slopes_of(outputs))
    return (*outputs, *grads)


def assert_match(layer, dilation, results, factor: float = 2.0) -> None:
    """Outputs and gradients, at most twice as far from float64 as eager PyTorch."""
    plain = copies(layer, lambda each: each.cpu().clone())
    exact = copies(layer, lambda each: each.cpu().double())
    eager = outputs_and_gradients(causal_conv1d_reference, plain, dilation)
    true = outputs_and_gradients(causal_conv1d_reference, exact, dilation)
    for ours, theirs, right in zip(results, eager, true, strict=True):
        assert_as_accurate_as_eager(ours.detach().cpu(), theirs.detach(), right.detach(), factor)


def test_reference_is_the_definition() -> None:
    s = Sizes(2, 3, 4, 5, 11, 3, 2, "full")
    layer = layer_of(s, torch.float64)
    out, skip = causal_conv1d_reference(**layer, dilation=s.dilation)
    given = {name: each.detach().numpy() for name, each in layer.items()}
    for t in range(s.T):
        h = given["bias"] + given["condition"][:, :, t]
        for j in range(s.taps):
            then = t - (s.taps - 1 - j) * s.dilation
            if then >= 0:
                h = h + given["x"][:, :, then] @ given["weight"][:, :, j].T
        z = np.tanh(h[:, :4]) / (1 + np.exp(-h[:, 4:]))
        residual = z @ given["residual_weight"][:, :, 0].T + given["residual_bias"]
        np.testing.assert_allclose(out[:, :, t].detach(), given["x"][:, :, t] + residual)
        wanted = z @ given["skip_weight"][:, :, 0].T + given["skip_bias"]
        np.testing.assert_allclose(skip[:, :, t].detach(), wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("sizes", LAYERS, ids=str)
def test_outputs_and_gradients_match_reference(device, sizes, dtype) -> None:
    layer = layer_of(sizes, dtype, device)
    before = copies(layer, torch.clone)
    assert_match(layer, sizes.dilation, outputs_and_gradients(causal_conv1d, layer, sizes.dilation))
    pairs = zip(present(layer), present(before), strict=True)
    assert all(torch.equal(each, old) for each, old in pairs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("sizes", LAYERS[1:4], ids=str)
def test_every_simd_level(simd_level, sizes, dtype) -> None:
    layer = layer_of(sizes, dtype)
    assert_match(layer, sizes.dilation, outputs_and_gradients(causal_conv1d, layer, sizes.dilation))


def test_long_sound_is_as_accurate_as_eager() -> None:
    layer = layer_of(Sizes(1, 16, 16, 24, 16_000, 2, 512))
    assert_match(layer, 512, outputs_and_gradients(causal_conv1d, layer, 512))


def test_without_a_residual_the_stream_is_unchanged(device) -> None:
    layer = layer_of(LAYERS[5], device=device)
    out, _ = causal_conv1d(**layer, dilation=5)
    assert out is layer["x"]


def test_float16_on_the_cpu() -> None:
    layer = layer_of(LAYERS[1], torch.float16)
    assert_match(layer, 2, outputs_and_gradients(causal_conv1d, layer, 2))


def test_strides_change_nothing(device) -> None:
    layer = layer_of(LAYERS[1], device=device)
    packed = outputs_and_gradients(causal_conv1d, layer, 2)

    def moved(each):
        return each.transpose(0, -1).contiguous().transpose(0, -1)

    def apart(each):
        return each.repeat_interleave(2, 0)[::2]

    for change in (moved, apart):
        for ours, wanted in zip(
            outputs_and_gradients(causal_conv1d, copies(layer, change), 2), packed, strict=True
        ):
            torch.testing.assert_close(ours, wanted)
    outputs = causal_conv1d(**layer, dilation=2)
    slopes = [moved(each) for each in slopes_of(outputs)]
    for ours, wanted in zip(
        torch.autograd.grad(outputs, present(layer), slopes), packed[2:], strict=True
    ):
        torch.testing.assert_close(ours, wanted)


@pytest.mark.parametrize(("N", "T"), [(0, 5), (2, 0)])
@pytest.mark.parametrize("condition", ["none", "example", "full"])
def test_empty_batches(N, T, condition) -> None:
    layer = layer_of(Sizes(N, 3, 2, 4, T, condition=condition))
    out, skip = causal_conv1d(**layer)
    assert (out.shape, skip.shape) == ((N, 3, T), (N, 4, T))
    grads = torch.autograd.grad(out.sum() + skip.sum(), present(layer))
    for grad, each in zip(grads, present(layer), strict=True):
        assert grad.shape == each.shape
        assert not grad.any()


def test_gradients_of_some_outputs_and_tensors_alone(device) -> None:
    layer = layer_of(LAYERS[1], device=device)
    for index in (0, 1):
        ours, wanted = (
            torch.autograd.grad(
                function(**layer, dilation=2)[index].square().sum(),
                present(layer),
                allow_unused=True,
            )
            for function in (causal_conv1d, causal_conv1d_reference)
        )
        for a, b in zip(ours, wanted, strict=True):
            torch.testing.assert_close(a, torch.zeros_like(a) if b is None else b)
    _, skip = causal_conv1d(**(layer | {"x": layer["x"].detach()}), dilation=2)
    _, whole = causal_conv1d(**layer, dilation=2)
    (alone,) = torch.autograd.grad(skip.sum(), layer["weight"])
    assert torch.equal(alone, torch.autograd.grad(whole.sum(), layer["weight"])[0])
    assert not any(
        each.requires_grad
        for each in causal_conv1d(**{k: v.detach() for k, v in layer.items()}, dilation=2)
    )


@pytest.mark.parametrize(
    "sizes",
    [
        Sizes(2, 2, 2, 3, 5, 2, 2, "full"),
        Sizes(1, 2, 1, 2, 4, 3, 1, "example", ("bias", "skip_bias")),
        Sizes(1, 2, 2, 1, 4, 2, 1, "none", ("residual_weight", "residual_bias")),
    ],
    ids=str,
)
def test_gradcheck(device, sizes) -> None:
    layer = layer_of(sizes, torch.float64, device)
    names = [name for name, each in layer.items() if each is not None]

    def function(*tensors):
        outputs = causal_conv1d(
            **(layer | dict(zip(names, tensors, strict=True))), dilation=sizes.dilation
        )
        return outputs if layer["residual_weight"] is not None else outputs[1]

    assert torch.autograd.gradcheck(function, present(layer))
    assert torch.autograd.gradgradcheck(function, present(layer))


@pytest.mark.parametrize("sizes", [LAYERS[1], LAYERS[2], LAYERS[5]], ids=str)
def test_opcheck(sizes) -> None:
    layer = layer_of(sizes)
    if sizes.condition == "example":
        layer["condition"] = layer["condition"].detach()[:, :, None].requires_grad_()
    given = tuple(layer.values())
    torch.library.opcheck(OP, (*given, sizes.dilation))
    plain = tuple(None if each is None else each.detach() for each in given)
    torch.library.opcheck(OP, (*plain, sizes.dilation))
    slopes = slopes_of(causal_conv1d(**layer, dilation=sizes.dilation))
    grads = [None if layer["residual_weight"] is None else slopes[0].requires_grad_(), slopes[1]]
    torch.library.opcheck(BACKWARD, (*grads, *given, sizes.dilation))


def test_compiles_without_graph_breaks() -> None:
    layer = layer_of(LAYERS[1])
    compiled = torch.compile(causal_conv1d, fullgraph=True)
    for ours, wanted in zip(
        outputs_and_gradients(compiled, layer, 2),
        outputs_and_gradients(causal_conv1d, layer, 2),
        strict=True,
    ):
        torch.testing.assert_close(ours, wanted)


def test_autocast_casts_as_for_conv1d(device) -> None:
    layer = layer_of(LAYERS[1], device=device)
    half = copies(layer, lambda each: each.to(torch.bfloat16))
    with torch.autocast(device.type, dtype=torch.bfloat16):
        outputs = causal_conv1d(**layer, dilation=2)
    assert all(each.dtype == torch.bfloat16 for each in outputs[1:])
    torch.testing.assert_close(outputs[1], causal_conv1d(**half, dilation=2)[1])
    grads = torch.autograd.grad(outputs[1].float().sum(), [layer["weight"], layer["skip_bias"]])
    assert all(each.dtype == torch.float32 for each in grads)


def test_functorch_and_forward_mode() -> None:
    layer = {
        k: v.detach()
        for k, v in layer_of(Sizes(3, 2, 3, 4, 9), torch.float64).items()
        if v is not None
    }
    x = layer.pop("x")

    def function(x):
        return causal_conv1d(x, **layer)[1]

    mapped = torch.func.vmap(function)(x[:, None])
    torch.testing.assert_close(mapped[:, 0], function(x))
    _, tangent = torch.func.jvp(function, (x,), (x.flip(0),))
    _, wanted = torch.func.jvp(lambda x: causal_conv1d_reference(x, **layer)[1], (x,), (x.flip(0),))
    torch.testing.assert_close(tangent, wanted)


def test_thread_counts_change_no_bit(threads) -> None:
    for sizes in (
        Sizes(2, 20, 12, 40, 1_100, 2, 7, "full"),
        Sizes(9, 4, 5, 6, 30, 3, 2, "example"),
    ):
        layer = layer_of(sizes)
        results = outputs_and_gradients(causal_conv1d, layer, sizes.dilation)
        torch.set_num_threads(1)
        alone = outputs_and_gradients(causal_conv1d, layer, sizes.dilation)
        torch.set_num_threads(threads)
        assert all(torch.equal(a, b) for a, b in zip(results, alone, strict=True))


@pytest.mark.parametrize("dilation", [1, 3, 300])
def test_no_output_sees_the_future(dilation) -> None:
    layer = {
        k: None if v is None else v.detach()
        for k, v in layer_of(Sizes(1, 3, 4, 2, 700, 3, dilation)).items()
    }
    before = causal_conv1d(**layer, dilation=dilation)
    for t in (0, 1, 255, 256, 600, 699):
        changed = layer["x"].clone()
        changed[:, :, t] += 1
        after = causal_conv1d(**(layer | {"x": changed}), dilation=dilation)
        for a, b in zip(before, after, strict=True):
            moments = (a != b).any(1)[0].nonzero().flatten().tolist()
            seen = [t + j * dilation for j in range(3) if t + j * dilation < 700]
            assert set(moments) <= set(seen)
            assert t in moments


def test_a_sound_in_parts_and_in_a_batch_is_the_same(device) -> None:
    layer = {
        k: None if v is None else v.detach()
        for k, v in layer_of(Sizes(3, 5, 4, 6, 400, 2, 9), device=device).items()
    }
    out, skip = causal_conv1d(**layer, dilation=9)
    for n in range(3):
        one = causal_conv1d(**(layer | {"x": layer["x"][n : n + 1]}), dilation=9)
        torch.testing.assert_close(one, (out[n : n + 1], skip[n : n + 1]))
    later = causal_conv1d(**(layer | {"x": layer["x"][:, :, 91:]}), dilation=9)
    torch.testing.assert_close(later[1][:, :, 9:], skip[:, :, 100:])


def test_nan_reaches_what_depends_on_it_and_nothing_else(device) -> None:
    layer = {
        k: None if v is None else v.detach()
        for k, v in layer_of(Sizes(2, 3, 4, 5, 300, 2, 20), device=device).items()
    }
    layer["x"][1, 2, 260] = math.nan
    layer["x"].requires_grad_()
    out, skip = causal_conv1d(**layer, dilation=20)
    assert skip.isnan().any(1).nonzero().tolist() == [[1, 260], [1, 280]]
    assert out.isnan().any(1).nonzero().tolist() == [[1, 260], [1, 280]]
    (grad,) = torch.autograd.grad(skip.sum(), layer["x"])
    assert grad.isnan().any(1).nonzero().tolist() == [[1, 240], [1, 260], [1, 280]]


def test_refuses_bad_input() -> None:
    layer = {k: v.detach() for k, v in layer_of(Sizes(2, 3, 4, 5, 6, condition="full")).items()}
    x = layer["x"]
    cases = [
        (r"floating point x of shape \[N, R, T\], got x.shape=\(3, 6\)", {"x": x[0]}),
        (r"got .*x.dtype=torch.int64", {"x": x.long()}),
        (r"weight of shape \[2G, R=3, k\], got .*\(7, 3, 2\)", {"weight": layer["weight"][:7]}),
        (r"weight of shape \[2G, R=2, k\]", {"x": x[:, :2]}),
        (r"weight of shape \[2G, R=3, k\]", {"weight": layer["weight"][:, :, :0]}),
        (r"bias of shape \(8,\), got bias.shape=\(7,\)", {"bias": layer["bias"][:7]}),
        (
            r"condition of shape \(2, 8\) or .* got .*\(2, 4, 6\)",
            {"condition": layer["condition"][:, :4]},
        ),
        (r"residual_weight of shape \(3, 4, 1\)", {"residual_weight": layer["skip_weight"]}),
        (r"residual_bias of shape \(3,\)", {"residual_bias": layer["skip_bias"]}),
        (r"no residual_bias without a residual_weight", {"residual_weight": None}),
        (r"skip_weight of shape \[S, G, 1\]", {"skip_weight": layer["skip_bias"]}),
        (r"skip_weight of shape \(5, 4, 1\)", {"skip_weight": layer["weight"][:5]}),
        (r"skip_bias of shape \(5,\)", {"skip_bias": layer["bias"]}),
        (r"integer in 1 .. 2147483647, got dilation=0", {"dilation": 0}),
        (r"integer in 1 .. 2147483647, got dilation=1.5", {"dilation": 1.5}),
        (r"bias of the dtype and device of x", {"bias": layer["bias"].double()}),
        (r"weight of the dtype and device of x", {"weight": layer["weight"].to("meta")}),
    ]
    for message, changed in cases:
        with pytest.raises(InputError, match=f"causal_conv1d: expected .*{message}"):
            causal_conv1d(**(layer | changed))


def test_ops_refuse_bad_input() -> None:
    layer = {k: v.detach() for k, v in layer_of(Sizes(2, 3, 4, 5, 6, condition="full")).items()}
    cases = [
        ("expected a floating point tensor", {"x": layer["x"].long()}),
        (r"expected x of shape \[N, R, T\]", {"x": layer["x"][0]}),
        (r"expected weight of shape \[2G, R, k\] with R=3", {"weight": layer["weight"][:7]}),
        ("expected bias of shape", {"bias": layer["bias"][:7]}),
        ("expected condition of shape", {"condition": layer["condition"][:, :, :3]}),
        ("expected residual_weight of shape", {"residual_weight": layer["skip_weight"]}),
        ("expected no residual_bias without", {"residual_weight": None}),
        (r"expected skip_weight of shape \[S, G, 1\]", {"skip_weight": layer["skip_bias"]}),
        ("expected skip_bias of the dtype and device", {"skip_bias": layer["skip_bias"].double()}),
        ("expected dilation in 1 .. 2147483647", {"dilation": 0}),
    ]
    for message, changed in cases:
        given = tuple((layer | {"dilation": 1} | changed).values())
        with pytest.raises(RuntimeError, match=f"causal_conv1d: {message}"):
            OP(*given)
    given = (*layer.values(), 1)
    grads = slopes_of(OP(*given))
    for wrong in (grads[1], grads[0].double(), None):
        with pytest.raises(RuntimeError, match="causal_conv1d: expected grad_out of shape"):
            BACKWARD(wrong, grads[1], *given)
    with pytest.raises(RuntimeError, match="causal_conv1d: expected grad_skip of shape"):
        BACKWARD(*grads[:1], grads[0], *given)
