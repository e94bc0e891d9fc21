"""Vision transformers for small images: vit_tiny, and deit_tiny, which has a distillation token and a second head.

Dosovitskiy et al. 2021 (arXiv:2010.11929) and, for the distillation token, Touvron et al. 2021, "Training
data-efficient image transformers & distillation through attention" (arXiv:2012.12877). Patches are 4 pixels wide and
the grid of positions fits the data's images. State-dict keys are timm's.

Layers to tap: ``blocks.0``, ``blocks.1``, ... (tokens [B, N, C], class token first, distillation token second),
``norm``, ``head:in`` (the class token that is classified), ``head`` and ``head_dist`` (the logits of the two heads).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd.errors import InputError
from kd.registry import models


class PatchEmbed(nn.Module):
    """Images [B, channels, H, W] to tokens [B, (H / patch) * (W / patch), width]."""

    def __init__(self, channels: int, patch: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Multi-head self-attention over tokens [B, N, width]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, count, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, count, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed.transpose(1, 2).reshape(batch, count, width))


class Mlp(nn.Module):
    """Two linear layers with GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """Images of one ``shape`` [C, H, W] to logits [B, classes].

    With ``distilled``, a second token is classified by a second head, and the output is the mean of both heads'
    logits, in training too; terms that tap ``head`` and ``head_dist`` train each head.

    Raises:
        InputError: images that cannot be divided into patches, or a width that is not a multiple of ``heads``.
    """

    def __init__(
        self, classes: int, shape: Sequence[int], patch: int, width: int, depth: int, heads: int, distilled: bool
    ) -> None:
        super().__init__()
        _check(shape, patch, width, depth, heads)
        self.size, prefix = tuple(shape[1:]), 2 if distilled else 1
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty(1, prefix + (shape[1] // patch) * (shape[2] // patch), width))
        self.dist_token = nn.Parameter(torch.empty(1, 1, width)) if distilled else None
        self.patch_embed = PatchEmbed(shape[0], patch, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, classes)
        self.head_dist = nn.Linear(width, classes) if distilled else None
        self._initialise()
        thirds = {f"stage{k}": f"blocks.{max(k * depth // 3, 1) - 1}" for k in (1, 2, 3)}
        ends = {"last": "norm", "embedding": "head:in", "logit_map": "norm@head"}
        self.aliases = {"stem": "patch_embed", **thirds, **ends}

    def _initialise(self) -> None:
        """Normal with standard deviation 0.02, truncated at -2 and 2; biases 0."""
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1 and not name.startswith("patch_embed"):
                nn.init.trunc_normal_(parameter, std=0.02)
            elif name.endswith("bias") and not name.startswith("patch_embed"):
                nn.init.zeros_(parameter)

    def get_classifier(self) -> nn.Linear | tuple[nn.Linear, nn.Linear]:
        """The head, or both heads."""
        return self.head if self.head_dist is None else (self.head, self.head_dist)

    def forward(self, x: Tensor) -> Tensor:
        if tuple(x.shape[-2:]) != self.size:
            got, expected = ("x".join(map(str, size)) for size in (x.shape[-2:], self.size))
            raise InputError(f"images are {got}, but this transformer was made for {expected}")
        tokens = [token.expand(x.shape[0], -1, -1) for token in (self.cls_token, self.dist_token) if token is not None]
        x = torch.cat([*tokens, self.patch_embed(x)], dim=1) + self.pos_embed
        x = self.norm(self.blocks(x))
        logits = self.head(x[:, 0])
        return logits if self.head_dist is None else (logits + self.head_dist(x[:, 1])) / 2


def _check(shape: Sequence[int], patch: int, width: int, depth: int, heads: int) -> None:
    if patch < 1 or shape[1] % patch or shape[2] % patch:
        fitting = [p for p in range(2, max(shape[1:]) + 1) if shape[1] % p == 0 and shape[2] % p == 0]
        listed = ", ".join(map(str, fitting)) or "1"
        raise InputError(f"patch={patch} does not cut images of {shape[1]}x{shape[2]} evenly; these do: {listed}")
    if min(width, depth, heads) < 1 or width % heads:
        raise InputError(f"width must be a multiple of heads, all at least 1; got {width=}, {depth=}, {heads=}")


@models.register("vit_tiny")
def vit_tiny(
    classes: int,
    shape: Sequence[int] = (3, 32, 32),
    patch: int = 4,
    width: int = 64,
    depth: int = 6,
    heads: int = 2,
) -> ViT:
    """A vision transformer of 0.30 million parameters; 17 million MACs at 28x28. timm has larger ones."""
    return ViT(classes, shape, patch, width, depth, heads, distilled=False)


@models.register("deit_tiny")
def deit_tiny(
    classes: int,
    shape: Sequence[int] = (3, 32, 32),
    patch: int = 4,
    width: int = 64,
    depth: int = 6,
    heads: int = 2,
) -> ViT:
    """vit_tiny with a distillation token and a head for it; for objective=deit_hard and deit_soft."""
    return ViT(classes, shape, patch, width, depth, heads, distilled=True)
