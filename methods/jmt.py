"""Modalities and a joint stream made of all of them attend to each other in pairs; one more attention weighs the pairs.

Only the joint stream and the pairs carry information across: every stream has one set of cross-attention weights, for
its queries, whatever it attends to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from bench import api
from bench.api import Capability, Fusion, Output, TaskSpec, Tokens, setting
from bench.layers import Attention, ClassTokenAttention, concatenate, xavier


class _PostNormLayer(nn.Module):
    """A transformer layer with the norm after each residual sum, and an MLP as wide as the tokens."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.attention = Attention(dim, heads)
        self.mlp = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim))
        self.norm_attention, self.norm_mlp = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.mlp.apply(xavier)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm_attention(x + self.attention(x, x))
        hidden: Tensor = self.norm_mlp(x + self.mlp(x))
        return hidden


class _JointStreams(nn.Module):
    """The whole method: M modalities and their joint stream, all aligned to the same number of steps."""

    def __init__(self, modalities: Sequence[str], dim: int, steps: int, heads: int, weighs_pairs: bool) -> None:
        super().__init__()
        self.modalities, self.steps = tuple(modalities), steps
        streams = len(modalities) + 1
        self.joint = nn.Linear(len(modalities) * dim, dim)
        self.encoders = nn.ModuleList(_PostNormLayer(dim, heads) for _ in range(streams))
        self.cross = nn.ModuleList(Attention(dim, heads) for _ in range(streams))
        self.pair_encoder = _PostNormLayer(dim, heads)
        self.pair_attention = Attention(dim, heads) if weighs_pairs else None
        self.joint.apply(xavier)

    def fused(self, tokens: Mapping[str, Tokens]) -> dict[str, Tokens]:
        """What each modality's queries brought home: M pairs of T steps as tokens [B, M T, D]."""
        pairs, count = self._pairs(tokens), len(self.modalities)
        of_modality = {m: pairs[:, :, i * count : (i + 1) * count] for i, m in enumerate(self.modalities)}
        return {m: Tokens(x.flatten(1, 2), has_class_token=False) for m, x in of_modality.items()}

    def pooled(self, tokens: Mapping[str, Tokens]) -> Float[Tensor, "batch dim"]:
        """The last modality's pair with the joint stream after attention over all pairs, mean over the steps."""
        assert self.pair_attention is not None  # built for this read-out
        pairs = self._pairs(tokens)  # [B, T, P, D]
        last = len(self.modalities) ** 2 - 1
        flat = pairs.flatten(0, 1)  # [B T, P, D]
        # Only the pair that is read out needs a query.
        attended: Tensor = self.pair_attention(flat[:, last : last + 1], flat)  # [B T, 1, D]
        return attended.reshape(pairs.shape[0], self.steps, -1).mean(dim=1)

    def _pairs(self, tokens: Mapping[str, Tokens]) -> Float[Tensor, "batch steps pairs dim"]:
        """Every stream's attention to every other, by querying stream; a stream's pair with the joint one comes last.

        Pairs of the same step then exchange what they hold in one transformer layer.
        """
        own = [F.normalize(aligned(tokens[m], self.steps), dim=-1) for m in self.modalities]  # M x [B, T, D]
        streams = [*own, self.joint(torch.cat(own, dim=-1))]
        encoded = [encoder(x) for encoder, x in zip(self.encoders, streams, strict=True)]
        pairs = [
            cross(encoded[i], other) for i, cross in enumerate(self.cross) for j, other in enumerate(encoded) if j != i
        ]
        stacked = torch.stack(pairs, dim=2)  # [B, T, P, D]
        exchanged: Tensor = self.pair_encoder(stacked.flatten(0, 1))
        return exchanged.unflatten(0, stacked.shape[:2])


class _CrossAttentions(nn.Module):
    """The lite form: every modality attends once to all tokens of the others, without residual or norm.

    With `full` set, sequences are padded to the longest first, as the published cost counts it; masks keep the
    padding out, so that the numbers are the same.
    """

    def __init__(self, modalities: Sequence[str], dim: int, heads: int) -> None:
        super().__init__()
        self.cross = nn.ModuleDict({m: Attention(dim, heads) for m in modalities})
        self.full = False

    def fused(self, tokens: Mapping[str, Tokens]) -> dict[str, Tokens]:
        """The attended tokens of every modality, with its own mask."""
        own = {m: tokens[m] for m in self.cross}
        if self.full:
            longest = max(t.x.shape[1] for t in own.values())
            own = {m: _padded(t, longest) for m, t in own.items()}
        fused = {}
        for m, cross in self.cross.items():
            others = concatenate([t for n, t in own.items() if n != m])
            fused[m] = Tokens(cross(own[m].x, others.x, others.mask), own[m].mask, has_class_token=False)
        return fused

    def pooled(self, tokens: Mapping[str, Tokens]) -> Float[Tensor, "batch dim"]:
        """The mean over modalities of the mean over valid tokens."""
        return torch.stack([t.pooled for t in self.fused(tokens).values()]).mean(dim=0)


class JMT(Fusion):
    """Joint multimodal transformer.

    Differs from the paper: every modality is averaged down to `steps` steps, since ours are not aligned in time; a
    linear layer on the mean over the steps gives the logits, trained by the loss of the task, where the paper
    predicts every step by an MLP and maximises concordance; the released code's 3072-wide encoder, which it never
    calls, is left out. More than two modalities: M + 1 streams and M (M + 1) pairs. `lite` is what the
    published cost of RollingQ's row identifies: one cross-attention per modality on the encoders' tokens, and a
    linear layer on the mean of what they attend to. `readout=attn` replaces the mean by a class token that attends
    over all modalities, for rotations.
    """

    paper = (
        "Waligora, Aslam, Zeeshan, Belharbi, Koerich, Pedersoli, Bacon and Granger, "
        "Joint multimodal transformer for emotion recognition in the wild, CVPR-W 2024"
    )
    reference = "PoloWlg/Joint-Multimodal-Transformer-6th-ABAW (no licence found)"
    dead_parameters: ClassVar[Mapping[str, str]] = {
        "*.key.bias": "adds the same to every score, which a softmax does not see"
    }

    @dataclass(frozen=True)
    class Settings(api.Settings):
        """Whole or lite, size of the attention, and how logits are read out."""

        lite: bool = setting(False, help="one cross-attention per modality; no joint stream")
        steps: int = setting(16, low=1, high=256, search=(4, 32), log=True, help="steps per modality (not lite)")
        heads: int = setting(1, low=1, high=64, help="attention heads; a divisor of the token width")
        dropout: float = setting(0.2, low=0.0, high=0.9, search=(0.0, 0.5), help="on what the head reads")
        readout: str = setting("mean", choices=("mean", "attn"))

    def __init__(self, settings: Settings, task: TaskSpec) -> None:
        super().__init__(settings, task)
        dim, by_attention = task.dim, settings.readout == "attn"
        if settings.lite:
            self.streams: _CrossAttentions | _JointStreams = _CrossAttentions(task.modalities, dim, settings.heads)
        else:
            self.streams = _JointStreams(task.modalities, dim, settings.steps, settings.heads, not by_attention)
        self.readout = ClassTokenAttention(dim, settings.dropout) if by_attention else None
        self.drop = nn.Dropout(settings.dropout)
        self.head = nn.Linear(dim, task.num_outputs)
        xavier(self.head)

    @classmethod
    def provides(cls, settings: Settings) -> frozenset[Capability]:
        """An attention site if logits are read out by attention, beside what every fusion provides."""
        attends = settings.readout == "attn"
        sites = {Capability.ATTENTION_SITE, Capability.SHARED_QUERY} if attends else set()
        return super().provides(settings) | sites

    @classmethod
    def requires(cls, settings: Settings) -> frozenset[Capability]:
        """Queries of one stream meet keys of the others."""
        return frozenset({Capability.EQUAL_DIMS})

    def forward(self, tokens: Mapping[str, Tokens]) -> Output:
        """Joint logits; with attention as read-out also the attention mass of every modality."""
        features = {m: tokens[m].pooled for m in self.task.modalities}
        if self.readout is None:
            return Output(self.head(self.drop(self.streams.pooled(tokens))), features)
        attended, mass = self.readout(self.streams.fused(tokens))
        auxiliary = {f"attention_mass/{m}": w for m, w in mass.items()}
        return Output(self.head(attended), features, auxiliary=auxiliary)


def aligned(tokens: Tokens, steps: int) -> Float[Tensor, "batch steps dim"]:
    """Averages of the valid tokens, in order, over `steps` parts as even as can be (adaptive average pooling).

    The class token is left out where a sample has any other valid token; a sample without any gives zeros.
    """
    batch, length, _ = tokens.x.shape
    valid = tokens.mask
    if valid is None:
        valid = torch.ones(batch, length, dtype=torch.bool, device=tokens.x.device)
    if tokens.has_class_token:
        alone = ~valid[:, 1:].any(dim=1, keepdim=True)
        valid = torch.cat([valid[:, :1] & alone, valid[:, 1:]], dim=1)
    rank = (valid.cumsum(dim=1) - 1).unsqueeze(1)  # [B, 1, L]: position among the valid tokens
    count = valid.sum(dim=1, keepdim=True)  # [B, 1]
    step = torch.arange(steps, device=valid.device)
    first = (step * count).div(steps, rounding_mode="floor").unsqueeze(2)  # [B, T, 1]
    end = ((step + 1) * count + steps - 1).div(steps, rounding_mode="floor").unsqueeze(2)
    member = (valid.unsqueeze(1) & (rank >= first) & (rank < end)).to(tokens.x.dtype)  # [B, T, L]
    return torch.bmm(member, tokens.x) / member.sum(dim=2, keepdim=True).clamp_min(1)


def _padded(tokens: Tokens, length: int) -> Tokens:
    """The tokens with invalid ones added at the end."""
    missing = length - tokens.x.shape[1]
    if missing == 0:
        return tokens
    padding = tokens.x.new_zeros(tokens.x.shape[0], missing, tokens.x.shape[2])
    return concatenate([tokens, Tokens(padding, padding[..., 0].bool())])
