"""A transformer over the pixels of an image, and the usual loop that samples one.

Plain PyTorch that knows nothing of the sampler: the benchmark shows what such a module costs.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genfast.bench.cached_loops import Draw


class Block(nn.Module):
    """Attention to the pixels before and a dense layer, each behind a norm and added."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.dense1, self.dense2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def projected(self, h: Tensor) -> tuple[Tensor, ...]:
        """Return queries, keys and values [N, heads, T, depth]."""
        n, length, width = h.shape
        parts = self.qkv(self.norm1(h)).split(width, dim=2)
        return tuple(each.view(n, length, self.heads, -1).transpose(1, 2) for each in parts)

    def finished(self, h: Tensor, seen: Tensor) -> Tensor:
        """Return the block's output, from what the attention saw [N, heads, T, depth]."""
        h = h + self.out(seen.transpose(1, 2).flatten(2))
        grown: Tensor = h + self.dense2(F.gelu(self.dense1(self.norm2(h))))
        return grown

    def forward(self, h: Tensor) -> Tensor:
        """Return features [N, T, width], each from those up to its own position."""
        query, key, value = self.projected(h)
        seen = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.finished(h, seen)


class ImageTransformer(nn.Module):
    """Pixels as one sequence in raster order, behind a start token."""

    def __init__(self, levels: int, pixels: int, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.randn(1, 1, width) * 0.1)
        self.embed = nn.Embedding(levels, width)
        self.position = nn.Parameter(torch.randn(1, pixels, width) * 0.1)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, levels)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [N, K, H, W] of levels [N, 1, H, W]."""
        n, _, height, width = x.shape
        h = self.embed(x.long().flatten(1))
        h = torch.cat((self.start.expand(n, -1, -1), h[:, :-1]), dim=1) + self.position
        for block in self.blocks:
            h = block(h)
        logits: Tensor = self.head(self.norm(h))
        return logits.transpose(1, 2).reshape(n, -1, height, width)


class CachedTransformer:
    """The loop that everybody writes: keys and values of each block are kept, a pixel at a time."""

    def __init__(self, model: ImageTransformer) -> None:
        self.model = model

    @torch.inference_mode()
    def sample(self, n: int, pixels: int, draw: Draw) -> Tensor:
        """Draw the first levels [n, pixels] of images, each by `draw` from its logits."""
        model = self.model
        levels = torch.zeros(n, pixels, dtype=torch.int64)
        blocks = [block for block in model.blocks if isinstance(block, Block)]
        length, width = model.position.shape[1:]
        shape = (len(blocks), 2, n, blocks[0].heads, length, width // blocks[0].heads)
        caches = model.position.new_zeros(shape)
        h = model.start.expand(n, -1, -1)
        for t in range(pixels):
            h = h + model.position[:, t, None]
            for block, (keys, values) in zip(blocks, caches, strict=True):
                query, keys[:, :, t, None], values[:, :, t, None] = block.projected(h)
                seen = F.scaled_dot_product_attention(
                    query, keys[:, :, : t + 1], values[:, :, : t + 1]
                )
                h = block.finished(h, seen)
            levels[:, t] = draw(model.head(model.norm(h))[:, 0])
            h = model.embed(levels[:, t, None])
        return levels

    @torch.inference_mode()
    def logits(self, levels: Tensor) -> Tensor:
        """Return logits [N, K, H, W] of given levels [N, 1, H, W], by the same steps."""
        flat, out = levels.flatten(1), list[Tensor]()

        def given(logits: Tensor) -> Tensor:
            out.append(logits)
            return flat[:, len(out) - 1].long()

        self.sample(len(flat), flat.shape[1], given)
        n, _, height, width = levels.shape
        return torch.stack(out, dim=2).view(n, -1, height, width)
