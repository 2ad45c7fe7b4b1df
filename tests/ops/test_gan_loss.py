"""gan_loss: the reference, its gradients, its registrations, its refusals, its properties."""

import math

import pytest
import torch
import torch.nn.functional as F

from genfast import _C
from genfast.errors import InputError
from genfast.ops import gan_loss, gan_loss_reference
from tests.gan_losses import (
    DTYPES,
    KINDS,
    LOSSES,
    RELATIVISTIC,
    SHAPES,
    SMOOTHABLE,
    assert_match,
    eager_and_exact,
    loss_and_gradients,
    loss_by_definition,
    loss_of,
    samples,
    sides,
)
from tests.tolerances import assert_as_accurate_as_eager
from tests.triton_support import DEVICE, compile_ahead, on_gpu, triton_kernels

every_loss = pytest.mark.parametrize(("kind", "role", "smoothing"), LOSSES)


@every_loss
def test_reference_is_the_definition(kind, role, smoothing) -> None:
    logits = samples([(31,), (4, 5)], kind, role, torch.float64, scale=2.0)
    wanted = loss_by_definition(logits, kind, role, smoothing)
    torch.testing.assert_close(loss_of(gan_loss_reference, logits, kind, role, smoothing), wanted)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
@every_loss
def test_loss_and_gradients_match_reference(device, kind, role, smoothing, shapes, dtype) -> None:
    loss = (kind, role, smoothing)
    logits = samples(shapes, kind, role, dtype, device)
    before = [x.detach().clone() for x in logits]
    assert_match(loss_and_gradients(gan_loss, logits, *loss), *eager_and_exact(logits, *loss))
    assert all(torch.equal(x, old) for x, old in zip(logits, before, strict=True))


@on_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("shapes", [((7,), (64, 1)), ((2_011,), (1_025,))], ids=str)
@every_loss
def test_triton_matches_reference(kind, role, smoothing, shapes, dtype) -> None:
    kernels = triton_kernels("gan_loss")
    logits = [x.detach() for x in samples(shapes, kind, role, dtype, DEVICE)]
    given = logits[0], logits[1] if len(logits) == 2 else None
    loss, slope = kernels.gan_loss_with_slope(*given, kind, role, smoothing)
    assert torch.equal(kernels.gan_loss(*given, kind, role, smoothing), loss)
    grad_loss = torch.ones_like(loss)
    grads = kernels.gan_loss_backward(grad_loss, slope, *given, kind, role, smoothing)
    assert_match((loss, *grads[: len(logits)]), *eager_and_exact(logits, kind, role, smoothing))

    directions = [torch.randn_like(x) for x in grads]
    arguments = (*directions, grad_loss, *given)
    second = torch.ops.genfast._gan_loss_double_backward
    triton = kernels.gan_loss_double_backward(*arguments, kind, role, smoothing)
    native = second(*arguments, kind, role, smoothing)
    exact = second(*(a if a is None else a.double() for a in arguments), kind, role, smoothing)
    assert_match(triton, native, exact)


@on_gpu
def test_triton_sums_a_side_over_many_programs(monkeypatch) -> None:
    kernels = triton_kernels("gan_loss")
    monkeypatch.setattr(kernels, "MOST_PROGRAMS", 4)  # so that programs take several blocks each
    fake = torch.randn(9_000, device=DEVICE)
    loss, _ = kernels.gan_loss_with_slope(fake, None, "non_saturating", "generator", 0.0)
    torch.testing.assert_close(loss, gan_loss_reference(fake=fake, role="generator"))


def test_triton_compiles_ahead() -> None:
    kernels = []
    terms = [("fp32", "softplus", 0.1, "alone"), ("fp32", "square", 0.9, "alone")]
    terms += [("fp32", "linear", 0.0, "alone"), ("fp32", "hinge", 0.0, "alone")]
    terms += [("bf16", "softplus", 0.0, "pairs"), ("bf16", "softplus", 0.0, "averages")]
    terms += [("fp64", "softplus", 0.1, "averages")]
    for t, form, shift, pairing in terms:
        grad_loss = "*fp64" if t == "fp64" else "*fp32"
        other = grad_loss if pairing == "averages" else f"*{t}"
        term = {"FORM": form, "SCALE": 1.0, "SIGN": -1.0, "SHIFT": shift, "BLOCK": 1024}
        term["PAIRING"] = pairing
        common = {"x": f"*{t}", "other": other, "sums": "*fp64", "count": "i64", "chunk": "i64"}
        forward = common | {"slope": f"*{t}"}
        kernels.append(("_gan_loss_fwd_kernel", forward, term | {"HAS_SLOPE": True}))
        second = common | {"v": f"*{t}", "v_other": other, "grad": f"*{t}"}
        second["grad_loss"] = grad_loss
        kernels.append(("_gan_loss_double_bwd_kernel", second, term))
    backward = {"grad_loss": "*fp32", "slope": "*bf16", "mean_slope": "*bf16", "grad": "*bf16"}
    backward |= {"count": "i64", "sign": "fp32"}
    for pairing in ("alone", "averages"):
        kernels.append(("_gan_loss_bwd_kernel", backward, {"PAIRING": pairing, "BLOCK": 1024}))
    summing = {"sums": "*fp64", "total": "*fp32", "programs": "i32"}
    kernels.append(("_gan_loss_sum_kernel", summing, {"BLOCK": 1024}))
    compile_ahead("gan_loss", kernels)


def test_strides_change_nothing(device) -> None:
    fake, real = (x.detach() for x in samples([(6, 4, 5, 3), (8, 5)]))
    packed = gan_loss(fake=fake.to(device), real=real.to(device))
    variants = {
        "channels last": (fake.to(memory_format=torch.channels_last), real),
        "transposed": (fake, real.t().contiguous().t()),
        "every other": (fake.repeat_interleave(2, 0)[::2], real.repeat_interleave(2, 1)[:, ::2]),
        "offset": (torch.cat((fake[:1], fake))[1:], torch.cat((real[:3], real))[3:]),
    }
    for name, (f, r) in variants.items():
        logits = [f.to(device).requires_grad_(), r.to(device).requires_grad_()]
        ours = loss_and_gradients(gan_loss, logits, "non_saturating", "discriminator", 0.0)
        assert torch.equal(ours[0], packed), name
        eager, _ = eager_and_exact(logits, "non_saturating", "discriminator", 0.0)
        for a, b in zip(ours[1:], eager[1:], strict=True):
            torch.testing.assert_close(a.cpu(), b, msg=name)
    one = torch.tensor(0.3, device=device)
    torch.testing.assert_close(
        gan_loss(fake=one.expand(9), role="generator"), gan_loss(fake=one, role="generator")
    )


@pytest.mark.parametrize("wanted", ["fake", "real"])
def test_gradient_of_one_side_alone(device, wanted) -> None:
    logits = dict(zip(("fake", "real"), samples([(3, 4), (5,)], device=device), strict=True))
    plain = {k: v if k == wanted else v.detach() for k, v in logits.items()}
    ours = torch.autograd.grad(gan_loss(**plain), logits[wanted])
    both = torch.autograd.grad(gan_loss(**logits), logits[wanted])
    assert torch.equal(ours[0], both[0])
    assert not gan_loss(**{k: v.detach() for k, v in logits.items()}).requires_grad


@every_loss
def test_gradcheck(device, kind, role, smoothing) -> None:
    # No hinge kink at random logits; several elements, so that the means count.
    logits = samples([(3, 4), (5,)], kind, role, torch.float64, device, scale=2.0)

    def loss(*given):
        return loss_of(gan_loss, given, kind, role, smoothing)

    assert torch.autograd.gradcheck(loss, logits)
    assert torch.autograd.gradgradcheck(loss, logits)


@every_loss
def test_second_derivatives_match_reference(device, kind, role, smoothing) -> None:
    logits = samples([(300, 100), (77,)], kind, role, device=device)

    def hessian_vector(function, logits):
        value = loss_of(function, logits, kind, role, smoothing)
        scale = torch.tensor(1.5, dtype=value.dtype, device=value.device, requires_grad=True)
        grads = torch.autograd.grad(value, logits, scale, create_graph=True)
        penalty = sum((g * weight.to(g)).sum() for g, weight in zip(grads, weights, strict=True))
        return torch.autograd.grad(penalty, [scale, *logits], allow_unused=True)

    weights = [torch.randn(x.shape) for x in logits]
    plain = [x.detach().cpu().requires_grad_() for x in logits]
    double = [x.detach().cpu().double().requires_grad_() for x in logits]
    results = (
        hessian_vector(gan_loss, logits),
        hessian_vector(gan_loss_reference, plain),
        hessian_vector(gan_loss_reference, double),
    )
    for ours, eager, exact in zip(*results, strict=True):
        if exact is None:  # the reference of a linear term does not depend on its logits
            assert not ours.any()
        else:
            assert_as_accurate_as_eager(ours.cpu(), eager, exact)


def test_third_derivative_is_refused_not_zero(device) -> None:
    (fake,) = samples([(5,)], role="generator", dtype=torch.float64, device=device)
    (first,) = torch.autograd.grad(gan_loss(fake=fake, role="generator"), fake, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), fake, create_graph=True)
    with pytest.raises(RuntimeError, match="expected a first or second derivative"):
        second.sum().backward()


@pytest.mark.parametrize("kind", ["non_saturating", *RELATIVISTIC])
@pytest.mark.parametrize("role", ["discriminator", "generator"])
def test_opcheck(device, role, kind) -> None:
    logits = samples([(3, 4), (5,)], kind, role, device=device)
    fake, real = logits[0], logits[1] if len(logits) == 2 else None
    choice = (kind, role, 0.0)
    ops = torch.ops.genfast
    torch.library.opcheck(ops.gan_loss.default, (fake, real, *choice))
    fake, real = fake.detach(), real if real is None else real.detach()
    torch.library.opcheck(ops.gan_loss.default, (fake, real, *choice))
    torch.library.opcheck(ops._gan_loss_with_slope.default, (fake, real, *choice))
    loss, slope = ops._gan_loss_with_slope(fake, real, *choice)
    with_graph = [fake.clone().requires_grad_(), real if real is None else real.requires_grad_()]
    torch.library.opcheck(ops._gan_loss_backward.default, (loss, slope, *with_graph, *choice))
    v = torch.randn_like(fake), torch.zeros(0, device=device) if real is None else real.detach()
    plain = (fake, real if real is None else real.detach())
    torch.library.opcheck(
        ops._gan_loss_double_backward.default, (*v, torch.ones_like(loss), *plain, *choice)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_compiles_without_graph_breaks(kind) -> None:
    def losses(fake, real):
        given = real if kind in RELATIVISTIC else None
        return gan_loss(fake=fake, real=real, kind=kind) + gan_loss(
            fake=fake, real=given, kind=kind, role="generator"
        )

    logits = samples([(9, 1), (6,)], kind)
    compiled = torch.compile(losses, fullgraph=True)
    ours = (compiled(*logits), *torch.autograd.grad(compiled(*logits), logits))
    wanted = (losses(*logits), *torch.autograd.grad(losses(*logits), logits))
    for a, b in zip(ours, wanted, strict=True):
        torch.testing.assert_close(a, b)


def test_autocast_computes_in_float32(device) -> None:
    fake, real = samples([(3, 5), (2,)], dtype=torch.bfloat16, device=device)
    wanted = gan_loss(fake=fake.float(), real=real.float(), kind="least_squares")
    with torch.autocast(device.type, dtype=torch.bfloat16):
        loss = gan_loss(fake=fake, real=real, kind="least_squares")
        mixed = gan_loss(fake=fake, real=real.float(), kind="least_squares")
    assert loss.dtype == torch.float32
    assert torch.equal(loss, wanted)
    assert torch.equal(mixed, wanted)
    assert torch.autograd.grad(loss, real)[0].dtype == torch.bfloat16


def test_refuses_bad_input() -> None:
    fake, real = torch.zeros(3), torch.zeros(2)
    cases = [
        (r"expected kind one of minimax, .*, got kind='vanilla'", {"kind": "vanilla"}),
        (r"expected role one of discriminator, generator, got role='critic'", {"role": "critic"}),
        (r"expected real and fake for the discriminator, got real=None", {"real": None}),
        (
            r"expected no real logits for the generator, got real.shape=\(2,\)",
            {"role": "generator"},
        ),
        (r"at least one floating point logit, got fake.shape=\(0,\)", {"fake": fake[:0]}),
        (r"at least one floating point logit, got real.shape=\(0,\)", {"real": real[:0]}),
        (
            r"one floating point logit, got fake.shape=\(3,\), fake.dtype=.*64",
            {"fake": fake.long()},
        ),
        (
            r"expected real of the dtype and device of fake .*got real.dtype",
            {"real": real.double()},
        ),
        (r"expected real of the dtype and device of fake .*device=meta", {"real": real.to("meta")}),
        (
            r"expected real and fake for kind='relativistic', got real=None",
            {"real": None, "kind": "relativistic", "role": "generator"},
        ),
        (
            r"expected real and fake for kind='relativistic_average', got real=None",
            {"real": None, "kind": "relativistic_average"},
        ),
        (
            r"real of the shape of fake for kind='relativistic', got fake.shape=\(3,\), real.shape",
            {"kind": "relativistic"},
        ),
        (
            r"label_smoothing=0 except .*role='generator'",
            {"kind": "relativistic_average", "role": "generator", "label_smoothing": 0.1},
        ),
        (r"expected label_smoothing in \[0, 1\), got label_smoothing=1", {"label_smoothing": 1}),
        (r"in \[0, 1\), got label_smoothing=nan", {"label_smoothing": math.nan}),
        (r"label_smoothing=0 except .*kind='hinge'", {"kind": "hinge", "label_smoothing": 0.1}),
        (
            r"label_smoothing=0 except .*role='generator'",
            {"real": None, "role": "generator", "label_smoothing": 0.1},
        ),
    ]
    for message, changed in cases:
        with pytest.raises(InputError, match=f"gan_loss: .*{message}"):
            gan_loss(**({"fake": fake, "real": real} | changed))


def test_ops_refuse_bad_input() -> None:
    fake, real = torch.zeros(3), torch.zeros(2)
    ns, d, g = "non_saturating", "discriminator", "generator"
    cases = [
        ("expected kind minimax, non_saturating", (fake, real, "vanilla", d, 0.0)),
        ("expected role discriminator or generator", (fake, real, ns, "critic", 0.0)),
        ("expected a floating point tensor", (fake.long(), real.long(), ns, d, 0.0)),
        ("expected at least one logit, got fake", (fake[:0], real, ns, d, 0.0)),
        ("expected at least one logit, got real", (fake, real[:0], ns, d, 0.0)),
        ("expected real logits for the discriminator", (fake, None, ns, d, 0.0)),
        ("expected real logits for the discriminator", (fake, real, ns, g, 0.0)),
        ("expected real of the dtype and device of fake", (fake, real.double(), ns, d, 0.0)),
        (r"expected label_smoothing in \[0, 1\)", (fake, real, ns, d, -0.1)),
        (r"expected label_smoothing in \[0, 1\)", (fake, real, "hinge", d, 0.1)),
        (r"expected label_smoothing in \[0, 1\)", (fake, None, ns, g, 0.1)),
        ("expected real logits for the disc", (fake, None, "relativistic", g, 0.0)),
        ("expected real logits for the disc", (fake, None, "relativistic_average", d, 0.0)),
        ("expected real of the shape of fake", (fake, real, "relativistic", g, 0.0)),
        (r"expected label_smoothing in \[0, 1\)", (fake, fake, "relativistic", g, 0.1)),
    ]
    ops = torch.ops.genfast
    for message, arguments in cases:
        for op in (ops.gan_loss, ops._gan_loss_with_slope):
            with pytest.raises(RuntimeError, match=f"gan_loss: {message}"):
                op(*arguments)
    given = (fake, real, ns, d, 0.0)
    loss, slope = ops._gan_loss_with_slope(*given)
    with pytest.raises(RuntimeError, match="expected grad_loss with one element"):
        ops._gan_loss_backward(loss.double(), slope, *given)
    with pytest.raises(RuntimeError, match="expected slope as the forward made it"):
        ops._gan_loss_backward(loss, slope[:4], *given)
    with pytest.raises(RuntimeError, match="expected v_fake of the shape of fake"):
        ops._gan_loss_double_backward(fake[:2], real, loss, *given)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@every_loss
def test_extreme_logits_are_finite_and_right(device, kind, role, smoothing, dtype) -> None:
    values = [s * v for v in (0.0, 1e-3, 5.0, 20.0, 90.0, 800.0, 1e4) for s in (1, -1)]
    x = torch.tensor(values, dtype=dtype, device=device)
    other = -1 if kind in RELATIVISTIC else 1  # equal logits would cancel
    for single in x:  # one at a time: in a mean the large ones would hide the small ones
        values = (single, other * single)[: sides(kind, role)]
        logits = [value.clone().requires_grad_() for value in values]
        ours = loss_and_gradients(gan_loss, logits, kind, role, smoothing)
        _, exact = eager_and_exact(logits, kind, role, smoothing)
        for a, b in zip(ours, exact, strict=True):
            assert a.isfinite()
            eps = torch.finfo(a.dtype).eps
            tiny = torch.finfo(a.dtype).smallest_normal
            torch.testing.assert_close(
                a.detach().cpu().double(), b.detach(), rtol=2 * eps, atol=max(tiny, eps * eps)
            )


@every_loss
def test_infinite_logits_do_as_the_reference(device, kind, role, smoothing) -> None:
    for value in (math.inf, -math.inf):
        for side in range(sides(kind, role)):
            logits = samples([(4,), (4,)], kind, role, device=device)
            with torch.no_grad():
                logits[side][1] = value
            ours = loss_of(gan_loss, logits, kind, role, smoothing)
            wanted = loss_of(gan_loss_reference, logits, kind, role, smoothing)
            torch.testing.assert_close(ours, wanted, equal_nan=True)


@every_loss
def test_nan_in_gives_nan_out(device, kind, role, smoothing) -> None:
    for side in range(sides(kind, role)):
        logits = samples([(40,), (50,)], kind, role, device=device)
        with torch.no_grad():
            logits[side][17] = math.nan
        ours = loss_and_gradients(gan_loss, logits, kind, role, smoothing)
        eager, _ = eager_and_exact(logits, kind, role, smoothing)
        assert ours[0].isnan()
        for a, b in zip(ours, eager, strict=True):
            assert torch.equal(a.isnan().cpu(), b.isnan())


def test_non_saturating_is_binary_cross_entropy_with_logits(device) -> None:
    fake, real = samples([(30,), (4, 8)], device=device)
    bce = F.binary_cross_entropy_with_logits
    smoothed = torch.full_like(real, 0.9)
    wanted = bce(fake, torch.zeros_like(fake)) + bce(real, smoothed)
    torch.testing.assert_close(gan_loss(fake=fake, real=real, label_smoothing=0.1), wanted)
    torch.testing.assert_close(
        gan_loss(fake=fake, role="generator"), bce(fake, torch.ones_like(fake))
    )


def test_known_values(device) -> None:
    zero = torch.zeros(8, device=device)
    values = {
        ("minimax", "discriminator"): 2 * math.log(2),
        ("non_saturating", "discriminator"): 2 * math.log(2),
        ("least_squares", "discriminator"): 0.5,
        ("wasserstein", "discriminator"): 0.0,
        ("hinge", "discriminator"): 2.0,
        ("minimax", "generator"): -math.log(2),
        ("non_saturating", "generator"): math.log(2),
        ("least_squares", "generator"): 0.5,
        ("wasserstein", "generator"): 0.0,
        ("hinge", "generator"): 0.0,
        ("relativistic", "discriminator"): math.log(2),
        ("relativistic", "generator"): math.log(2),
        ("relativistic_average", "discriminator"): 2 * math.log(2),
        ("relativistic_average", "generator"): 2 * math.log(2),
    }
    for (kind, role), value in values.items():
        real = zero if sides(kind, role) == 2 else None
        loss = gan_loss(fake=zero, real=real, kind=kind, role=role)
        assert loss.item() == pytest.approx(value, abs=1e-6), (kind, role)


@pytest.mark.parametrize(
    "kind", ["minimax", "non_saturating", "wasserstein", "hinge", *RELATIVISTIC]
)
def test_discriminator_treats_the_sides_alike(device, kind) -> None:
    fake, real = samples([(37,), (37,)], device=device)
    torch.testing.assert_close(
        gan_loss(fake=fake, real=real, kind=kind), gan_loss(fake=-real, real=-fake, kind=kind)
    )


@pytest.mark.parametrize("kind", RELATIVISTIC)
def test_relativistic_players_see_the_same_game_from_both_sides(device, kind) -> None:
    fake, real = samples([(37,), (37,)], kind, device=device)
    torch.testing.assert_close(
        gan_loss(fake=fake, real=real, kind=kind, role="generator"),
        gan_loss(fake=real, real=fake, kind=kind),
    )


@pytest.mark.parametrize("role", ["discriminator", "generator"])
@pytest.mark.parametrize("kind", RELATIVISTIC)
def test_relativistic_losses_see_differences_only(device, kind, role) -> None:
    fake, real = samples([(37,), (51,)], kind, role, torch.float64, device)
    loss = gan_loss(fake=fake, real=real, kind=kind, role=role)
    shifted = gan_loss(fake=fake + 7, real=real + 7, kind=kind, role=role)
    torch.testing.assert_close(shifted, loss)
    grads = torch.autograd.grad(loss, (fake, real))
    assert abs(sum(g.sum().item() for g in grads)) < 1e-12


@pytest.mark.parametrize("kind", SMOOTHABLE)
def test_smoothing_is_best_at_its_target(device, kind) -> None:
    # At equal logits of one kind the discriminator's best real logit is that of the target 0.9; in
    # least squares the target itself.
    target = 0.9 if kind == "least_squares" else math.log(9)
    real = torch.full((3,), target, dtype=torch.float64, device=device, requires_grad=True)
    loss = gan_loss(fake=torch.zeros_like(real), real=real, kind=kind, label_smoothing=0.1)
    (grad,) = torch.autograd.grad(loss, real)
    if kind == "relativistic_average":  # its other term, which has no target that moves, pulls too
        grad = grad + torch.sigmoid(torch.tensor(-target)).item() / 3
    torch.testing.assert_close(grad, torch.zeros_like(grad), rtol=0, atol=1e-8)


def test_minimax_is_a_zero_sum_game(device) -> None:
    fake, real = samples([(37,), (21,)], device=device)
    grads = [
        torch.autograd.grad(loss, fake)[0]
        for loss in (
            gan_loss(fake=fake, real=real, kind="minimax"),
            gan_loss(fake=fake, kind="minimax", role="generator"),
        )
    ]
    assert torch.equal(grads[0], -grads[1])


def every_derivative(logits, *loss) -> list[torch.Tensor]:
    value = loss_of(gan_loss, logits, *loss)
    grads = torch.autograd.grad(value, logits, create_graph=True)
    penalty = 1e6 * sum(g.square().sum() for g in grads)
    return [value, *grads, *torch.autograd.grad(penalty, logits)]


@every_loss
def test_same_bits_for_every_number_of_threads(threads, kind, role, smoothing) -> None:
    logits = samples([(70_001,), (40_009,)], kind, role)
    ours = every_derivative(logits, kind, role, smoothing)
    torch.set_num_threads(1)
    for a, b in zip(ours, every_derivative(logits, kind, role, smoothing), strict=True):
        assert torch.equal(a, b)


@every_loss
def test_gradients_made_where_the_slopes_lay_are_those_of_the_operator(
    kind, role, smoothing
) -> None:
    logits = samples([(20_003,), (17_001,)], kind, role)
    given = logits[0], logits[1] if len(logits) == 2 else None
    loss = loss_of(gan_loss, logits, kind, role, smoothing)
    _, slope = torch.ops.genfast._gan_loss_with_slope(*given, kind, role, smoothing)
    wanted = torch.ops.genfast._gan_loss_backward(
        torch.tensor(0.7), slope, *given, kind, role, smoothing
    )
    kept = torch.autograd.grad(0.7 * loss, logits, retain_graph=True)
    for grad in kept:
        grad.zero_()  # must not reach what the graph keeps
    again = torch.autograd.grad(0.7 * loss, logits, retain_graph=True)
    last = torch.autograd.grad(0.7 * loss, logits)
    for a, b, c in zip(again, last, wanted, strict=False):
        assert torch.equal(a, c)
        assert torch.equal(b, c)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(0.7 * loss, logits)


@every_loss
def test_same_bits_at_every_simd_level(simd_level, kind, role, smoothing) -> None:
    logits = samples([(9_001,), (301,)], kind, role)
    ours = every_derivative(logits, kind, role, smoothing)
    assert _C.set_simd_level("baseline")
    for a, b in zip(ours, every_derivative(logits, kind, role, smoothing), strict=True):
        assert torch.equal(a, b)


def test_function_transforms() -> None:
    fake, real = samples([(6,), (5,)])

    def loss(logits):
        return gan_loss(fake=logits, real=real)

    leaf = fake.detach().requires_grad_()
    (expected,) = torch.autograd.grad(loss(leaf), leaf)
    fake = fake.detach()
    torch.testing.assert_close(torch.func.grad(loss)(fake), expected)
    _, slope = torch.func.jvp(loss, (fake,), (torch.ones_like(fake),))
    torch.testing.assert_close(slope, expected.sum())
    batch = torch.stack((fake, fake + 1))
    torch.testing.assert_close(torch.func.vmap(loss)(batch), torch.stack([*map(loss, batch)]))


def test_operator_refuses_a_tangent() -> None:
    op = torch.ops.genfast.gan_loss
    with torch.autograd.forward_ad.dual_level():
        logits = torch.autograd.forward_ad.make_dual(torch.zeros(4), torch.ones(4))
        with pytest.raises(RuntimeError, match="jvp is not implemented"):
            op(logits, None, "hinge", "generator", 0.0)


@on_gpu
def test_triton_tells_the_sides_apart_when_they_are_one_tensor() -> None:
    logits = torch.linspace(-2, 2, 40, device=DEVICE)
    ours = triton_kernels("gan_loss").gan_loss(
        logits, logits, "least_squares", "discriminator", 0.0
    )
    expected = gan_loss_reference(fake=logits, real=logits, kind="least_squares")
    torch.testing.assert_close(ours, expected)
