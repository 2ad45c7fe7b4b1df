"""Random models with causal self-attention: their description, modules, and what may be broken."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf, prod

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.sampling.architecture_layers import Mutation, PaddedConv
from tests.sampling.architecture_recurrence import Recurrence, RecurrentLayer

FUSED = ("fused causal", "fused bool", "fused float")
LABELS = 3


@dataclass(frozen=True)
class AttentionLayer:
    """One attention. `reach` is how many positions heads see, one for all or one for each head.

    `strict` ones do not see their own position. The weights of the first, which then sees nothing,
    are put right as `blind` says: "start" and "zero" multiply and overwrite them, "nan" replaces.
    """

    heads: int
    groups: int
    depth: int
    reach: tuple[int, ...]
    strict: bool
    blind: str
    mask: str
    low: float
    product: str
    bias: str
    norm: bool
    residual: bool


@dataclass(frozen=True)
class Attentive:
    """Causal self-attention, or recurrent layers, over an image [1, H, W], a sequence [T], or an
    image [C, H, W] as one.

    `kind` is "map" (features of an image's convolutions), "raster" (pixels as one sequence, moved
    on by one as `shift` says), "sequence" (tokens that predict the next one) or "tokens" (each
    symbol of an image a token, in drawing order). Before a sequence and before symbols there are
    `prefix` tokens, a label's if `labels`, which all see each other if `mutual`. Then
    `shift` tells what is left out, so that the last of them predicts the first that is drawn: the
    last token ("cat") or prediction ("cut"); with "pad" it is the predictions of the prefix.
    """

    shape: tuple[int, ...]
    levels: int
    width: int
    kind: str
    shift: str
    features_last: bool
    layers: tuple[AttentionLayer | RecurrentLayer, ...]
    seed: int
    prefix: int = 0
    labels: bool = False
    mutual: bool = False
    one_hot = False

    @property
    def layout(self) -> str:
        return "NKCHW" if self.kind == "tokens" else ""

    @property
    def convention(self) -> str:
        alone = self.prefix == 0 or self.shift == "pad"
        return "next" if self.kind == "sequence" and alone else "same"

    @property
    def positions(self) -> int:
        """How many positions attend to each other."""
        return prod(self.shape) + self.prefix - (self.prefix > 0 and self.shift == "cat")

    def module(self) -> nn.Module:
        return AttentiveModel(self)


class Attention(nn.Module):
    """Attention of [N, P, C]; keys and values of strict ones also know the position itself."""

    def __init__(self, plan: AttentionLayer, width: int, positions: int, mutual: int):
        super().__init__()
        self.plan, self.style = plan, plan.mask
        self.norm = nn.LayerNorm(width) if plan.norm else nn.Identity()
        known = width + int(plan.strict)
        self.query = nn.Linear(width, plan.heads * plan.depth)
        self.pair = nn.Linear(known, 2 * plan.groups * plan.depth, bias=False)
        self.back = nn.Linear(plan.heads * plan.depth, width)
        distance = torch.arange(positions)[:, None] - torch.arange(positions)
        reach, nearest = torch.tensor(plan.reach).view(-1, 1, 1), int(plan.strict)
        seen = (distance >= nearest) & (distance < reach + nearest)
        seen[:, :mutual, :mutual] = True
        self.register_buffer("seen", seen)
        self.register_buffer("start", (torch.arange(positions) > 0).to(torch.float64)[:, None])
        across = positions if plan.bias == "table" else 1
        self.bias = nn.Parameter(torch.rand(plan.heads, across, across) + 0.5)
        slopes = -distance.abs() / 2.0 ** torch.arange(plan.heads).view(-1, 1, 1)
        self.register_buffer("slopes", slopes)

    def allow(self, *place: int) -> None:
        """Let one [head, position, other] be seen, as a wrong mask would; without one, all."""
        self.seen[place] = True
        self.style = "fused bool" if self.style == "fused causal" else self.style

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        plan, (n, positions, _), y = self.plan, h.shape, self.norm(h)
        query = self.query(y).view(n, positions, plan.heads, plan.depth)
        pair = self.pair(torch.cat((y, x), 2) if plan.strict else y)
        key, value = pair.view(n, positions, 2 * plan.groups, plan.depth).chunk(2, dim=2)
        query, key, value = (each.transpose(1, 2) for each in (query, key, value))
        if self.style in FUSED:
            new = self.fused(query, key, value)
        else:
            shared = plan.heads // plan.groups
            new = self.attend(query, *(y.repeat_interleave(shared, dim=1) for y in (key, value)))
        new = self.back(new.transpose(1, 2).reshape(n, positions, -1))
        return h + new if plan.residual else new

    def fused(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        grouped = self.plan.groups < self.plan.heads
        mask = None if self.style == "fused causal" else self.seen
        if self.style == "fused float":
            mask = torch.zeros(self.seen.shape).to(query).masked_fill(~self.seen, -inf)
            mask = mask + (self.bias if self.plan.bias == "table" else self.slopes)
        return F.scaled_dot_product_attention(
            query, key, value, mask, is_causal=mask is None, enable_gqa=grouped
        )

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        plan, (n, heads, positions, depth) = self.plan, query.shape
        if plan.product == "einsum":
            scores = torch.einsum("nhid,nhjd->nhij", query, key)
        elif plan.product == "merged":
            query, key, value = (y.reshape(-1, positions, depth) for y in (query, key, value))
            scores = torch.bmm(query, key.mT).view(n, heads, positions, positions)
        else:
            scores = query @ key.transpose(2, 3)
        weights = torch.softmax(self.masked(self.biased(scores / depth**0.5)), dim=-1)
        if plan.strict and plan.blind == "start":
            weights = weights * self.start
        elif plan.strict and plan.blind == "zero":
            weights = weights.masked_fill(~self.seen, 0)
        elif plan.strict:
            weights = weights.nan_to_num(0)
        if plan.product == "merged":
            weights = weights.view(n * heads, positions, positions)
            return torch.bmm(weights, value).view(n, heads, positions, depth)
        if plan.product == "einsum":
            return torch.einsum("nhij,nhjd->nhid", weights, value)
        return weights @ value

    def biased(self, scores: Tensor) -> Tensor:
        slopes = {"table": self.bias, "slopes": self.slopes}.get(self.plan.bias, 0)
        return scores * self.bias if self.plan.bias == "heat" else scores + slopes

    def masked(self, scores: Tensor) -> Tensor:
        seen, low = self.seen, self.plan.low
        if self.style == "fill":
            return scores.masked_fill(~seen, low)
        if self.style == "where":
            return torch.where(seen, scores, low)
        if self.style == "multiply":
            return scores * seen - 1e9 * (1 - seen.to(scores))
        return scores + torch.zeros(seen.shape).to(scores).masked_fill(~seen, low)


class Shift(nn.Module):
    """Puts a start before a sequence [N, P, C] and drops its last."""

    def __init__(self, style: str, width: int):
        super().__init__()
        self.style = style
        self.start = nn.Parameter(torch.randn(1, 1, width))

    def drop(self) -> None:
        self.style = "none"

    def forward(self, h: Tensor) -> Tensor:
        first = self.start.expand(len(h), -1, -1)
        if self.style == "pad":
            return F.pad(h, (0, 0, 1, 0))[:, :-1]
        if self.style == "cut":
            return torch.cat((first, h), dim=1)[:, :-1]
        return torch.cat((first, h[:, :-1]), dim=1) if self.style == "cat" else h


class Prefix(nn.Module):
    """Puts tokens before a sequence [N, P, C], and cuts off what predicts none of it."""

    def __init__(self, plan: Attentive):
        super().__init__()
        self.plan, self.lost, self.late = plan, 0, 0
        self.tokens = nn.Embedding(LABELS if plan.labels else 1, plan.prefix * plan.width)
        self.first = plan.prefix - (plan.shift != "pad")

    def lose(self) -> None:
        self.lost = 1

    def delay(self) -> None:
        self.late = 1

    def forward(self, h: Tensor, label: Tensor | None) -> Tensor:
        own = self.tokens.weight if label is None else self.tokens(label)
        own = own.view(-1, self.plan.prefix, self.plan.width)[:, self.lost :]
        h = h[:, :-1] if self.plan.shift == "cat" else h
        return torch.cat((own.expand(len(h), -1, -1), F.pad(h, (0, 0, 0, self.lost))), dim=1)

    def beside(self, x: Tensor) -> Tensor:
        """What stands for x at all positions: at each what is predicted there, or before it."""
        return F.pad(x, (0, 0, self.first, int(self.plan.shift == "cut")))

    def cut(self, out: Tensor) -> Tensor:
        last = out.shape[1] - (self.plan.shift == "cut")
        return out[:, self.first + self.late : last + self.late]


class AttentiveModel(nn.Module):
    def __init__(self, plan: Attentive):
        super().__init__()
        self.plan, width, positions = plan, plan.width, plan.positions
        if plan.kind == "map":
            self.above = PaddedConv(1, width, (2, 3), around=True, down=1)
            self.left = PaddedConv(1, width, (1, 2), right=1)
        else:
            self.embed = nn.Embedding(plan.levels, width)
        self.shift = Shift(plan.shift, width) if plan.kind == "raster" else nn.Identity()
        self.prefix = Prefix(plan) if plan.prefix else None
        self.place = nn.Parameter(torch.randn(positions, width) / 2)
        # Keys of strict ones know what the last of the prefix predicts.
        self.layers = nn.ModuleList(
            Recurrence(each, width)
            if isinstance(each, RecurrentLayer)
            else Attention(each, width, positions, plan.mutual * (plan.prefix - each.strict))
            for each in plan.layers
        )
        self.head = nn.Linear(width, plan.levels)

    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        plan, numbers = self.plan, x.to(self.place.dtype) * 0.8 - 0.5
        if plan.kind == "map":
            h = (self.above(numbers) + self.left(numbers)).flatten(2).transpose(1, 2)
        else:
            order = x.permute(0, 2, 3, 1) if plan.kind == "tokens" else x
            h = self.embed(order.long().flatten(1))
        known = numbers.permute(0, 2, 3, 1) if plan.kind == "tokens" else numbers
        known = known.flatten(1)[:, :, None]
        if self.prefix is not None:
            h, known = self.prefix(h, label), self.prefix.beside(known)
        h = self.shift(h) + self.place
        for layer in self.layers:
            h = layer(h, known)
        out = self.head(F.elu(h))
        if self.prefix is not None:
            out = self.prefix.cut(out)
        if plan.kind == "sequence":
            return out if plan.features_last else out.mT
        if plan.kind == "tokens":
            colours, height, width = plan.shape
            return out.view(len(x), height, width, colours, -1).permute(0, 4, 3, 1, 2)
        return out.mT.reshape(len(x), plan.levels, *plan.shape[1:])


def attention_mutations(path: str, layer: nn.Module) -> Iterator[Mutation]:
    """Yield what can be broken in a layer of these models."""
    if isinstance(layer, Shift):
        yield Mutation("shift dropped", path, lambda m: m.get_submodule(path).drop())
    if isinstance(layer, Recurrence):
        run = lambda m: m.get_submodule(path).run(both=True)  # noqa: E731
        yield Mutation("both directions", path, run)
    if isinstance(layer, Prefix):
        yield Mutation("prefix too short", path, lambda m: m.get_submodule(path).lose())
    if isinstance(layer, Prefix) and layer.plan.shift == "cut":
        yield Mutation("prefix cut too late", path, lambda m: m.get_submodule(path).delay())
    if isinstance(layer, Attention):
        later = torch.ones(layer.seen.shape).triu(1 - layer.plan.strict).nonzero().tolist()
        for at in later[:: max(1, len(later) // 5)]:
            allow = lambda m, at=at: m.get_submodule(path).allow(*at)  # noqa: E731
            yield Mutation("position seen too early", path, allow)
        yield Mutation("mask forgotten", path, lambda m: m.get_submodule(path).allow())


@st.composite
def attention_layers(draw: st.DrawFn) -> AttentionLayer:
    heads = draw(st.sampled_from([1, 2, 2, 3, 4]))
    groups = draw(st.sampled_from([each for each in range(1, heads + 1) if heads % each == 0]))
    mask = draw(st.sampled_from(["fill", "add", "multiply", "where", *FUSED]))
    strict = mask != "fused causal" and draw(st.booleans())
    blind = draw(st.sampled_from(["start", "zero", "nan"][: 2 if mask == "multiply" else 3]))
    lows = {"start": [-1e9], "nan": [-inf]}.get(blind, [-inf, -1e9]) if strict else [-inf, -1e9]
    product = draw(st.sampled_from(["matmul", "einsum", "merged"]))
    # Of one feature, einsum makes a product by broadcasting, which is refused.
    depth = draw(st.integers(1 + (product == "einsum"), 4))
    reaches = st.sampled_from([99, 99, 1, 2, 3, 5])
    count = draw(st.sampled_from([1, heads]))
    reach = (99,) if mask == "fused causal" else tuple(draw(reaches) for _ in range(count))
    bias = draw(st.sampled_from(["none", "table", "slopes", "heat"]))
    norm, residual = draw(st.booleans()), draw(st.sampled_from([True, True, False]))
    return AttentionLayer(
        heads, groups, depth, reach, strict, blind, mask, draw(st.sampled_from(lows)), product,
        bias, norm, residual,
    )  # fmt: skip


@st.composite
def attentives(
    draw: st.DrawFn,
    kinds: st.SearchStrategy[AttentionLayer | RecurrentLayer] = attention_layers(),  # noqa: B008
) -> Attentive:
    kind = draw(st.sampled_from(["map", "raster", "sequence", "tokens"]))
    image = st.tuples(st.just(1), st.integers(1, 4), st.integers(1, 5))
    coloured = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))
    several = {"tokens": coloured, "map": image, "raster": image}
    shapes = {kind: shape.filter(lambda each: prod(each) > 1) for kind, shape in several.items()}
    shapes["sequence"] = st.tuples(st.integers(6, 10))
    prefix = draw(
        {"sequence": st.integers(0, 3), "tokens": st.integers(1, 3)}.get(kind, st.just(0))
    )
    return Attentive(
        # More steps than levels, so that shapes tell which axis is which.
        shape=draw(shapes[kind]),
        levels=draw(st.integers(2, 5)),
        width=draw(st.integers(2, 6)),
        kind=kind,
        shift=draw(st.sampled_from(["cat", "cut", "pad"][: 2 if kind == "tokens" else 3])),
        features_last=draw(st.booleans()),
        layers=tuple(draw(st.lists(kinds, min_size=1, max_size=2))),
        seed=draw(st.integers(0, 999)),
        prefix=prefix,
        labels=prefix > 0 and draw(st.booleans()),
        mutual=prefix > 1 and draw(st.booleans()),
    )
