"""Training on a GPU: the families' models, their checkpoints, and going on from one."""

import math

import pytest
import torch

from genfast.models import create
from genfast.training import fit, load, read_log
from tests.training.fakes import LEVELS, SHAPE, images
from tests.training.trainee import FAMILIES

OPTIONS = {"batch_size": 9, "ema_decay": 0.9, "log_every": 1, "sample_every": 0, "progress": False}


@pytest.mark.parametrize("name", FAMILIES)
def test_trains_and_goes_on_where_it_is_told_to(device, tmp_path, name) -> None:
    def run(folder: str, epochs: int):
        torch.manual_seed(3)
        model = create(name, image_shape=SHAPE, levels=LEVELS, **FAMILIES[name])
        path = tmp_path / folder
        return fit(
            model, images(27), run=path, resume=True, epochs=epochs, device=device.type, **OPTIONS
        )

    whole = run("whole", 2)
    run("parts", 1)
    resumed = run("parts", 2)
    for model in (whole, resumed):
        assert {each.device.type for each in model.state_dict().values()} == {device.type}
        drawn = model.sample(3, generator=torch.Generator().manual_seed(1))
        assert drawn.shape == (3, *SHAPE)
        assert drawn.device.type == device.type
    rows = read_log(tmp_path / "parts")
    assert len(rows) == 6
    losses = [value for row in rows for key, value in row.items() if key.endswith("loss")]
    assert losses
    assert all(map(math.isfinite, losses))
    # A GPU may add up in another order from run to run; the CPU does not.
    tolerance = 0.0 if device.type == "cpu" else 1e-3
    pairs = zip(whole.state_dict().items(), resumed.state_dict().items(), strict=True)
    for (key, wanted), (_, found) in pairs:
        torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance, msg=key)
    loaded = load(tmp_path / "parts", device=device.type)
    for key, value in loaded.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key
