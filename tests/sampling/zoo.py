"""Small models in the styles found in public code, each with what a sampler must be told of it.

`ZOO` holds those that must be taken as they are, `REFUSED` those that must be refused with the
reason. Weights are random and of a scale at which every output depends on its inputs visibly.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import genfast
from tests.sampling import zoo_attention as attention
from tests.sampling import zoo_dense as dense
from tests.sampling import zoo_masked as masked
from tests.sampling import zoo_recurrent as recurrent
from tests.sampling import zoo_refused as refused
from tests.sampling import zoo_stacks as stacks
from tests.sampling import zoo_wavenets as wavenets


def nothing(n: int) -> dict[str, Tensor]:
    return {}


@dataclass(frozen=True)
class Entry:
    """One model of the zoo.

    Attributes:
        make: builds the module; call `build` instead.
        event_shape: as for `compile_sampler`.
        distribution: makes the distribution of the symbols.
        conditions: keyword arguments of `forward` for a batch of n.
        reason: what the refusal must say, a regular expression; None for a model that is taken.
        offset: output t predicts the symbol at t + offset.
        features_last: outputs have their features after the positions.
    """

    make: Callable[[], nn.Module]
    event_shape: tuple[int, ...]
    distribution: Callable[[], Any]
    conditions: Callable[[int], dict[str, Tensor]] = nothing
    reason: str | None = None
    offset: int = 0
    features_last: bool = False

    def build(self, dtype: torch.dtype = torch.float64, seed: int = 0) -> nn.Module:
        """Make the module with random weights, in eval mode; torch's generator is left alone."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = self.make().to(dtype).eval()
            with torch.no_grad():
                for parameter in model.parameters():
                    # Default weights shrink what passes: after some layers the far past is lost.
                    parameter.mul_(1.5)
        return model

    def condition(self, n: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
        """Return conditions for a batch of n, reals in `dtype`."""
        with torch.random.fork_rng():
            torch.manual_seed(n)
            given = self.conditions(n)
        return {
            name: value.to(dtype) if value.is_floating_point() else value
            for name, value in given.items()
        }


def categorical(levels: int, values: Tensor | str | None = None, **more: Any) -> Callable[[], Any]:
    return lambda: genfast.Categorical(levels, values=values, **more)


ZOO: dict[str, Entry] = {
    "batch norm, mask in place": Entry(masked.BatchNormed, (1, 5, 6), categorical(4, "unit")),
    "residual, mask an attribute, tuple out": Entry(
        masked.ResidualTuple, (1, 6, 5), categorical(4, "signed")
    ),
    "two stacks dilated, mask 1 1 k k, integers in": Entry(
        masked.DilatedTwoStacks, (1, 6, 5), categorical(5)
    ),
    "layer norm, dense 1 x 1, dict out": Entry(
        masked.NormedDict, (1, 5, 5), categorical(4, "signed"), features_last=True
    ),
    "thirds of channels, __call__, N C K H W out": Entry(
        masked.ThirdsOfChannels, (3, 4, 5), categorical(3, "unit", layout="CK")
    ),
    "interleaved colours, not square": Entry(
        masked.InterleavedColours, (2, 4, 6), categorical(3, "signed")
    ),
    "codes, label and map": Entry(
        masked.CodesWithContext,
        (1, 4, 5),
        categorical(6),
        lambda n: {"label": torch.arange(n) % 3, "context": torch.randn(n, 2, 4, 5)},
    ),
    "codes, label": Entry(
        masked.CodesWithContext, (1, 5, 4), categorical(6), lambda n: {"label": torch.arange(n) % 3}
    ),
    "one-hot inside, cannot be copied": Entry(masked.OneHotInside, (1, 5, 5), categorical(5)),
    "gated with a blind spot, label": Entry(
        stacks.BlindSpot,
        (1, 6, 5),
        categorical(4, "signed"),
        lambda n: {"labels": torch.arange(n) % 3},
    ),
    "gated without a blind spot": Entry(stacks.NoBlindSpot, (1, 6, 5), categorical(4, "signed")),
    "gated, one column": Entry(stacks.NoBlindSpot, (1, 5, 1), categorical(4, "unit")),
    "plus plus, mixture": Entry(
        lambda: stacks.PlusPlus(10 * 2), (3, 4, 6), lambda: genfast.LogisticMixture(256, 2)
    ),
    "plus plus, old weight norm, Bernoulli": Entry(
        lambda: stacks.PlusPlus(1, colours=1, norm=stacks.old_weight_norm),
        (1, 6, 4),
        lambda: genfast.Bernoulli(),
    ),
    "wavenet of the same step": Entry(
        wavenets.SameStep, (1, 20), categorical(8, torch.arange(8.0))
    ),
    "wavenet of the next step, one-hot, conditions": Entry(
        wavenets.NextStep,
        (1, 16),
        categorical(6, torch.eye(6)),
        lambda n: {"c": torch.randn(n, 3, 4), "g": torch.arange(n) % 4},
        offset=1,
    ),
    "wavenet of the next step, one-hot": Entry(
        wavenets.NextStep, (1, 13), categorical(6, torch.eye(6)), offset=1
    ),
    "wavenet behind the steps of a label": Entry(
        wavenets.Primed, (24,), categorical(6), lambda n: {"label": torch.arange(n) % 4}
    ),
    "wavenet without padding, Gaussian": Entry(
        wavenets.Valid, (1, 18), lambda: genfast.Gaussian(), offset=8
    ),
    "attention, pixels behind a start token": Entry(attention.Pixels, (1, 4, 3), categorical(4)),
    "attention, pixels behind a label": Entry(
        lambda: attention.Pixels(labels=3),
        (1, 3, 4),
        categorical(4),
        lambda n: {"label": torch.arange(n) % 3},
    ),
    "attention, start token and cut": Entry(
        lambda: attention.Pixels(shift="cut"), (1, 3, 4), categorical(4)
    ),
    "attention, padded and cut": Entry(
        lambda: attention.Pixels(shift="pad"), (1, 3, 5), categorical(4)
    ),
    "attention, start token and all pixels": Entry(
        lambda: attention.Pixels(shift="all"), (1, 3, 4), categorical(4)
    ),
    "attention, a label and all pixels of one column": Entry(
        lambda: attention.Pixels(shift="all", labels=3),
        (1, 7, 1),
        categorical(4),
        lambda n: {"label": torch.arange(n) % 3},
    ),
    "attention, start token and pixels of three colours": Entry(
        lambda: attention.Mixed(3, 20), (3, 3, 2), lambda: genfast.LogisticMixture(16, mixtures=2)
    ),
    "attention, colours as tokens": Entry(
        lambda: attention.Coloured((3, 3, 3)), (3, 3, 3), categorical(5, layout="CK")
    ),
    "attention, colours as tokens behind a label, shifted, N K C H W out": Entry(
        lambda: attention.Coloured((3, 2, 4), labels=3, axes="KC", shifted=True),
        (3, 2, 4),
        categorical(5, layout="KC"),
        lambda n: {"label": torch.arange(n) % 3},
    ),
    "attention, start token among the levels": Entry(
        lambda: attention.Pixels(levels=5, shift="token"), (1, 3, 5), categorical(5)
    ),
    "attention, decoder of tokens, fused": Entry(
        attention.Language, (11,), categorical(6), offset=1, features_last=True
    ),
    "attention, decoder of tokens, in two products": Entry(
        lambda: attention.Language(fused=False), (10,), categorical(6), offset=1, features_last=True
    ),
    "attention, behind a label and a caption": Entry(
        attention.Captioned,
        (9,),
        categorical(5),
        lambda n: {"label": torch.arange(n) % 4, "caption": torch.randint(7, (n, 3))},
        features_last=True,
    ),
    "attention, behind a label and a long caption, next": Entry(
        lambda: attention.Captioned(length=7, words=8, following=True),
        (7,),
        categorical(5),
        lambda n: {"label": torch.arange(n) % 4, "caption": torch.randint(7, (n, 8))},
        offset=1,
        features_last=True,
    ),
    "attention, behind indices": Entry(
        lambda: attention.Codes(given=3),
        (8,),
        categorical(5),
        lambda n: {"given": torch.randint(5, 12, (n, 3))},
        features_last=True,
    ),
    "attention, behind one index": Entry(
        attention.Codes,
        (9,),
        categorical(5),
        lambda n: {"given": torch.arange(5, 5 + n)[:, None]},
        features_last=True,
    ),
    "attention, encoder layers, norm last": Entry(
        attention.Encoder, (9,), categorical(5), offset=1, features_last=True
    ),
    "attention, encoder layers, norm first": Entry(
        lambda: attention.Encoder(norm_first=True),
        (9,),
        categorical(5),
        offset=1,
        features_last=True,
    ),
    "attention, sequence first": Entry(attention.SequenceFirst, (8,), categorical(4)),
    "attention, sequence first, no weights": Entry(
        lambda: attention.SequenceFirst(weights=False), (8,), categorical(4)
    ),
    "attention, sequence first, behind a label": Entry(
        lambda: attention.SequenceFirst(labels=3),
        (8,),
        categorical(4),
        lambda n: {"label": torch.arange(n) % 3},
    ),
    "attention on a feature map, start mask": Entry(
        attention.Grid, (1, 4, 5), categorical(4, "signed")
    ),
    "attention on a feature map, NaN put right": Entry(
        lambda: attention.Grid(forgive=True), (1, 4, 5), categorical(4, "signed")
    ),
    "attention, rotary, grouped keys, slopes": Entry(
        attention.Rotary, (7,), categorical(5), offset=1, features_last=True
    ),
    "attention, banded, transposed": Entry(attention.Banded, (1, 12), categorical(6, "unit")),
    "dense over the image, Bernoulli": Entry(dense.Dense, (1, 3, 4), lambda: genfast.Bernoulli()),
    "dense, flat outputs, label beside the input": Entry(
        dense.TiledOutputs,
        (1, 4, 3),
        categorical(3, "signed"),
        lambda n: {"y": torch.arange(n) % 4},
    ),
    "dense over the steps of each feature behind a label": Entry(
        dense.StepsOfFeatures,
        (1, 7),
        categorical(4, "signed"),
        lambda n: {"y": torch.arange(n) % 4},
    ),
    "wavenet of codes, channels last": Entry(
        wavenets.Codes, (14,), categorical(8), features_last=True
    ),
    "lstm of characters": Entry(
        recurrent.Characters, (12,), categorical(4), offset=1, features_last=True
    ),
    "gru of a melody, state from a label": Entry(
        recurrent.Melody,
        (9,),
        categorical(5),
        lambda n: {"label": torch.linspace(-2, 2, 3 * n, dtype=torch.float64).view(n, 3)},
    ),
    "lstm and rnn of pixels between convolutions": Entry(
        recurrent.RowsThenPixels, (1, 4, 5), categorical(4, "unit")
    ),
}

REFUSED: dict[str, Entry] = {
    "recurrent": Entry(refused.Recurrent, (12,), categorical(4), reason=r"lstm_cell in cell"),
    "looks at numbers": Entry(
        refused.LooksAtNumbers, (1, 4, 4), categorical(4, "unit"), reason=r"x\.max\(\)"
    ),
}
