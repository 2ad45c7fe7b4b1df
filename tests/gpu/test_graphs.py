"""Every op in a CUDA graph: captured once with its backward, replayed on other numbers.

On the CPU the same tests call the step again, which holds them to what they expect of a graph.
"""

from collections.abc import Callable

import pytest
import torch

from genfast import ops

Step = Callable[[], tuple[torch.Tensor, ...]]


def recorded(step: Step, device: torch.device) -> Step:
    """The step as a graph replays it: on the memory that it was captured on."""
    if device.type == "cpu":
        return step
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # what the first call sets up must not be captured
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = step()

    def replay() -> tuple[torch.Tensor, ...]:
        graph.replay()
        return tuple(each.clone() for each in outputs)

    return replay


def check_replays(
    function: Callable[..., torch.Tensor],
    inputs: list[torch.Tensor],
    device: torch.device,
    same_bits: bool = True,
) -> None:
    """The scalar function and its gradients, replayed on new inputs, against calls of it."""
    tolerances = {"rtol": 0.0, "atol": 0.0} if same_bits else {"rtol": 1e-5, "atol": 1e-4}
    inputs = [each.to(device) for each in inputs]
    leaves = [each.requires_grad_() for each in inputs if each.is_floating_point()]

    def step() -> tuple[torch.Tensor, ...]:
        value = function(*inputs)
        return value.detach(), *torch.autograd.grad(value, leaves)

    replay = recorded(step, device)
    seen = []
    for number in (1, 2):
        with torch.no_grad():
            for each in leaves:
                each.copy_(torch.randn(each.shape, generator=torch.Generator().manual_seed(number)))
        found, wanted = replay(), step()
        for ours, expected in zip(found, wanted, strict=True):
            torch.testing.assert_close(ours, expected, **tolerances)
        seen.append(found[0])
    assert not torch.equal(*seen)


def test_gan_loss_graphs(device) -> None:
    for sizes in ((64, 64), (9_000, 30_000)):  # one block, many with a count of those finished
        check_replays(
            lambda fake, real: ops.gan_loss(fake=fake, real=real),
            [torch.randn(size) for size in sizes],
            device,
        )


def test_gated_activation_graphs(device) -> None:
    x, condition = torch.randn(2, 6, 5, 4), torch.randn(2, 6)
    check_replays(lambda *given: ops.gated_activation(*given).sum(), [x, condition], device)


def test_categorical_nll_graphs(device) -> None:
    inputs = [torch.randn(3, 17, 5, 4), torch.randint(0, 17, (3, 5, 4))]
    check_replays(lambda *given: ops.categorical_nll(*given).sum(), inputs, device)


def test_logistic_mixture_nll_graphs(device) -> None:
    inputs = [torch.randn(2, 30, 5, 4), torch.randint(0, 256, (2, 3, 5, 4))]
    check_replays(lambda *given: ops.logistic_mixture_nll(*given).sum(), inputs, device)


@pytest.mark.parametrize("groups", [1, 2])
def test_masked_conv2d_graphs(device, groups) -> None:
    mask = (torch.arange(9) <= 4).view(3, 3)
    taps = ops.live_taps(mask)  # told by the caller: else they are read from the device
    mask = mask.to(device)

    def function(x, weight, bias):
        out = ops.masked_conv2d(x, weight, mask, bias, padding=1, groups=groups, taps=taps)
        return out.square().sum()

    weight = torch.randn(8, 4 // groups, 3, 3)
    check_replays(function, [torch.randn(2, 4, 9, 7), weight, torch.randn(8)], device)


def test_causal_conv1d_graphs(device) -> None:
    shapes = {"x": (2, 4, 50), "weight": (6, 4, 2), "skip_weight": (5, 3, 1)}

    def function(*tensors):
        _, skip = ops.causal_conv1d(**dict(zip(shapes, tensors, strict=True)), dilation=3)
        return skip.square().sum()

    # On a GPU its convolutions are torch's, which may choose another way for a graph.
    check_replays(function, [torch.randn(s) for s in shapes.values()], device, same_bits=False)


def test_reparameterize_graphs_read_the_seed_where_it_is(device) -> None:
    mu, logvar = (torch.randn(7, 33, device=device).requires_grad_() for _ in range(2))
    seed = torch.tensor([5], device=device)

    def step() -> tuple[torch.Tensor, ...]:
        z, kl = torch.ops.genfast.reparameterize(mu, logvar, seed, 3)
        total = z.square().sum() + kl.sum()
        return z.detach(), kl.detach(), *torch.autograd.grad(total, (mu, logvar))

    replay = recorded(step, device)
    drawn = []
    for number in (1, 2**62 + 7):
        seed.fill_(number)
        found = replay()
        for ours, expected in zip(found, step(), strict=True):
            assert torch.equal(ours, expected)
        z, kl = ops.reparameterize(mu, logvar, seed=number, offset=3)
        assert torch.equal(found[0], z)
        assert torch.equal(found[1], kl)
        drawn.append(found[0])
    assert not torch.equal(*drawn)


@pytest.mark.parametrize("normal", [True, False])
def test_philox_graphs_read_the_seed_where_it_is(device, normal) -> None:
    out, seed = torch.empty(1001, device=device), torch.tensor([5], device=device)

    def step() -> tuple[torch.Tensor, ...]:
        torch.ops.genfast.philox_fill(out, seed, 3, normal)
        return (out,)

    replay = recorded(step, device)
    draw = ops.philox_normal if normal else ops.philox_uniform
    for number in (1, 9):
        seed.fill_(number)
        expected = draw((1001,), seed=number, offset=3, device=device)
        assert torch.equal(replay()[0], expected)
