"""Small causal models in the styles of other people's code, and what sampling them takes."""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn

from genfast.models import create
from genfast.sampling import (
    Bernoulli,
    Categorical,
    CustomDistribution,
    Gaussian,
    LogisticMixture,
)


@dataclass
class Case:
    """A model and how it is sampled. `offset`: its output t predicts symbol t + offset."""

    model: nn.Module
    event_shape: tuple
    distribution: object
    conditioning: dict = field(default_factory=dict)
    forward: object = None
    offset: int = 0
    predicts: str | None = None

    @property
    def options(self):
        return {
            "conditioning": self.conditioning,
            "forward": self.forward,
            "predicts": self.predicts,
        }

    def oracle(self):
        return {
            "event_shape": self.event_shape,
            "distribution": self.distribution,
            "forward": self.forward,
            "offset": self.offset,
        }


class Masked(nn.Conv2d):
    """Sees what comes before the centre; the mask is written into the weight at every call."""

    def __init__(self, centre, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.mask = torch.ones_like(self.weight)
        high, wide = self.kernel_size
        self.mask[:, :, high // 2, wide // 2 + centre :] = 0
        self.mask[:, :, high // 2 + 1 :] = 0

    def forward(self, x):
        self.weight.data *= self.mask.to(self.weight)
        return super().forward(x)


class Small(nn.Module):
    """Two masked convolutions with a gate between them."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.first = Masked(0, inputs, 12, 3, padding=1)
        self.second = Masked(1, 6, outputs, 3, padding=1)

    def forward(self, x):
        a, b = self.first(x).chunk(2, dim=1)
        return self.second(torch.tanh(a) * torch.sigmoid(b)) * 2


class InDictionary(Small):
    def forward(self, x):
        return {"logits": super().forward(x), "extra": x.sum()}


class ChannelsLast(Small):
    """Returns [N, H, W, K]."""

    def forward(self, x):
        return super().forward(x).permute(0, 2, 3, 1)


class Codes(nn.Module):
    """Takes integers, through an embedding."""

    def __init__(self, levels):
        super().__init__()
        self.embedding = nn.Embedding(levels, 5)
        self.body = Small(5, levels)

    def forward(self, x):
        return self.body(self.embedding(x[:, 0]).permute(0, 3, 1, 2))


class NextSample(nn.Module):
    """A line of dilated convolutions whose output at t predicts the sample at t + 1."""

    def __init__(self, inputs, outputs, squeeze=False):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Conv1d(inputs if k == 0 else 6, 6, 2, dilation=2**k) for k in range(3)
        )
        self.head = nn.Conv1d(6, outputs, 1)
        self.squeeze = squeeze

    def forward(self, x):
        x = x[:, None] if self.squeeze else x
        for layer in self.layers:
            x = torch.relu(layer(F.pad(x, (layer.dilation[0], 0))))
        return self.head(x) * 3


class Valid(NextSample):
    """Without padding: fewer outputs than inputs, the last of them for what comes next."""

    def forward(self, x):
        for layer in self.layers:
            x = torch.relu(layer(x))
        return self.head(x) * 3


class Labelled(nn.Module):
    """Biases from a class label, and a map added to the features."""

    def __init__(self, levels):
        super().__init__()
        self.label = nn.Embedding(3, 12)
        self.first = Masked(0, 1, 12, 3, padding=1)
        self.head = Masked(1, 12, levels, 1)

    def forward(self, x, labels, where):
        h = self.first(x) + self.label(labels)[:, :, None, None] + where
        return self.head(torch.relu(h))


def _mean_of_three(parameters, noise):
    return parameters[:, :3].mean(dim=1) + noise[:, 0] - 0.5


class BehindTokens(nn.Module):
    """Attention of a sequence behind three tokens of a label, the last of which predicts it."""

    def __init__(self, levels, length, width=6):
        super().__init__()
        self.label, self.embed = nn.Embedding(3, 3 * width), nn.Embedding(levels, width)
        self.place = nn.Parameter(torch.randn(length + 3, width))
        self.qkv, self.head = nn.Linear(width, 3 * width), nn.Linear(width, levels)

    def forward(self, x, labels):
        before = self.label(labels).unflatten(1, (3, -1)).expand(len(x), -1, -1)
        h = torch.cat((before, self.embed(x.long())), dim=1) + self.place
        query, key, value = self.qkv(h).unsqueeze(1).chunk(3, dim=-1)
        h = h + F.scaled_dot_product_attention(query, key, value, is_causal=True)[:, 0]
        return self.head(h)[:, 2:-1].mT


def cases():
    """name -> function that makes a case, float64 and of fixed weights."""

    def named(name, case):
        def make():
            torch.manual_seed(3)
            made = case()
            made.model = made.model.double()
            return made

        return name, make

    def next_sample():
        return Case(NextSample(4, 4), (1, 19), Categorical(4, torch.eye(4), start=2), offset=1)

    def labelled():
        where = torch.randn(1, 1, 4, 5, dtype=torch.float64)
        conditioning = {"labels": torch.tensor([0]), "where": where}
        return Case(Labelled(5), (1, 4, 5), Categorical(5, "signed"), conditioning)

    def pixelcnn(shape, levels):
        options = {"channels": 6, "blocks": 1, "kernel_size": 3, "head_channels": 6}
        model = create("pixelcnn", image_shape=shape, levels=levels, **options)
        return Case(model, shape, Categorical(levels, layout="KC"))

    def plus_plus(shape, levels):
        model = create(
            "pixelcnn_plus_plus", image_shape=shape, levels=levels, filters=4, resnets=1,
            mixtures=2,
        )  # fmt: skip
        return Case(model, shape, LogisticMixture(levels, 2, shape[0], values=None))

    def wavenet(**options):
        model = create("wavenet", length=21, levels=8, layers=3, cycle=3, **options)
        return model

    return dict(
        [
            named("pixelcnn", lambda: pixelcnn((1, 5, 4), 4)),
            named("pixelcnn rgb", lambda: pixelcnn((3, 3, 4), 5)),
            named("plus plus", lambda: plus_plus((3, 4, 8), 8)),
            named("wavenet", lambda: Case(wavenet(), (1, 21), Categorical(8))),
            named("one pixel", lambda: Case(Small(1, 4), (1, 1, 1), Categorical(4, "unit"))),
            named("one row", lambda: Case(Small(1, 4), (1, 1, 9), Categorical(4, "unit"))),
            named("one column", lambda: Case(Small(1, 4), (1, 9, 1), Categorical(4, "unit"))),
            named("floats", lambda: Case(Small(1, 6), (1, 4, 5), Categorical(6))),
            named("one-hot", lambda: Case(Small(3, 3), (1, 4, 5), Categorical(3, torch.eye(3)))),
            named("many levels", lambda: Case(Codes(300), (1, 2, 3), Categorical(300))),
            named("codes", lambda: Case(Codes(6), (1, 4, 3), Categorical(6))),
            named("bernoulli", lambda: Case(Small(1, 1), (1, 4, 5), Bernoulli())),
            named("gaussian", lambda: Case(Small(1, 2), (1, 4, 5), Gaussian())),
            named(
                "custom",
                lambda: Case(Small(1, 4), (1, 4, 5), CustomDistribution(_mean_of_three)),
            ),
            named(
                "dictionary", lambda: Case(InDictionary(1, 4), (1, 4, 5), Categorical(4, "unit"))
            ),
            named(
                "channels last", lambda: Case(ChannelsLast(1, 4), (1, 4, 5), Categorical(4, "unit"))
            ),
            named("next sample", next_sample),
            named(
                "line",
                lambda: Case(NextSample(1, 5, True), (17,), Categorical(5, "signed"), offset=1),
            ),
            named("valid", lambda: Case(Valid(1, 5), (1, 19), Categorical(5, "unit"), offset=8)),
            named("labels and map", labelled),
            named(
                "behind tokens",
                lambda: Case(
                    BehindTokens(4, 11), (11,), Categorical(4), {"labels": torch.tensor([0])}
                ),
            ),
        ]
    )
