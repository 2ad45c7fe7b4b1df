"""Samplers that are copied, pickled and sent to other processes, by themselves or in a model."""

import copy
import io
import os
import pickle

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import genfast
from genfast.sampling import Categorical
from tests.sampling.strangers import Small, cases
from tests.sampling.test_sampler import executor
from tests.sampling.test_sampler_model import SHAPE, small

__all__ = ["executor"]  # a fixture


class Holder(Small):
    """A model that makes its sampler once and keeps it."""

    def draw(self, n, seed):
        if not hasattr(self, "sampler"):
            self.sampler = genfast.compile_sampler(self, SHAPE, Categorical(4))
        return self.sampler.sample(n, seed=seed)


def saved(thing):
    """What torch.save writes and torch.load reads."""
    content = io.BytesIO()
    torch.save(thing, content)
    content.seek(0)
    return torch.load(content, weights_only=False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "pickle": lambda thing: pickle.loads(pickle.dumps(thing)),
    "save": saved,
}


@pytest.fixture(params=COPIES)
def duplicate(request):
    return COPIES[request.param]


def test_a_copy_draws_the_same(duplicate, executor):
    sampler = genfast.compile_sampler(small(), SHAPE, Categorical(4), executor=executor)
    drawn = sampler.sample(5, seed=1)
    again = duplicate(sampler)
    assert str(again) == str(sampler)
    assert torch.equal(again.sample(5, seed=1), drawn)
    assert torch.equal(duplicate(again).logits(drawn), sampler.logits(drawn))
    assert torch.equal(sampler.sample(5, seed=1), drawn)


def test_a_copy_has_its_own_model():
    sampler = genfast.compile_sampler(small(), SHAPE, Categorical(4))
    before = sampler.sample(20, seed=1)
    again = copy.deepcopy(sampler)
    with torch.no_grad():
        again.model.first.weight *= -3
    assert not torch.equal(again.sample(20, seed=1), before)
    assert torch.equal(sampler.sample(20, seed=1), before)


def test_a_model_that_holds_its_sampler_is_copied_with_it(duplicate):
    torch.manual_seed(1)
    model = Holder(1, 4).double()
    drawn = model.draw(6, 1)
    again = duplicate(model)
    assert torch.equal(again.draw(6, 1), drawn)
    if duplicate is not copy.copy:
        assert again.sampler.model is again
        with torch.no_grad():
            again.first.weight *= -3
        assert torch.equal(model.draw(6, 1), drawn)


def test_conditioning_and_settings_are_copied():
    case = cases()["labels and map"]()
    made = genfast.compile_sampler(case.model, case.event_shape, case.distribution, **case.options)
    given = {"labels": [1, 2], "where": case.conditioning["where"]}
    drawn = made.sample(2, seed=3, **given)
    assert torch.equal(pickle.loads(pickle.dumps(made)).sample(2, seed=3, **given), drawn)


def test_a_pickle_holds_the_model_and_no_plan():
    model = small()
    sampler = genfast.compile_sampler(model, SHAPE, Categorical(4))
    assert len(pickle.dumps(sampler)) < len(pickle.dumps(model)) + 3000


def test_a_state_on_its_way_says_that_it_cannot_be_copied():
    state = genfast.compile_sampler(small(), SHAPE, Categorical(4)).start(2, seed=1)
    for duplicate in (copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match=r"SamplerState.*sampler"):
            duplicate(state)


class Drawn(Dataset):
    """Items that a worker draws."""

    def __init__(self, sampler):
        self.sampler = sampler

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return self.sampler.sample(1, seed=index)[0]


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_workers_of_a_loader_draw(method):
    sampler = genfast.compile_sampler(small(), SHAPE, Categorical(4))
    data = Drawn(sampler)
    loader = DataLoader(data, batch_size=2, num_workers=1, multiprocessing_context=method)
    drawn = torch.cat(list(loader))
    assert torch.equal(drawn, torch.stack([data[index] for index in range(4)]))


def test_a_fork_draws_the_same():
    model = Holder(1, 4).double()
    expected = model.draw(3, 2)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:  # no test machinery in the child: it writes what it drew and ends
        try:
            torch.set_num_threads(1)
            os.write(writing, bytes(model.draw(3, 2).flatten().tolist()))
        finally:
            os._exit(0)
    os.close(writing)
    found = os.read(reading, 1000)
    os.waitpid(child, 0)
    os.close(reading)
    assert list(found) == expected.flatten().tolist()
