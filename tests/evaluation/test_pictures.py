import base64
import io
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from genfast.data import digits
from genfast.evaluation import draw
from genfast.evaluation.pictures import GAP, columns_for, grid_png, rows_png
from genfast.evaluation.plots import Theme, loss_png
from tests.evaluation.families import LEVELS, Bounded, Coder, Explicit, Implicit

THEME = Theme("#000000", "#cccccc", ("#ff0000", "#0000ff"))


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)))


def of(picture):
    return pixels(base64.b64decode(picture.light.partition(",")[2]))


def test_a_grid_holds_every_image_in_reading_order():
    images = torch.arange(7, dtype=torch.uint8).view(7, 1, 1, 1).expand(7, 1, 64, 64)
    canvas = pixels(grid_png(images, 8, 3))
    assert canvas.shape == (2 * 64 + GAP, 3 * 64 + 2 * GAP, 2)
    step = 64 + GAP
    shown = [[canvas[row * step, column * step, 0] for column in range(3)] for row in range(2)]
    assert np.array_equal(shown, np.round(np.arange(6) * 255 / 7).reshape(2, 3))


def test_gaps_are_transparent_and_images_are_not():
    canvas = pixels(rows_png([torch.zeros(2, 3, 64, 64, dtype=torch.uint8)], 256))
    assert canvas.shape == (64, 128 + GAP, 4)
    assert (canvas[:, 64 : 64 + GAP, 3] == 0).all()
    assert (canvas[:, :64, 3] == 255).all()


def test_small_images_are_enlarged_by_a_whole_factor():
    image = torch.tensor([[0, 16], [8, 4]]).view(1, 1, 2, 2)
    canvas = pixels(rows_png([image], 17))
    assert canvas.shape == (64, 64, 2)
    assert np.array_equal(canvas[::32, ::32, 0], [[0, 255], [128, 64]])
    assert (canvas[:32, 32:, 0] == 255).all()


@pytest.mark.parametrize("channels", [2, 5])
def test_other_numbers_of_channels_are_averaged(channels):
    image = torch.arange(channels).view(1, channels, 1, 1).expand(1, channels, 4, 4)
    assert pixels(rows_png([image], channels)).shape[2] == 2


@pytest.mark.parametrize(("width", "columns"), [(8, 5), (64, 5), (100, 3), (1000, 3)])
def test_wide_images_have_fewer_columns(width, columns):
    assert columns_for(width) == columns


class TestLatents:
    @pytest.fixture(scope="class", autouse=True)
    @staticmethod
    def _seed():
        torch.manual_seed(0)

    images = digits("test").images[:20]

    def test_reconstructions_stand_under_their_images(self):
        class Inverse(Coder):
            def reconstruct(self, x):
                return LEVELS - 1 - x

        canvas = of(draw.reconstructions(Inverse(), "Inverse", self.images, LEVELS))
        top, bottom = canvas[:64], canvas[64 + GAP :]
        first = self.images[0, 0].double().numpy() * 255 / (LEVELS - 1)
        assert np.abs(top[::8, :64:8, 0] - first).max() <= 1
        shown = top[..., 1] == 255
        assert np.abs(top[shown][:, 0].astype(int) + bottom[shown][:, 0] - 255).max() <= 1

    def test_only_what_can_reconstruct_or_interpolate_does(self):
        assert draw.reconstructions(Implicit(), "", self.images, LEVELS) is None
        assert draw.interpolations(Explicit(), "", self.images, LEVELS, 0) is None

    @pytest.mark.parametrize("family", [Coder, Bounded, Implicit])
    def test_interpolations_have_a_row_for_each_walk(self, family):
        canvas = of(draw.interpolations(family(), "", self.images, LEVELS, 0))
        assert canvas.shape[:2] == (5 * (64 + GAP) - GAP, 10 * (64 + GAP) - GAP)

    def test_coders_walk_from_one_test_image_to_another(self):
        model = Coder()
        canvas = of(draw.interpolations(model, "", self.images, LEVELS, 0))
        ends = model.reconstruct(self.images[[0, 5]])[:, 0].double().numpy() * 255 / (LEVELS - 1)
        first, last = canvas[:64:8, :64:8, 0], canvas[:64:8, -64::8, 0]
        assert np.abs(first - ends[0]).max() <= 1
        assert np.abs(last - ends[1]).max() <= 1


class TestCurves:
    rows = (
        {"step": 3, "epoch": 1, "valid/loss": 4.0},
        {"step": 5, "epoch": 1, "loss": 2.0, "kl": 1.0, "seconds": 9.0},
        {"step": 10, "epoch": 1, "loss": None},
        {"step": 10, "epoch": 2, "loss": 1.0},
        {"step": 10, "generator/loss": 7.0},
    )

    def test_finds_the_losses_of_a_log_training_first(self):
        assert draw.curves_of(self.rows) == {
            "training images": ([5.0, 10.0], [2.0, 1.0]),
            "generator": ([10.0], [7.0]),
            "test images": ([3.0], [4.0]),
        }
        assert next(iter(draw.curves_of(self.rows))) == "training images"

    def test_a_log_without_losses_has_no_picture(self):
        assert draw.loss_curves([{"step": 1, "kl": 2.0}], "VAE", 0, "nats") is None

    def test_the_first_curve_has_the_models_colour(self):
        curve = {"training images": ([1, 2, 3], [3.0, 2.0, 1.0])}
        for colour, channel in ((0, 0), (1, 2), (2, 0)):
            canvas = pixels(loss_png(curve, THEME, colour, "nats")).astype(int)
            pure = canvas[..., :3][canvas[..., 3] == 255]
            own = (pure[:, channel] > 200) & (pure.sum(1) - pure[:, channel] < 60)
            assert own.sum() > 100

    def test_a_single_value_can_be_seen(self):
        one = pixels(loss_png({"a": ([1], [2.0])}, THEME, 0, "nats")).astype(int)
        assert ((one[..., 0] > 200) & (one[..., 1] < 60) & (one[..., 3] == 255)).sum() > 10

    def test_background_is_transparent(self):
        canvas = pixels(loss_png({"a": ([1, 2], [1.0, 2.0])}, THEME, 0, "nats"))
        assert canvas[0, 0, 3] == 0

    @pytest.mark.parametrize("values", [[1.0, 1.0], [float("nan"), 2.0], [float("nan")] * 2])
    def test_draws_flat_and_missing_values(self, values):
        loss_png({"a": ([1, 2], values)}, THEME, 0, "nats")


def test_plots_touch_nothing_global_of_matplotlib():
    code = (
        # A plain dict() would ask for the backend, which loads pyplot.
        "import sys, matplotlib; before = matplotlib.rcParams.copy()\n"
        "from genfast.evaluation.plots import Theme, loss_png\n"
        "loss_png({'a': ([1, 2], [1.0, 2.0])}, Theme('k', 'k', ('k',)), 0, 'nats')\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
        "assert matplotlib.rcParams.copy() == before\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
