import random
from itertools import chain

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler, TensorDataset

from genfast.data import ImageDataset, batches
from genfast.errors import InputError

DATA = ImageDataset(np.arange(23, dtype=np.uint8).reshape(23, 1, 1, 1))


def order(data=DATA, size=4, **options):
    options = {"seed": 3, "epoch": 1, **options}
    return [batch.flatten().tolist() for batch in batches(data, size, **options)]


def flat(lists):
    return list(chain.from_iterable(lists))


def global_states():
    return (torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist())


def test_an_epoch_is_a_permutation_in_batches():
    found = order()
    assert [len(batch) for batch in found] == [4, 4, 4, 4, 4, 3]
    assert sorted(flat(found)) == list(range(23))
    assert flat(found) != list(range(23))


def test_batches_are_canonical():
    for batch in batches(DATA, 5, seed=0, epoch=0):
        assert batch.dtype == torch.uint8
        assert batch.shape[1:] == (1, 1, 1)


def test_order_depends_on_seed_and_epoch_and_nothing_else():
    torch.manual_seed(1)
    first = order()
    torch.manual_seed(2)
    assert order() == first
    assert order(epoch=2) != first
    assert order(seed=4) != first
    assert order(seed=1, epoch=3) != first
    assert order(seed=-1) == order(seed=2**64 - 1)


def test_the_order_is_the_one_runs_were_made_with():
    # A change here makes every saved run go on with other batches than it was promised.
    assert order()[0] == [21, 16, 20, 7]


def test_global_generators_are_left_alone():
    before = global_states()
    order()
    assert global_states() == before


@pytest.mark.parametrize("start", range(7))
def test_start_goes_on_where_the_epoch_stopped(start):
    assert order(start=start) == order()[start:]


def test_drop_last_and_no_shuffle():
    assert order(drop_last=True) == order()[:5]
    assert order(shuffle=False, size=10) == [[*range(10)], [*range(10, 20)], [20, 21, 22]]
    assert order(size=100)[0] == flat(order())
    assert order(size=100, drop_last=True) == []


@pytest.mark.parametrize("shuffle", [True, False])
def test_changing_a_batch_leaves_the_data_alone(shuffle):
    for batch in batches(DATA, 4, seed=0, epoch=0, shuffle=shuffle):
        batch.fill_(99)
    assert DATA.images.flatten().tolist() == list(range(23))


@pytest.mark.parametrize(
    "options",
    [{"size": 0}, {"size": -1}, {"start": -1}, {"start": 7}, {"start": 6, "drop_last": 1}],
)
def test_impossible_arguments_are_refused_at_once(options):
    options = {"seed": 0, "epoch": 0, **options}
    with pytest.raises(InputError, match="expected"):
        batches(DATA, options.pop("size", 4), **options)


def test_arrays_and_datasets_go_through_the_same_door():
    floats = DATA.images.float() / 255
    expected = order()
    assert order(floats) == expected
    assert order(TensorDataset(floats, torch.arange(23))) == expected
    assert order(floats, levels=2) != expected


class Noisy(Dataset):
    """Draws from every global generator, as augmentation does."""

    def __len__(self):
        return 12

    def __getitem__(self, index):
        draws = int(torch.randint(5, ())) + random.randrange(5) + np.random.randint(5)
        return torch.full((1, 1, 1), 20 * index + draws, dtype=torch.uint8), index


def loaders():
    own = torch.Generator().manual_seed(5)
    sampler = DistributedSampler(Noisy(), num_replicas=2, rank=1)
    return {
        "plain": DataLoader(Noisy(), batch_size=5),
        "shuffled": DataLoader(Noisy(), batch_size=5, shuffle=True),
        "own generator": DataLoader(Noisy(), batch_size=5, shuffle=True, generator=own),
        "distributed": DataLoader(Noisy(), batch_size=5, sampler=sampler),
        "workers": DataLoader(Noisy(), batch_size=5, shuffle=True, num_workers=1),
    }


@pytest.mark.parametrize("kind", loaders())
def test_a_foreign_loader_repeats_and_resumes(kind):
    loader = loaders()[kind]
    before = global_states()
    first = order(loader, size=99)
    assert global_states() == before
    torch.manual_seed(77)
    random.seed(77)
    np.random.seed(77)
    assert order(loader, size=99) == first
    assert order(loaders()[kind], size=99, start=1) == first[1:]
    assert order(loader, size=99, epoch=2) != first


def test_a_foreign_loaders_own_generator_is_left_alone():
    loader = loaders()["own generator"]
    before = loader.generator.get_state()
    order(loader)
    assert torch.equal(loader.generator.get_state(), before)


def test_global_draws_between_foreign_batches_are_the_users():
    torch.manual_seed(0)
    expected = torch.rand(3).tolist()
    torch.manual_seed(0)
    drawn = [float(torch.rand(())) for _ in batches(loaders()["shuffled"], 1, seed=0, epoch=0)]
    assert drawn == expected


def test_a_foreign_loader_that_ended_before_start_is_an_error():
    with pytest.raises(InputError, match="start <= 3"):
        order(loaders()["plain"], start=4)
    assert order(loaders()["plain"], start=3) == []


def test_foreign_floats_are_quantised():
    loader = DataLoader(
        TensorDataset(torch.tensor([0.0, 0.5, 1.0]).reshape(3, 1, 1, 1)), batch_size=3
    )
    assert order(loader, levels=17) == [[0, 8, 16]]
    assert order(loader) == [[0, 128, 255]]
