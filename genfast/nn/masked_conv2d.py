"""The masked convolution of PixelCNN as a layer.

Source: van den Oord et al. 2016, "Pixel Recurrent Neural Networks" (section 3.4, figure 2).
"""

import warnings
from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genfast.errors import InputError
from genfast.ops import live_taps, masked_conv2d

Pair = tuple[int, int]

# The layout that the public implementations using each argument name have.
_LAYOUT_OF_NAME = {
    "data_channels": "interleaved",
    "mask_n_channels": "interleaved",
    "mask_groups": "blocks",
}


def causal_mask(
    mask_type: str,
    out_channels: int,
    in_channels: int,
    kernel_size: Pair,
    *,
    data_channels: int = 1,
    channel_layout: str = "blocks",
    groups: int = 1,
) -> Tensor:
    """Say which weights of a convolution may be used in raster order, and in colour order.

    1. Taps above the centre row, or left of the centre in it, are open.
    2. Taps below or to the right are closed.
    3. At the centre, output colour o sees input colour i if i < o (mask A) or i <= o (mask B).

    Args:
        mask_type: "A" hides the pixel's own value (first layer), "B" shows it (later layers).
        out_channels: C_out.
        in_channels: C_in.
        kernel_size: (kH, kW); the centre is (kH // 2, kW // 2).
        data_channels: number of colours that the channels are divided among.
        channel_layout: "blocks": the first C / data_channels channels belong to colour 0, and so
            on; "interleaved": channel c belongs to colour c % data_channels.
        groups: groups of the convolution.

    Returns:
        Bool tensor [C_out, C_in // groups, kH, kW].

    Raises:
        InputError: unknown type or layout, or blocks that do not divide the channels.
    """
    _require(mask_type in ("A", "B"), "mask_type in 'A', 'B'", mask_type=mask_type)
    _require(data_channels >= 1, "data_channels >= 1", data_channels=data_channels)

    def colour(channel: Tensor, channels: int) -> Tensor:
        if channel_layout == "interleaved":
            return channel % data_channels
        rule = "channels divisible by data_channels in layout 'blocks'"
        _require(
            channels % data_channels == 0, rule, channels=channels, data_channels=data_channels
        )
        return channel // (channels // data_channels)

    layouts = ("blocks", "interleaved")
    _require(
        channel_layout in layouts, f"channel_layout in {layouts}", channel_layout=channel_layout
    )
    out_channel = torch.arange(out_channels)[:, None]
    first_input = out_channel // (out_channels // groups) * (in_channels // groups)
    in_channel = first_input + torch.arange(in_channels // groups)
    out_colour, in_colour = colour(out_channel, out_channels), colour(in_channel, in_channels)
    at_centre = in_colour < out_colour if mask_type == "A" else in_colour <= out_colour

    kernel_height, kernel_width = kernel_size
    row = torch.arange(kernel_height)[:, None] - kernel_height // 2
    column = torch.arange(kernel_width) - kernel_width // 2
    before = (row < 0) | ((row == 0) & (column < 0))
    centre = (row == 0) & (column == 0)
    return before | (centre & at_centre[:, :, None, None])


class MaskedConv2d(nn.Conv2d):
    """A `torch.nn.Conv2d` whose outputs do not see later pixels, nor later colours of their own.

    Replaces the class of this name in other people's code. Both habits of calling it work:
    `MaskedConv2d("A", 1, 64, 7, padding=3)` and `MaskedConv2d(1, 64, 7, padding=3, mask_type="A")`.

    `mask` is a persistent buffer of the weight's full shape. State dicts load whose mask has that
    shape or (1, 1, kH, kW), or that have none. A loaded mask is kept as it is, because the weights
    were trained with it; a warning says so if it is not the mask that this layer was built with.
    The forward pass computes with weight * mask and never writes the weight.

    Args:
        *args: `torch.nn.Conv2d`'s positional arguments, with the mask type before them or not.
            The flag `use_cuda` or the device that some classes take after `padding` is accepted.
        mask_type: "A" or "B", upper or lower case: mask A hides the centre, mask B shows it.
        mask_center: the same choice as a flag: True is mask A, False is mask B.
        data_channels: number of colours (3 for RGB) whose order is kept at the centre tap; default
            1. `mask_n_channels` and `mask_groups` are other names for it.
        mask_n_channels: see `data_channels`.
        mask_groups: see `data_channels`.
        channel_layout: "interleaved" (channel c belongs to colour c % data_channels) or "blocks".
            The default is what implementations with the name in use do: "blocks" for
            `mask_groups`, "interleaved" for the other two.
        use_cuda: accepted and not needed, since the mask moves with the module.
        **kwargs: `torch.nn.Conv2d`'s keyword arguments. Only `padding_mode="zeros"` is causal at
            the borders: the other modes pad with pixels that may come later.

    Raises:
        InputError: the mask type is missing, given twice or not first; several names for the
            number of colours; channels that the colours do not divide; an even kernel with
            `padding="same"`, which has no centre.

    Source: van den Oord et al. 2016, "Pixel Recurrent Neural Networks".
    """

    mask: Tensor

    def __init__(
        self,
        *args: Any,
        mask_type: str | None = None,
        mask_center: bool | None = None,
        data_channels: int | None = None,
        mask_n_channels: int | None = None,
        mask_groups: int | None = None,
        channel_layout: str | None = None,
        use_cuda: bool | None = None,
        **kwargs: Any,
    ) -> None:
        positional = list(args)
        given: list[Any] = [mask_type] if mask_type is not None else []
        if mask_center is not None:
            _require(
                isinstance(mask_center, bool), "mask_center to be a bool", mask_center=mask_center
            )
            given.append("A" if mask_center else "B")
        if positional and isinstance(positional[0], str):
            given.append(positional.pop(0))
        one_type = "exactly one of a first positional mask type, mask_type= and mask_center="
        _require(len(given) == 1, one_type, mask_types=given)
        known = given[0] in ("A", "B", "a", "b")
        _require(known, "mask_type in 'A', 'B', 'a', 'b'", mask_type=given[0])
        self.mask_type: str = given[0].upper()

        if len(positional) > 5 and isinstance(positional[5], bool | str | torch.device):
            device = positional.pop(5)
            if not isinstance(device, bool):
                kwargs.setdefault("device", device)
        for place, value in enumerate(positional[:3]):
            rule = (
                "channels and kernel size to be integers (a mask type comes first or as mask_type=)"
            )
            _require(not isinstance(value, bool | str), rule, argument=place, value=value)
        misplaced = any(value in ("A", "B", "a", "b") for value in positional[3:])
        _require(not misplaced, "the mask type first or as mask_type=", arguments=tuple(positional))

        names = {
            "data_channels": data_channels,
            "mask_n_channels": mask_n_channels,
            "mask_groups": mask_groups,
        }
        used = {name: value for name, value in names.items() if value is not None}
        _require(
            len(used) <= 1, "at most one of data_channels=, mask_n_channels=, mask_groups=", **used
        )
        name, self.data_channels = next(iter(used.items()), ("data_channels", 1))
        self.channel_layout = channel_layout or _LAYOUT_OF_NAME[name]

        super().__init__(*positional, **kwargs)
        if self.padding == "same":
            odd = all(size % 2 == 1 for size in self.kernel_size)
            _require(odd, "odd kernel_size with padding='same'", kernel_size=self.kernel_size)
        kernel_height, kernel_width = self.kernel_size
        mask = causal_mask(
            self.mask_type,
            self.out_channels,
            self.in_channels,
            (kernel_height, kernel_width),
            data_channels=self.data_channels,
            channel_layout=self.channel_layout,
            groups=self.groups,
        )
        self.register_buffer("mask", mask.to(self.weight))
        self._find_taps()

    def forward(
        self,
        input: Tensor,
        *,
        addend: Tensor | None = None,
        activation: str | None = None,
        residual: Tensor | None = None,
        rectify: bool = False,
    ) -> Tensor:
        """Convolve with the open weights: activation(conv(input) + addend) + residual in one op.

        Args:
            input: [N, C_in, H, W] or [C_in, H, W].
            addend: None, of the convolution's shape, or [N, C_out].
            activation: None, "relu", "elu", "concat_elu" (2 C_out channels) or "gate" (C_out/2
                channels); see `genfast.ops.masked_conv2d`.
            residual: None or of the result's shape.
            rectify: convolve max(0, input).
        """
        padding = self._explicit_padding
        if self.padding_mode != "zeros":
            input = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = (0, 0)
        return masked_conv2d(
            input,
            self.weight,
            self.mask,
            self.bias,
            addend=addend,
            activation=activation,
            residual=residual,
            rectify=rectify,
            stride=cast(Pair, self.stride),
            padding=padding,
            dilation=cast(Pair, self.dilation),
            groups=self.groups,
            taps=self._live_taps(),
        )

    def _find_taps(self) -> None:
        """Note the live taps of the mask as it is now; reading a mask on a GPU waits for it."""
        self._taps = None if self.mask.is_meta else live_taps(self.mask)
        self._taps_of = (self.mask, 0 if self.mask.is_inference() else self.mask._version)

    def _live_taps(self) -> tuple[int, ...] | None:
        """Return the live taps, found again if somebody moved or wrote the mask; None: unknown."""
        if not torch.compiler.is_compiling() and type(self.mask) is Tensor:
            version = 0 if self.mask.is_inference() else self.mask._version
            if self._taps_of[0] is not self.mask or self._taps_of[1] != version:
                self._find_taps()
        return self._taps

    @property
    def _explicit_padding(self) -> Pair:
        if self.padding == "valid":
            return (0, 0)
        if self.padding == "same":
            (height, width), (dilation_y, dilation_x) = self.kernel_size, self.dilation
            return (height // 2 * dilation_y, width // 2 * dilation_x)
        return cast(Pair, self.padding)

    def extra_repr(self) -> str:
        """Describe the mask, then the convolution."""
        colours = f", data_channels={self.data_channels}, channel_layout={self.channel_layout!r}"
        convolution: str = super().extra_repr()  # type: ignore[no-untyped-call]
        return f"{self.mask_type!r}, {convolution}{colours if self.data_channels > 1 else ''}"

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        state: dict[str, Any] = state_dict  # type: ignore[assignment]
        key = prefix + "mask"
        mask = state.get(key)
        if mask is None:
            state[key] = self.mask
        elif isinstance(mask, Tensor) and mask.shape == (1, 1, *self.weight.shape[2:]):
            state[key] = mask.to(self.mask).expand_as(self.mask).clone()
        real = isinstance(mask, Tensor) and not (mask.is_meta or self.mask.is_meta)
        if real and state[key].shape == self.mask.shape:
            same = torch.equal(state[key].to(self.mask), self.mask)
            message = f"{key} in the state dict is not the mask of {self}; the loaded one is kept"
            if not same:
                warnings.warn(message, stacklevel=2)
        super()._load_from_state_dict(state, prefix, *args, **kwargs)
        self._find_taps()


def _require(condition: bool, rule: str, **values: Any) -> None:
    if not condition:
        got = ", ".join(f"{name}={value!r}" for name, value in values.items())
        raise InputError(f"MaskedConv2d: expected {rule}, got {got}")
