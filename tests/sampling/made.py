"""Random masked dense networks (MADE): a readable description, and the module it means.

Every unit has a degree: it may see the symbols of smaller number. Hidden units have theirs in
random order, so that no layer is sorted by time.
"""

from dataclasses import dataclass
from math import prod

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

from genfast.sampling.distributions import Bernoulli, Categorical
from tests.sampling.causal_oracle import drawn_at

ACTIVATIONS = {"relu": F.relu, "tanh": torch.tanh, "elu": F.elu, "gelu": F.gelu}
STYLES = ("buffer", "in place", "attribute", "once")
LAYOUTS = ("grid", "N K D", "N D K", "N KD", "log softmax", "positions first")


class MaskedLinear(nn.Linear):
    """A unit of degree d sees units of degree <= d, or < d if `strict`; masks in four habits."""

    def __init__(self, into: Tensor, out: Tensor, style: str = "buffer", strict: bool = False):
        super().__init__(len(into), len(out))
        mask = out[:, None] > into if strict else out[:, None] >= into
        self.style = style
        if style == "attribute":
            self.mask = mask
        else:
            self.register_buffer("mask", mask.float(), persistent=style != "once")
        if style == "once":
            self.weight.data.mul_(mask)

    def forward(self, x: Tensor) -> Tensor:
        if self.style == "once":
            return super().forward(x)
        if self.style == "in place":
            self.weight.data *= self.mask
            return super().forward(x)
        return F.linear(x, self.mask * self.weight, self.bias)


@dataclass(frozen=True)
class Made:
    """levels 2 with one logit is Bernoulli; `labels` of a table are added after the first layer."""

    shape: tuple[int, ...]
    levels: int
    one_hot: bool
    hidden: tuple[int, ...]
    activation: str
    style: str
    direct: bool
    labels: int
    layout: str
    seed: int

    @property
    def bernoulli(self) -> bool:
        """One logit for a symbol instead of one for each level."""
        return self.levels == 2 and self.layout in ("grid", "N KD")

    def module(self) -> nn.Module:
        return MadeModel(self)

    def distribution(self) -> Bernoulli | Categorical:
        values = torch.eye(self.levels, dtype=torch.float64) if self.one_hot else None
        if self.bernoulli:
            return Bernoulli(values=values)
        return Categorical(
            self.levels, values=values, layout="CK" if self.layout == "N D K" else "KC"
        )

    def condition(self, n: int) -> dict[str, Tensor]:
        return {"y": torch.arange(n) % self.labels} if self.labels else {}


class MadeModel(nn.Module):
    def __init__(self, plan: Made):
        super().__init__()
        self.plan = plan
        order = drawn_at(plan.shape).flatten()
        encoded = plan.levels if plan.one_hot else 1
        # The model sees [N, C * E, positions]: the numbers of a colour follow one another.
        inputs = order.view(plan.shape[0] if len(plan.shape) > 1 else 1, 1, -1)
        degrees = first = inputs.expand(-1, encoded, -1).flatten()
        outputs = order if plan.bernoulli else order.repeat(plan.levels)
        self.layers = nn.ModuleList()
        for width in plan.hidden:
            new = torch.randint(0, max(1, len(order) - 1), (width,))
            self.layers.append(MaskedLinear(degrees, new, plan.style))
            degrees = new
        self.head = MaskedLinear(degrees, outputs, plan.style, strict=True)
        self.skip = MaskedLinear(first, outputs, plan.style, strict=True) if plan.direct else None
        if plan.labels:
            self.embed = nn.Embedding(plan.labels, plan.hidden[0])

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        plan = self.plan
        flat = h = x.to(self.head.weight.dtype).flatten(1) * 0.8 - 0.5
        for number, layer in enumerate(self.layers):
            h = layer(h)
            if number == 0 and y is not None:
                h = h + self.embed(y)
            h = ACTIVATIONS[plan.activation](h)
        out = self.head(h)
        if self.skip is not None:
            out = out + self.skip(flat)
        n, positions, spatial = len(x), prod(plan.shape), plan.shape[1:] or plan.shape
        each = 1 if plan.bernoulli else plan.levels
        if plan.layout == "N KD":
            return out
        if plan.layout in ("N K D", "N D K"):
            out = out.view(n, each, positions)
            return out if plan.layout == "N K D" else out.transpose(1, 2)
        if plan.layout == "positions first":
            out = out.view(n, each * (positions // prod(spatial)), -1)
            return out.transpose(1, 2).reshape(n, *spatial, out.shape[1])
        colours = plan.shape[:1] if len(plan.shape) > 1 else ()
        if plan.bernoulli:
            return out.view(n, *plan.shape)
        out = out.view(n, each, *colours, *spatial)
        return out.log_softmax(dim=1) if plan.layout == "log softmax" else out


def logits_of(plan: Made, out: Tensor) -> Tensor:
    """The output in the order of its features, [N, F, positions]."""
    positions = prod(plan.shape[1:] or plan.shape)
    if plan.layout == "N D K":
        out = out.unflatten(1, (-1, positions)).movedim(-1, 2)
    if plan.layout == "positions first":
        out = out.movedim(-1, 1)
    return out.reshape(len(out), -1, positions)


def build(plan: Made) -> nn.Module:
    """Make the module in float64, weights drawn from the plan's seed."""
    with torch.random.fork_rng():
        torch.manual_seed(plan.seed)
        model = plan.module().double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)
    return model


@st.composite
def mades(draw: st.DrawFn) -> Made:
    image = st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5))
    line = st.one_of(st.tuples(st.integers(2, 12)), st.tuples(st.just(1), st.integers(2, 12)))
    shape = draw(st.one_of(image, image, line))
    return Made(
        shape=shape,
        levels=draw(st.integers(2, 4)),
        one_hot=draw(st.booleans()) and len(shape) > 1,
        hidden=tuple(draw(st.lists(st.integers(1, 30), min_size=1, max_size=3))),
        activation=draw(st.sampled_from(sorted(ACTIVATIONS))),
        style=draw(st.sampled_from(STYLES)),
        direct=draw(st.booleans()),
        labels=draw(st.sampled_from([0, 0, 3])),
        layout=draw(st.sampled_from(LAYOUTS)),
        seed=draw(st.integers(0, 999)),
    )
