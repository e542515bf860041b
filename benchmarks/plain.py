"""The audio-visual transformer of `vanilla_mt`, trained and validated the plain way: the reference of `steps`.

Attention is a softmax over all pairs of tokens written out, in the encoders and in the fusion; each loss has a
backward call of its own; the optimizer is torch's SGD as it comes.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.api import Model


class PlainBlock(nn.Module):
    """A pre-norm transformer block, from the parts of timm's."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.norm1, self.qkv, self.proj = block.norm1, block.attn.qkv, block.attn.proj
        self.norm2, self.mlp, self.heads = block.norm2, block.mlp, block.attn.num_heads

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [batch, tokens, dim] after attention and MLP."""
        batch, tokens, dim = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(batch, tokens, 3, self.heads, dim // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # [B, heads, T, dim / heads] each
        weights = (q @ k.transpose(-2, -1) / math.sqrt(dim // self.heads)).softmax(dim=-1)
        x = x + self.proj((weights @ v).transpose(1, 2).reshape(batch, tokens, dim))
        after: Tensor = x + self.mlp(self.norm2(x))
        return after


class PlainEncoder(nn.Module):
    """Patches, a class token, positions, blocks and a norm."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.patches, self.norm, self.size = encoder.patch_embed, encoder.norm, encoder.size
        self.class_token, self.positions = encoder.class_token, encoder.positions
        self.blocks = nn.Sequential(*(PlainBlock(stage.block) for stage in encoder.stages))

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [batch, 1 + patches, dim] of images, cut to whole patches."""
        x = self.patches(x[..., : self.size[0], : self.size[1]])
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], dim=1) + self.positions
        tokens: Tensor = self.norm(self.blocks(x))
        return tokens


class PlainModel(nn.Module):
    """Two encoders, attention of every token to every token, the class token's row to a head, and two probes.

    Its parameters are those of a copy of a model of the harness, `original`.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.original = copy.deepcopy(model)
        fusion: Any = self.original.fusion
        self.encoders = nn.ModuleDict({m: PlainEncoder(encoder) for m, encoder in self.original.encoders.items()})
        self.probes, self.head = self.original.probes, fusion.head
        self.class_token, self.query, self.key = (getattr(fusion.attention, n) for n in ("class_token", "query", "key"))
        self.value, self.out = fusion.attention.value, fusion.attention.out

    def forward(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Joint logits, and those of a probe for every modality."""
        tokens = {m: encoder(values[m]) for m, encoder in self.encoders.items()}
        batch = len(next(iter(tokens.values())))
        x = torch.cat([self.class_token.expand(batch, 1, -1), *tokens.values()], dim=1)
        scores = self.query(x) @ self.key(x).transpose(1, 2) / math.sqrt(x.shape[-1])
        fused = self.out(scores.softmax(dim=-1) @ self.value(x))
        probed = {f"probe/{m}": probe(tokens[m][:, 0].detach()) for m, probe in self.probes.items()}
        return {"joint": self.head(fused[:, 0]), **probed}


def train_step(
    model: PlainModel, optimizer: torch.optim.Optimizer, values: Mapping[str, Tensor], target: Tensor
) -> float:
    """One step; returns the joint loss."""
    model.train()
    optimizer.zero_grad()
    losses = {name: F.cross_entropy(logits, target) for name, logits in model(values).items()}
    for loss in losses.values():
        loss.backward()
    optimizer.step()
    return losses["joint"].item()


def validate(model: PlainModel, values: Mapping[str, Tensor], target: Tensor) -> dict[str, int]:
    """How many samples each logit gets right, counted one by one."""
    model.eval()
    with torch.no_grad():
        found = model(values)
    right = dict.fromkeys(found, 0)
    for i in range(len(target)):
        for name, logits in found.items():
            right[name] += int(logits[i].softmax(dim=0).argmax().item() == target[i].item())
    return right
