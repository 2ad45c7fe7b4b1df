"""A sampler draws on a GPU what it draws on the CPU."""

import threading

import pytest
import torch

import genfast
from genfast.models import (
    GatedPixelCNN,
    GatedPixelCNNConfig,
    PixelCNNPlusPlus,
    PixelCNNPlusPlusConfig,
    WaveNet,
    WaveNetConfig,
)
from genfast.sampling.surroundings import full_precision, ordinary_tensors


def gated():
    config = GatedPixelCNNConfig((1, 6, 5), 17, channels=4, layers=2, head_channels=8)
    return GatedPixelCNN(config), (1, 6, 5), genfast.Categorical(17)


def plus_plus():
    config = PixelCNNPlusPlusConfig((3, 8, 8), 256, filters=3, resnets=1, mixtures=2)
    return PixelCNNPlusPlus(config), (3, 8, 8), genfast.LogisticMixture(256, 2, values=None)


def wavenet():
    config = WaveNetConfig(
        length=40, residual_channels=4, gate_channels=4, skip_channels=4, layers=3
    )
    return WaveNet(config), (1, 40), genfast.Categorical(256)


def convolutions():
    """Of torch alone, so that TF32 could touch them."""
    model = torch.nn.Sequential(
        torch.nn.ZeroPad2d((3, 0, 0, 0)), torch.nn.Conv2d(1, 32, (1, 3)),
        torch.nn.ReLU(), torch.nn.Conv2d(32, 32, 1), torch.nn.ReLU(), torch.nn.Conv2d(32, 9, 1),
    )  # fmt: skip
    return torch.nn.Sequential(model, Cropped()), (1, 4, 6), genfast.Categorical(9)


class Cropped(torch.nn.Module):
    """Without the last column, so that each output sees the pixels before its own."""

    def forward(self, x):
        return x[..., :-1]


MODELS = {each.__name__: each for each in (gated, plus_plus, wavenet, convolutions)}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_draws_what_the_native_executor_draws(device, name, dtype) -> None:
    model, event_shape, distribution = MODELS[name]()
    model = model.to(dtype).eval()
    wanted = genfast.compile_sampler(model, event_shape, distribution).sample(4, seed=3)
    torch.backends.cudnn.allow_tf32 = True  # as it is by default
    try:
        moved = model.to(device)
        sampler = genfast.compile_sampler(moved, event_shape, distribution, executor="reference")
        for _ in range(2):  # the second time on what the first one captured
            found, log_prob = sampler.sample(4, seed=3, return_log_prob=True)
            assert found.device.type == device.type
            same = (found.cpu() == wanted).double().mean()
            assert same == 1 if dtype == torch.float64 else same >= 0.98
        torch.testing.assert_close(
            log_prob, sampler.log_prob(found), rtol=1e-4, atol=1e-4, check_dtype=False
        )
    finally:
        torch.backends.cudnn.allow_tf32 = False


def precisions() -> list[str]:
    cudnn = torch.backends.cudnn
    return [each.fp32_precision for each in (cudnn.conv, cudnn.rnn, torch.backends.cuda.matmul)]


def by_default() -> None:
    torch.backends.cudnn.allow_tf32 = True


def for_matrices() -> None:
    torch.backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("high")


def by_newer_names() -> None:
    torch.backends.cudnn.conv.fp32_precision = "tf32"
    torch.backends.cuda.matmul.fp32_precision = "tf32"


@pytest.fixture(params=[by_default, for_matrices, by_newer_names])
def allowed(request, monkeypatch):
    """TF32, as users allow it, in a torch that has it; what is restored afterwards."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    torch.backends.cudnn.allow_tf32, products = False, torch.get_float32_matmul_precision()
    request.param()
    yield precisions()
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision(products)


def test_rounding_to_tf32_is_off_inside_and_back_outside(allowed) -> None:
    assert "tf32" in allowed
    entered, leave = threading.Event(), threading.Event()

    def elsewhere() -> None:
        with full_precision:
            entered.set()
            leave.wait(30)

    other = threading.Thread(target=elsewhere)
    with ordinary_tensors():
        assert "tf32" not in precisions()
        with ordinary_tensors():
            other.start()
            assert entered.wait(30)
        assert "tf32" not in precisions()
    assert "tf32" not in precisions()  # the other thread is not done
    leave.set()
    other.join()
    assert precisions() == allowed
    with pytest.raises(ZeroDivisionError), full_precision:
        _ = 1 / 0
    assert precisions() == allowed
