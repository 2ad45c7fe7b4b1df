"""The step interface: parameters out, symbols in, from within or from outside."""

import pytest
import torch

from genfast.errors import InputError
from tests.sampling.test_sampler import compiled, conditions, executor, name, same

__all__ = ["executor", "name"]  # fixtures


def test_stepping_draws_what_sample_draws(name, executor):
    case, sampler = compiled(name, executor)
    given = conditions(case, 3)
    if name == "custom":  # has neither a temperature nor a log_prob
        options, log_prob = {"seed": 4}, torch.zeros(3, dtype=torch.float64)
        expected = sampler.sample(3, **options)
    else:
        options = {"seed": 4, "temperature": 1.2}
        expected, log_prob = sampler.sample(3, return_log_prob=True, **options, **given)
    state = sampler.start(3, **options, **given)
    while not state.done:
        state.step()
    same(state.events, expected)
    torch.testing.assert_close(state.log_prob, log_prob, rtol=1e-9, atol=1e-9)


def test_symbols_from_outside_see_the_models_own_parameters(name, executor):
    case, sampler = compiled(name, executor)
    given = conditions(case, 2)
    x = sampler.sample(2, seed=8, **given)
    logits = sampler.logits(x, **given)
    colours, height, width = sampler._call.grid
    logits = logits.reshape(2, -1, height, width)
    source = x.view(2, colours, height, width)
    draws = {first: (count, features) for first, count, features in sampler._compiled.draws}
    state = sampler.start(2, **given)
    visited = []
    while not state.done:
        row, column, first = state.position
        visited.append((row, column, first))
        count, features = draws[first]
        expected = logits[:, features, row, column]
        if state.parameters is None:
            assert torch.isnan(expected).all()
        else:
            torch.testing.assert_close(state.parameters, expected, rtol=1e-10, atol=1e-10)
            assert state.parameters is state.parameters
        given_symbols = source[:, first : first + count, row, column]
        assert torch.equal(state.step(given_symbols), given_symbols)
    assert visited == sorted(visited)
    assert len(visited) == height * width * len(draws)
    assert torch.equal(state.events, x)
    assert torch.equal(state.log_prob, torch.zeros(2, dtype=torch.float64))


def test_a_decoder_reproduces_what_an_encoder_saw(executor):
    """Symbols ranked by their probability, and found again from their ranks."""
    _, sampler = compiled("pixelcnn rgb", executor)
    x = sampler.sample(4, seed=2)

    def ranks_of(parameters, symbols):
        order = parameters.argsort(dim=1, descending=True, stable=True)
        return (order == symbols.long()).nonzero()[:, 1:]

    encoder, ranks = sampler.start(4), []
    while not encoder.done:
        row, column, colour = encoder.position
        symbols = x[:, colour, row, column, None]
        ranks.append(ranks_of(encoder.parameters, symbols))
        encoder.step(symbols)
    decoder = sampler.start(4)
    for rank in ranks:
        order = decoder.parameters.argsort(dim=1, descending=True, stable=True)
        decoder.step(order.gather(1, rank))
    assert decoder.done
    assert torch.equal(decoder.events, x)


def test_some_symbols_given_some_drawn(executor):
    _, sampler = compiled("pixelcnn", executor)
    x = sampler.sample(3, seed=5)
    state = sampler.start(3, seed=6)
    mask = torch.zeros(1, 5, 4, dtype=torch.bool)
    while not state.done:
        row, column, _ = state.position
        given = (row + column) % 2 == 0
        mask[0, row, column] = given
        state.step(x[:, 0, row, column] if given else None)
    assert torch.equal(state.events, sampler.sample(3, seed=6, known=x, known_mask=mask))


def test_states_beside_each_other_and_beside_samples(executor):
    _, sampler = compiled("pixelcnn", executor)
    expected = [sampler.sample(2, seed=k) for k in range(3)]
    states = [sampler.start(2, seed=k) for k in range(3)]
    for _ in range(10):
        for state in states:
            state.step()
    assert torch.equal(sampler.sample(2, seed=1), expected[1])
    for _ in range(10):
        for state in states:
            state.step()
    for state, images in zip(states, expected, strict=True):
        assert state.done
        assert torch.equal(state.events, images)


def test_steps_that_do_not_fit_are_refused(executor):
    _, sampler = compiled("pixelcnn", executor)
    state = sampler.start(2, seed=1)
    for value, message in [
        (torch.zeros(3, 1, dtype=torch.int64), r"value \[2, 1\]"),
        (torch.zeros(2, 2, dtype=torch.int64), r"value \[2, 1\]"),
        (torch.zeros(2, 1), "integer symbols"),
        (torch.tensor([0, 4]), r"0 \.\. 3"),
    ]:
        with pytest.raises(InputError, match=message):
            state.step(value)
    assert state.position == (0, 0, 0)
    while not state.done:
        state.step()
    assert torch.equal(state.events, sampler.sample(2, seed=1))
    with pytest.raises(InputError, match="done"):
        state.step()
    with pytest.raises(InputError, match="done"):
        _ = state.parameters
