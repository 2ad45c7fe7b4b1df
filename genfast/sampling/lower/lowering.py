"""The second stage of compiling a sampler: a recording becomes a graph of values on grids.

Every op of the recording is interpreted on descriptions of tensors (`layout.Signal`) by its rule.
To add a rule for an op, write a function in `rules/` and register it:

    @rule(aten.square.default)
    def square(low: Lowering, self: Signal) -> Signal:
        return low.pointwise("mul", self, self)

It gets the op's arguments under the names of the op's schema, and only those that it names. A
tensor is a `Signal` if it depends on the model's input, a `torch.Tensor` if it is constant, and a
`recording.Node` if it depends on the conditions alone. It returns a `Signal`, or a tuple for an op
with several results (None for one that it does not give), and calls `low.refuse(reason)` for what
it cannot do. Rules that move numbers change the description (`rules/rearrange.py`); rules that
compute call `low.pointwise`, `low.reduce` or `low.emit`. A new file is listed in `_RULE_MODULES`.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, NoReturn, TypeVar, cast

import numpy as np
import torch
from torch import Tensor
from torch._ops import OpOverload, OpOverloadPacket
from torch.utils._pytree import tree_leaves, tree_map

from genfast.errors import UnsupportedModelError
from genfast.sampling.capture.model import Captured
from genfast.sampling.capture.recording import (
    RANDOM,
    SIGNAL,
    Call,
    Fixed,
    Node,
    bind,
    first_random,
    signals_before,
)
from genfast.sampling.lower.flat import aligned, flat_output, flatten, is_flat
from genfast.sampling.lower.layout import (
    Atom,
    Axis,
    Dim,
    Dims,
    Features,
    LayoutError,
    Signal,
    View,
    describe,
    dim_size,
    feature_size,
    features_dim,
    is_features,
    only_axis,
    same,
)
from genfast.sampling.lower.run import Run
from genfast.sampling.lower.scores import Scores
from genfast.sampling.lower.unread import without_unread
from genfast.sampling.pointwise import POINTWISE
from genfast.sampling.stages import stage
from genfast.sampling.values import (
    Attend,
    Condition,
    Constant,
    Conv,
    Flatten,
    Graph,
    Input,
    Lookup,
    Pointwise,
    Previous,
    Reduce,
    Source,
    Sources,
    Unflatten,
    Value,
)

aten = torch.ops.aten

Number = float | int | bool
Operand = Signal | Tensor | Node | Number
Rule = TypeVar("Rule", bound=Callable[..., Any])
_RULE_MODULES = (
    "arithmetic",
    "movement",
    "joining",
    "convolutions",
    "attention",
    "recurrence",
    "raster",
    "features",
    "resampling",
)
_NEUTRAL = {"add": 0, "sub": 0, "mul": 1, "div": 1, "pow": 1}  # right operands that do nothing
Rules = dict[OpOverload | OpOverloadPacket, Callable[..., Any]]
RULES: dict[type, Rules] = {Signal: {}, Scores: {}, Run: {}}


class SequenceError(UnsupportedModelError):
    """A refusal of what is done to the pixels as one sequence."""


def rule(*ops: OpOverload | OpOverloadPacket, of: type = Signal) -> Callable[[Rule], Rule]:
    """Register the decorated function as the rule of ops (all overloads, if given a packet).

    `of`: what some argument is: a `Signal`, or one of those that stand for what no grid can hold.
    """

    def register(function: Rule) -> Rule:
        for op in ops:
            if op in RULES[of]:
                raise ValueError(f"rule: expected one rule per op, got a second for {op}")
            RULES[of][op] = function
        return function

    return register


def lower(captured: Captured) -> Graph:
    """Turn a recording into a graph of values.

    Args:
        captured: what `capture` returned; its input is [2, C, H, W], [2, C, T] or [2, T].

    Raises:
        UnsupportedModelError: an op has no rule, or does what no grid can hold; the message names
            the op, the module, the source line and the reason.
    """
    for module in _RULE_MODULES:
        import_module(f"genfast.sampling.lower.rules.{module}")
    return Lowering(captured).graph()


class Lowering:
    """The state of one lowering, and what rules build values with.

    `joined` remembers what a value was joined from, along which axis, each part with its first
    position: a slice of it then need not read the whole. `flattened` likewise remembers features
    and what they are on a single position.
    """

    def __init__(self, captured: Captured) -> None:
        self.captured = captured
        self.dtype, self.device = captured.dtype, captured.device
        self.node: Node = captured.input
        self.values: list[Value] = []
        self._conditions: list[Condition] = []
        self.joined: dict[Value, tuple[Signal, Axis, list[tuple[int, Signal]]]] = {}
        self.flattened: dict[Features, Features] = {}
        self._results: dict[Any, Any] = {}

    def graph(self) -> Graph:
        """Lower everything that the output needs."""
        start = self._input()
        origin = start.features.views[0].origin
        assert isinstance(origin, Value)
        self._results[self.captured.input] = start
        for node in signals_before(self.captured.output):
            if node.call is not None and node.call not in self._results:
                self.node = node
                self._results[node.call] = self._apply(node.call)
        self.node = self.captured.output
        output = self.resolve(self.captured.output)
        if not isinstance(output, Signal):
            self.refuse("the model's output pairs positions with one another")
        if is_flat(self, output):
            output = flat_output(self, output)
        sizes = self._output_sizes(output)
        outputs = output.features.sources()
        values, conditions = _needed(self.values, self._conditions, outputs, origin)
        mixed = self.captured.first_mixed(conditions)
        if mixed is not None:
            raise UnsupportedModelError(
                f"{mixed.where}: what it computes for an image depends on the conditions of others"
            )
        return Graph(origin, values, outputs, sizes, output.height, output.width, conditions)

    def refuse(self, reason: str) -> NoReturn:
        """Raise UnsupportedModelError about the op whose rule runs."""
        raise UnsupportedModelError(f"{self.node.where}: {reason}")

    def require_order(self, dims: Dims) -> None:
        """Refuse axes on which parts of columns stand in another order than columns do."""
        for dim in dims:
            if sum(atom.axis is Axis.PART for atom in dim) > 1:
                raise SequenceError(
                    f"{self.node.where}: it takes an image's symbols as one sequence in another "
                    "order than they are drawn in: row by row, pixel by pixel, colour by colour"
                )

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the model's input."""
        start = self.values[0]
        return start.height, start.width

    @property
    def op(self) -> OpOverload:
        """The op whose rule runs."""
        assert self.node.call is not None
        return self.node.call.op

    # Making values

    def emit(
        self,
        body: Conv | Pointwise | Reduce | Lookup | Attend | Flatten | Unflatten,
        features: int,
        like: Signal,
        *,
        size: tuple[int, int] | None = None,
        scale: tuple[int, int] | None = None,
    ) -> Features:
        """Add a value on the grid of `like`, or on another `size` and `scale`."""
        height, width = size or (like.height, like.width)
        rows, columns = scale or (like.row_scale, like.column_scale)
        value = Value(features, height, width, body, rows, columns, self.node.where)
        self.values.append(value)
        return Features.all_of(_view_of(value))

    def pointwise(self, op: str, *operands: Operand, dtype: torch.dtype | None = None) -> Signal:
        """Apply an operation of `POINTWISE` with the user's broadcasting.

        `dtype` is that of the result for the user, by default that of the op whose rule runs.
        Of numbers alone the result is a number, so that a rule need not tell them from signals.
        """
        numbers = [each for each in operands if isinstance(each, float | int | bool)]
        if len(numbers) == len(operands):
            exact = [torch.tensor(float(each), dtype=torch.float64) for each in numbers]
            return cast(Signal, POINTWISE[op](*exact).item())
        arranged = self.broadcast(*operands)
        like = next(each for each in arranged if isinstance(each, Signal))
        dtype = dtype or self.node.dtype
        if len(arranged) == 2 and arranged[0] is like and arranged[1] == _NEUTRAL.get(op):
            return replace(like, dtype=dtype)
        zero = Constant(torch.zeros(1, 1, 1, dtype=self.dtype, device=self.device), self.node.where)
        arranged = without_unread(op, arranged, zero)
        sources = [
            each.features.sources() if isinstance(each, Signal) else float(each)
            for each in arranged
        ]
        features = self.emit(Pointwise(op, sources), len(like.features), like)
        return replace(like, features=features, dtype=dtype)

    def reduce(self, op: str, x: Signal, axes: Sequence[int], keepdim: bool = False) -> Signal:
        """Sum or maximum ("sum", "max") over axes that run over features alone."""
        axes = sorted(x.axis(axis) for axis in axes)
        for axis in axes:
            if not all(atom.axis is Axis.FEATURE or atom.size == 1 for atom in x.dims[axis]):
                self.refuse(f"it reduces over the {named(x.dims[axis])}, not only features")
        kept = [axis for axis in range(len(x.dims)) if axis not in axes]
        dims = [() if axis in axes else dim for axis, dim in enumerate(x.dims)]
        ids = x.ids
        large = [axis for axis in axes if ids.shape[axis] > 1]
        if large and not all(ids.shape[axis] == 1 for axis in kept if large[0] < axis < large[-1]):
            ids = ids.transpose([*kept, *axes])
            outer, size, inner = int(np.prod(ids.shape[: len(kept)])), -1, 1
        else:
            first, last = (large[0], large[-1]) if large else (0, -1)
            outer = int(np.prod(ids.shape[:first]))
            size = int(np.prod(ids.shape[first : last + 1]))
            inner = int(np.prod(ids.shape[last + 1 :]))
        size = len(x.features) // (outer * inner)
        features = x.features.take(ids.reshape(-1))
        if size > 1:
            body = Reduce(op, features.sources(), outer, size, inner)
            features = self.emit(body, outer * inner, x)
        if not keepdim:
            dims = [dims[axis] for axis in kept]
        return replace(x, dims=tuple(dims), features=features, dtype=self.node.dtype)

    def number(self, value: float, like: Signal, dims: Dims) -> Signal:
        """A signal that has this value everywhere."""
        data = torch.full((1, 1, 1), value, dtype=self.dtype, device=self.device)
        view = View(Constant(data, self.node.where))
        count = int(np.prod([feature_size(dim) for dim in dims]))
        zeros = np.zeros(count, np.int64)
        return replace(like, dims=dims, features=Features((view,), zeros, zeros))

    def settle(self, x: Signal) -> Signal:
        """The same numbers, computed into a value: for what one Source cannot say."""
        body = Pointwise("mul", [x.features.sources(), 1.0])
        return replace(x, features=self.emit(body, len(x.features), x))

    # Arranging operands

    def broadcast(self, *operands: Operand) -> list[Signal | Number]:
        """Bring operands to common axes; constants that are one number everywhere become it."""
        operands = self.level(operands)
        signals = [each for each in operands if isinstance(each, Signal)]
        dims = self._common_dims(operands)
        like = signals[0]
        for each in signals:
            if (each.height, each.width) != (like.height, like.width):
                self.refuse(
                    f"it joins a grid of {like.height} x {like.width} positions with one of "
                    f"{each.height} x {each.width}"
                )
        return [self.arrange(each, dims, like) for each in operands]

    def level(self, operands: Sequence[Operand]) -> tuple[Operand, ...]:
        """Operands on one grid: where some are flat, all go to that of the others, or are flat."""
        signals = [each for each in operands if isinstance(each, Signal)]
        grids = [each for each in signals if not is_flat(self, each)]
        if len(grids) == len(signals):
            return tuple(operands)
        dealt = [aligned(self, each, grids[0]) if grids else None for each in signals]
        whole = [flatten(self, each) for each in signals] if None in dealt else dealt
        moved = iter(whole)
        return tuple(next(moved) if isinstance(each, Signal) else each for each in operands)  # type: ignore[misc]

    def arrange(self, operand: Operand, dims: Dims, like: Signal) -> Signal | Number:
        """An operand with these axes, which it broadcasts to."""
        if isinstance(operand, Signal):
            return self.expand(operand, dims)
        operand = self._over_all_parts(operand, dims)
        if isinstance(operand, Tensor):
            number = self.uniform(operand)
            return self.constant(operand, dims, like) if number is None else number
        if isinstance(operand, Node):
            return self.condition(operand, dims, like)
        return operand

    def as_signal(self, operand: Operand, dims: Dims, like: Signal) -> Signal:
        """An operand with these axes, as a signal even where it is one number."""
        arranged = self.arrange(operand, dims, like)
        return arranged if isinstance(arranged, Signal) else self.number(arranged, like, dims)

    def expand(self, x: Signal, dims: Dims) -> Signal:
        """Repeat features so that the axes are `dims`."""
        own: Dims = ((),) * (len(dims) - len(x.dims)) + x.dims
        for mine, wanted in zip(own, dims, strict=True):
            fixed = [
                tuple(atom for atom in dim if atom.axis is not Axis.FEATURE)
                for dim in (mine, wanted)
            ]
            repeats = same(*fixed) and feature_size(mine) == 1
            if not same(mine, wanted) and not repeats:
                self.refuse(f"it aligns {named(mine)} with {named(wanted)}")
        ids = x.ids.reshape([feature_size(dim) for dim in own])
        return x.with_ids(np.broadcast_to(ids, [feature_size(dim) for dim in dims]), dims)

    def constant(self, tensor: Tensor, dims: Dims, like: Signal) -> Signal:
        """A constant that broadcasts to these axes."""
        spread, own = self._spread(list(tensor.shape), dims)
        data = tensor.detach().reshape(spread.atoms).permute(spread.order).reshape(spread.shape)
        if len(data) > 1 and not bool((data == data[:1]).all()):
            self.refuse("it joins a constant that differs between the images of a batch")
        data = data[0].to(self.device, self.dtype)
        for axis in (0, 1):
            first = data.narrow(axis, 0, 1)
            data = first if bool((data == first).all()) else data
        constant = Constant(data.contiguous(), self.node.where)
        signal = replace(like, dims=own, features=Features.all_of(View(constant)))
        return self.expand(replace(signal, dtype=tensor.dtype), dims)

    def condition(self, node: Node, dims: Dims, like: Signal) -> Signal:
        """A tensor that depends on the conditions alone and broadcasts to these axes."""
        if node.kind == RANDOM:
            self.refuse(f"it uses random numbers, drawn by {first_random(node).where}")
        spread, own = self._spread(list(node.shape), dims)
        images, height, width, features = spread.shape
        key = (node, *spread.atoms, None, *spread.order)
        if key not in self._results:
            table = self.derived(aten.reshape.default, node, spread.atoms)
            table = self.derived(aten.permute.default, table, spread.order)
            table = self.derived(aten.reshape.default, table, spread.shape)
            shared, axes = images == 1, (0, 1, 2, 3)
            condition = Condition(features, height, width, shared, table, axes, node.where)
            self._conditions.append(condition)
            self._results[key] = condition
        features_read = Features.all_of(View(self._results[key]))
        signal = replace(like, dims=own, features=features_read)
        return self.expand(replace(signal, dtype=node.dtype), dims)

    def uniform(self, operand: Operand) -> float | None:
        """The one number that a constant holds everywhere, if it does."""
        if isinstance(operand, Tensor):
            first = operand.reshape(-1)[:1]
            same = operand.numel() and bool((operand == first).all())
            return float(first.detach()) if same else None
        return float(operand) if isinstance(operand, float | int | bool) else None

    def derived(self, op: OpOverload, node: Node, *arguments: Any) -> Node:
        """An op of a tensor that depends on the conditions alone."""
        result = op(torch.empty(node.shape, device="meta"), *arguments)
        return Node(
            tuple(result.shape), node.dtype, node.kind, Call(op, (node, *arguments), {}, node.where)
        )

    def _over_all_parts(self, operand: Operand, dims: Dims) -> Operand:
        """A tensor that differs between some parts of the columns, repeated for the others."""
        if not isinstance(operand, Tensor | Node):
            return operand
        sizes = [1] * (len(dims) - len(operand.shape)) + list(operand.shape)
        parts = [i for i, dim in enumerate(dims) if any(atom.axis is Axis.PART for atom in dim)]
        if all(sizes[i] == 1 for i in parts) or all(sizes[i] != 1 for i in parts):
            return operand
        sizes = [dim_size(dims[i]) if i in parts else size for i, size in enumerate(sizes)]
        if isinstance(operand, Node):
            return self.derived(aten.expand.default, operand, sizes)
        return operand.expand(sizes)

    def _spread(self, sizes: list[int], dims: Dims) -> tuple["_Spread", Dims]:
        """How a tensor of these sizes becomes [images, rows, columns, features]; its own axes."""
        sizes = [1] * (len(dims) - len(sizes)) + sizes
        own: list[Dim] = []
        atoms: list[Atom] = []
        for size, dim in zip(sizes, dims, strict=True):
            whole = dim_size(dim)
            if size not in (1, whole):
                self.refuse(f"it aligns an axis of size {size} with {named(dim)}")
            fixed = tuple(atom for atom in dim if atom.axis is not Axis.FEATURE)
            own.append(dim if size == whole else fixed)
            atoms += dim if size == whole else ()
        places = {axis: [i for i, atom in enumerate(atoms) if atom.axis is axis] for axis in Axis}
        places[Axis.COLUMN] += sorted(places.pop(Axis.PART), key=lambda place: -atoms[place].step)
        order = [place for of_axis in places.values() for place in of_axis]
        shape = [int(np.prod([atoms[i].size for i in each])) for each in places.values()]
        return _Spread([atom.size for atom in atoms], order, shape), tuple(own)

    def _common_dims(self, operands: Sequence[Operand]) -> Dims:
        rank = max(len(_shape(each)) for each in operands)
        common: list[Dim] = [()] * rank
        for each in operands:
            if isinstance(each, Signal):
                for place, dim in enumerate(each.dims, rank - len(each.dims)):
                    if dim_size(common[place]) == 1:
                        common[place] = max(dim, common[place], key=dim_size)
                    elif dim_size(dim) != 1 and not same(common[place], dim):
                        self.refuse(f"it aligns {named(common[place])} with {named(dim)}")
        for each in operands:
            if not isinstance(each, Signal):
                shape = _shape(each)
                for place, size in enumerate(shape, rank - len(shape)):
                    if dim_size(common[place]) == 1 and size > 1:
                        common[place] = features_dim(size)
        atoms = [atom for dim in common for atom in dim if atom.axis is not Axis.FEATURE]
        taken = [(atom.axis, atom.step) for atom in atoms]
        if len(taken) != len(set(taken)):
            self.refuse(f"it pairs positions with one another: {describe(tuple(common))}")
        return tuple(common)

    # Walking the recording

    def resolve(self, leaf: Any) -> Any:
        """An argument of a call as rules see it."""
        if isinstance(leaf, Fixed):
            return leaf.tensor
        if not isinstance(leaf, Node) or leaf.kind != SIGNAL:
            if isinstance(leaf, Node) and leaf.kind == RANDOM:
                self.refuse(f"it uses random numbers, drawn by {first_random(leaf).where}")
            return leaf
        result = self._results[leaf if leaf.call is None else leaf.call]
        result = result if leaf.output is None else result[leaf.output]
        if result is None:
            self.refuse(f"it uses result {leaf.output} of {leaf.where}, which is not supported")
        return result

    def _apply(self, call: Call) -> Any:
        arguments = tree_map(self.resolve, bind(call))
        kinds = {type(leaf) for leaf in tree_leaves(arguments)}
        of = next((kind for kind in _SPECIAL if kind in kinds), Signal)
        with stage(f"{self.node.where}: expected an op as its rule knows it"):
            try:
                return self.apply(of, arguments)
            except LayoutError as error:
                self.refuse(str(error))

    def apply(self, of: type, arguments: dict[str, Any]) -> Any:
        """Call the rule of this op for arguments of a kind, with those of them that it takes."""
        found = RULES[of].get(self.op) or RULES[of].get(self.op.overloadpacket)
        if found is None:
            if of is Run:
                raise SequenceError(f"{self.node.where}: {_SPECIAL[of]}")
            reason = _SPECIAL.get(of) or _REASONS.get(self.op.overloadpacket)
            self.refuse(reason or "there is no rule for this op")
        parameters = inspect.signature(found).parameters
        takes_all = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
        return found(self, **{k: v for k, v in arguments.items() if takes_all or k in parameters})

    def _input(self) -> Signal:
        shape = self.captured.input.shape
        images = Atom(Axis.BATCH, shape[0])
        grid = (
            [(), (), (1, shape[-1]), (1, shape[-1]), shape[-2:]][len(shape)]
            if len(shape) < 5
            else ()
        )
        if not grid:
            self.refuse(f"expected an input [N, C, H, W], [N, C, T] or [N, T], got {list(shape)}")
        height, width = grid
        rows, columns = (Atom(Axis.ROW, height),), (Atom(Axis.COLUMN, width),)
        channels = features_dim(shape[1]) if len(shape) > 2 else ()
        dims: Dims = {
            2: ((images,), columns),
            3: ((images,), channels, columns),
            4: ((images,), channels, rows, columns),
        }[len(shape)]
        value = Value(max(feature_size(channels), 1), height, width, Input(), where="the input")
        self.values.append(value)
        features = Features.all_of(_view_of(value))
        return Signal(dims, features, height, width, 1, 1, self.captured.input.dtype)

    def _output_sizes(self, output: Signal) -> tuple[int, ...]:
        """The sizes of the output's axes of features, if a caller can tell what is where."""
        taken = [atom.axis for dim in output.dims for atom in dim if atom.size > 1]
        for axis, size in ((Axis.BATCH, 2), (Axis.ROW, output.height), (Axis.COLUMN, output.width)):
            if axis not in taken and size > 1:
                self.require_order(output.dims)
                self.refuse(f"the output {describe(output.dims)} has no axis of {axis.value}")
        # What stands at [n, .., i, j] counts as the prediction of pixel (i, j) of image n.
        order = [axis for axis in Axis if axis is not Axis.FEATURE and axis in taken]
        first = taken.index(order[1]) if len(order) > 1 else 0
        if taken[0] is not Axis.BATCH or taken[first : first + len(order) - 1] != order[1:]:
            self.refuse(
                f"expected an output [N, ..., H, W, ...], rows right before columns, got "
                f"{describe(output.dims)}"
            )
        sizes: list[int] = []
        for dim in output.dims:
            atoms = [atom for atom in dim if atom.size > 1]
            if is_features(dim):
                sizes += [dim_size(dim)] if only_axis(dim) is None else []
            elif feature_size(dim) > 1:
                fixed = [atom.axis for atom in atoms if atom.axis is not Axis.FEATURE]
                # One axis may hold all positions and features, if its size tells how many.
                if fixed != order[1:] or (output.height, output.width) != self.grid:
                    self.refuse(f"the output mixes {named(dim)} in one axis")
                sizes += [atom.size for atom in atoms if atom.axis is Axis.FEATURE]
        return tuple(sizes)


@dataclass(frozen=True)
class _Spread:
    """A reshape to `atoms`, a permutation by `order`, a reshape to `shape`."""

    atoms: list[int]
    order: list[int]
    shape: list[int]


_SPECIAL = {  # and why an op of them is refused that has no rule
    Scores: "there is no rule for this op on the scores of an attention",
    Run: "it takes some of the pixels in raster order; only those of a shifted image are supported",
}
_FUSED = "this fused form of attention is not supported"
_RECURRENT = "a recurrent layer within TorchScript is not supported"
_REASONS: dict[OpOverloadPacket, str] = {
    getattr(aten, name): reason
    for reason, names in {
        _FUSED: ("_native_multi_head_attention", "_transformer_encoder_layer_fwd"),
        _RECURRENT: ("mkldnn_rnn_layer", "_cudnn_rnn", "_thnn_fused_lstm_cell"),
    }.items()
    for name in names
}


def named(dim: Dim) -> str:
    """Spell out one axis."""
    return describe((dim,))[1:-1]


def _shape(operand: Operand) -> tuple[int, ...]:
    return () if isinstance(operand, float | int | bool) else tuple(operand.shape)


def _view_of(value: Value) -> View:
    return View(value, bottom=value.height, right=value.width)


def _needed(
    values: list[Value], conditions: list[Condition], outputs: Sources, start: Value
) -> tuple[list[Value], list[Condition]]:
    """The values and conditions that the outputs are computed from, and the input."""
    wanted: set[Any] = {start} | {source.origin for source in outputs}
    for value in reversed(values):
        if value in wanted:
            wanted |= {source.origin for source in sources_of(value)}
    return [v for v in values if v in wanted], [c for c in conditions if c in wanted]


def sources_of(value: Value) -> list[Source]:
    """Everything that a value reads."""
    body = value.body
    if isinstance(body, Conv | Reduce | Flatten | Unflatten):
        return list(body.inputs)
    if isinstance(body, Lookup):
        return list(body.indices)
    if isinstance(body, Attend):
        return [*body.queries, *body.keys, *body.values]
    if isinstance(body, Previous):
        return list(body.inputs)
    if isinstance(body, Pointwise):
        return [each for operand in body.operands if isinstance(operand, tuple) for each in operand]
    return []
