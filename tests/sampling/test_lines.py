"""Image models that make a line of their pixels or colours, seen as images from outside."""

import pytest
import torch
from torch import nn

from genfast import check_causality, compile_sampler
from genfast.errors import CausalityError, InputError, UnsupportedModelError
from genfast.sampling import Categorical, sample_naive
from tests.sampling.zoo_attention import Coloured, Pixels

SHAPE = (3, 2, 4)


def built(model):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        for parameter in model.parameters():
            nn.init.normal_(parameter)
    return model.double().eval()


def coloured(axes="KC", **more):
    return built(Coloured(SHAPE, axes=axes, **more))


def levels(layout="KC"):
    return Categorical(5, layout=layout)


@pytest.fixture(scope="module", params=["native", "reference"])
def pair(request):
    model = coloured()
    return model, compile_sampler(model, SHAPE, levels(), executor=request.param)


def naive(model, n, **options):
    return sample_naive(model, n, event_shape=SHAPE, distribution=levels(), **options)


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 0.7}, {"top_k": 2}, {"top_p": 0.6, "first": 3}]
)
def test_options_mean_what_they_mean_for_images(pair, options):
    model, sampler = pair
    drawn, log_prob = sampler.sample(5, seed=2, return_log_prob=True, **options)
    wanted, terms = naive(model, 5, seed=2, return_log_prob=True, **options)
    assert torch.equal(drawn, wanted)
    torch.testing.assert_close(log_prob, terms)
    torch.testing.assert_close(sampler.log_prob(drawn), log_prob)


@pytest.mark.parametrize("simple", [True, False])
def test_known_symbols_stay_where_they_are_in_the_image(pair, simple):
    model, sampler = pair
    known = torch.randint(5, (4, *SHAPE), generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(4, *SHAPE, dtype=torch.bool)
    mask[:2, 1, :, 1:3] = mask[2, :, 1] = mask[:, 2, 0, 0] = True
    options = {"seed": 1, "known": known, "known_mask": mask, "top_k": None if simple else 3}
    drawn = sampler.sample(4, **options)
    assert torch.equal(drawn, naive(model, 4, **options))
    assert torch.equal(drawn[mask].long(), known[mask])


def test_steps_go_through_pixels_and_their_colours(pair):
    model, sampler = pair
    state, places = sampler.start(2, seed=4), []
    while not state.done:
        assert state.parameters.shape == (2, 5)
        places.append(state.position)
        state.step()
    assert places == [(i, j, c) for i in range(2) for j in range(4) for c in range(3)]
    assert torch.equal(state.events, naive(model, 2, seed=4))


def test_logits_have_the_axes_of_the_output(pair):
    model, sampler = pair
    symbols = naive(model, 2, seed=0)
    torch.testing.assert_close(sampler.logits(symbols), model(symbols).detach())


def test_the_bar_counts_pixels(pair, capsys):
    _, sampler = pair
    sampler.sample(1, seed=0, progress=True)
    assert "8/8" in capsys.readouterr().err


@pytest.mark.parametrize("shifted", [True, False])
def test_tokens_as_the_output(shifted):
    model = coloured("flat", shifted=shifted)
    sampler = compile_sampler(model, SHAPE, levels(None))
    wanted = sample_naive(model, 3, event_shape=SHAPE, distribution=levels(None), seed=0)
    assert torch.equal(sampler.sample(3, seed=0), wanted)


def test_the_grid_is_kept_where_it_serves():
    assert str(compile_sampler(built(Pixels()), (1, 3, 4), Categorical(4))).startswith("Sampler of")
    line = compile_sampler(built(Pixels(shift="all")), (1, 3, 4), Categorical(4))
    assert str(line).startswith("Each image as one line of 12 pixels")


class Late(Coloured):
    """Shows what its last token would predict a token too early."""

    def attend(self, h):
        return super().attend(h).roll(-1, 1)


@pytest.mark.parametrize("axes", ["KC", "flat"])
def test_a_report_speaks_of_pixels_and_colours(axes):
    model = built(Late(SHAPE, axes=axes))
    layout = None if axes == "flat" else axes
    with pytest.raises(CausalityError) as refused:
        compile_sampler(model, SHAPE, levels(layout))
    report = check_causality(model, SHAPE, distribution=levels(layout))
    assert str(report) == str(refused.value)
    leak = report.leak
    assert (leak.pixel, leak.colour) == (leak.sees_pixel, leak.sees_colour) == ((0, 0), 0)


def test_the_field_is_the_images():
    report = check_causality(coloured(), SHAPE, distribution=levels())
    assert report.causal
    assert report.colours_in_order
    assert (report.rows, report.columns_left, report.columns_right) == (1, 2, 1)


class Planes(Coloured):
    """Colours one after the other, each a whole plane."""

    def forward(self, x):
        n, colours, height, width = x.shape
        h = torch.cat((self.start.expand(n, -1, -1), self.embed(x.long().flatten(1))), dim=1)
        h = self.head(self.attend(h)[:, :-1])
        return h.view(n, colours, height, width, -1).permute(0, 4, 1, 2, 3)


class Columns(Pixels):
    """Column after column."""

    def forward(self, x):
        return super().forward(x.transpose(2, 3)).transpose(2, 3)


@pytest.mark.parametrize(
    ("model", "shape"),
    [(Planes(SHAPE), SHAPE), (Columns(shift="all"), (1, 3, 4)), (Columns(shift="all"), (1, 3, 3))],
)
def test_another_order_is_refused_by_name(model, shape):
    distribution = levels() if shape[0] == 3 else Categorical(4)
    with pytest.raises(UnsupportedModelError, match=r"zoo_.*\.py|test_lines") as refused:
        compile_sampler(built(model), shape, distribution)
    assert "in another order than they are drawn in" in str(refused.value)


class Unknown(Pixels):
    """Does to all tokens what has no rule."""

    def attend(self, h):
        return super().attend(h).erfinv()


def test_what_else_is_wrong_with_a_line_is_told_of_it():
    with pytest.raises(UnsupportedModelError, match=r"aten\.erfinv.*no rule for this op"):
        compile_sampler(built(Unknown(shift="all")), (1, 3, 4), Categorical(4))


def test_predictions_of_the_next_pixel_are_no_images():
    with pytest.raises((InputError, UnsupportedModelError)):
        compile_sampler(coloured(), SHAPE, levels(), predicts="next")
