"""compile_sampler and Sampler: the same events as one forward pass per symbol draws."""

import pytest
import torch

import genfast
from genfast.errors import InputError
from genfast.sampling import sample_naive
from tests.sampling.strangers import cases

CASES = cases()
_MADE = {}


def compiled(name, executor):
    """One compilation of each case for all tests."""
    key = (name, executor)
    if key not in _MADE:
        case = CASES[name]()
        _MADE[key] = (
            case,
            genfast.compile_sampler(
                case.model, case.event_shape, case.distribution, executor=executor, **case.options
            ),
        )
    return _MADE[key]


def executors():
    try:
        from genfast.sampling.run.native import NativeExecutor  # noqa: F401
    except ImportError:
        return ["reference"]
    return ["reference", "native"]


@pytest.fixture(params=executors())
def executor(request):
    return request.param


@pytest.fixture(params=CASES, ids=str)
def name(request):
    return request.param


def conditions(case, n, seed=0):
    """Other conditioning than what was compiled with, for n events."""
    generator = torch.Generator().manual_seed(seed)
    given = {}
    for key, example in case.conditioning.items():
        size = (n, *example.shape[1:])
        if example.is_floating_point():
            given[key] = torch.randn(size, generator=generator, dtype=example.dtype)
        else:
            given[key] = torch.randint(0, 3, size, generator=generator)
    return given


def same(first, second):
    """Equal symbols; continuous ones up to rounding."""
    assert first.dtype == second.dtype
    if first.is_floating_point():
        torch.testing.assert_close(first, second, rtol=1e-10, atol=1e-10)
    else:
        assert torch.equal(first, second)


def test_draws_what_the_naive_loop_draws(name, executor):
    case, sampler = compiled(name, executor)
    for n, seed in [(1, 5), (6, 2)]:
        given = conditions(case, n, seed)
        drawn = sampler.sample(n, seed=seed, **given)
        assert drawn.shape == (n, *case.event_shape)
        expected = sample_naive(case.model, n, seed=seed, conditions=given, **case.oracle())
        same(drawn, expected)
        if drawn.numel() > 20 and n > 1:
            assert len(drawn.flatten(1).unique(dim=0)) > 1


@pytest.mark.parametrize("style", ["pixelcnn rgb", "plus plus", "codes", "next sample", "valid"])
def test_single_precision_draws_the_same_but_for_ties(style, executor):
    case = CASES[style]()
    case.model.float()
    sampler = genfast.compile_sampler(
        case.model, case.event_shape, case.distribution, executor=executor, **case.options
    )
    drawn = sampler.sample(500, seed=1)
    expected = sample_naive(case.model, 500, seed=1, **case.oracle())
    differ = (drawn != expected).flatten(1)
    # After a symbol whose uniform lies between two roundings of a probability all may differ.
    assert differ.any(dim=1).double().mean() <= 0.01


def test_temperature_and_log_probability(name, executor):
    case, sampler = compiled(name, executor)
    given = conditions(case, 4)
    warm = 1.0 if name == "custom" else 1.7
    if name == "custom":
        same(sampler.sample(2, seed=1), sampler.sample(2, seed=1))
        with pytest.raises(InputError, match="log_prob="):
            sampler.sample(1, return_log_prob=True)
        return
    drawn, log_prob = sampler.sample(4, seed=3, temperature=warm, return_log_prob=True, **given)
    expected, other = sample_naive(
        case.model, 4, seed=3, temperature=warm, conditions=given, return_log_prob=True,
        **case.oracle(),
    )  # fmt: skip
    same(drawn, expected)
    assert log_prob.dtype == torch.float64
    torch.testing.assert_close(log_prob, other, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(log_prob, sampler.log_prob(drawn, **given), rtol=1e-9, atol=1e-9)


def test_what_is_known_stays_and_the_rest_follows_it(name, executor):
    case, sampler = compiled(name, executor)
    generator = torch.Generator().manual_seed(4)
    given = conditions(case, 5)
    source = sampler.sample(5, seed=9, **given)
    mask = torch.rand(5, *case.event_shape, generator=generator) < 0.4
    options = {"known": source, "known_mask": mask, "seed": 11}
    if name != "custom":
        options["return_log_prob"] = True
    drawn = sampler.sample(5, **options, **given)
    expected = sample_naive(case.model, 5, conditions=given, **options, **case.oracle())
    if name != "custom":
        torch.testing.assert_close(drawn[1], expected[1], rtol=1e-9, atol=1e-9)
        drawn, expected = drawn[0], expected[0]
    assert torch.equal(drawn[mask], source[mask])
    same(drawn, expected)
    first_half = torch.zeros(case.event_shape, dtype=torch.bool).flatten()
    first_half[: len(first_half) // 2] = True
    half = first_half.view(case.event_shape)
    drawn = sampler.sample(5, known=source[:1], known_mask=half, seed=12, **given)
    assert torch.equal(drawn[:, half], source[:1].expand_as(drawn)[:, half])


def test_everything_known_is_returned(name, executor):
    case, sampler = compiled(name, executor)
    given = conditions(case, 2)
    source = sampler.sample(2, seed=1, **given)
    everywhere = torch.ones(2, *case.event_shape, dtype=torch.bool)
    assert torch.equal(sampler.sample(2, known=source, known_mask=everywhere, **given), source)


def test_logits_are_the_models_output_where_it_predicts(name, executor):
    case, sampler = compiled(name, executor)
    given = conditions(case, 3)
    x = sampler.sample(3, seed=6, **given)
    found = sampler.logits(x, **given)
    call = sampler._call
    with torch.no_grad():
        output = call.run(call.as_input(call.planes(x.view(3, *call.grid))), given)
    if name == "channels last":
        output = output.permute(0, 3, 1, 2)
    width = case.event_shape[-1]
    columns = min(width - case.offset, output.shape[-1])
    expected = output[..., :columns]
    predicted = found[..., case.offset : case.offset + columns]
    torch.testing.assert_close(predicted, expected, rtol=1e-10, atol=1e-10)
    assert torch.isnan(found[..., : case.offset]).all()
    assert found.shape[-1] == width


@pytest.mark.parametrize("options", [{"top_k": 2}, {"top_p": 0.6}, {"top_k": 3, "top_p": 0.5}])
def test_top_k_and_top_p(options, executor):
    case, sampler = compiled("pixelcnn rgb", executor)
    drawn = sampler.sample(20, seed=1, temperature=1.3, **options)
    expected = sample_naive(case.model, 20, seed=1, temperature=1.3, **options, **case.oracle())
    same(drawn, expected)
    assert not torch.equal(drawn, sampler.sample(20, seed=1, temperature=1.3))


def test_an_image_depends_on_its_own_number_only(name, executor):
    case, sampler = compiled(name, executor)
    given = conditions(case, 5)
    together = sampler.sample(5, seed=3, **given)
    alone = [
        sampler.sample(1, seed=3, first=k, **{key: each[k : k + 1] for key, each in given.items()})
        for k in range(5)
    ]
    same(torch.cat(alone), together)
    pairs = {key: each[2:4] for key, each in given.items()}
    same(sampler.sample(2, seed=3, first=2, **pairs), together[2:4])


def test_generators_and_global_seeds(executor):
    _, sampler = compiled("pixelcnn", executor)
    first = sampler.sample(4, generator=torch.Generator().manual_seed(1))
    again = sampler.sample(4, generator=torch.Generator().manual_seed(1))
    assert torch.equal(first, again)
    state = torch.get_rng_state()
    sampler.sample(2, seed=1)
    sampler.logits(first)
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(5)
    by_global = sampler.sample(4)
    torch.manual_seed(5)
    assert torch.equal(by_global, sampler.sample(4))
    assert not torch.equal(by_global, sampler.sample(4))


def test_naive_and_fast_agree_on_the_global_generator(executor):
    case, sampler = compiled("pixelcnn", executor)
    torch.manual_seed(7)
    fast = sampler.sample(3)
    torch.manual_seed(7)
    assert torch.equal(fast, sample_naive(case.model, 3))


def test_progress_counts_pixels(executor, capsys):
    compiled("pixelcnn", executor)[1].sample(1, progress=True)
    assert "20/20" in capsys.readouterr().err


def test_the_plan_can_be_printed(name, executor):
    text = str(compiled(name, executor)[1])
    assert f"Executor: {executor}" in text
    assert "Arithmetic" in text
    assert "Caches" in text


def test_one_conditioning_for_all_events(executor):
    case, sampler = compiled("labels and map", executor)
    where = case.conditioning["where"]
    one = sampler.sample(4, seed=1, labels=torch.tensor([2]), where=where)
    same(one, sampler.sample(4, seed=1, labels=2, where=where[0]))
    same(one, sampler.sample(4, seed=1, labels=[2] * 4, where=where.expand(4, -1, -1, -1)))
    assert not torch.equal(one, sampler.sample(4, seed=1, labels=1, where=where))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 0}, "n >= 1"),
        ({"n": 2.0}, "n >= 1"),
        ({"temperature": 0.0}, "temperature > 0"),
        ({"temperature": float("inf")}, "finite temperature"),
        ({"top_k": 0}, "top_k >= 1"),
        ({"top_p": 0.0}, r"top_p in \(0, 1\]"),
        ({"first": -1}, "first >= 0"),
        ({"seed": 1, "generator": torch.Generator()}, "seed or generator"),
        ({"seed": -1}, "seed in"),
        ({"known_mask": torch.ones(3, 4) > 0}, "known= with"),
        ({"known": torch.zeros(3, 4)}, "integer levels"),
        ({"known": torch.zeros(3, 4, dtype=torch.int64)}, "negative values"),
        ({"known": torch.full((3, 4), 5), "known_mask": torch.ones(3, 4) > 0}, r"0 \.\. 4"),
        ({"known": torch.full((2, 4), -1)}, "broadcasts to"),
        ({"labels": torch.zeros(2)}, "conditioning of no names"),
    ],
)
def test_bad_calls_are_refused(options, message, executor):
    _, sampler = compiled("pixelcnn rgb", executor)
    before = sampler.sample(2, seed=1)
    with pytest.raises(InputError, match=message):
        sampler.sample(**{"n": 2, **options})
    assert torch.equal(before, sampler.sample(2, seed=1))


def test_bad_conditioning_is_refused(executor):
    case, sampler = compiled("labels and map", executor)
    where = case.conditioning["where"]
    for given, message in [
        ({}, "conditioning"),
        ({"labels": torch.tensor([1])}, "conditioning"),
        ({"labels": torch.tensor([1, 2, 0]), "where": where}, "labels for 2 images"),
        ({"labels": torch.tensor([[1]]), "where": where}, "labels"),
        ({"labels": 1, "where": where[..., :3]}, "where"),
        ({"labels": 1, "where": where, "colour": 1}, "conditioning"),
    ]:
        with pytest.raises(InputError, match=message):
            sampler.sample(2, **given)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(2, 1, 5, 5, dtype=torch.int64), r"x \[N, 1, 5, 4\]"),
        (torch.zeros(0, 1, 5, 4, dtype=torch.int64), r"x \[N, 1, 5, 4\]"),
        (torch.zeros(2, 1, 5, 4), "integer symbols"),
        (torch.full((2, 1, 5, 4), 4), r"0 \.\. 3"),
    ],
)
def test_what_are_no_events_is_refused(x, message, executor):
    _, sampler = compiled("pixelcnn", executor)
    with pytest.raises(InputError, match=message):
        sampler.logits(x)
    with pytest.raises(InputError, match=message):
        sampler.log_prob(x)
