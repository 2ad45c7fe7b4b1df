"""What autograd may ask of any op: batched gradients, hooks, penalties, the same bits twice."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest
import torch

from genfast import ops
from genfast.ops.gan_loss import _KINDS as GAN_KINDS

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Op:
    """A public op with arguments.

    Attributes:
        call: From the tensors to the output.
        reference: The same in plain PyTorch.
        tensors: Floating point arguments by name; those of a larger problem if asked.
        twice: Whether the op promises second derivatives.
    """

    call: Callable[..., torch.Tensor]
    reference: Callable[..., torch.Tensor]
    tensors: Callable[[bool], Tensors]
    twice: bool = True


def convolution(function, activation, rectify, residual, **tensors):
    channels = {"concat_elu": 8, "gate": 2}.get(activation, 4)
    x = tensors["x"]
    added = torch.ones(x.shape[0], channels, *x.shape[2:]) if residual else None
    mask = torch.tril(torch.ones(3, 3))
    options = {"activation": activation, "rectify": rectify, "residual": added, "padding": 1}
    return function(mask=mask, **tensors, **options)


def convolved(large: bool) -> Tensors:
    side = 40 if large else 5
    return {
        "x": torch.randn(2, 3, side, side),
        "weight": torch.randn(4, 3, 3, 3),
        "bias": torch.randn(4),
    }


def layer(large: bool) -> Tensors:
    shapes = {
        "x": (2, 3, 4000 if large else 7),
        "weight": (4, 3, 2),
        "bias": (4,),
        "condition": (2, 4),
        "residual_weight": (3, 2, 1),
        "residual_bias": (3,),
        "skip_weight": (5, 2, 1),
        "skip_bias": (5,),
    }
    return {name: torch.randn(shape) for name, shape in shapes.items()}


def counted(shape: tuple[int, ...], count: int) -> torch.Tensor:
    return torch.arange(torch.Size(shape).numel()).reshape(shape) % count


def mixture(function, colours, parameters):
    shape = (*parameters.shape[:1], colours, *parameters.shape[2:])
    return function(parameters, counted(shape, 256))


def classes(function, logits):
    return function(logits, counted(logits.shape[:1] + logits.shape[2:], logits.shape[1]))


def latent(output, mu, logvar):
    return ops.reparameterize(mu, logvar, seed=1, beta=0.5, free_bits=0.1)[output]


def plain_latent(output, mu, logvar):
    return ops.reparameterize_reference(mu, logvar, torch.tensor([1]), 0, 0.5, 0.1)[output]


def of_shapes(small: tuple[int, ...], big: tuple[int, ...], *names: str):
    return lambda large: {name: torch.randn(big if large else small) for name in names}


def layered(function, output, **tensors):
    return function(**tensors)[output]


OPS = {
    "categorical_nll": Op(
        partial(classes, ops.categorical_nll),
        partial(classes, ops.categorical_nll_reference),
        of_shapes((2, 5, 3), (2, 256, 16, 16), "logits"),
        twice=False,
    ),
    "gated_activation": Op(
        ops.gated_activation,
        ops.gated_activation_reference,
        of_shapes((2, 4, 3), (2, 64, 700), "x", "condition"),
    ),
}
for output, name in enumerate(("z", "kl")):
    OPS[f"reparameterize {name}"] = Op(
        partial(latent, output),
        partial(plain_latent, output),
        of_shapes((2, 5), (40, 700), "mu", "logvar"),
        twice=False,
    )
for colours, per in ((1, 3), (3, 10)):
    OPS[f"logistic_mixture_nll {colours}"] = Op(
        partial(mixture, ops.logistic_mixture_nll, colours),
        partial(mixture, ops.logistic_mixture_nll_reference, colours),
        of_shapes((2, 2 * per, 3), (2, 5 * per, 24, 24), "parameters"),
        twice=False,
    )
for kind in GAN_KINDS:
    for role in ("discriminator", "generator"):
        names = ("fake", "real") if role == "discriminator" or "rel" in kind else ("fake",)
        OPS[f"gan_loss {kind} {role}"] = Op(
            partial(ops.gan_loss, kind=kind, role=role),
            partial(ops.gan_loss_reference, kind=kind, role=role),
            of_shapes((7,), (20_000,), *names),
        )
for output, name in enumerate(("out", "skip")):
    OPS[f"causal_conv1d {name}"] = Op(
        partial(layered, ops.causal_conv1d, output),
        partial(layered, ops.causal_conv1d_reference, output),
        layer,
    )
for activation in (None, "relu", "elu", "concat_elu", "gate"):
    for rectify in (False, True):
        for residual in (False, True):
            name = f"masked_conv2d {activation} rectify={rectify} residual={residual}"
            options = (activation, rectify, residual)
            OPS[name] = Op(
                partial(convolution, ops.masked_conv2d, *options),
                partial(convolution, ops.masked_conv2d_reference, *options),
                convolved,
            )

every_op = pytest.mark.parametrize("op", OPS.values(), ids=list(OPS))


def leaves(tensors: Tensors, required=None) -> Tensors:
    return {
        name: tensor.clone().requires_grad_(required is None or name == required)
        for name, tensor in tensors.items()
    }


def test_the_table_has_every_op() -> None:
    public = {name.removesuffix("_reference") for name in vars(ops) if name.endswith("_reference")}
    assert public - {"philox"} == {name.split()[0] for name in OPS}


@every_op
def test_batched_gradients_are_the_single_ones(op) -> None:
    given = leaves(op.tensors(False))
    inputs = list(given.values())
    output = op.call(**given)
    weights = torch.randn(3, *output.shape)
    single = [
        torch.autograd.grad(output, inputs, w, retain_graph=True, allow_unused=True)
        for w in weights
    ]
    # The graph is not kept, and may be overwritten as it goes.
    batched = torch.autograd.grad(output, inputs, weights, is_grads_batched=True, allow_unused=True)
    for ours, wanted in zip(batched, zip(*single, strict=True), strict=True):
        if ours is not None:
            torch.testing.assert_close(ours, torch.stack(wanted))


def test_vectorized_jacobian_of_a_mixture() -> None:
    parameters = torch.randn(2, 9, 3)
    loss = partial(mixture, ops.logistic_mixture_nll, 1)
    jacobian = torch.autograd.functional.jacobian
    torch.testing.assert_close(
        jacobian(loss, parameters, vectorize=True), jacobian(loss, parameters)
    )


@every_op
@pytest.mark.parametrize("large", [False, True])
def test_what_hooks_were_given_stays_as_it_was(op, large) -> None:
    kept = []
    given = leaves(op.tensors(large))

    def pack(tensor):
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = op.call(**given).sum()
    before = [tensor.clone() for tensor in kept]
    wanted = torch.autograd.grad(3 * loss, list(given.values()), allow_unused=True)
    for tensor, copy in zip(kept, before, strict=True):
        assert torch.equal(tensor, copy)
    plain = 3 * op.call(**given).sum()
    for a, b in zip(
        torch.autograd.grad(plain, list(given.values()), allow_unused=True), wanted, strict=True
    ):
        assert (a is None and b is None) or torch.equal(a, b)


@pytest.mark.parametrize("name", ["logistic_mixture_nll 3", "gan_loss minimax discriminator"])
def test_without_hooks_the_backward_pass_takes_no_memory(name) -> None:
    given = leaves(OPS[name].tensors(True))
    loss = OPS[name].call(**given).sum()
    bytes_needed = sum(tensor.nbytes for tensor in given.values())
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        torch.autograd.grad(loss, list(given.values()))
    taken = sum(max(0, event.self_cpu_memory_usage) for event in profile.events())
    assert taken < bytes_needed / 4


@every_op
def test_a_penalty_on_gradients_with_all_else_frozen(op) -> None:
    tensors = op.tensors(False)
    for name in tensors:
        results = []
        for function in (op.call, op.reference):
            given = leaves(tensors, name)
            output = function(**given)
            if not output.requires_grad:
                break
            try:
                (g,) = torch.autograd.grad(
                    output.sum(), given[name], create_graph=True, allow_unused=True
                )
            except RuntimeError:
                break
            results.append((g, given[name]))
        # The reference computes outputs apart: one may lack an argument that the op knows.
        if len(results) < 2 or results[1][0] is None or not results[1][0].requires_grad:
            continue
        (ours, leaf), (plain, plain_leaf) = results
        assert ours.requires_grad, name
        if not op.twice:
            with pytest.raises(RuntimeError, match="expected a first derivative"):
                ours.square().sum().backward()
            continue
        ours.square().sum().backward()
        plain.square().sum().backward()
        zeros = torch.zeros_like(leaf)
        wanted = zeros if plain_leaf.grad is None else plain_leaf.grad
        torch.testing.assert_close(
            zeros if leaf.grad is None else leaf.grad, wanted, rtol=1e-4, atol=1e-4
        )


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@every_op
def test_same_bits_twice_under_deterministic_algorithms(op, deterministic) -> None:
    tensors = op.tensors(True)

    def run() -> list[torch.Tensor]:
        given = leaves(tensors)
        output = op.call(**given)
        weights = torch.linspace(-1, 1, output.numel()).reshape(output.shape)
        gradients = torch.autograd.grad(output, list(given.values()), weights, allow_unused=True)
        return [output, *(g for g in gradients if g is not None)]

    for first, second in zip(run(), run(), strict=True):
        assert not first.isnan().any()
        assert torch.equal(first, second)


@pytest.mark.parametrize("draw", [ops.philox_normal, ops.philox_uniform])
def test_noise_is_the_same_under_deterministic_algorithms(draw, deterministic) -> None:
    assert torch.equal(draw((1001,), seed=5), draw((1001,), seed=5))
