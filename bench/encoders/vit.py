"""timm's VisionTransformer of any size, over images [C, H, W] or several frames [C, frames, H, W]."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from bench.api import Encoder, EncoderSpec, Tokens
from bench.encoders import weights
from bench.errors import RequestError
from bench.layers import xavier

GENERIC = "vit_base_patch16_224"
"""The timm architecture that a file of weights is loaded into; width, heads and depth are the encoder's."""


class _Stage(nn.Module):
    """A timm block behind the call that fusions use."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        del mask  # images have no padding
        hidden: Tensor = self.block(x)
        return hidden


class ViTEncoder(Encoder):
    """Patch embedding, class token, learned positions, pre-norm blocks, final norm.

    A height or width that is no multiple of the patch is padded with zeros or cut, as `EncoderSpec.edge` says.
    Several frames become one sequence behind one class token; they share the spatial positions and have a learned
    one per frame. Pretrained weights give the first `depth` blocks; RGB kernels are summed for one channel, and
    positions and kernels resampled where the size differs.
    """

    def __init__(self, spec: EncoderSpec, shape: tuple[int, ...]) -> None:
        super().__init__()
        if len(shape) not in (3, 4):
            raise ValueError(f"the vit encoder takes [C, H, W] or [C, frames, H, W], not {list(shape)}")
        frames = shape[1] if len(shape) == 4 else 1
        self.dim, self.edge, self.patch = spec.dim, spec.edge, spec.patch
        height, width = shape[-2:]
        self.size = (_fit(height, spec.patch[0], spec.edge), _fit(width, spec.patch[1], spec.edge))
        vit = (
            _from_scratch(spec, shape[0], self.size)
            if spec.weights == "none"
            else _pretrained(spec, shape[0], self.size)
        )
        self.patch_embed = vit.patch_embed
        assert vit.cls_token is not None  # its default; the types say Optional
        assert vit.pos_embed is not None
        self.class_token: nn.Parameter = vit.cls_token
        self.positions: nn.Parameter = vit.pos_embed  # [1, 1 + patches, D]
        self.frame_positions = nn.Parameter(torch.zeros(1, frames, 1, spec.dim)) if frames > 1 else None
        self.stages = nn.ModuleList(_Stage(block) for block in vit.blocks)
        self.norm = vit.norm

    def stem(self, x: Tensor, mask: Tensor | None = None) -> Tokens:
        """Class token and patches of all frames [batch, 1 + frames x patches, dim]."""
        del mask  # images have no padding
        x = self._fitted(x)
        batch = x.shape[0]
        if x.ndim == 5:
            x = x.transpose(1, 2).flatten(0, 1)  # [B, C, frames, H, W] -> [B x frames, C, H, W]
        patches = self.patch_embed(x) + self.positions[:, 1:]  # [B x frames, P, D]
        patches = patches.unflatten(0, (batch, -1))  # [B, frames, P, D]
        if self.frame_positions is not None:
            patches = patches + self.frame_positions
        first = (self.class_token + self.positions[:, :1]).expand(batch, -1, -1)
        return Tokens(torch.cat([first, patches.flatten(1, 2)], dim=1))

    def _fitted(self, x: Tensor) -> Tensor:
        height, width = self.size
        if self.edge == "crop":
            return x[..., :height, :width]
        return F.pad(x, (0, width - x.shape[-1], 0, height - x.shape[-2]))


def _from_scratch(spec: EncoderSpec, channels: int, size: tuple[int, int]) -> VisionTransformer:
    vit = VisionTransformer(
        img_size=size,
        patch_size=spec.patch,
        in_chans=channels,
        embed_dim=spec.dim,
        depth=spec.depth,
        num_heads=spec.heads,
        num_classes=0,
    )
    vit.apply(xavier)
    return vit


def _pretrained(spec: EncoderSpec, channels: int, size: tuple[int, int]) -> VisionTransformer:
    """timm's model with timm's loading; RequestError unless every weight comes from the file."""
    weights.refuse_unusable(spec)
    file = weights.locate(spec.weights)
    _refuse_partial(spec, file)
    settings: dict[str, Any] = {
        "img_size": size,
        "patch_size": spec.patch,
        "in_chans": channels,
        "depth": spec.depth,
        "num_classes": 0,
    }
    if weights.is_path(spec.weights):
        name = GENERIC
        settings |= {"embed_dim": spec.dim, "num_heads": spec.heads}
    else:
        name = spec.weights
    with weights.quiet():
        try:
            model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"file": str(file)}, **settings)
        except RuntimeError as error:
            raise RequestError(f"{file}: these weights do not fit the encoder ({error})") from error
    if not isinstance(model, VisionTransformer):
        raise RequestError(f"encoder weights {spec.weights!r} are those of a {type(model).__name__}, not of a ViT")
    heads = model.blocks[0].attn.num_heads if spec.depth else spec.heads  # type: ignore[union-attr]  # blocks are untyped
    if heads != spec.heads:
        raise RequestError(f"{spec.weights} has {heads} heads, the encoder has heads={spec.heads}; make them equal")
    return model


def _refuse_partial(spec: EncoderSpec, file: Path) -> None:
    """timm leaves a weight that a file lacks as it was drawn; a pretrained row would then start from noise."""
    with torch.device("meta"):
        names = _from_scratch(spec, 3, spec.patch).state_dict()
    # Biases of query, key and value stay 0 where a file has none, as the MIIL weights do.
    needed = [name for name in names if not name.endswith("qkv.bias")]
    found = weights.shapes(file)
    missing = [name for name in needed if name not in found]
    if missing:
        raise RequestError(
            f"{file}: {len(missing)} of {len(needed)} weights of a ViT with {spec.depth} blocks are not there, "
            f"{missing[0]!r} among them; found {', '.join(list(found)[:4]) or 'none'}, ..."
        )


def _fit(length: int, patch: int, edge: str) -> int:
    whole = length // patch if edge == "crop" else -(-length // patch)
    if whole == 0:
        raise ValueError(f"an edge of {length} holds no patch of {patch}")
    return whole * patch
