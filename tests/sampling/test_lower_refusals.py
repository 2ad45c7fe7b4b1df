"""What no grid can hold is refused: the message names the op, the module, the line and why."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genfast.errors import UnsupportedModelError
from tests.sampling.graphs import compiled

Function = Callable[..., Tensor]


class Apply(nn.Module):
    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function
        self.dense = nn.Linear(60, 60)

    def forward(self, x: Tensor, **conditions: Tensor) -> Tensor:
        return self.function(self, x, **conditions)


def _branch(model: nn.Module, x: Tensor) -> Tensor:
    if x.max() > 1:
        return x
    return -x


def _shared_memory(model: nn.Module, x: Tensor) -> Tensor:
    whole = torch.zeros(2, 4, 3, 5)
    other = torch.from_numpy(whole.numpy())
    whole.copy_(x)
    return other * 2


REFUSED: dict[str, tuple[Function, str]] = {
    "number read": (lambda m, x: x * x.mean().item(), r"_local_scalar_dense.*reads a number"),
    "branch": (_branch, r"_branch: if x\.max\(\) > 1:.*reads a number"),
    "one hot of unknown size": (
        lambda m, x: F.one_hot(x.long().abs()).movedim(-1, 1),
        "num_classes",
    ),
    "nonzero": (lambda m, x: x.nonzero(), r"aten\.nonzero.*no rule"),
    "noise": (lambda m, x: x + torch.randn_like(x), r"random numbers, drawn by aten\.randn_like"),
    "noise of a constant": (lambda m, x: x * torch.rand(4, 1, 1), r"random numbers.*aten\.rand"),
    "noise in place": (lambda m, x: x + torch.zeros(5).normal_(), r"random numbers.*normal_"),
    "dropout that stays on": (
        lambda m, x: F.dropout(x, 0.5, training=True),
        r"random numbers.*dropout|random numbers.*bernoulli",
    ),
    "mean over pixels": (lambda m, x: x - x.mean((2, 3), keepdim=True), r"mean.*the 3 rows"),
    "sum over everything": (lambda m, x: x / x.sum(), r"aten\.sum.*images"),
    "maximum over images": (lambda m, x: x - x.amax(0), r"amax.*the 2 images"),
    "softmax over columns": (lambda m, x: x.softmax(-1), r"softmax is over the 5 columns"),
    "batch statistics": (
        lambda m, x: F.batch_norm(x, None, None, training=True),
        r"native_batch_norm.*statistics of the batch",
    ),
    "instance norm": (lambda m, x: F.instance_norm(x), r"statistics of the batch|views|mixes"),
    "group norm over pixels": (lambda m, x: F.group_norm(x, 2), r"group norm over the 3 rows"),
    "layer norm over pixels": (
        lambda m, x: F.layer_norm(x, (4, 3, 5)),
        r"layer norm over the 3 rows",
    ),
    "flat output of no size that fits": (
        lambda m, x: m.dense(x.flatten(1))[:, :14],
        r"slice.*expected an output \[N, \.\.\., 3, 5\], got \[2 images, 14 features\]",
    ),
    "dense over images": (
        lambda m, x: F.linear(x.movedim(0, -1), torch.ones(2, 2)),
        r"mixes 2 images",
    ),
    "view that mixes": (lambda m, x: x.view(2, 3, 4, 5), r"aten\.view.*mixes"),
    "flip": (lambda m, x: x.flip(2), r"aten\.flip.*reverses the 3 rows"),
    "every second row": (lambda m, x: x[:, :, ::2], r"every 2th of the 3 rows"),
    "one row": (lambda m, x: x[:, :, 1], r"selects one of the 3 rows"),
    "first row repeated": (lambda m, x: x + x[:, :, :1], r"3 x 5 positions with one of 1 x 5"),
    "one column expanded": (
        lambda m, x: x[..., :1].expand(-1, -1, -1, 5),
        r"expand.*repeats the 1 columns",
    ),
    "rows repeated": (lambda m, x: x.repeat(1, 1, 2, 1), r"aten\.repeat.*3 rows"),
    "image and its transpose": (
        lambda m, x: x[..., :3] + x[..., :3].transpose(2, 3),
        r"aligns 3 rows with 3 columns",
    ),
    "all pairs of positions": (
        lambda m, x: x.flatten(2)[:, :, :, None] * x.flatten(2)[:, :, None],
        r"pairs positions with one another",
    ),
    "one of the images": (lambda m, x: x[:1].expand(2, -1, -1, -1), r"part of an axis of 2 images"),
    "a constant for each image": (
        lambda m, x: x + torch.tensor([1.0, 2.0])[:, None, None, None],
        r"differs between the images",
    ),
    "product of two signals": (lambda m, x: torch.bmm(x[:, 0], x[:, 1].mT), r"aten\.select|bmm"),
    "weights from the input": (
        lambda m, x: F.conv2d(x, x[:1, :, :1, :1].mT),
        r"part of an axis of 2 images|weight depends",
    ),
    "argmax": (lambda m, x: x.argmax(1), r"aten\.argmax.*no rule"),
    "index of the maximum": (lambda m, x: x.max(1).indices, r"result 1 of aten\.max"),
    "cumsum": (lambda m, x: x.cumsum(3), r"aten\.cumsum.*no rule"),
    "strides that differ": (
        lambda m, x: F.conv2d(x, torch.ones(4, 4, 1, 1), stride=(1, 2)),
        r"strides \[1, 2\] along rows and columns differ",
    ),
    "finer than the input": (
        lambda m, x: F.conv_transpose2d(x, torch.ones(4, 4, 2, 2), stride=2),
        r"finer than that of the input",
    ),
    "a padding of pixels": (
        lambda m, x: F.pad(x, (1, 1, 1, 1), mode="replicate"),
        "replication_pad",
    ),
    "integers' bits": (lambda m, x: x.long() & 3, r"bitwise_and.*bits of integers"),
    "a write of every second row": (
        lambda m, x: x.clone().index_fill_(2, torch.tensor([0, 2]), 0.0),
        r"index_fill",
    ),
    "memory shared with another tensor": (_shared_memory, r"memory was written through another"),
    "numpy": (lambda m, x: x * float(x.detach().numpy().max()), r"numpy.*out of PyTorch"),
    "a list": (lambda m, x: x * len(x.flatten().tolist()), r"tolist.*out of PyTorch"),
    "no dependence": (lambda m, x: torch.ones_like(x), r"does not depend on its input"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    function, reason = REFUSED[name]
    model = Apply(function)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(UnsupportedModelError, match=f"(?s){reason}"):
        compiled(model, torch.rand(2, 4, 3, 5))
    assert model.training
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])


def test_message_names_op_module_line_and_source() -> None:
    class Block(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flip(3)  # backwards

    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ModuleDict({"inner": Block()})["inner"])
    with pytest.raises(UnsupportedModelError) as caught:
        compiled(model, torch.rand(2, 4, 3, 5))
    line = Block.forward.__code__.co_firstlineno + 1
    expected = (
        f"aten.flip.default in 1 ({__file__}:{line}, forward: return x.flip(3)  # backwards): "
        "it reverses the 5 columns"
    )
    assert str(caught.value) == expected


def test_conditions_that_are_no_operand() -> None:
    def weighted(model: nn.Module, x: Tensor, w: Tensor) -> Tensor:
        return torch.einsum("bchw,boc->bohw", x, w)

    with pytest.raises(UnsupportedModelError, match="depends on conditions"):
        compiled(Apply(weighted), torch.rand(2, 4, 3, 5), w=torch.rand(2, 6, 4))


def test_conditions_read_into_python() -> None:
    def branch(model: nn.Module, x: Tensor, label: Tensor) -> Tensor:
        return x if bool(label.sum() > 3) else -x

    with pytest.raises(UnsupportedModelError, match="reads a number"):
        compiled(Apply(branch), torch.rand(2, 4, 3, 5), label=torch.tensor([1, 2]))


def test_random_condition() -> None:
    def noisy(model: nn.Module, x: Tensor, label: Tensor) -> Tensor:
        return x + (label + torch.rand(2))[:, None, None, None]

    with pytest.raises(UnsupportedModelError, match=r"random numbers, drawn by aten\.rand"):
        compiled(Apply(noisy), torch.rand(2, 4, 3, 5), label=torch.rand(2))


def test_input_of_another_rank() -> None:
    with pytest.raises(UnsupportedModelError, match=r"expected an input \[N, C, H, W\]"):
        compiled(nn.Tanh(), torch.rand(2, 1, 3, 4, 5))


def test_conditions_of_other_images() -> None:
    def centred(model: nn.Module, x: Tensor, style: Tensor) -> Tensor:
        return x + (style - style.mean(0))[:, :, None, None]

    with pytest.raises(UnsupportedModelError, match=r"depends on the conditions of others"):
        compiled(Apply(centred), torch.rand(2, 4, 3, 5), style=torch.ones(2, 4))
