"""A learned class token attends over the tokens of all modalities at once: the multimodal transformer's fusion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from bench import api
from bench.api import Capability, Fusion, Output, TaskSpec, Tokens, setting
from bench.layers import ClassTokenAttention, xavier


class VanillaMT(Fusion):
    """One attention layer with one query, whose softmax spans all modalities, and a linear head.

    Differs from the paper: only the class token's row is computed, since no other is read (the same numbers at a
    fraction of the cost); the released code's LayerNorm that is never called is left out.
    """

    paper = "Ni, Wei, Liu, Chen, Peng, Lin and Hu, RollingQ, ICML 2025 (row Vanilla MT)"
    reference = "GeWu-Lab/RollingQ_ICML2025 (no licence found)"
    dead_parameters: ClassVar[Mapping[str, str]] = {
        "attention.key.bias": "adds the same to every score, which a softmax does not see"
    }

    @dataclass(frozen=True)
    class Settings(api.Settings):
        """Dropout on the attention weights and on the attended class token."""

        dropout: float = setting(0.2, low=0.0, high=0.9, search=(0.0, 0.5))

    def __init__(self, settings: Settings, task: TaskSpec) -> None:
        super().__init__(settings, task)
        self.attention = ClassTokenAttention(task.dim, settings.dropout)
        self.head = nn.Linear(task.dim, task.num_outputs)
        xavier(self.head)

    @classmethod
    def provides(cls, settings: Settings) -> frozenset[Capability]:
        """The attention site a rotation acts on, beside what every fusion provides."""
        return super().provides(settings) | {Capability.ATTENTION_SITE}

    @classmethod
    def requires(cls, settings: Settings) -> frozenset[Capability]:
        """One query has to fit the keys of every modality."""
        return frozenset({Capability.EQUAL_DIMS})

    def forward(self, tokens: Mapping[str, Tokens]) -> Output:
        """Logits of the attended class token, and the attention mass of every modality."""
        attended, mass = self.attention(tokens)
        features = {m: t.pooled for m, t in tokens.items()}
        auxiliary = {f"attention_mass/{m}": w for m, w in mass.items()}
        return Output(self.head(attended), features, auxiliary=auxiliary)
