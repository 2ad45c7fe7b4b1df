"""Rows of a table by index: from its end too, and beyond its ends an error that says so."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import genfast
from genfast.errors import UnsupportedModelError
from genfast.sampling import Categorical, sample_naive
from tests.sampling.test_sampler import executor

__all__ = ["executor"]  # a fixture


class Table(nn.Module):
    """Indexes a parameter by what `index` makes of the symbols before each."""

    def __init__(self, index, rows, levels=5):
        super().__init__()
        torch.manual_seed(0)
        self.index, self.rows = index, nn.Parameter(torch.randn(rows, 7))
        self.out = nn.Linear(7, levels)

    def forward(self, x):
        before = F.pad(x, (1, -1))
        return 3 * self.out(self.rows[self.index(before)]).transpose(1, 2)


@pytest.mark.parametrize(
    ("index", "rows"),
    [
        (lambda x: x - 1, 5),
        (lambda x: -x, 5),
        (lambda x: x - 5, 5),
        (lambda x: torch.where(x == 2, -7, x), 7),
        (lambda x: x - F.pad(x, (1, -1)), 5),
    ],
)
def test_indices_below_zero_count_from_the_end(index, rows, executor):
    model = Table(index, rows).double()
    levels = Categorical(5)
    sampler = genfast.compile_sampler(model, (9,), levels, executor=executor)
    drawn = sampler.sample(60, seed=1)
    naive = sample_naive(model, 60, seed=1, event_shape=(9,), distribution=levels)
    assert torch.equal(drawn, naive)
    torch.testing.assert_close(sampler.logits(drawn), model(drawn.long()).detach())


def one_pair(x):
    """Row 5 after the symbols 1 and 4 alone, which are no neighbours where levels rise."""
    return torch.where((x == 4) & (F.pad(x, (1, -1)) == 1), 5, x)


def test_a_row_that_a_table_lacks_is_an_error_of_ours(executor):
    with pytest.raises(UnsupportedModelError, match=r"expected a model that takes.*IndexError"):
        genfast.compile_sampler(Table(lambda x: x + 1, 5), (9,), Categorical(5))
    sampler = genfast.compile_sampler(Table(one_pair, 5), (4,), Categorical(5), executor=executor)
    x = torch.tensor([[0, 1, 4, 0]])
    assert sampler.logits(x.flip(1)).isfinite().all()
    for call in (lambda: sampler.logits(x), lambda: sampler.sample(500, seed=1)):
        with pytest.raises(UnsupportedModelError, match=r"within the tables.*IndexError"):
            call()
    assert sampler.logits(x.flip(1)).isfinite().all()


def test_an_embedding_has_no_rows_before_its_first(executor):
    torch.manual_seed(0)
    model = Table(lambda x: x, 5)
    model.forward = lambda x: model.out(F.embedding(F.pad(x, (1, -1)) - 1, model.rows)).mT
    with pytest.raises(UnsupportedModelError, match="IndexError"):
        genfast.compile_sampler(model, (9,), Categorical(5), executor=executor)
