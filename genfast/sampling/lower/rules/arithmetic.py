"""Rules of ops that compute each number from the numbers at its own place."""

import math
from dataclasses import replace
from typing import Any

import torch
from torch._ops import OpOverloadPacket

from genfast.sampling.lower.layout import Signal
from genfast.sampling.lower.lowering import Lowering, Number, Operand, rule

aten = torch.ops.aten


def _same(name: str, *packets: OpOverloadPacket) -> None:
    """Register ops that are `POINTWISE[name]` of `self` (and `other`)."""

    @rule(*packets)
    def apply(low: Lowering, **given: Any) -> Signal:
        return low.pointwise(name, *(given[key] for key in ("self", "other") if key in given))


for _name in (
    *("neg", "abs", "sqrt", "rsqrt", "exp", "expm1", "log", "log1p", "sin", "cos", "erf"),
    *("reciprocal", "tanh", "sigmoid", "relu", "silu", "floor", "ceil", "trunc"),
    *("maximum", "minimum", "eq", "ne", "lt", "le", "gt", "ge", "remainder", "fmod"),
):
    _same(_name, getattr(aten, _name))
_same("sign", aten.sign, aten.sgn)
_same("not", aten.logical_not)


@rule(aten.add)
def add(low: Lowering, self: Operand, other: Operand, alpha: Number) -> Signal:
    if low.node.dtype == torch.bool:  # the sum of truth values is "or"
        return low.pointwise("maximum", self, other)
    self, other = low.broadcast(self, other)
    return low.pointwise("add", self, low.pointwise("mul", other, alpha))


@rule(aten.sub)
def sub(low: Lowering, self: Operand, other: Operand, alpha: Number) -> Signal:
    self, other = low.broadcast(self, other)
    return low.pointwise("sub", self, low.pointwise("mul", other, alpha))


@rule(aten.rsub)
def rsub(low: Lowering, self: Operand, other: Operand, alpha: Number) -> Signal:
    return sub(low, other, self, alpha)


@rule(aten.mul)
def mul(low: Lowering, self: Operand, other: Operand) -> Signal:
    return low.pointwise("mul", self, other)


@rule(aten.div)
def div(low: Lowering, self: Operand, other: Operand, rounding_mode: str | None = None) -> Signal:
    quotient = low.pointwise("div", self, other)
    return quotient if rounding_mode is None else low.pointwise(rounding_mode, quotient)


@rule(aten.floor_divide)
def floor_divide(low: Lowering, self: Operand, other: Operand) -> Signal:
    return div(low, self, other, "floor")


@rule(aten.pow)
def power(low: Lowering, self: Operand, exponent: Operand) -> Signal:
    # Products are exact where the pow of a C library need not be.
    if exponent == 2 and not isinstance(exponent, Signal):
        return low.pointwise("mul", self, self)
    if exponent == 0.5 and not isinstance(exponent, Signal):
        return low.pointwise("sqrt", self)
    return low.pointwise("pow", self, exponent)


@rule(aten.square)
def square(low: Lowering, self: Signal) -> Signal:
    return low.pointwise("mul", self, self)


@rule(aten.round)
def round_to(low: Lowering, self: Signal, decimals: int = 0) -> Signal:
    scaled = low.pointwise("round", low.pointwise("mul", self, 10.0**decimals))
    return low.pointwise("div", scaled, 10.0**decimals)


@rule(aten.frac)
def frac(low: Lowering, self: Signal) -> Signal:
    return low.pointwise("sub", self, low.pointwise("trunc", self))


@rule(aten.log2, aten.log10)
def logarithm(low: Lowering, self: Signal) -> Signal:
    base = 2.0 if low.op is aten.log2.default else 10.0
    return low.pointwise("div", low.pointwise("log", self), math.log(base))


@rule(aten.exp2)
def exp2(low: Lowering, self: Signal) -> Signal:
    return low.pointwise("pow", 2.0, self)


@rule(aten.erfc)
def erfc(low: Lowering, self: Signal) -> Signal:
    return low.pointwise("sub", 1.0, low.pointwise("erf", self))


@rule(aten.tan)
def tan(low: Lowering, self: Signal) -> Signal:
    return low.pointwise("div", low.pointwise("sin", self), low.pointwise("cos", self))


@rule(aten.sinh, aten.cosh)
def sinh(low: Lowering, self: Signal) -> Signal:
    grown, shrunk = low.pointwise("exp", self), low.pointwise("exp", low.pointwise("neg", self))
    both = low.pointwise("sub" if low.op is aten.sinh.default else "add", grown, shrunk)
    return low.pointwise("mul", both, 0.5)


@rule(aten.addcmul)
def addcmul(
    low: Lowering, self: Operand, tensor1: Operand, tensor2: Operand, value: Number
) -> Signal:
    self, tensor1, tensor2 = low.broadcast(self, tensor1, tensor2)
    product = low.pointwise("mul", low.pointwise("mul", tensor1, value), tensor2)
    return low.pointwise("add", self, product)


@rule(aten.addcdiv)
def addcdiv(
    low: Lowering, self: Operand, tensor1: Operand, tensor2: Operand, value: Number
) -> Signal:
    self, tensor1, tensor2 = low.broadcast(self, tensor1, tensor2)
    quotient = low.pointwise("div", low.pointwise("mul", tensor1, value), tensor2)
    return low.pointwise("add", self, quotient)


@rule(aten.lerp)
def lerp(low: Lowering, self: Operand, end: Operand, weight: Operand) -> Signal:
    self, end, weight = low.broadcast(self, end, weight)
    step = low.pointwise("mul", low.pointwise("sub", end, self), weight)
    return low.pointwise("add", self, step)


@rule(aten.logaddexp)
def logaddexp(low: Lowering, self: Operand, other: Operand) -> Signal:
    self, other = low.broadcast(self, other)
    distance = low.pointwise("neg", low.pointwise("abs", low.pointwise("sub", self, other)))
    tail = low.pointwise("log1p", low.pointwise("exp", distance))
    return low.pointwise("add", low.pointwise("maximum", self, other), tail)


@rule(aten.clamp, aten.hardtanh)
def clamp(low: Lowering, self: Operand, **bounds: Any) -> Signal:
    least = bounds.get("min", bounds.get("min_val"))
    most = bounds.get("max", bounds.get("max_val"))
    given = [self] + [each for each in (least, most) if each is not None]
    arranged = low.broadcast(*given)
    result, rest = arranged[0], arranged[1:]
    if least is not None:
        result = low.pointwise("maximum", result, rest.pop(0))
    return low.pointwise("minimum", result, rest[0]) if rest else result  # type: ignore[return-value]


@rule(aten.clamp_min)
def clamp_min(low: Lowering, self: Operand, min: Operand) -> Signal:
    return low.pointwise("maximum", self, min)


@rule(aten.clamp_max)
def clamp_max(low: Lowering, self: Operand, max: Operand) -> Signal:
    return low.pointwise("minimum", self, max)


# Truth values


@rule(aten.logical_and, aten.logical_or, aten.logical_xor)
def logical(low: Lowering, self: Operand, other: Operand) -> Signal:
    name = {"and": "minimum", "or": "maximum", "xor": "ne"}[low.op._schema.name.rsplit("_")[-1]]
    self, other = low.broadcast(self, other)
    return low.pointwise(name, low.pointwise("ne", self, 0), low.pointwise("ne", other, 0))


@rule(aten.bitwise_and, aten.bitwise_or, aten.bitwise_xor, aten.bitwise_not)
def bitwise(low: Lowering, self: Operand, other: Operand = 0) -> Signal:
    if low.node.dtype != torch.bool:
        low.refuse("it works on the bits of integers, which are numbers here")
    kind = low.op._schema.name.rsplit("_")[-1]
    if kind == "not":
        return low.pointwise("not", self)
    return low.pointwise({"and": "minimum", "or": "maximum", "xor": "ne"}[kind], self, other)


@rule(aten.where)
def where(low: Lowering, condition: Operand, self: Operand, other: Operand) -> Signal:
    condition, self, other = low.broadcast(condition, self, other)
    return low.pointwise("where", condition, self, other)


@rule(aten.masked_fill)
def masked_fill(low: Lowering, self: Operand, mask: Operand, value: Operand) -> Signal:
    return where(low, mask, value, self)


@rule(aten.isnan)
def isnan(low: Lowering, self: Signal) -> Signal:
    return low.pointwise("ne", self, self)


# Types


@rule(aten._to_copy)
def to_copy(low: Lowering, self: Signal) -> Signal:
    target = low.node.dtype
    if target == torch.bool:
        return low.pointwise("ne", self, 0)
    if self.dtype.is_floating_point and not target.is_floating_point:
        return low.pointwise("trunc", self)
    return replace(self, dtype=target)


@rule(aten.clone, aten.alias, aten.detach, aten.lift_fresh, aten.lift_fresh_copy, aten.positive)
def unchanged(low: Lowering, self: Signal) -> Signal:
    return self


@rule(aten.native_dropout)
def native_dropout(low: Lowering, input: Signal) -> tuple[Signal, None]:
    return input, None  # in training it would have been recorded as random


# Activations


@rule(aten.gelu)
def gelu(low: Lowering, self: Signal, approximate: str) -> Signal:
    return low.pointwise("gelu_tanh" if approximate == "tanh" else "gelu", self)


@rule(aten.elu)
def elu(low: Lowering, self: Signal, alpha: float, scale: float, input_scale: float) -> Signal:
    if input_scale == 1:
        return low.pointwise("mul", low.pointwise("elu", self, alpha), scale)
    low_part = low.pointwise("expm1", low.pointwise("mul", self, input_scale))
    below = low.pointwise("mul", low_part, alpha * scale)
    positive = low.pointwise("gt", self, 0)
    return low.pointwise("where", positive, low.pointwise("mul", self, scale), below)


@rule(aten.celu)
def celu(low: Lowering, self: Signal, alpha: float) -> Signal:
    return elu(low, self, alpha, 1.0, 1.0 / alpha)


@rule(aten.leaky_relu)
def leaky_relu(low: Lowering, self: Signal, negative_slope: float) -> Signal:
    return low.pointwise("leaky_relu", self, negative_slope)


@rule(aten.rrelu_with_noise)
def rrelu(low: Lowering, self: Signal, lower: float, upper: float) -> Signal:
    return low.pointwise("leaky_relu", self, (lower + upper) / 2)


@rule(aten._prelu_kernel)
def prelu(low: Lowering, self: Signal, weight: Operand) -> Signal:
    self_, slope = low.broadcast(self, weight)
    scaled = low.pointwise("mul", slope, self_)
    return low.pointwise("where", low.pointwise("gt", self_, 0), self_, scaled)


@rule(aten.softplus)
def softplus(low: Lowering, self: Signal, beta: float, threshold: float) -> Signal:
    return low.pointwise("softplus", self, beta, threshold)


@rule(aten.log_sigmoid_forward)
def log_sigmoid(low: Lowering, self: Signal) -> tuple[Signal, None]:
    # min(x, 0) - log(1 + exp(-|x|)), which overflows nowhere.
    tail = low.pointwise("exp", low.pointwise("neg", low.pointwise("abs", self)))
    smallest = low.pointwise("minimum", self, 0.0)
    return low.pointwise("sub", smallest, low.pointwise("log1p", tail)), None


@rule(aten.mish)
def mish(low: Lowering, self: Signal) -> Signal:
    return low.pointwise("mul", self, low.pointwise("tanh", softplus(low, self, 1.0, 20.0)))


@rule(aten.hardsigmoid)
def hardsigmoid(low: Lowering, self: Signal) -> Signal:
    shifted = low.pointwise("maximum", low.pointwise("add", self, 3.0), 0.0)
    return low.pointwise("div", low.pointwise("minimum", shifted, 6.0), 6.0)


@rule(aten.hardswish)
def hardswish(low: Lowering, self: Signal) -> Signal:
    return low.pointwise("mul", self, hardsigmoid(low, self))


@rule(aten.threshold)
def threshold(low: Lowering, self: Signal, threshold: float, value: float) -> Signal:
    return low.pointwise("where", low.pointwise("gt", self, threshold), self, value)


@rule(aten.softshrink)
def softshrink(low: Lowering, self: Signal, lambd: float) -> Signal:
    size = low.pointwise("maximum", low.pointwise("sub", low.pointwise("abs", self), lambd), 0.0)
    return low.pointwise("mul", low.pointwise("sign", self), size)


@rule(aten.logit)
def logit(low: Lowering, self: Signal, eps: float | None) -> Signal:
    p = self
    if eps is not None:
        p = low.pointwise("minimum", low.pointwise("maximum", p, eps), 1.0 - eps)
    return low.pointwise("log", low.pointwise("div", p, low.pointwise("sub", 1.0, p)))
