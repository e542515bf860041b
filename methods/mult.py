"""Every modality reads every other one through a stack of cross-attention layers, in pairs, before all are joined."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from bench import api
from bench.api import Capability, Fusion, Output, TaskSpec, Tokens, setting
from bench.layers import Attention, ClassTokenAttention, xavier


class _Layer(nn.Module):
    """Attention of the target to a source that stays as it was, then an MLP; pre-norm, one norm for both sides."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(dim, heads, dropout)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.ReLU(), nn.Dropout(dropout), nn.Linear(4 * dim, dim))
        self.norm_attention, self.norm_mlp = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.drop = nn.Dropout(dropout)
        self.mlp.apply(xavier)

    def forward(self, x: Tensor, source: Tensor, mask: Tensor | None) -> Tensor:
        attended = self.attention(self.norm_attention(x), self.norm_attention(source), mask)
        x = x + self.drop(attended)
        hidden: Tensor = x + self.drop(self.mlp(self.norm_mlp(x)))
        return hidden


class _Stack(nn.Module):
    """Layers and a final norm; without a source every layer attends to its own input."""

    def __init__(self, count: int, dim: int, heads: int, dropout: float, causal: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Layer(dim, heads, dropout) for _ in range(count))
        self.norm = nn.LayerNorm(dim)
        self.causal = causal

    def forward(self, target: Tokens, source: Tokens | None = None) -> Tensor:
        read = target if source is None else source
        mask = read.mask
        if self.causal:
            allowed = allowed_keys(target.x.shape[1], read.x.shape[1], target.x.device)  # [Q, K]
            mask = allowed.expand(len(target.x), -1, -1) if mask is None else mask.unsqueeze(1) & allowed
        x = target.x
        for layer in self.layers:
            x = layer(x, x if source is None else source.x, mask)
        normed: Tensor = self.norm(x)
        return normed


class _ResidualMLP(nn.Module):
    """What is joined, plus an MLP of it of the same width."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = x + self.mlp(x)
        return hidden


class MulT(Fusion):
    """Multimodal transformer with pairwise crossmodal attention.

    Differs from the paper: the encoders' tokens take the place of convolved raw features, so that every width is
    theirs, and carry positions already, so that none are added; what may be attended to is not masked by time, and
    a modality is read out by the mean over its valid tokens. `causal=true` restores the released code's mask, with
    the last valid token read out. Padding is masked, which the released code does not do. One dropout rate for
    attention weights, hidden units and residuals. `readout=attn` replaces the last MLP by a class token that
    attends over all modalities, for rotations: no other query here competes over several of them.
    """

    paper = (
        "Tsai, Bai, Liang, Kolter, Morency and Salakhutdinov, "
        "Multimodal transformer for unaligned multimodal language sequences, ACL 2019"
    )
    reference = "yaohungt/Multimodal-Transformer (MIT)"
    dead_parameters: ClassVar[Mapping[str, str]] = {
        "*.key.bias": "adds the same to every score, which a softmax does not see"
    }

    @dataclass(frozen=True)
    class Settings(api.Settings):
        """Depth and heads of the stacks, masking by time, and how logits are read out."""

        layers: int = setting(
            4, low=0, high=12, search=(1, 6), help="of every crossmodal stack; the stacks after it have at least 3"
        )
        heads: int = setting(8, low=1, high=64, help="attention heads; a divisor of the token width")
        dropout: float = setting(0.1, low=0.0, high=0.9, search=(0.0, 0.5))
        causal: bool = setting(False, help="mask by time and read out the last token, as released")
        readout: str = setting("mlp", choices=("mlp", "attn"))

    def __init__(self, settings: Settings, task: TaskSpec) -> None:
        super().__init__(settings, task)
        s, dim, names = settings, task.dim, task.modalities
        width = (len(names) - 1) * dim
        self.crossmodal = nn.ModuleDict(
            {
                target: nn.ModuleDict(
                    {
                        source: _Stack(s.layers, dim, s.heads, s.dropout, s.causal)
                        for source in names
                        if source != target
                    }
                )
                for target in names
            }
        )
        depth = max(s.layers, 3)
        self.memories = nn.ModuleDict({m: _Stack(depth, width, s.heads, s.dropout, s.causal) for m in names})
        self.readout = ClassTokenAttention(width, s.dropout) if s.readout == "attn" else None
        joint = len(names) * width
        mlp_head = nn.Sequential(_ResidualMLP(joint, s.dropout), nn.Linear(joint, task.num_outputs))
        self.head = nn.Linear(width, task.num_outputs) if self.readout else mlp_head
        self.head.apply(xavier)

    @classmethod
    def provides(cls, settings: Settings) -> frozenset[Capability]:
        """An attention site if logits are read out by attention, beside what every fusion provides."""
        attends = settings.readout == "attn"
        sites = {Capability.ATTENTION_SITE, Capability.SHARED_QUERY} if attends else set()
        return super().provides(settings) | sites

    @classmethod
    def requires(cls, settings: Settings) -> frozenset[Capability]:
        """One norm serves the target and its source."""
        return frozenset({Capability.EQUAL_DIMS})

    def forward(self, tokens: Mapping[str, Tokens]) -> Output:
        """Joint logits; with attention as read-out also the attention mass of every modality."""
        features = {m: tokens[m].pooled for m in self.task.modalities}
        fused = self.fused(tokens)
        if self.readout is None:
            joint = [_last(t) if self.settings.causal else t.pooled for t in fused.values()]
            return Output(self.head(torch.cat(joint, dim=1)), features)
        attended, mass = self.readout(fused)
        auxiliary = {f"attention_mass/{m}": w for m, w in mass.items()}
        return Output(self.head(attended), features, auxiliary=auxiliary)

    def fused(self, tokens: Mapping[str, Tokens]) -> dict[str, Tokens]:
        """Every modality's tokens [B, T, (M - 1) D] after all others were read and remembered."""
        fused = {}
        for m, stacks in self.crossmodal.items():
            pairs = dict(stacks.named_children())
            read = torch.cat([stack(tokens[m], tokens[source]) for source, stack in pairs.items()], dim=2)
            joined = dataclasses.replace(tokens[m], x=read, has_class_token=False)
            fused[m] = dataclasses.replace(joined, x=self.memories[m](joined))
        return fused


def allowed_keys(queries: int, keys: int, device: torch.device | None = None) -> Bool[Tensor, "queries keys"]:
    """The released code's mask: query i may attend to keys up to i + |keys - queries|.

    A target longer than its source so attends to all of it.
    """
    later = abs(keys - queries)
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(later)


def _last(tokens: Tokens) -> Tensor:
    """The last valid token [B, D] of every sample; the first where none is valid."""
    if tokens.mask is None:
        return tokens.x[:, -1]
    position = torch.arange(tokens.x.shape[1], device=tokens.x.device) * tokens.mask  # [B, T]
    return tokens.x[torch.arange(len(tokens.x), device=tokens.x.device), position.argmax(dim=1)]
