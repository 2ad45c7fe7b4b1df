"""Models that look ahead are refused, and the report names the layer that does."""

from collections import Counter

import pytest
import torch
from hypothesis import assume, given
from torch import nn

from genfast import check_causality, compile_sampler
from genfast.errors import CausalityError, GenfastError
from genfast.sampling import Bernoulli, Categorical
from tests.sampling.architectures import build, conditions, distribution, mutants, predicts
from tests.sampling.property_settings import checked
from tests.sampling.test_architectures import looks_ahead
from tests.sampling.zoo import ZOO


def refusal(model, shape, distribution, **options):
    with pytest.raises(CausalityError) as refused:
        compile_sampler(model, shape, distribution, **options)
    assert not refused.value.report.causal
    report = check_causality(model, shape, distribution=distribution, **options)
    assert str(report) == str(refused.value)
    return report


def test_random_models_with_one_thing_broken_are_refused_and_most_layers_named():
    named = Counter()

    @checked(150)
    @given(mutants())
    def try_one(broken):
        plan, mutation = broken
        assume(looks_ahead(plan, mutation))
        report = refusal(
            build(plan, mutation), plan.shape, distribution(plan), predicts=predicts(plan),
            conditioning=conditions(plan, 2),
        )  # fmt: skip
        # Where a part is missing, there is no op to name.
        if mutation.kind not in ("shift dropped", "prefix too short", "prefix cut too late"):
            named[mutation.path in str(report)] += 1

    try_one()
    # Where features of several layers are ready alike, one that reads the leak may be blamed.
    assert named[True] > 0.85 * named.total()


def zoo_model(name):
    entry = ZOO[name]
    return entry.build(), entry.event_shape, entry.distribution()


def test_mask_b_in_the_first_layer():
    model, shape, distribution = zoo_model("batch norm, mask in place")
    model[0].mask[:, :, 3, 3] = 1
    with torch.no_grad():
        model[0].weight[:, :, 3, 3] = 0.1
    leak = refusal(model, shape, distribution).leak
    assert leak.pixel == leak.sees_pixel
    assert leak.tap == (0, 0)
    assert leak.where.startswith("aten.convolution.default in 0 (")
    assert "zoo_masked.py:" in leak.where


def test_one_weight_of_one_tap_after_the_centre():
    model, shape, distribution = zoo_model("residual, mask an attribute, tuple out")
    layer = model.blocks[1][3]
    layer.mask[2, 1, 1, 2] = 1
    with torch.no_grad():
        layer.weight[2, 1, 1, 2] = 1e-9
    leak = refusal(model, shape, distribution).leak
    assert leak.tap == (0, 1)
    assert " in blocks.1.3 (" in leak.where


def test_a_third_colour_that_the_first_one_sees():
    model, shape, distribution = zoo_model("thirds of channels, __call__, N C K H W out")
    model.body[0].mask[0, 11, 1, 1] = True
    with torch.no_grad():
        model.body[0].weight[0, 11, 1, 1] = 0.5
    report = refusal(model, shape, distribution)
    assert report.leak.colour == 0
    assert report.leak.pixel == report.leak.sees_pixel
    assert report.leak.tap == (0, 0)


def test_a_transposed_convolution_cropped_a_row_too_late():
    model, shape, distribution = zoo_model("plus plus, mixture")
    crop = model.double_rows.forward
    model.double_rows.forward = lambda x: nn.functional.pad(crop(x)[:, :, 1:], (0, 0, 0, 1))
    report = refusal(model, shape, distribution)
    assert report.leak.sees_pixel > report.leak.pixel
    assert "double_rows" in str(report)


class Wrapped(nn.Module):
    """Changes what goes into a model, or what comes out of it."""

    def __init__(self, model, before=lambda x: x, after=lambda x: x):
        super().__init__()
        self.model, self.before, self.after = model, before, after

    def forward(self, x):
        return self.after(self.model(self.before(x)))


def test_an_output_that_is_moved_up_by_a_row():
    model, shape, distribution = zoo_model("gated without a blind spot")
    moved = Wrapped(model, after=lambda out: nn.functional.pad(out[:, :, 1:], (0, 0, 0, 1)))
    report = refusal(moved, shape, distribution)
    assert report.leak.tap == (1, 0)
    assert "model.post" in report.leak.reads


def test_another_order_is_named():
    model, shape, distribution = zoo_model("gated without a blind spot")
    turned = Wrapped(model, lambda x: x.flip(2, 3), lambda out: out.flip(2, 3))
    try:
        compile_sampler(turned, shape, distribution)
    except CausalityError as refused:
        assert refused.report.causal_order == "reversed raster"  # noqa: PT017
    except GenfastError as refused:  # flips may have no rule
        assert "flip" in str(refused)  # noqa: PT017
    else:
        pytest.fail("a model in another order was taken")


def test_columns_before_rows():
    model, shape, distribution = zoo_model("gated without a blind spot")
    turned = Wrapped(model, lambda x: x.transpose(2, 3), lambda out: out.transpose(2, 3))
    with pytest.raises(GenfastError, match="column"):
        compile_sampler(turned, shape, distribution)


@pytest.mark.parametrize("norm", [nn.GroupNorm(2, 6), nn.InstanceNorm2d(6)])
def test_statistics_over_the_image_are_refused(norm):
    model, shape, distribution = zoo_model("batch norm, mask in place")
    model[4] = norm.double()
    with pytest.raises(GenfastError, match=r" in 4[ :]"):
        compile_sampler(model, shape, distribution)


def test_a_model_that_shows_its_input():
    with pytest.raises(CausalityError, match="depends on pixel"):
        compile_sampler(nn.Identity(), (1, 3, 3), Bernoulli())


def test_plain_convolutions():
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 1)).double()
    report = refusal(model, (1, 4, 4), Categorical(3, values="unit"))
    assert report.leak.sees_pixel > report.leak.pixel
    assert report.leak.where.endswith(" in 0")
