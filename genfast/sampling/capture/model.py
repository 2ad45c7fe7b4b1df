"""The first stage of compiling a sampler: what a module computes from its input, as a recording.

`torch.fx` tracers replace tensors and so stumble over models that write their masks into their
weights or read numbers out of constants. Here the model runs on real tensors, exactly as always,
while a dispatch mode (`tape.Tape`) notes the ops that depend on the input.
"""

import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from genfast.errors import InputError, UnsupportedModelError
from genfast.nn import evaluating
from genfast.sampling.capture.origin import call_user
from genfast.sampling.capture.recording import CONDITIONAL, SIGNAL, Fixed, Node
from genfast.sampling.capture.tape import Functions, Tape
from genfast.sampling.stages import first_line
from genfast.sampling.values import Condition

Forward = Callable[..., Tensor]
TRACED_BATCH = 2


@dataclasses.dataclass
class Captured:
    """The recording of a forward pass.

    `output` depends on `input` and, through nodes of kind "conditional", on `conditions`. `dtype`
    and `device` are those that the numbers are computed in. `examples` are the conditions that it
    was recorded with; those that begin with an axis of size 2 hold one entry per image, the others
    are shared by all images.
    """

    input: Node
    output: Node
    conditions: dict[str, Node]
    examples: dict[str, Tensor]
    dtype: torch.dtype
    device: torch.device

    def is_shared(self, name: str) -> bool:
        """Whether condition `name` is the same for all images."""
        return self.examples[name].shape[:1] != (TRACED_BATCH,)

    def condition_tensors(
        self, tables: Sequence[Condition], conditions: Mapping[str, Tensor], n: int
    ) -> list[Tensor]:
        """Compute what depends on the conditions alone, as the tables of a program.

        Args:
            tables: the conditions of a `Graph` lowered from this recording.
            conditions: the conditions by name; [n, ...] each, or of the recorded shape if shared.
            n: number of images.

        Returns:
            For every table [n, rows, columns, features], or [1, ...] if it is shared.

        Raises:
            InputError: a condition is missing, unknown or of another shape than when compiling.
        """
        tensors = {
            name: self._checked(name, conditions, n).to(self.device, example.dtype)
            for name, example in self.examples.items()
        }
        unknown = sorted(set(conditions) - set(self.examples))
        if unknown:
            known = sorted(self.examples)
            raise InputError(f"conditions: expected names in {known}, got {unknown}")
        chunks: list[list[Tensor]] = [[] for _ in tables]
        with torch.no_grad():
            for first in range(0, max(n, 1), TRACED_BATCH):
                results = self._evaluate(tables, self._chunk(tensors, first, n))
                for table, chunk, result in zip(tables, chunks, results, strict=True):
                    if first == 0 or not table.shared:
                        chunk.append(result)
                if all(table.shared for table in tables):
                    break
        return [
            chunk[0] if table.shared else torch.cat(chunk)[:n]
            for table, chunk in zip(tables, chunks, strict=True)
        ]

    def first_mixed(self, tables: Sequence[Condition]) -> Condition | None:
        """A table in which one image's numbers depend on the conditions of another, if any.

        Found by changing those of the second image: real numbers get noise, all others those of
        the first image, which are the same if the examples do not differ.
        """
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(0)
            changed = {
                name: each
                if self.is_shared(name)
                else torch.stack(
                    [each[0], each[1] + torch.randn_like(each[1])]
                    if each.is_floating_point()
                    else [each[0], each[0]]
                )
                for name, each in self.examples.items()
            }
        with torch.no_grad():
            before = self._evaluate(tables, self.examples)
            after = self._evaluate(tables, changed)
        for table, a, b in zip(tables, before, after, strict=True):
            # Kernels may round a row of a batch otherwise when another row changes.
            if not torch.allclose(a[0], b[0], rtol=1e-2, atol=1e-3, equal_nan=True):
                return table
        return None

    def _checked(self, name: str, conditions: Mapping[str, Tensor], n: int) -> Tensor:
        example, shared = self.examples[name], self.is_shared(name)
        rule = tuple(example.shape) if shared else (n, *example.shape[1:])
        if name not in conditions:
            raise InputError(f"conditions: expected {name} of shape {rule}, got none")
        tensor = conditions[name]
        if tuple(tensor.shape) != rule:
            got = f"{name}.shape={tuple(tensor.shape)}"
            raise InputError(f"conditions: expected {name} of shape {rule}, got {got}")
        return tensor

    def _chunk(self, tensors: dict[str, Tensor], first: int, n: int) -> dict[str, Tensor]:
        """As many images as were recorded; the last image stands in for those beyond n."""
        wanted = torch.arange(first, first + TRACED_BATCH, device=self.device).clamp(max=n - 1)
        return {
            name: tensor if self.is_shared(name) or n == 0 else tensor[wanted]
            for name, tensor in tensors.items()
        }

    def _evaluate(
        self, tables: Sequence[Condition], conditions: Mapping[str, Tensor]
    ) -> list[Tensor]:
        evaluator = Evaluator({self.conditions[name]: conditions[name] for name in conditions})
        results = []
        for table in tables:
            tensor = evaluator(table.node).permute(table.axes)
            images = 1 if table.shared else TRACED_BATCH
            shape = (images, table.height, table.width, table.features)
            results.append(tensor.reshape(shape).to(self.dtype))
        return results


class Evaluator:
    """Computes nodes of a recording again, from other inputs, each once."""

    def __init__(self, inputs: Mapping[Node, Tensor]) -> None:
        self._results: dict[Any, Any] = dict(inputs)

    def __call__(self, node: Node) -> Tensor:
        """Return the numbers of a node; recursion is unrolled, for recordings are deep."""
        stack = [node]
        while stack:
            call = stack[-1].call
            if stack[-1] in self._results or call in self._results:
                stack.pop()
                continue
            assert call is not None, "an input without a value"
            missing = [each for each in call.nodes() if self._missing(each)]
            if missing:
                stack += missing
            else:
                self._results[call] = call.run(self._value)
        return self._value(node)

    def _missing(self, node: Node) -> bool:
        return node not in self._results and node.call not in self._results

    def _value(self, node: Node) -> Tensor:
        if node in self._results:
            result: Tensor = self._results[node]
            return result
        result = self._results[node.call]
        return result if node.output is None else result[node.output]


def capture(
    model: nn.Module,
    x: Tensor,
    conditions: Mapping[str, Tensor] | None = None,
    forward: Forward | None = None,
) -> Captured:
    """Record what the model computes from x, in evaluation mode and without gradients.

    The model runs twice: once so that masks and caches that its forward writes settle, and once
    recorded. It is changed in no other way, and is neither copied nor left in another mode.

    Args:
        model: any module.
        x: an example of the input, [2, ...]. It is not changed.
        conditions: examples of what the output depends on besides, each [2, ...] or shared.
        forward: `forward(model, x, **conditions)` returns the output; by default it is
            `model(x, **conditions)`, its entry "logits", or the first or only tensor in it.

    Raises:
        UnsupportedModelError: the forward fails, or does what cannot be recorded.
        InputError: x is not a batch of two.
    """
    if x.dim() < 2 or x.shape[0] != TRACED_BATCH:
        raise InputError(f"capture: expected x of shape [2, ...], got x.shape={tuple(x.shape)}")
    forward = forward or default_forward
    examples = dict(conditions or {})
    with evaluating(model), _undisturbed(x):
        try:
            forward(model, x.clone(), **{name: each.clone() for name, each in examples.items()})
        except UnsupportedModelError:
            raise
        except Exception as error:
            what = f"x of shape {tuple(x.shape)}, dtype {x.dtype}"
            reason = f"the model fails on {what}: {first_line(error)}"
            raise UnsupportedModelError(reason) from error
        tape = Tape(model)
        x, given = x.clone(), {name: each.clone() for name, each in examples.items()}
        node = tape.input(x, "x", SIGNAL)
        nodes = {name: tape.input(each, name, CONDITIONAL) for name, each in given.items()}
        try:
            with Functions(tape), tape:
                output = call_user(forward, model, x, **given)
        except Exception:
            if tape.refusal is not None:  # TorchScript raises its own error instead
                raise tape.refusal from None
            raise
        result = tape.reference(output)
    if isinstance(result, Fixed) or result.kind == CONDITIONAL:
        raise UnsupportedModelError("the output of the model does not depend on its input")
    dtype, device = _arithmetic(model, output)
    return Captured(node, result, nodes, examples, dtype, device)


def default_forward(model: nn.Module, x: Tensor, **conditions: Tensor) -> Tensor:
    """Call the model and pick the tensor out of what it returns."""
    return pick_tensor(model(x, **conditions), len(x))


def pick_tensor(output: Any, n: int) -> Tensor:
    """The output itself, its entry or attribute "logits", or the first tensor of a sequence.

    What holds no more than a number for each of `n` images, as a loss does, or has another number
    of images is no candidate.

    Raises:
        UnsupportedModelError: there is no tensor, or several with other names.
    """
    if isinstance(output, Tensor):
        return output
    found: dict[str, Any] = {}
    if isinstance(output, Mapping):
        found = dict(output)
    elif dataclasses.is_dataclass(output):
        found = {each.name: getattr(output, each.name) for each in dataclasses.fields(output)}
    elif isinstance(output, tuple | list):
        fields = getattr(output, "_fields", range(len(output)))
        found = {str(name): each for name, each in zip(fields, output, strict=True)}
    elif hasattr(output, "__dict__"):
        found = dict(vars(output))
    tensors = {name: each for name, each in found.items() if isinstance(each, Tensor)}
    if "logits" in tensors:
        return tensors["logits"]
    fitting = {
        name: each for name, each in tensors.items() if each.numel() > n and each.shape[0] % n == 0
    }
    tensors = fitting or tensors
    if len(tensors) == 1 or (tensors and isinstance(output, tuple | list)):
        return next(iter(tensors.values()))
    got = f"{type(output).__name__} with tensors {sorted(tensors)}"
    raise UnsupportedModelError(
        f"the model's output: expected a tensor, or one called logits, got a {got}; "
        "forward= can choose"
    )


def _arithmetic(model: nn.Module, output: Tensor) -> tuple[torch.dtype, torch.device]:
    for parameter in model.parameters():
        if parameter.is_floating_point():
            return parameter.dtype, parameter.device
    dtype = output.dtype if output.is_floating_point() else torch.get_default_dtype()
    return dtype, output.device


@contextmanager
def _without_fast_path() -> Iterator[None]:
    """Attention modules call their parts, which have rules, instead of one op that is the whole."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@contextmanager
def _undisturbed(x: Tensor) -> Iterator[None]:
    """Compiled parts of the model run as written, and global random states stay as they are."""
    with ExitStack() as stack:
        # In inference mode a dispatch mode would see composite ops whole.
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.random.fork_rng([x.device] if x.is_cuda else []))
        stack.enter_context(_without_fast_path())
        dynamo = "torch._dynamo" in sys.modules  # nothing can be compiled if it never was imported
        stack.enter_context(torch.compiler.set_stance("force_eager") if dynamo else nullcontext())
        yield
