"""A recording of what a forward pass does to its input, op by op, while it runs on real tensors.

Everything that does not depend on a recorded tensor simply happens, as it would without us: masks
are multiplied, weights are normalised, buffers are cached. What depends on one is noted as a pure
function of earlier results; writes in place become new versions of a tensor and of all its views.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

from genfast.errors import UnsupportedModelError
from genfast.ops._masked_conv2d_epilogue import composed as masked_conv2d_in_parts
from genfast.ops.causal_conv1d import composed as causal_conv1d_in_parts
from genfast.sampling.capture.attention import FUSED, parts_of_fused
from genfast.sampling.capture.origin import is_assertion, name_modules, user_line
from genfast.sampling.capture.recording import (
    KINDS,
    RANDOM,
    SIGNAL,
    Call,
    Fixed,
    Node,
    Reference,
)

aten = torch.ops.aten

_UNINITIALISED = (aten.empty.memory_format, aten.empty_like.default, aten.new_empty.default)
_VALUE_FREE = {  # of their tensor arguments they take the shape, dtype and device alone
    *_UNINITIALISED,
    aten.zeros_like.default,
    aten.ones_like.default,
    aten.full_like.default,
    aten.new_zeros.default,
    aten.new_ones.default,
    aten.new_full.default,
    aten.new_empty_strided.default,
}
_UNDO = {  # how to write a new value of a view into what it is a view of
    aten.slice.Tensor: aten.slice_scatter.default,
    aten.select.int: aten.select_scatter.default,
}
_SPLITS = {
    aten.split.Tensor,
    aten.split_with_sizes.default,
    aten.unsafe_split.Tensor,
    aten.unsafe_split_with_sizes.default,
}
_RESHAPING = {
    aten.view.default,
    aten._unsafe_view.default,
    aten._reshape_alias.default,
    aten.unsqueeze.default,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.detach.default,
    aten.alias.default,
    aten.lift_fresh.default,
}


@dataclass(eq=False)
class _Alias:
    """What is known of one tensor object, which may share memory with others.

    It is `view` (op, arguments after the first, keyword arguments, output) of `parent`; a root has
    none. In memory that holds recorded numbers, `reference` is its contents as of `version` of the
    root; elsewhere the tensor itself is.
    """

    tensor: Tensor
    shape: tuple[int, ...]  # of the tensor, until an unsqueeze_ or the like
    reference: Reference | None = None
    version: int = 0
    parent: "_Alias | None" = None
    view: tuple[OpOverload, tuple[Any, ...], dict[str, Any], int | None] | None = None

    @property
    def is_old(self) -> bool:
        return self.version != self.root.version

    @property
    def root(self) -> "_Alias":
        return self if self.parent is None else self.parent.root


class Tape(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Record what depends on the inputs of a model while its forward runs in this context.

    Attributes:
        refusal: the error that was raised about an operation, if one was.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._names = name_modules(model)
        self._aliases: dict[int, _Alias] = {}  # by id of the tensor, which they keep alive
        self._recorded: dict[int, _Alias] = {}  # storages that hold recorded numbers: their root
        self.refusal: UnsupportedModelError | None = None
        self._fixed: dict[int, list[Fixed]] = {}  # by storage: constants that were referred to

    def input(self, tensor: Tensor, name: str, kind: str) -> Node:
        """Start recording what depends on `tensor`."""
        node = Node(tuple(tensor.shape), tensor.dtype, kind, name=name)
        self._recorded[_storage(tensor)] = self._remember(tensor, node)
        return node

    def reference(self, tensor: Tensor) -> Reference:
        """What `tensor` holds now."""
        return self._current(self._alias(tensor))

    def is_recorded(self, tensor: Tensor) -> bool:
        """Whether `tensor` depends on an input."""
        return _storage(tensor) in self._recorded

    def whole(self, op: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run and note an op that otherwise would arrive in its parts."""
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        kinds = [each.kind for each in map(self.reference, tensors) if isinstance(each, Node)]
        with _disable_current_modes():
            return self._record(op, args, kwargs, tensors, max(kinds, key=KINDS.index))

    def refuse(self, what: str, reason: str) -> NoReturn:
        """Raise UnsupportedModelError about the operation that runs now."""
        self.refusal = UnsupportedModelError(f"{user_line(what, self._names)}: {reason}")
        raise self.refusal

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # to skip it, torch would import all of it

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run one op, and note it if it depends on an input."""
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if torch.Tag.nondeterministic_seeded in func.tags and _trains(func, args, kwargs):
            return self._record(func, args, kwargs, tensors, RANDOM)
        recorded = any(self.is_recorded(tensor) for tensor in tensors)
        if recorded and (parts := _parts_of(func)) is not None:
            with self:
                return parts(*args, **kwargs)
        if recorded and func not in _VALUE_FREE:
            kinds = [each.kind for each in map(self.reference, tensors) if isinstance(each, Node)]
            return self._record(func, args, kwargs, tensors, max(kinds, key=KINDS.index))
        for tensor in _written(func, args, kwargs):
            self._keep_old_numbers(tensor)
        out = func(*args, **kwargs)
        if func in _UNINITIALISED:
            out.zero_()  # numbers that nobody wrote must not decide what can be compiled
        if func not in _VALUE_FREE:
            self._note_views(func, args, kwargs, out)
        return out

    def _record(
        self,
        func: OpOverload,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        tensors: list[Tensor],
        kind: str,
    ) -> Any:
        if not any("Tensor" in str(each.type) for each in func._schema.returns):
            if not is_assertion():
                self.refuse(
                    str(func),
                    "this reads a number that depends on the input into Python (.item(), bool(), "
                    "if, for), so what is computed next is not fixed",
                )
            return func(*args, **kwargs)  # a check decides nothing but whether to stop
        before = {id(tensor): self.reference(tensor) for tensor in tensors}

        def noted(leaf: Any) -> Any:
            return before[id(leaf)] if isinstance(leaf, Tensor) else leaf

        noted_args, noted_kwargs = tree_map(noted, (args, kwargs))
        call = Call(func, noted_args, noted_kwargs, user_line(str(func), self._names))
        if torch.Tag.inplace_view in func.tags:
            return self._view_in_place(call, args, kwargs)
        written = _written(func, args, kwargs)
        if written:
            if len(written) != 1 or not args or written[0] is not args[0]:
                self.refuse(str(func), "only ops that write into their first argument are known")
            self._write(call, written[0], kind)
            return func(*args, **kwargs)
        out = func(*args, **kwargs)
        self._note_views(func, args, kwargs, out)
        for number, tensor in _results(out):
            node = Node(tuple(tensor.shape), tensor.dtype, kind, call, number)
            alias = self._aliases.get(id(tensor))
            if alias is None:
                self._recorded[_storage(tensor)] = self._remember(tensor, node)
            else:
                alias.reference, alias.version = node, alias.root.version
        return out

    def _write(self, call: Call, tensor: Tensor, kind: str) -> None:
        """Give `tensor`, and everything that it is a view of, the result of an op in place."""
        alias = self._alias(tensor)
        chain = [alias]
        while chain[-1].parent is not None:
            chain.append(chain[-1].parent)
        root = chain[-1]
        if _storage(tensor) not in self._recorded:
            self._keep_old_numbers(tensor)
            with _disable_current_modes():  # what stays of a constant that is written in part
                root.reference = Fixed(root.tensor.clone())
            self._recorded[_storage(tensor)] = root
        value = self._pure(call, alias, kind)
        values = [value]
        for child, parent in pairwise(chain):
            value = self._undo_view(call, child, self._current(parent), value, kind)
            values.append(value)
        root.version += 1
        for each, value in zip(chain, values, strict=True):
            each.reference, each.version = value, root.version

    def _pure(self, call: Call, target: _Alias, kind: str) -> Reference:
        """The result of an op in place, as a result of its own."""

        def derive(op: OpOverload, args: Any, kwargs: Any = None, shape: Any = None) -> Node:
            shape = target.shape if shape is None else shape
            new = Call(op, args, kwargs or {}, call.where)
            return Node(shape, target.tensor.dtype, kind, new)

        name = call.op._schema.name.split("::")[1]
        if name in ("zero_", "fill_", "copy_"):  # these forget what was there
            source: Any = 0 if name == "zero_" else call.args[1]
            if not isinstance(source, Node):
                with _disable_current_modes():
                    number = source.tensor if isinstance(source, Fixed) else torch.tensor(source)
                    return Fixed(number.to(target.tensor.dtype).expand(target.shape).clone())
            result = source
            if source.dtype != target.tensor.dtype:
                to = {"dtype": target.tensor.dtype}
                result = derive(aten._to_copy.default, (result,), to, source.shape)
            if source.shape != target.shape:
                result = derive(aten.expand.default, (result, list(target.shape)))
            return result
        packet = getattr(aten, name.removesuffix("_"), None)
        pure = getattr(packet, call.op._overloadname, None) if name.endswith("_") else None
        if pure is None and kind != RANDOM:
            self.refuse(str(call.op), "this op in place has no pure form")
        return derive(pure or call.op, call.args, call.kwargs)

    def _undo_view(
        self, call: Call, child: _Alias, whole: Reference, value: Reference, kind: str
    ) -> Reference:
        assert child.view is not None
        assert child.parent is not None
        op, args, kwargs, output = child.view
        shape = child.parent.shape
        new: tuple[OpOverload, tuple[Any, ...], dict[str, Any]]
        if op in _UNDO:
            new = (_UNDO[op], (whole, value, *args), kwargs)
        elif op in _RESHAPING:
            if child.shape == shape:
                return value
            new = (aten.reshape.default, (value, list(shape)), {})
        elif op is aten.t.default:
            new = (aten.permute.default, (value, [1, 0][-len(shape) :]), {})
        elif op is aten.transpose.int:
            new = (op, (value, *args), kwargs)
        elif op is aten.permute.default:
            order = [axis % len(shape) for axis in args[0]]
            new = (aten.permute.default, (value, [order.index(i) for i in range(len(order))]), {})
        elif op in _SPLITS and output is not None:
            axis = args[1] if len(args) > 1 else kwargs.get("dim", 0)
            sizes = args[0]
            start = output * sizes if isinstance(sizes, int) else sum(sizes[:output])
            stop = start + child.shape[axis]
            new = (aten.slice_scatter.default, (whole, value, axis, start, stop), {})
        elif op is aten.unbind.int and output is not None:
            axis = args[0] if args else kwargs.get("dim", 0)
            new = (aten.select_scatter.default, (whole, value, axis, output), {})
        else:
            self.refuse(str(call.op), f"a write into a view made by {op} is not understood")
        if isinstance(value, Fixed) and isinstance(whole, Fixed):
            with _disable_current_modes():
                numbers = [each.tensor if isinstance(each, Fixed) else each for each in new[1]]
                return Fixed(new[0](*numbers, **new[2]).clone())
        return Node(shape, child.tensor.dtype, kind, Call(*new, call.where))

    def _view_in_place(self, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """`unsqueeze_` and its like: the same tensor is from now on a view of what it was."""
        name = call.op._schema.name.split("::")[1].removesuffix("_")
        op = getattr(getattr(aten, name, None), call.op._overloadname, None)
        tensor = args[0]
        old = self._alias(tensor)
        source = self._current(old)
        if op is None or not isinstance(source, Node):
            self.refuse(str(call.op), "this change of a tensor's shape in place is not understood")
        out = call.op(*args, **kwargs)
        pure = Call(op, call.args, call.kwargs, call.where)
        node = Node(tuple(tensor.shape), tensor.dtype, source.kind, pure)
        view = (op, call.args[1:], call.kwargs, None)
        new = _Alias(tensor, node.shape, node, old.root.version, old, view)
        self._aliases[id(tensor)] = new
        return out

    def _current(self, alias: _Alias) -> Reference:
        """What an alias holds now: taken again from its parent if its memory was written since."""
        storage = _storage(alias.tensor)
        if storage not in self._recorded:
            known = self._fixed.setdefault(storage, [])
            for fixed in known:
                if fixed.tensor is alias.tensor:
                    return fixed
            known.append(Fixed(alias.tensor))
            return known[-1]
        if alias.parent is not None and (alias.reference is None or alias.is_old):
            whole = self._current(alias.parent)
            assert alias.view is not None
            op, args, kwargs, output = alias.view
            if isinstance(whole, Fixed):
                with _disable_current_modes():
                    out = op(whole.tensor, *args, **kwargs)
                alias.reference = Fixed(out if output is None else out[output])
            else:
                call = Call(op, (whole, *args), kwargs, whole.where)
                dtype = alias.tensor.dtype
                alias.reference = Node(alias.shape, dtype, whole.kind, call, output)
            alias.version = alias.root.version
        assert alias.reference is not None
        return alias.reference

    def _alias(self, tensor: Tensor) -> _Alias:
        alias = self._aliases.get(id(tensor)) or self._remember(tensor, None)
        root = self._recorded.get(_storage(tensor))
        if root is not None and alias.root is not root:
            self.refuse(
                "a tensor",
                "its memory was written through another tensor, and how the two overlap is unknown",
            )
        return alias

    def _remember(self, tensor: Tensor, reference: Reference | None) -> _Alias:
        alias = _Alias(tensor, tuple(tensor.shape), reference)
        self._aliases[id(tensor)] = alias
        return alias

    def _keep_old_numbers(self, tensor: Tensor) -> None:
        """Before a constant is written: calls noted so far have seen the numbers of before."""
        for fixed in self._fixed.pop(_storage(tensor), []):
            with _disable_current_modes():
                fixed.tensor = fixed.tensor.clone()

    def _note_views(
        self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any
    ) -> None:
        base = args[0] if args and isinstance(args[0], Tensor) else None
        for number, tensor in _results(out):
            if base is None or tensor is base or _storage(tensor) != _storage(base):
                continue
            parent = self._alias(base)
            alias = self._remember(tensor, None)
            alias.parent, alias.view = parent, (func, args[1:], kwargs, number)
            alias.version = parent.root.version


class Functions(TorchFunctionMode):
    """Around a `Tape`: functions whose parts would be harder to understand than the whole."""

    def __init__(self, tape: Tape) -> None:
        super().__init__()
        self._tape = tape

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Replace or refuse a few functions of recorded tensors; call all others."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in _SPECIAL:
            leaves = tree_leaves((args, kwargs))
            references = [self._tape.reference(x) for x in leaves if isinstance(x, Tensor)]
            kinds = {each.kind for each in references if isinstance(each, Node)}
            if SIGNAL in kinds or (kinds and _SPECIAL[name] in ("", _LEAVES)):
                if name == "one_hot":
                    return self._one_hot(*args, **kwargs)
                if name in RECURRENT and isinstance(args[2], list):
                    return self._tape.whole(getattr(aten, name).input, args, kwargs)
                self._tape.refuse(name, _SPECIAL[name])
        return func(*args, **kwargs)

    def _one_hot(self, tensor: Tensor, num_classes: int = -1) -> Tensor:
        if num_classes < 1:
            self._tape.refuse("one_hot", "expected num_classes, which else depends on the input")
        classes = torch.arange(num_classes, device=tensor.device)
        return (tensor.unsqueeze(-1) == classes).long()


_LEAVES = "this takes numbers that depend on the input out of PyTorch"
RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu")  # recorded whole, unless (data, lengths, ..)
_PACKED = "packed sequences are not supported; all events are equally long"
_CELL = "a loop over time steps is not supported; write it with nn.LSTM, nn.GRU or nn.RNN"
_SPECIAL = {
    "one_hot": "",  # reads the range of its indices into Python, to check it
    **dict.fromkeys(("numpy", "__array__", "tolist", "__dlpack__"), _LEAVES),
    **dict.fromkeys((*RECURRENT, "_pack_padded_sequence"), _PACKED),
    **dict.fromkeys(("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"), _CELL),
}


@cache
def _parts_of(func: OpOverload) -> Callable[..., Any] | None:
    """What an op is made of, where that is recorded instead of the op."""
    if func._name in FUSED:
        return parts_of_fused(func)
    match func._name:
        case "genfast::causal_conv1d":
            return causal_conv1d_in_parts
        case "genfast::masked_conv2d_activation":
            return masked_conv2d_in_parts
        case "genfast::_masked_conv2d_activation":  # what runs where gradients are recorded
            return _without_kept
    # Functions of torch arrive in their parts, except below autograd, where ours run.
    composite = "CompositeImplicitAutograd"
    if torch._C._dispatch_has_kernel_for_dispatch_key(func._name, composite):
        decompose: Callable[..., Any] = func.decompose
        return decompose
    return None


def _without_kept(*arguments: Any) -> tuple[Tensor, Tensor]:
    """The operator that keeps the pre-activation beside its result, for a backward to come."""
    *given, _keep_pre = arguments
    out = masked_conv2d_in_parts(*given)
    return out, out.new_empty((0,))


def _results(out: Any) -> list[tuple[int | None, Tensor]]:
    """The tensors among the results of an op, each with its number if there can be several."""
    if isinstance(out, Tensor):
        return [(None, out)]
    several = out if isinstance(out, tuple | list) else ()
    return [(i, each) for i, each in enumerate(several) if isinstance(each, Tensor)]


def _written(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors that an op writes into."""
    if not func._schema.name.endswith("_") and not _trains(func, args, kwargs):
        return []  # of running statistics, say
    found: list[Any] = []
    for place, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            found.append(args[place] if place < len(args) else kwargs.get(argument.name))
    return [leaf for leaf in tree_leaves(found) if isinstance(leaf, Tensor)]


def _trains(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """False for an op that is told not to train, or to drop nothing; then it is not random."""
    for place, argument in enumerate(func._schema.arguments):
        if argument.name in ("train", "training", "dropout_p"):
            default = kwargs.get(argument.name, argument.default_value)
            return bool(args[place] if place < len(args) else default)
    return True


def _storage(tensor: Tensor) -> int:
    """Tells memory apart: also that which NumPy shares with several storages."""
    storage = tensor.untyped_storage()
    return int(storage.data_ptr() or -storage._cdata)
