"""WaveNet: the likelihood of a sound as a product over its samples.

Source: van den Oord, Dieleman, Zen, Simonyan, Vinyals, Graves, Kalchbrenner, Senior and Kavukcuoglu
2016, "WaveNet: A Generative Model for Raw Audio" (section 2, figures 3 and 4). The mixture of
logistics for 16-bit samples: van den Oord et al. 2017, "Parallel WaveNet" (section 3.1).
"""

from dataclasses import dataclass
from numbers import Integral
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genfast.models._autoregressive import (
    AutoregressiveModel,
    categorical_log_prob,
    draw,
    labels_of,
    labels_to_draw,
    vectors_of,
)
from genfast.models._base import (
    check_choice,
    check_levels,
    check_sizes,
    require,
)
from genfast.models._convolution import convolve
from genfast.nn import logistic_mixture_nll
from genfast.ops import causal_conv1d
from genfast.sampling.distributions import Categorical, Distribution, LogisticMixture

LOWEST_LOG_SCALE = -14.0
"""Of the logistics: a hundredth of a 16-bit step."""


@dataclass(frozen=True)
class WaveNetConfig:
    """Settings of a WaveNet.

    Attributes:
        length: samples of a training example, and of a drawn sound unless told otherwise.
        levels: number of levels of a sample: 256 is the paper's, 65536 is 16 bits.
        companding: what levels stand for: "mu-law", or "linear" in amplitude.
        sample_rate: of the sounds, in Hz; it changes no number, only the files written.
        output: "softmax" over the levels, or "logistic" for a mixture of logistics.
        mixtures: number of logistics in a mixture.
        input: how the network sees a sample: "one-hot" (for few levels), "embedding" (a learned
            vector for each level) or "value" (one number in -1 .. 1).
        residual_channels: width of the residual stream.
        gate_channels: width of the gates: outputs of each dilated convolution's two halves.
        skip_channels: width of the sum of the layers' skips.
        head_channels: width between the two 1 x 1 convolutions of the head.
        layers: number of dilated layers.
        cycle: layers until the dilation, doubled from layer to layer, starts at 1 again.
        kernel_size: taps of the first and of the dilated convolutions.
        classes: number of class labels (speakers, words) to condition on; 0 without.
        features: numbers in each frame of local conditioning; 0 without.
        hop: samples that a frame of local conditioning stands for.
        upsampling: how frames become samples: "repeat", or "transposed" (a learned convolution).
    """

    length: int = 4096
    levels: int = 256
    companding: str = "mu-law"
    sample_rate: int = 16000
    output: str = "softmax"
    mixtures: int = 10
    input: str = "one-hot"
    residual_channels: int = 32
    gate_channels: int = 32
    skip_channels: int = 64
    head_channels: int = 64
    layers: int = 20
    cycle: int = 10
    kernel_size: int = 2
    classes: int = 0
    features: int = 0
    hop: int = 1
    upsampling: str = "repeat"

    def __post_init__(self) -> None:
        check_levels(self)
        check_sizes(self, "length", "sample_rate", "mixtures", "layers", "cycle", "hop")
        check_sizes(self, "residual_channels", "gate_channels", "skip_channels", "head_channels")
        check_sizes(self, "kernel_size", minimum=2)
        check_sizes(self, "classes", "features", minimum=0)
        check_choice(self, "companding", ("mu-law", "linear"))
        check_choice(self, "output", ("softmax", "logistic"))
        check_choice(self, "input", ("one-hot", "embedding", "value"))
        check_choice(self, "upsampling", ("repeat", "transposed"))


class CausalConv1d(nn.Conv1d):
    """A convolution whose output at t sees inputs at t, t - dilation, ... and nothing later."""

    def __init__(self, inputs: int, outputs: int, kernel_size: int, dilation: int = 1) -> None:
        super().__init__(inputs, outputs, kernel_size, dilation=dilation)
        self.reach = (kernel_size - 1) * dilation

    def forward(self, input: Tensor) -> Tensor:
        """Map [N, C_in, T] to [N, C_out, T]."""
        return super().forward(F.pad(input, (self.reach, 0)))

    def of_one_hot(self, index: Tensor) -> Tensor:
        """Map numbers [N, T] of one-hot vectors to [N, C_out, T] by looking weights up.

        A number of -1 stands for zeros.
        """
        assert self.bias is not None
        out, length = self.bias, index.shape[1]
        for tap, weight in enumerate(self.weight.unbind(2)):
            earlier = self.reach - tap * self.dilation[0]
            rows = F.pad(index + 1, (earlier, 0))[:, :length]
            out = out + F.embedding(rows, F.pad(weight.T, (0, 0, 1, 0)))
        return out.transpose(1, 2)


class DilatedLayer(nn.Module):
    """Figure 4: a gated dilated convolution, then 1 x 1 to the residual stream and to the skips.

    z = tanh(W_f * x + V_f h) * sigmoid(W_g * x + V_g h), where V h is a bias for the label, a
    1 x 1 convolution of the local features, both, or nothing. The last layer feeds the skips only.
    """

    def __init__(self, config: WaveNetConfig, dilation: int, is_last: bool) -> None:
        super().__init__()
        width, residual = 2 * config.gate_channels, config.residual_channels
        self.dilated = CausalConv1d(residual, width, config.kernel_size, dilation)
        self.of_label = nn.Embedding(config.classes, width) if config.classes else None
        self.of_features = (
            nn.Conv1d(config.features, width, 1, bias=False) if config.features else None
        )
        self.residual = None if is_last else nn.Conv1d(config.gate_channels, residual, 1)
        self.skip = nn.Conv1d(config.gate_channels, config.skip_channels, 1)
        if self.of_label is not None:  # as a Linear of one-hot vectors would start
            nn.init.normal_(self.of_label.weight, std=config.classes**-0.5)

    def forward(
        self, x: Tensor, labels: Tensor | None, features: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Map [N, R, T] to the stream [N, R, T] and the skip [N, S, T]."""
        condition = None if self.of_label is None else self.of_label(labels)
        if self.of_features is not None:
            of_features = self.of_features(cast(Tensor, features))
            condition = of_features if condition is None else condition[:, :, None] + of_features
        residual = self.residual
        return causal_conv1d(
            x,
            self.dilated.weight,
            self.dilated.bias,
            condition,
            residual_weight=None if residual is None else residual.weight,
            residual_bias=None if residual is None else residual.bias,
            skip_weight=self.skip.weight,
            skip_bias=self.skip.bias,
            dilation=self.dilated.dilation[0],
        )


class WaveNet(AutoregressiveModel):
    """WaveNet over mu-law or linear levels, with a softmax or a mixture of logistics a sample.

    Output t is the distribution of sample t: the input is shifted by one inside, and the first
    sample sees zeros. Sounds of any length have a likelihood.

    Source: van den Oord et al. 2016, "WaveNet: A Generative Model for Raw Audio".
    """

    config: WaveNetConfig
    domain: ClassVar[str] = "sounds"

    def __init__(self, config: WaveNetConfig) -> None:
        super().__init__()
        self.config = config
        levels, residual = config.levels, config.residual_channels
        inputs = {"one-hot": levels, "embedding": residual, "value": 1}[config.input]
        self.embedding = nn.Embedding(levels, residual) if config.input == "embedding" else None
        self.stem = CausalConv1d(inputs, residual, config.kernel_size)
        self.layers = nn.ModuleList(
            DilatedLayer(config, 2 ** (index % config.cycle), is_last=index == config.layers - 1)
            for index in range(config.layers)
        )
        outputs = levels if config.output == "softmax" else 3 * config.mixtures
        self.head = nn.Sequential(
            nn.ReLU(),
            nn.Conv1d(config.skip_channels, config.head_channels, 1),
            nn.ReLU(),
            nn.Conv1d(config.head_channels, outputs, 1),
        )
        transposed = config.features and config.upsampling == "transposed"
        self.upsample = (
            nn.ConvTranspose1d(config.features, config.features, config.hop, config.hop)
            if transposed
            else None
        )

    @property
    def event_shape(self) -> tuple[int, ...]:
        """(1, length)."""
        return (1, self.config.length)

    @property
    def receptive_field(self) -> int:
        """How many samples before it the distribution of a sample sees."""
        convolutions = [self.stem, *(cast(DilatedLayer, layer).dilated for layer in self.layers)]
        return 1 + sum(convolution.reach for convolution in convolutions)

    def forward(
        self, x: Tensor, labels: Tensor | None = None, features: Tensor | None = None
    ) -> Tensor:
        """Return the distributions of all samples, each given those before it in x.

        Args:
            x: levels [N, 1, T]. With input "value" a floating-point tensor of levels is taken
                too, so that gradients can show what depends on what.
            labels: class numbers [N], where the model has classes.
            features: frames [N, features, F] with F * hop >= T, where the model takes them; frame
                i belongs to the samples from i * hop on.

        Returns:
            Logits [N, levels, 1, T]; for output "logistic" the parameters [N, 3 * mixtures, T].
        """
        stream = self._first(x)
        if features is not None:
            features = self._upsample(features, x.shape[2])
        skips: Tensor | None = None
        for layer in self.layers:
            stream, skip = layer(stream, labels, features)
            skips = skip if skips is None else skips + skip
        _, narrow, _, wide = cast(tuple[nn.Module, nn.Conv1d, nn.Module, nn.Conv1d], self.head)
        inner = convolve(narrow, cast(Tensor, skips)[:, :, None], rectify=True, activation="relu")
        out = convolve(wide, inner)
        return out if self.config.output == "softmax" else out.squeeze(2)

    def _first(self, x: Tensor) -> Tensor:
        """Return the first convolution [N, R, T] of the levels [N, 1, T] before each sample.

        Before the first sample there is none: zeros, not a level.
        """
        if self.config.input == "one-hot":
            return self.stem.of_one_hot(F.pad(x[:, 0].long(), (1, -1), value=-1))
        if self.embedding is not None:
            inputs = self.embedding(x[:, 0].long()).transpose(1, 2)
        else:
            inputs = x.to(self.stem.weight.dtype) * (2 / (self.config.levels - 1)) - 1
        return cast(Tensor, self.stem(F.pad(inputs, (1, -1))))

    def _upsample(self, features: Tensor, length: int) -> Tensor:
        if self.upsample is not None:
            features = self.upsample(features)
        else:
            features = features.repeat_interleave(self.config.hop, dim=2)
        return features[:, :, :length]

    def log_prob(
        self, x: Tensor, labels: Tensor | None = None, features: Tensor | None = None
    ) -> Tensor:
        """Return the log-likelihood [N] in nats of integer sounds [N, 1, T] of any length T.

        Raises:
            InputError: sounds or conditioning that are not this model's.
        """
        self._check_images(x)
        config = self.config
        labels = labels_of("WaveNet", labels, len(x), config.classes)
        frames = -(-x.shape[2] // config.hop)
        features = vectors_of("WaveNet", "features", features, (len(x), config.features, frames))
        out = self(x, labels, features)
        if config.output == "softmax":
            return categorical_log_prob(out, x)
        return -logistic_mixture_nll(
            out, x, levels=config.levels, lowest_log_scale=LOWEST_LOG_SCALE
        )

    @property
    def distribution(self) -> Distribution:
        """What the output means."""
        config = self.config
        if config.output == "softmax":
            return Categorical(config.levels, layout="KC")
        return LogisticMixture(
            config.levels, config.mixtures, 1, values=None, lowest_log_scale=LOWEST_LOG_SCALE
        )

    def sample(
        self,
        n: int,
        *,
        generator: torch.Generator | None = None,
        progress: bool = False,
        seed: int | None = None,
        first: int = 0,
        labels: Tensor | None = None,
        features: Tensor | None = None,
        length: int | None = None,
        known: Tensor | None = None,
        known_mask: Tensor | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        return_log_prob: bool = False,
        method: str = "compiled",
    ) -> Any:
        """Draw sounds [n, 1, T] of levels, or complete known ones.

        Args:
            n: how many.
            generator: source of the noise; torch's global one by default.
            progress: show a bar that counts samples.
            seed: instead of a generator: which noise.
            first: number of the first one in its stream of noise, whatever the batches.
            labels: class numbers [n]; by default the classes in turn.
            features: frames [n, features, F] with F = ceil(T / hop), where the model takes them.
            length: T; `config.length` by default.
            known: levels to complete, of a shape that broadcasts to the result's; without
                `known_mask`, negative ones mark what is to be drawn.
            known_mask: bool, true where `known` is to be kept.
            temperature: above 0; below 1 is safer, above 1 more varied.
            top_k: draw among this many most probable levels only.
            top_p: draw among the most probable levels that reach this probability only.
            return_log_prob: return also the log-probabilities [n] in nats under the model itself.
            method: "compiled", or "naive": a forward pass for every symbol.

        Raises:
            InputError: an argument breaks its rule.
        """
        config = self.config
        samples = config.length if length is None else length
        is_count = isinstance(samples, Integral) and not isinstance(samples, bool) and samples >= 1
        require("sample", is_count, "length >= 1", length=length)
        samples = int(samples)
        labels = labels_to_draw("WaveNet", labels, n, config.classes)
        frames = -(-samples // config.hop)
        features = vectors_of("WaveNet", "features", features, (n, config.features, frames))
        return draw(
            self,
            n,
            self.distribution,
            {"labels": labels, "features": features},
            event_shape=(1, samples),
            method=method,
            generator=generator,
            seed=seed,
            first=first,
            known=known,
            known_mask=known_mask,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            progress=progress,
            return_log_prob=return_log_prob,
        )

    def _check_images(self, x: Tensor) -> None:
        fits = x.dim() == 3 and x.shape[1] == 1 and x.shape[2] >= 1
        require("WaveNet", fits, "sounds [N, 1, T]", shape=list(x.shape))
        self._check_levels(x)
