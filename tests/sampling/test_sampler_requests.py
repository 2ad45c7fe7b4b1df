"""What a call of a sampler may bring: lists, arrays and odd numbers; what is refused, in words."""

import re

import numpy as np
import pytest
import torch

import genfast
from genfast.errors import InputError, UnsupportedModelError
from genfast.sampling import Categorical, sample_naive
from tests.sampling.strangers import cases
from tests.sampling.test_sampler_model import SHAPE, small

FORM = re.compile(r"^[\w: ]+: expected .+, got .+")


@pytest.fixture(scope="module")
def model():
    return small()


@pytest.fixture(scope="module")
def sampler(model):
    return genfast.compile_sampler(model, SHAPE, Categorical(4))


@pytest.fixture(scope="module")
def conditional():
    case = cases()["labels and map"]()
    made = genfast.compile_sampler(case.model, case.event_shape, case.distribution, **case.options)
    return made, case.conditioning["where"]


def naive(model, n, **options):
    return sample_naive(model, n, event_shape=SHAPE, distribution=Categorical(4), **options)


def refused(call, message):
    with pytest.raises(InputError, match=message) as caught:
        call()
    assert FORM.match(str(caught.value)), caught.value
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "seed", ["a", 1.5, 2.0, True, -1, 2**63, 2**64, -(2**70), float("nan"), [1], np.float64(1)]
)
def test_a_seed_is_an_integer_of_63_bits(sampler, model, seed):
    for call in (sampler.sample, sampler.start, lambda n, seed: naive(model, n, seed=seed)):
        refused(lambda call=call: call(1, seed=seed), r"seed in \[0, 2\*\*63\)")


@pytest.mark.parametrize("seed", [np.int64(3), np.uint8(3), np.uint64(3)])
def test_numpy_integers_are_seeds(sampler, seed):
    assert torch.equal(sampler.sample(2, seed=seed), sampler.sample(2, seed=3))
    assert torch.equal(sampler.sample(2, seed=2**63 - 1), sampler.sample(2, seed=2**63 - 1))


def test_a_generator_is_one_of_torch(sampler, model):
    for call in (sampler.sample, lambda n, generator: naive(model, n, generator=generator)):
        refused(lambda call=call: call(1, generator=3), "torch.Generator")


@pytest.mark.parametrize(
    "value", [0, 0.0, -1, 1e-300, 9e-7, float("inf"), float("nan"), "a", True, None, 1j]
)
def test_a_temperature_is_a_number_that_divides_logits(sampler, model, value):
    for call in (sampler.sample, lambda n, **options: naive(model, n, **options)):
        for more in ({}, {"top_k": 2}):
            refused(lambda call=call, more=more: call(1, temperature=value, **more), "temperature")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [1e-6, np.float32(1e-5), 1e300])
def test_the_smallest_temperature_draws_the_most_probable(dtype, value):
    model = small().to(dtype)
    sampler = genfast.compile_sampler(model, SHAPE, Categorical(4))
    drawn = sampler.sample(6, seed=1, temperature=value)
    assert torch.equal(drawn, naive(model, 6, seed=1, temperature=value))
    if value < 1:
        assert torch.equal(drawn, sampler.sample(6, seed=1, top_k=1))


def test_the_first_event_lies_within_its_stream(sampler, model):
    largest = 2**63 // 12 - 2
    for call in (sampler.sample, lambda n, **given: naive(model, n, **given)):
        assert call(1, seed=1, first=largest - 1).shape == (1, *SHAPE)
        assert torch.equal(call(1, seed=1, first=np.int8(100)), call(1, seed=1, first=100))
        for first in (largest, 2**62, 2**70, np.uint64(2**63)):
            refused(lambda call=call, first=first: call(2, seed=1, first=first), "first <")


def test_top_p_is_a_number(sampler):
    refused(lambda: sampler.sample(1, top_p=True), "top_p")
    same = sampler.sample(4, seed=1, top_p=0.5)
    assert torch.equal(sampler.sample(4, seed=1, top_p=np.float32(0.5)), same)


def known_values():
    values = torch.full(SHAPE, -1)
    values[0, 0], values[0, 2, 1] = 2, 0
    return values


@pytest.mark.parametrize(
    "form",
    [
        lambda t: t.tolist(),
        lambda t: t.numpy(),
        lambda t: t.numpy().astype(np.int8),
        lambda t: t.numpy().astype(">i4"),
        lambda t: np.flip(np.flip(t.numpy(), -1).copy(), -1),
        lambda t: tuple(t),
    ],
)
def test_what_is_known_may_be_lists_or_arrays(sampler, model, form):
    expected = sampler.sample(3, seed=1, known=known_values())
    values, keep = known_values().clamp(min=0), known_values() >= 0
    assert torch.equal(sampler.sample(3, seed=1, known=form(known_values())), expected)
    assert torch.equal(naive(model, 3, seed=1, known=form(known_values())), expected)
    for mask in (keep.tolist(), keep.numpy()):
        drawn = sampler.sample(3, seed=1, known=form(values), known_mask=mask)
        assert torch.equal(drawn, expected)
    unsigned = values.numpy().astype(np.uint16)
    assert torch.equal(sampler.sample(3, seed=1, known=unsigned, known_mask=keep), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"known": "x"}, "known"),
        ({"known": object()}, "known"),
        ({"known": [[1], [2, 3]]}, "known"),
        ({"known": np.array([["a"]])}, "known"),
        ({"known": {"a": 1}}, "known"),
        ({"known": np.array([None, 1])}, "known"),
        ({"known": torch.full(SHAPE, -1).to_sparse()}, "dense"),
        ({"known": torch.zeros(SHAPE, dtype=torch.int64, device="meta")}, "numbers in it"),
        ({"known": np.full(SHAPE, 2), "known_mask": np.ones((2, 5), bool)}, "broadcasts to"),
        ({"known": np.full(SHAPE, 2), "known_mask": np.ones(SHAPE)}, "bool mask"),
        ({"known": np.full(SHAPE, 2), "known_mask": "mask"}, "known_mask"),
        ({"known": np.full(SHAPE, 9), "known_mask": np.ones(SHAPE, bool)}, r"0 \.\. 3"),
        ({"known_mask": [True]}, "known= with"),
    ],
)
def test_what_cannot_be_known_is_refused(sampler, model, options, message):
    for call in (sampler.sample, lambda n, **given: naive(model, n, **given)):
        refused(lambda call=call: call(1, **options), message)


def test_events_may_be_lists_or_arrays(sampler):
    x = sampler.sample(2, seed=1)
    expected = sampler.logits(x), sampler.log_prob(x)
    for form in (x.tolist(), x.numpy(), x.numpy().astype(np.uint16), x.long().numpy()):
        torch.testing.assert_close(sampler.logits(form), expected[0], rtol=0, atol=0)
        torch.testing.assert_close(sampler.log_prob(form), expected[1], rtol=0, atol=0)


@pytest.mark.parametrize(
    "x",
    ["x", None, 5, [], [[1, 2], [3]], np.zeros((2, *SHAPE)), np.full((2, *SHAPE), 7), object(),
     torch.zeros(2, *SHAPE, dtype=torch.bool), torch.zeros(2, *SHAPE, dtype=int, device="meta")],
)  # fmt: skip
def test_what_are_no_events_is_refused(sampler, x):
    for call in (sampler.logits, sampler.log_prob):
        refused(lambda call=call: call(x), "x")


def test_steps_take_lists_and_arrays_and_refuse_the_rest(sampler):
    state = sampler.start(2, seed=1)
    assert state.step([[1], [2]]).flatten().tolist() == [1, 2]
    assert state.step(np.array([3, 0])).flatten().tolist() == [3, 0]
    for value, message in [
        ("x", "value"), (5, "value"), ([1, 2, 3], "value"), ([0.5, 1.0], "integer"), ([9, 9], "0"),
    ]:  # fmt: skip
        refused(lambda value=value: state.step(value), message)
    while not state.done:
        state.step()
    assert state.events[:, 0, 0, :2].tolist() == [[1, 3], [2, 0]]


def test_conditioning_may_be_lists_or_arrays(conditional):
    sampler, where = conditional
    expected = sampler.sample(2, seed=1, labels=torch.tensor([1, 2]), where=where)
    for labels in ([1, 2], np.array([1, 2]), np.array([1, 2], np.uint16), (1, np.int32(2))):
        drawn = sampler.sample(2, seed=1, labels=labels, where=where.numpy())
        assert torch.equal(drawn, expected)
    whole = torch.ones_like(where)
    drawn = sampler.sample(2, seed=1, labels=[1, 2], where=whole.long().tolist())
    assert torch.equal(drawn, sampler.sample(2, seed=1, labels=[1, 2], where=whole))


@pytest.mark.parametrize(
    "labels",
    [7, -1, [0, 99], 2**40, "a", None, 1.5, True, [1, 2, 3], [[1, 2]], [None, 1], object(),
     [1, [2]], torch.tensor([1, 2], device="meta"), np.array(["a", "b"])],
)  # fmt: skip
def test_labels_that_do_not_fit_are_refused(conditional, labels):
    sampler, where = conditional
    before = sampler.sample(2, seed=1, labels=1, where=where)
    for call in (sampler.sample, sampler.start):
        refused(lambda call=call: call(2, labels=labels, where=where), "labels")
    assert torch.equal(sampler.sample(2, seed=1, labels=1, where=where), before)


def test_examples_of_conditioning_that_are_no_numbers_are_refused():
    case = cases()["labels and map"]()
    for labels in ("a", None, object(), [1, [2]]):
        given = {**case.conditioning, "labels": labels}
        with pytest.raises(InputError, match="labels"):
            genfast.compile_sampler(
                case.model, case.event_shape, case.distribution, conditioning=given
            )


class Lowest(Categorical):
    """Draws in its own way: always the lowest level."""

    def draw(self, parameters, uniforms, *args):
        return torch.zeros(len(parameters), 1, dtype=self.dtype)


def test_a_distribution_that_draws_in_its_own_way_is_asked():
    sampler = genfast.compile_sampler(small(), SHAPE, Lowest(4))
    assert not sampler.sample(3, seed=1).any()


def test_conditioning_without_an_axis_of_images_is_refused_in_words():
    class Mapped(type(small())):
        def forward(self, x, where):
            return super().forward(x) + where

    height, width = SHAPE[1:]
    where = torch.randn(height, width)
    message = rf"x \[2, .*where \[2, {width}\] \(the first axis of each counts images\)"
    with pytest.raises(UnsupportedModelError, match=message):
        genfast.compile_sampler(Mapped(1, 4), SHAPE, Categorical(4), conditioning={"where": where})
    options = {"conditioning": {"where": where[None, None]}}
    sampler = genfast.compile_sampler(Mapped(1, 4), SHAPE, Categorical(4), **options)
    assert sampler.sample(3, seed=0, where=where[None, None]).shape == (3, *SHAPE)
