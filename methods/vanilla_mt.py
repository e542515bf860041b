"""A learned class token attends over the tokens of all modalities at once: the multimodal transformer's fusion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from bench import api
from bench.api import Capability, Fusion, Output, TaskSpec, Tokens, setting
from bench.layers import ClassTokenAttention, xavier


class _FurtherLayer(nn.Module):
    """A layer above the first: the class token asks again, by a query that now depends on the sample; pre-norm."""

    def __init__(self, dim: int, dropout: float, heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.attention = ClassTokenAttention(dim, dropout, heads, learned=False)

    def forward(self, class_token: Tensor, tokens: Mapping[str, Tokens]) -> tuple[Tensor, dict[str, Tensor]]:
        attended, mass = self.attention(tokens, self.norm(class_token))
        return class_token + attended, mass


class VanillaMT(Fusion):
    """One attention layer with one query, whose softmax spans all modalities, and a linear head.

    Differs from the paper: only the class token's row is computed, since no other is read (the same numbers at a
    fraction of the cost); the released code's LayerNorm that is never called is left out. The paper rotates
    several layers too and says nothing of how they are built. Ours, with `layers` above one: the class token that
    a layer gives is the next one's query, after a norm and with a residual sum (the first layer has neither, as
    published), over the same tokens of the encoders; the attention mass is the last layer's. With several `heads`
    each has a query, and so a rotation, of its own.
    """

    paper = "Ni, Wei, Liu, Chen, Peng, Lin and Hu, RollingQ, ICML 2025 (row Vanilla MT)"
    reference = "GeWu-Lab/RollingQ_ICML2025 (no licence found)"
    dead_parameters: ClassVar[Mapping[str, str]] = {
        "*.key.bias": "adds the same to every score, which a softmax does not see"
    }

    @dataclass(frozen=True)
    class Settings(api.Settings):
        """Dropout on the attention weights and on the attended class token; layers and heads of the fusion."""

        dropout: float = setting(0.2, low=0.0, high=0.9, search=(0.0, 0.5))
        layers: int = setting(1, low=1, high=8, help="attention layers, each with a site of its own")
        heads: int = setting(1, low=1, high=64, help="attention heads; a divisor of the token width")

    def __init__(self, settings: Settings, task: TaskSpec) -> None:
        super().__init__(settings, task)
        dim, dropout, heads = task.dim, settings.dropout, settings.heads
        self.attention = ClassTokenAttention(dim, dropout, heads)
        self.further = nn.ModuleList(_FurtherLayer(dim, dropout, heads) for _ in range(settings.layers - 1))
        self.head = nn.Linear(dim, task.num_outputs)
        xavier(self.head)

    @classmethod
    def provides(cls, settings: Settings) -> frozenset[Capability]:
        """The attention sites a rotation acts on; one query for all samples in one layer with one head."""
        sites = {Capability.ATTENTION_SITE}
        if settings.layers == settings.heads == 1:
            sites.add(Capability.SHARED_QUERY)
        return super().provides(settings) | sites

    @classmethod
    def requires(cls, settings: Settings) -> frozenset[Capability]:
        """One query has to fit the keys of every modality."""
        return frozenset({Capability.EQUAL_DIMS})

    def forward(self, tokens: Mapping[str, Tokens]) -> Output:
        """Logits of the attended class token, and the attention mass of every modality."""
        attended, mass = self.attention(tokens)
        for layer in self.further:
            attended, mass = layer(attended, tokens)
        features = {m: t.pooled for m, t in tokens.items()}
        auxiliary = {f"attention_mass/{m}": w for m, w in mass.items()}
        return Output(self.head(attended), features, auxiliary=auxiliary)
