"""Random causal architectures: a readable description, the module it means, and its mutants."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import assume
from hypothesis import strategies as st
from torch import Tensor, nn

from genfast.sampling.distributions import Categorical
from tests.sampling.architecture_attention import (
    LABELS,
    Attentive,
    attention_layers,
    attention_mutations,
    attentives,
)
from tests.sampling.architecture_layers import (
    ACTIVATIONS,
    GATES,
    Mutation,
    PaddedConv,
    PaddedConv1d,
    RankedConv,
    Ranks,
    Stretch,
    activated,
    gated,
    norm,
)
from tests.sampling.architecture_recurrence import RecurrentLayer, recurrent_layers


@dataclass(frozen=True)
class MaskedLayer:
    """One step of `Masked`: activation, masked convolution, gate, norm, joined to what was."""

    ranks: Ranks
    size: tuple[int, int]
    dilation: tuple[int, int]
    style: str
    activation: str
    gate: str
    norm: str
    join: str


@dataclass(frozen=True)
class Masked:
    """Masked convolutions over an image [C, H, W] with its colours in order."""

    shape: tuple[int, int, int]
    levels: int
    one_hot: bool
    layers: tuple[MaskedLayer, ...]
    layout: str
    seed: int

    def module(self) -> nn.Module:
        return MaskedModel(self)


class MaskedModel(nn.Module):
    def __init__(self, plan: Masked):
        super().__init__()
        self.plan = plan
        colours = plan.shape[0]
        encoded = plan.levels if plan.one_hot else 1
        ranks: Ranks = tuple(c + 1 for c in range(colours) for _ in range(encoded))
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        for layer in plan.layers:
            into = activated(ranks, layer.activation)
            conv = RankedConv(into, layer.ranks, layer.size, layer.dilation, layer.style)
            normed, after = norm(layer.norm, gated(layer.ranks, layer.gate))
            self.convs.append(conv)
            self.norms.append(normed)
            if layer.join == "add" and len(after) == len(ranks):
                ranks = tuple(map(max, ranks, after))
            else:
                ranks = ranks + after if layer.join == "concatenate" else after
        by_colour = tuple(c for c in range(colours) for _ in range(plan.levels))
        by_level = tuple(range(colours)) * plan.levels
        self.head = RankedConv(ranks, by_level if plan.layout == "NKCHW" else by_colour, (1, 1))

    def forward(self, x: Tensor) -> Any:
        plan = self.plan
        h = x.to(self.head.weight.dtype) * 0.8 - 0.5
        for layer, conv, normed in zip(plan.layers, self.convs, self.norms, strict=True):
            new = normed(GATES[layer.gate](conv(ACTIVATIONS[layer.activation](h))))
            if layer.join == "add" and new.shape == h.shape:
                h = h + new
            else:
                h = torch.cat((h, new), dim=1) if layer.join == "concatenate" else new
        out = self.head(h)
        n, (colours, height, width) = x.shape[0], plan.shape
        if plan.layout == "NKCHW":
            return out.view(n, plan.levels, colours, height, width)
        if plan.layout == "NCKHW":
            return out.view(n, colours, plan.levels, height, width)
        return {"logits": out} if plan.layout == "dict" else out


@dataclass(frozen=True)
class StacksLevel:
    """One resolution: `before` and `after` gated steps around a coarser level, if there is one."""

    before: int
    after: int
    size: tuple[int, int]
    activation: str
    stride: tuple[int, int] = (1, 1)
    inner: "StacksLevel | None" = None


@dataclass(frozen=True)
class Stacks:
    """Vertical and horizontal stack by padding, cutting and shifting, with strides."""

    shape: tuple[int, int, int]
    levels: int
    width: int
    start: tuple[int, int]
    level: StacksLevel
    seed: int
    one_hot = False

    def module(self) -> nn.Module:
        return StacksModel(self)


class GatedStep(nn.Module):
    """Both stacks one step on; the horizontal one is linked to the vertical one."""

    def __init__(self, width: int, level: StacksLevel):
        super().__init__()
        self.activation = ACTIVATIONS[level.activation]
        into = width * (2 if level.activation == "concat_elu" else 1)
        self.vertical = PaddedConv(into, 2 * width, level.size, around=True)
        self.horizontal = PaddedConv(into, 2 * width, level.size)
        self.link = nn.Conv2d(into, 2 * width, 1)

    def forward(self, v: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        v = v + GATES["halves"](self.vertical(self.activation(v)))
        both = self.horizontal(self.activation(h)) + self.link(self.activation(v))
        return v, h + GATES["halves"](both)


class LevelModel(nn.Module):
    def __init__(self, width: int, level: StacksLevel):
        super().__init__()
        self.before = nn.ModuleList(GatedStep(width, level) for _ in range(level.before))
        self.after = nn.ModuleList(GatedStep(width, level) for _ in range(level.after))
        self.inner = None
        if level.inner is not None:
            size, stride = level.size, level.stride
            self.inner = LevelModel(width, level.inner)
            self.down_v = PaddedConv(width, width, size, stride, around=True)
            self.down_h = PaddedConv(width, width, size, stride)
            self.up_v = Stretch(width, width, size, stride, around=True)
            self.up_h = Stretch(width, width, size, stride, around=False)

    def forward(self, v: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        for step in self.before:
            v, h = step(v, h)
        if self.inner is not None:
            low_v, low_h = self.inner(self.down_v(v), self.down_h(h))
            v, h = v + self.up_v(low_v, *v.shape[2:]), h + self.up_h(low_h, *h.shape[2:])
        for step in self.after:
            v, h = step(v, h)
        return v, h


class StacksModel(nn.Module):
    def __init__(self, plan: Stacks):
        super().__init__()
        self.plan = plan
        colours, (rows, columns) = plan.shape[0], plan.start
        self.above = PaddedConv(colours, plan.width, (rows, columns), around=True, down=1)
        self.above_too = PaddedConv(colours, plan.width, (1, columns), around=True, down=1)
        self.left = PaddedConv(colours, plan.width, (rows, 1), right=1)
        self.level = LevelModel(plan.width, plan.level)
        self.head = nn.Conv2d(plan.width, plan.levels * colours, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.head.weight.dtype) * 0.8 - 0.5
        _, h = self.level(self.above(x), self.above_too(x) + self.left(x))
        out = self.head(F.elu(h))
        return out.view(-1, self.plan.levels, *self.plan.shape) if self.plan.shape[0] > 1 else out


@dataclass(frozen=True)
class SoundLayer:
    size: int
    dilation: int
    gate: str
    activation: str
    norm: str
    residual: bool


@dataclass(frozen=True)
class Sound:
    """Dilated convolutions along a line: "same" predicts x[t] at output t, the others x[t + 1].

    Before it there are `prefix` steps of numbers that are learned.
    """

    shape: tuple[int, ...]
    levels: int
    width: int
    convention: str
    one_hot: bool
    layers: tuple[SoundLayer, ...]
    seed: int
    prefix: int = 0

    def module(self) -> nn.Module:
        return SoundModel(self)


class SoundModel(nn.Module):
    def __init__(self, plan: Sound):
        super().__init__()
        self.plan = plan
        self.valid = valid = plan.convention == "valid"
        into = plan.levels if plan.one_hot else 1
        shift = int(plan.convention == "same" and plan.prefix == 0)
        self.first = PaddedConv1d(into, plan.width, 1, shift=shift)
        self.prefix = nn.Parameter(torch.randn(1, plan.width, plan.prefix))
        self.convs, self.norms, self.skips = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for layer in plan.layers:
            width = plan.width * (2 if layer.activation == "concat_elu" else 1)
            out = plan.width * (1 if layer.gate == "none" else 2)
            conv = PaddedConv1d(width, out, layer.size, layer.dilation, valid=valid)
            self.convs.append(conv)
            self.norms.append(norm(layer.norm, (0,) * plan.width, 1)[0])
            self.skips.append(nn.Conv1d(plan.width, plan.width, 1))
        self.head = nn.Conv1d(plan.width, plan.levels, 1)

    def forward(self, x: Tensor) -> Tensor:
        plan = self.plan
        x = x.to(self.head.weight.dtype) * 0.8 - 0.5
        h = self.first(x if x.dim() == 3 else x.unsqueeze(1))
        if plan.prefix:
            h = torch.cat((self.prefix.expand(len(h), -1, -1), h), dim=2)
        outs = []
        parts = zip(plan.layers, self.convs, self.norms, self.skips, strict=True)
        for layer, conv, normed, skip in parts:
            new = normed(GATES[layer.gate](conv(ACTIVATIONS[layer.activation](h))))
            outs.append(skip(new))
            h = h[:, :, h.shape[2] - new.shape[2] :] + new if layer.residual else new
        steps = outs[-1].shape[2]
        out = self.head(F.relu(sum(out[:, :, out.shape[2] - steps :] for out in outs)))
        if plan.prefix and plan.convention == "same":
            return out[:, :, plan.prefix - 1 : -1]
        return out[:, :, plan.prefix :]


Architecture = Masked | Stacks | Sound | Attentive


def distribution(plan: Architecture) -> Categorical:
    """What the symbols of a plan are drawn from."""
    values = torch.eye(plan.levels, dtype=torch.float64) if plan.one_hot else None
    layout = {"NKCHW": "KC", "NCKHW": "CK"}.get(getattr(plan, "layout", ""))
    if isinstance(plan, Stacks):
        layout = "KC"
    return Categorical(plan.levels, values=values, layout=layout)


def conditions(plan: Architecture, n: int, first: int = 0) -> dict[str, Tensor]:
    """What a plan's model is told of n events, the first of which has this number."""
    labels = isinstance(plan, Attentive) and plan.labels
    return {"label": torch.arange(first, first + n) % LABELS} if labels else {}


def predicts(plan: Architecture) -> str | None:
    """What to say of a plan's outputs where a broken one could as well predict the next step."""
    behind = isinstance(plan, Attentive) and plan.prefix > 0 and plan.convention == "same"
    return "current" if behind else None


def build(plan: Architecture, mutation: Mutation | None = None) -> nn.Module:
    """Make the module in float64, weights drawn from the plan's seed, broken by the mutation."""
    with torch.random.fork_rng():
        torch.manual_seed(plan.seed)
        model = plan.module().double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.3)
    if mutation is not None:
        mutation.apply(model)
    return model


def widths(low: int = 1, high: int = 7) -> st.SearchStrategy[int]:
    return st.integers(low, high)


@st.composite
def ranks_of(draw: st.DrawFn, width: int, colours: int) -> Ranks:
    layout = draw(st.sampled_from(["blocks", "interleaved", "any"]))
    if layout == "blocks":
        return tuple(i * colours // width for i in range(width))
    if layout == "interleaved":
        return tuple(i % colours for i in range(width))
    return tuple(draw(st.integers(0, colours)) for _ in range(width))


@st.composite
def masked_layers(draw: st.DrawFn, colours: int) -> MaskedLayer:
    gate = draw(st.sampled_from(list(GATES)))
    width = draw(widths()) * (1 if gate == "none" else 2)
    size = draw(st.sampled_from([(1, 1), (3, 3), (3, 3), (2, 2), (2, 3), (5, 3), (1, 3), (3, 1)]))
    styles = ["buffer", "in place", "attribute", "once"] + ["dense"] * (size == (1, 1))
    return MaskedLayer(
        ranks=draw(ranks_of(width, colours)),
        size=size,
        dilation=draw(st.sampled_from([(1, 1), (1, 1), (2, 2), (1, 2), (2, 1)])),
        style=draw(st.sampled_from(styles)),
        activation=draw(st.sampled_from(list(ACTIVATIONS))),
        gate=gate,
        norm=draw(st.sampled_from(["none", "none", "batch", "layer"])),
        join=draw(st.sampled_from(["none", "add", "concatenate"])),
    )


@st.composite
def masked(draw: st.DrawFn) -> Masked:
    colours = draw(st.integers(1, 3))
    layouts = ["NCKHW", "NKCHW"] + ["NKHW", "dict"] * (colours == 1)
    return Masked(
        shape=(colours, draw(st.integers(1, 7)), draw(st.integers(1, 6))),
        levels=draw(st.integers(2, 5)),
        one_hot=draw(st.sampled_from([False, False, True])),
        layers=tuple(draw(st.lists(masked_layers(colours), min_size=1, max_size=4))),
        layout=draw(st.sampled_from(layouts)),
        seed=draw(st.integers(0, 999)),
    )


@st.composite
def stacks_levels(draw: st.DrawFn, depth: int) -> StacksLevel:
    inner = draw(stacks_levels(depth - 1)) if depth else None
    return StacksLevel(
        before=draw(st.integers(0, 1)),
        after=draw(st.integers(0, 1)),
        size=draw(st.sampled_from([(2, 2), (2, 3), (1, 3), (3, 3), (2, 1), (1, 1)])),
        activation=draw(st.sampled_from(list(ACTIVATIONS))),
        stride=draw(st.sampled_from([(2, 2), (2, 2), (3, 3), (1, 1)])) if inner else (1, 1),
        inner=inner,
    )


@st.composite
def stacks(draw: st.DrawFn) -> Stacks:
    return Stacks(
        shape=(draw(st.integers(1, 2)), draw(st.integers(2, 7)), draw(st.integers(2, 6))),
        levels=draw(st.integers(2, 5)),
        width=draw(widths(1, 5)),
        start=draw(st.sampled_from([(2, 3), (3, 3), (1, 3), (2, 5), (1, 1)])),
        level=draw(stacks_levels(draw(st.sampled_from([0, 1, 1, 2])))),
        seed=draw(st.integers(0, 999)),
    )


@st.composite
def sounds(draw: st.DrawFn) -> Sound:
    layers = draw(
        st.lists(
            st.builds(
                SoundLayer,
                size=st.integers(1, 3),
                dilation=st.integers(1, 4),
                gate=st.sampled_from(list(GATES)),
                activation=st.sampled_from(list(ACTIVATIONS)),
                norm=st.sampled_from(["none", "none", "batch", "layer"]),
                residual=st.booleans(),
            ),
            min_size=1,
            max_size=4,
        )
    )
    convention = draw(st.sampled_from(["same", "next", "valid"]))
    field = 1 + sum((layer.size - 1) * layer.dilation for layer in layers)
    # More than the levels, so that shapes tell which axis is which.
    steps = draw(st.integers(6, 12)) + (field if convention == "valid" else 0)
    one_hot = draw(st.booleans())
    return Sound(
        shape=(1, steps) if one_hot else draw(st.sampled_from([(1, steps), (steps,)])),
        levels=draw(st.integers(2, 5)),
        width=draw(widths(1, 5)),
        convention=convention,
        one_hot=one_hot,
        layers=tuple(layers),
        seed=draw(st.integers(0, 999)),
        prefix=0 if convention == "valid" else draw(st.sampled_from([0, 0, 1, 2, 3])),
    )


def recurrents() -> st.SearchStrategy[Attentive]:
    """Draw models with recurrent layers and attention, over at most one token before the first."""
    layers = st.one_of(recurrent_layers(), recurrent_layers(), attention_layers())
    return attentives(layers).filter(
        lambda plan: (
            plan.prefix < 2 or not any(isinstance(layer, RecurrentLayer) for layer in plan.layers)
        )
    )


def architectures() -> st.SearchStrategy[Architecture]:
    return st.one_of(masked(), stacks(), sounds(), attentives(), recurrents())


def mutations(plan: Architecture) -> list[Mutation]:
    """List what can be broken. Some change nothing for an output: only trying tells."""
    found = []
    for path, layer in build(plan).named_modules():
        if isinstance(layer, RankedConv):
            found += _mask_mutations(path, layer, plan.shape[0])
        elif isinstance(layer, PaddedConv):
            found += [_set(path, "row_offset", 1), _set(path, "column_offset", 1)]
        elif isinstance(layer, Stretch):
            found += [_set(path, "row_offset", 1, kind="future row")]
        elif isinstance(layer, PaddedConv1d) and not layer.valid:
            found += [_set(path, "offset", 2)]
        else:
            found += attention_mutations(path, layer)
    return found


def _set(path: str, name: str, value: int, kind: str = "shifted crop") -> Mutation:
    def apply(model: nn.Module) -> None:
        layer = model.get_submodule(path)
        setattr(getattr(layer, "window", layer), name, value)

    return Mutation(kind, path, apply)


def _mask_mutations(path: str, layer: RankedConv, colours: int) -> list[Mutation]:
    height, width = layer.kernel_size
    centre = height // 2 * width + width // 2
    found = []
    for place in range(centre, height * width):
        closed = (layer.mask[:, :, place // width, place % width] == 0).nonzero().tolist()
        kind = "tap after the centre" if place > centre else "centre tap"
        if place == centre and colours > 1:
            kind = "leaked colour"
        for out, into in closed[:: max(1, len(closed) // 3)]:
            at = (out, into, place // width, place % width)
            found.append(Mutation(kind, path, lambda model, at=at: _allow(model, path, at)))
    return found


def _allow(model: nn.Module, path: str, at: tuple[int, int, int, int]) -> None:
    model.get_submodule(path).allow(*at)


@st.composite
def mutants(
    draw: st.DrawFn, of: st.SearchStrategy[Architecture] | None = None
) -> tuple[Architecture, Mutation]:
    """Draw an architecture with one of its mutations; see `mutations` for those without effect.

    No images of one row: what looks at itself there is a sound that predicts its next step.
    """
    kind = architectures() if of is None else of
    plan = draw(kind.filter(lambda plan: len(plan.shape) < 3 or plan.shape[1] > 1))
    found = mutations(plan)
    assume(found)
    kind = draw(st.sampled_from(sorted({mutation.kind for mutation in found})))
    return plan, draw(st.sampled_from([each for each in found if each.kind == kind]))
