"""What a recording consists of: tensors, and the pure ops that computed them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._pytree import tree_leaves, tree_map

# Kinds of results. What mixes several is of the last of them in this order.
CONDITIONAL, SIGNAL, RANDOM = "conditional", "signal", "random"
KINDS = (CONDITIONAL, SIGNAL, RANDOM)


@dataclass(eq=False)
class Fixed:
    """A tensor that depends on nothing recorded: a weight, a mask, a table of positions."""

    tensor: Tensor


@dataclass(eq=False)
class Call:
    """One pure op. Tensors among the arguments are `Node` or `Fixed`."""

    op: OpOverload
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    where: str

    def nodes(self) -> list["Node"]:
        """The nodes among the arguments."""
        return [leaf for leaf in tree_leaves((self.args, self.kwargs)) if isinstance(leaf, Node)]

    def run(self, value: Callable[["Node"], Tensor]) -> Any:
        """Compute it again, with `value(node)` for every node among the arguments."""

        def real(leaf: Any) -> Any:
            if isinstance(leaf, Fixed):
                return leaf.tensor
            return value(leaf) if isinstance(leaf, Node) else leaf

        args, kwargs = tree_map(real, (self.args, self.kwargs))
        return self.op(*args, **kwargs)


@dataclass(eq=False)
class Node:
    """A tensor of the recording: result number `output` of `call` (None: its only one), or input.

    `shape` and `dtype` are those of the recorded run. `name` is that of an input.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    kind: str
    call: Call | None = None
    output: int | None = None
    name: str = ""

    @property
    def where(self) -> str:
        """The user's operation: op, module path and source line."""
        return self.call.where if self.call else f"the input {self.name}"


Reference = Node | Fixed


def bind(call: Call) -> dict[str, Any]:
    """The arguments of a call by the names of its op's schema, defaults included."""
    bound = {}
    for place, argument in enumerate(call.op._schema.arguments):
        if place < len(call.args):
            bound[argument.name] = call.args[place]
        else:
            bound[argument.name] = call.kwargs.get(argument.name, argument.default_value)
    return bound


def signals_before(output: Node) -> list[Node]:
    """The signals that `output` is computed from and itself, each after what it needs."""
    order: list[Node] = []
    done: set[Node] = set()
    stack = [(output, False)]
    while stack:
        node, ready = stack.pop()
        if ready:
            order.append(node)
        elif node not in done and node.kind == SIGNAL:
            done.add(node)
            stack.append((node, True))
            if node.call is not None:
                stack += [(each, False) for each in reversed(node.call.nodes())]
    return order


def first_random(node: Node) -> Node:
    """The draw of random numbers that a node of that kind depends on."""
    while node.call is not None:
        before = [each for each in node.call.nodes() if each.kind == RANDOM]
        if not before:
            break
        node = before[0]
    return node
