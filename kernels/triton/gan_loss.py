"""The losses of generative adversarial networks in Triton.

Each side, fake and real, is one launch whose programs leave their sums in float64; a last launch
adds them in a fixed order. No atomics, hence the same bits every time. The means that
relativistic_average needs are torch's.
"""

import torch
import triton
import triton.language as tl

from .elementary import exp

BLOCK = 1024  # logits at a time
MOST_PROGRAMS = 512  # per side


@triton.jit
def _exp_of_minus(magnitude):
    if magnitude.dtype == tl.float64:
        return tl.exp(-magnitude)
    else:
        return exp(-magnitude)


@triton.jit
def _log1p_of_unit(t):
    """log(1 + t) for t in [0, 1]; in float32 the polynomial of kernels/elementary.h."""
    if t.dtype == tl.float64:
        u = 1.0 + t
        return tl.log(u) - ((u - 1.0) - t) / u  # what rounding 1 + t lost, put back
    else:
        p = tl.full(t.shape, -0.0032439807, tl.float32)
        p = tl.fma(p, t, tl.full(t.shape, 0.0198512617, tl.float32))
        p = tl.fma(p, t, tl.full(t.shape, -0.0569591597, tl.float32))
        p = tl.fma(p, t, tl.full(t.shape, 0.106036171, tl.float32))
        p = tl.fma(p, t, tl.full(t.shape, -0.153055698, tl.float32))
        p = tl.fma(p, t, tl.full(t.shape, 0.196759313, tl.float32))
        p = tl.fma(p, t, tl.full(t.shape, -0.249541327, tl.float32))
        p = tl.fma(p, t, tl.full(t.shape, 0.333299637, tl.float32))
        p = tl.fma(p, t, tl.full(t.shape, -0.499999017, tl.float32))
        p = tl.fma(p, t, tl.full(t.shape, 1.0, tl.float32))
        return p * t


@triton.jit
def _point(x, FORM: tl.constexpr, SCALE: tl.constexpr, SIGN: tl.constexpr, SHIFT: tl.constexpr):
    """A term with its first and second derivative; the forms of kernels/gan_loss.h."""
    if FORM == "softplus":
        y = x * SIGN
        t = _exp_of_minus(tl.abs(y))
        sigmoid_of_magnitude = 1.0 / (1.0 + t)
        other_sigmoid = t * sigmoid_of_magnitude
        value = SCALE * (tl.where(y > 0, y, 0.0) + _log1p_of_unit(t))
        first = SCALE * SIGN * tl.where(y < 0, other_sigmoid, sigmoid_of_magnitude)
        second = SCALE * sigmoid_of_magnitude * other_sigmoid
        if SHIFT != 0:  # 0 * infinity would be NaN
            value += SHIFT * x
            first += SHIFT
    elif FORM == "square":
        first = x - SHIFT
        value = 0.5 * first * first
        second = tl.full(x.shape, 1.0, x.dtype)
    elif FORM == "linear":
        value = x * SIGN
        first = tl.full(x.shape, SIGN, x.dtype)
        second = tl.zeros(x.shape, x.dtype)
    else:
        margin = x * SIGN + 1.0
        slack = margin <= 0  # false at NaN, which the value must keep
        value = tl.where(slack, 0.0, margin)
        first = tl.where(slack, 0.0, tl.full(x.shape, SIGN, x.dtype))
        second = tl.zeros(x.shape, x.dtype)
    return value, first, second


@triton.jit
def _wide(x):
    """The dtype of the arithmetic."""
    if x.dtype == tl.float64:
        return x
    else:
        return x.to(tl.float32)


@triton.jit
def _argument(x, other, o_x, m_x, PAIRING: tl.constexpr):
    """What a term is a function of; the pairings of kernels/gan_loss.h."""
    b_x = _wide(tl.load(x + o_x, mask=m_x, other=0))
    if PAIRING == "pairs":
        b_x -= _wide(tl.load(other + o_x, mask=m_x, other=0))
    elif PAIRING == "averages":
        b_x -= tl.load(other)
    return b_x


@triton.jit
def _gan_loss_fwd_kernel(
    x,  # [count], contiguous: one side
    other,  # pairs: [count], the other side; averages: [1], its mean
    slope,  # [count]; written if HAS_SLOPE
    sums,  # [programs] float64
    count,
    chunk,  # logits per program
    FORM: tl.constexpr,
    SCALE: tl.constexpr,
    SIGN: tl.constexpr,
    SHIFT: tl.constexpr,
    PAIRING: tl.constexpr,
    HAS_SLOPE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i_program = tl.program_id(0).to(tl.int64)
    b_sum = tl.zeros((BLOCK,), tl.float64)
    for i_x in range(0, chunk, BLOCK):
        o_x = i_program * chunk + i_x + tl.arange(0, BLOCK).to(tl.int64)
        m_x = o_x < count
        b_x = _argument(x, other, o_x, m_x, PAIRING)
        b_value, b_slope, _ = _point(b_x, FORM, SCALE, SIGN, SHIFT)
        if HAS_SLOPE:
            tl.store(slope + o_x, b_slope.to(slope.dtype.element_ty), mask=m_x)
        b_sum += tl.where(m_x, b_value, 0.0).to(tl.float64)
    tl.store(sums + i_program, tl.sum(b_sum, 0) / count)


@triton.jit
def _gan_loss_bwd_kernel(
    grad_loss,  # [1]
    slope,  # [count]: one side
    mean_slope,  # [1]: averages: of the other side
    grad,  # [count]
    count,
    sign,  # 1; -1 for the real side of pairs
    PAIRING: tl.constexpr,
    BLOCK: tl.constexpr,
):
    o_x = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK).to(tl.int64)
    m_x = o_x < count
    b_slope = _wide(tl.load(slope + o_x, mask=m_x, other=0))
    if PAIRING == "averages":
        b_slope -= _wide(tl.load(mean_slope))
    b_grad = b_slope * (sign * tl.load(grad_loss) / count)
    tl.store(grad + o_x, b_grad.to(grad.dtype.element_ty), mask=m_x)


@triton.jit
def _gan_loss_double_bwd_kernel(
    v,  # [count], contiguous: direction, one side
    v_other,  # as `other`
    grad_loss,  # [1]
    x,  # [count], contiguous
    other,  # pairs: [count], the other side; averages: [1], its mean
    grad,  # [count]
    sums,  # [programs] float64
    count,
    chunk,  # logits per program
    FORM: tl.constexpr,
    SCALE: tl.constexpr,
    SIGN: tl.constexpr,
    SHIFT: tl.constexpr,
    PAIRING: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i_program = tl.program_id(0).to(tl.int64)
    factor = tl.load(grad_loss) / count
    b_sum = tl.zeros((BLOCK,), tl.float64)
    for i_x in range(0, chunk, BLOCK):
        o_x = i_program * chunk + i_x + tl.arange(0, BLOCK).to(tl.int64)
        m_x = o_x < count
        b_v = _argument(v, v_other, o_x, m_x, PAIRING)
        b_x = _argument(x, other, o_x, m_x, PAIRING)
        _, b_first, b_second = _point(b_x, FORM, SCALE, SIGN, SHIFT)
        tl.store(grad + o_x, (b_v * factor * b_second).to(grad.dtype.element_ty), mask=m_x)
        b_sum += tl.where(m_x, b_v * b_first, 0.0).to(tl.float64)
    tl.store(sums + i_program, tl.sum(b_sum, 0) / count)


@triton.jit
def _gan_loss_sum_kernel(
    sums,  # [programs] float64
    total,  # [1]
    programs,
    BLOCK: tl.constexpr,
):
    o_sums = tl.arange(0, BLOCK)
    b_sums = tl.load(sums + o_sums, mask=o_sums < programs, other=0)
    tl.store(total, tl.sum(b_sums, 0).to(total.dtype.element_ty))


def _term(kind: str, role: str, label_smoothing: float, *, real: bool) -> dict[str, object]:
    """A term as constants of the kernels, as `gan_term` in kernels/gan_loss.h chooses it."""
    generator = role == "generator"
    scale, shift = 1.0, 0.0
    sign = -1.0 if real != generator else 1.0
    if kind == "least_squares":
        form, shift = "square", 1.0 - (label_smoothing if real else 0.0) if sign < 0 else 0.0
    elif kind == "wasserstein" or (kind == "hinge" and generator):
        form = "linear"
    elif kind == "hinge":
        form = "hinge"
    else:
        form, shift = "softplus", label_smoothing if real else 0.0
        if kind == "relativistic" and not real:
            shift = -label_smoothing
        if kind == "minimax" and generator:
            scale, sign = -1.0, 1.0
    return {"FORM": form, "SCALE": scale, "SIGN": sign, "SHIFT": shift}


def _pairing(kind: str) -> str:
    return {"relativistic": "pairs", "relativistic_average": "averages"}.get(kind, "alone")


def _others(
    fake: torch.Tensor, real: torch.Tensor | None, pairing: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the kernels take for `other` on the fake and on the real side."""
    if pairing == "alone" or real is None:
        return fake, fake
    if pairing == "pairs":
        return real.contiguous(), real
    wide = torch.float64 if fake.dtype == torch.float64 else torch.float32
    return real.mean(dtype=wide), fake.mean(dtype=wide)


def _sides(
    fake: torch.Tensor, real: torch.Tensor | None, choice: tuple[str, str, float]
) -> list[tuple[torch.Tensor, int, int, int, dict[str, object]]]:
    """For each side with terms: logits, first position in flat buffers, programs, chunk, term."""
    sides = []
    start = 0
    alone = real is None or _pairing(choice[0]) == "pairs"
    for is_real, logits in enumerate((fake,) if alone else (fake, real)):
        count = logits.numel()
        chunk = triton.cdiv(triton.cdiv(count, MOST_PROGRAMS), BLOCK) * BLOCK
        term = _term(*choice, real=bool(is_real))
        sides.append((logits.contiguous(), start, triton.cdiv(count, chunk), chunk, term))
        start += count
    return sides


def _sum(sums: torch.Tensor, programs: int, dtype: torch.dtype) -> torch.Tensor:
    total = sums.new_empty((), dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    _gan_loss_sum_kernel[(1,)](sums, total, programs, BLOCK=2 * MOST_PROGRAMS)
    return total


def _forward(
    fake: torch.Tensor,
    real: torch.Tensor | None,
    choice: tuple[str, str, float],
    slope: torch.Tensor | None,
) -> torch.Tensor:
    sums = fake.new_empty((2 * MOST_PROGRAMS,), dtype=torch.float64)
    done = 0
    pairing = _pairing(choice[0])
    others = _others(fake, real, pairing)
    sides = _sides(fake, real, choice)
    for (x, start, programs, chunk, term), other in zip(sides, others, strict=False):
        _gan_loss_fwd_kernel[(programs,)](
            x,
            other,
            x if slope is None else slope[start:],
            sums[done:],
            x.numel(),
            chunk,
            **term,
            PAIRING=pairing,
            HAS_SLOPE=slope is not None,
            BLOCK=BLOCK,
            enable_fp_fusion=False,
        )
        done += programs
    return _sum(sums, done, fake.dtype)


def gan_loss(
    fake: torch.Tensor, real: torch.Tensor | None, kind: str, role: str, label_smoothing: float
) -> torch.Tensor:
    """Forward launcher without slopes, with the op's own signature."""
    return _forward(fake, real, (kind, role, label_smoothing), None)


def gan_loss_with_slope(
    fake: torch.Tensor, real: torch.Tensor | None, kind: str, role: str, label_smoothing: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Forward launcher, with the op's own signature."""
    sizes = [fake.numel(), 0 if real is None else real.numel()]
    pairing = _pairing(kind)
    if pairing == "pairs":
        sizes = sizes[:1]
    averages = pairing == "averages"
    choice = (kind, role, label_smoothing)
    if _term(*choice, real=False)["FORM"] == "linear":  # every slope of a side is the same number
        return _forward(fake, real, choice, None), fake.new_empty((0,))
    slope = fake.new_empty((sum(sizes) + (2 if averages else 0),))
    loss = _forward(fake, real, choice, slope)
    if averages:
        for i, side in enumerate(slope[: sum(sizes)].split(sizes)):
            slope[sum(sizes) + i] = side.mean(dtype=loss.dtype)
    return loss, slope


def gan_loss_backward(
    grad_loss: torch.Tensor,
    slope: torch.Tensor,
    fake: torch.Tensor,
    real: torch.Tensor | None,
    kind: str,
    role: str,
    label_smoothing: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Backward launcher, with the op's own signature: one multiplication."""
    grads = fake.new_empty(fake.shape), fake.new_empty((0,) if real is None else real.shape)
    start = 0
    pairing = _pairing(kind)
    for i, grad in enumerate(grads):
        count = grad.numel()
        if count > 0 and slope.numel() == 0:
            sign = _term(kind, role, label_smoothing, real=bool(i))["SIGN"]
            grad.copy_(grad_loss * sign / count)
        elif count > 0:
            _gan_loss_bwd_kernel[(triton.cdiv(count, BLOCK),)](
                grad_loss,
                slope[start:],
                slope[slope.numel() - 1 - i :],  # behind the slopes: fake's mean, then real's
                grad,
                count,
                -1.0 if pairing == "pairs" and i == 1 else 1.0,
                PAIRING=pairing,
                BLOCK=BLOCK,
                enable_fp_fusion=False,
            )
        start += 0 if pairing == "pairs" else count
    return grads


def gan_loss_double_backward(
    v_fake: torch.Tensor,
    v_real: torch.Tensor,
    grad_loss: torch.Tensor,
    fake: torch.Tensor,
    real: torch.Tensor | None,
    kind: str,
    role: str,
    label_smoothing: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Launcher of the backward's derivative, with the op's own signature."""
    pairing = _pairing(kind)
    # With averages the gradients go through one more map, before they are rounded to half types.
    dtype = grad_loss.dtype if pairing == "averages" else fake.dtype
    grads = [fake.new_empty(shape, dtype=dtype) for shape in (fake.shape, v_real.shape)]
    sums = fake.new_empty((2 * MOST_PROGRAMS,), dtype=torch.float64)
    done = 0
    sides = _sides(fake, real, (kind, role, label_smoothing))
    directions = zip((v_fake, v_real), _others(v_fake, v_real, pairing), strict=True)
    others = _others(fake, real, pairing)
    for (x, _, programs, chunk, term), (v, v_other), other, grad in zip(
        sides, directions, others, grads, strict=False
    ):
        _gan_loss_double_bwd_kernel[(programs,)](
            v.contiguous(),
            v_other,
            grad_loss,
            x,
            other,
            grad,
            sums[done:],
            x.numel(),
            chunk,
            **term,
            PAIRING=pairing,
            BLOCK=BLOCK,
            enable_fp_fusion=False,
        )
        done += programs
    if pairing == "pairs":
        grads[1] = -grads[0]
    elif pairing == "averages":
        totals = grads[0].sum(), grads[1].sum()
        grads[0] -= totals[1] / grads[0].numel()
        grads[1] -= totals[0] / grads[1].numel()
    return _sum(sums, done, fake.dtype), grads[0].to(fake.dtype), grads[1].to(fake.dtype)
