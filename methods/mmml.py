"""Cross-attention between modalities, and a loss for every modality beside the joint one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from bench import api
from bench.api import Batch, Capability, Fusion, Output, TaskSpec, Tokens, setting
from bench.layers import Attention, ClassTokenAttention, concatenate, xavier


class _CrossModalLayer(nn.Module):
    """One modality's part of a layer: attention to the others, to itself, then an MLP; post-norm."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.cross, self.own = Attention(dim, heads, dropout), Attention(dim, heads, dropout)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.ReLU(), nn.Linear(4 * dim, dim))
        self.norm_cross, self.norm_own, self.norm_mlp = (nn.LayerNorm(dim, eps=1e-6) for _ in range(3))
        self.drop = nn.Dropout(dropout)
        self.mlp.apply(xavier)

    def forward(self, tokens: Tokens, others: Tokens) -> Tokens:
        x = self.norm_cross(tokens.x + self.drop(self.cross(tokens.x, others.x, others.mask)))
        x = self.norm_own(x + self.drop(self.own(x, x, tokens.mask)))
        return dataclasses.replace(tokens, x=self.norm_mlp(x + self.drop(self.mlp(x))))


class MMML(Fusion):
    """Every modality attends to all others at once, layer by layer, and keeps a trained head on its own features.

    Differs from the paper: one layer, and an MLP of widths M d, d, d / 2, outputs, on the encoders' class tokens,
    as the published cost of RollingQ's row says (the paper: five layers, 512 units, fresh class tokens, which
    `class_token=fresh` adds). More than two modalities: the context of one is all others together.
    `readout=attn` replaces the MLP by a class token that attends over all modalities, for rotations.
    """

    paper = "Wu, Gong, Koo and Hirschberg, Multimodal multi-loss fusion network, NAACL 2024"
    reference = "zehuiwu/MMML (no licence)"
    dead_parameters: ClassVar[Mapping[str, str]] = {
        "*.key.bias": "adds the same to every score, which a softmax does not see"
    }

    @dataclass(frozen=True)
    class Settings(api.Settings):
        """Size of the cross-modal part, weight of the unimodal losses, and how logits are read out."""

        layers: int = setting(1, low=1, high=8, search=(1, 5))
        heads: int = setting(
            0, low=0, high=64, help="attention heads; 0 for one per 64 channels, or the next fewer that divide them"
        )
        dropout: float = setting(0.3, low=0.0, high=0.9, search=(0.0, 0.5))
        unimodal_weight: float = setting(1.0, low=0.0, high=100.0, search=(0.1, 10.0), log=True)
        readout: str = setting("mlp", choices=("mlp", "attn"))
        class_token: str = setting(
            "encoder", choices=("encoder", "fresh"), help="read out the encoder's class token or a new one"
        )

    def __init__(self, settings: Settings, task: TaskSpec) -> None:
        super().__init__(settings, task)
        dim, dropout = task.dim, settings.dropout
        heads = settings.heads or max(n for n in range(1, max(1, dim // 64) + 1) if dim % n == 0)
        self.layers = nn.ModuleList(
            nn.ModuleDict({m: _CrossModalLayer(dim, heads, dropout) for m in task.modalities})
            for _ in range(settings.layers)
        )
        self.class_tokens = nn.ParameterDict()
        if settings.class_token == "fresh":
            self.class_tokens.update({m: nn.Parameter(0.02 * torch.randn(1, dim)) for m in task.modalities})
        self.unimodal_heads = nn.ModuleDict()
        if settings.unimodal_weight:
            self.unimodal_heads.update({m: nn.Linear(dim, task.num_outputs) for m in task.modalities})
        self.unimodal_heads.apply(xavier)
        self.drop = nn.Dropout(dropout)
        self.readout = ClassTokenAttention(dim, dropout) if settings.readout == "attn" else None
        self.head = nn.Linear(dim, task.num_outputs) if self.readout else self._mlp()
        self.head.apply(xavier)

    def _mlp(self) -> nn.Module:
        dim = self.task.dim
        first = nn.Linear(len(self.task.modalities) * dim, dim)
        rest = nn.Linear(dim, dim // 2), nn.ReLU(), nn.Linear(dim // 2, self.task.num_outputs)
        return nn.Sequential(nn.Dropout(self.settings.dropout), first, nn.ReLU(), *rest)

    @classmethod
    def provides(cls, settings: Settings) -> frozenset[Capability]:
        """Trained heads unless their loss has no weight; an attention site if logits are read out by attention."""
        heads = {Capability.UNIMODAL_HEADS} if settings.unimodal_weight else set()
        attends = settings.readout == "attn"
        sites = {Capability.ATTENTION_SITE, Capability.SHARED_QUERY} if attends else set()
        return super().provides(settings) | heads | sites

    @classmethod
    def requires(cls, settings: Settings) -> frozenset[Capability]:
        """Queries of one modality meet keys of the others."""
        return frozenset({Capability.EQUAL_DIMS})

    def forward(self, tokens: Mapping[str, Tokens]) -> Output:
        """Joint logits from the fused tokens; unimodal ones from the features before fusion, graph attached."""
        features = {m: tokens[m].pooled for m in self.task.modalities}
        unimodal = {m: head(self.drop(features[m])) for m, head in self.unimodal_heads.items()}
        fused = self.exchange(tokens)
        auxiliary: dict[str, Tensor] = {}
        if self.readout is None:
            logits = self.head(torch.cat([t.pooled for t in fused.values()], dim=1))
        else:
            attended, mass = self.readout(fused)
            logits = self.head(attended)
            auxiliary = {f"attention_mass/{m}": w for m, w in mass.items()}
        return Output(logits, features, {"head": unimodal} if unimodal else {}, auxiliary)

    def exchange(self, tokens: Mapping[str, Tokens]) -> dict[str, Tokens]:
        """Tokens after the cross-modal layers; within a layer all modalities read the same, older tokens."""
        fused = {m: self._with_class_token(m, tokens[m]) for m in self.task.modalities}
        for layer in self.layers:
            parts = dict(layer.named_children())
            others = {m: concatenate([t for n, t in fused.items() if n != m]) for m in fused}
            fused = {m: parts[m](t, others[m]) for m, t in fused.items()}
        return fused

    def _with_class_token(self, modality: str, tokens: Tokens) -> Tokens:
        if modality not in self.class_tokens:
            return tokens
        fresh = self.class_tokens[modality].expand(len(tokens.x), 1, -1)
        return dataclasses.replace(concatenate([Tokens(fresh), tokens]), has_class_token=True)

    def terms(self, output: Output, batch: Batch) -> dict[str, Tensor]:
        """The joint loss and every modality's own, weighted."""
        weight = self.settings.unimodal_weight
        own = {m: weight * self.task.loss(u, batch.target) for m, u in output.unimodal.get("head", {}).items()}
        return super().terms(output, batch) | {f"unimodal/{m}": loss for m, loss in own.items()}
