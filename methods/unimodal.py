"""One modality alone: its pooled feature and a linear layer. The floor that every fusion has to beat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from bench import api
from bench.api import Capability, Fusion, Output, TaskSpec, Tokens, setting
from bench.layers import xavier


class Unimodal(Fusion):
    """A linear layer on the pooled feature of one modality; no other encoder is built.

    Differs from the paper: the released code builds the other modality's encoder as well and never uses it.
    """

    paper = "Ni, Wei, Liu, Chen, Peng, Lin and Hu, RollingQ, ICML 2025 (rows Audio and Visual)"
    reference = "GeWu-Lab/RollingQ_ICML2025 (no licence found)"

    @dataclass(frozen=True)
    class Settings(api.Settings):
        """Which modality; the first one if empty."""

        modality: str = setting("", help="the modality to use; empty for the data set's first")

    def __init__(self, settings: Settings, task: TaskSpec) -> None:
        super().__init__(settings, task)
        (self.modality,) = self.uses(settings, task.modalities)
        if self.modality not in task.modalities:
            raise ValueError(f"unimodal: no modality {self.modality!r}; this task has {', '.join(task.modalities)}")
        self.head = nn.Linear(task.dims[self.modality], task.num_outputs)
        xavier(self.head)

    @classmethod
    def provides(cls, settings: Settings) -> frozenset[Capability]:
        """Its own head is the trained head of its modality; there is nothing joint."""
        return frozenset({Capability.UNIMODAL_HEADS, Capability.FEATURES})

    @classmethod
    def uses(cls, settings: Settings, modalities: Sequence[str]) -> tuple[str, ...]:
        """The one modality asked for, whether or not the task has it: a plan skips the row where it has not."""
        return (settings.modality or modalities[0],)

    def forward(self, tokens: Mapping[str, Tokens]) -> Output:
        """f = W z + b."""
        feature = tokens[self.modality].pooled
        logits = self.head(feature)
        return Output(logits, {self.modality: feature}, {"head": {self.modality: logits}})
