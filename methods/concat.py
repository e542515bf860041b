"""Concatenate the pooled features and apply one linear layer: late fusion without interaction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from bench import api
from bench.api import Capability, Fusion, Output, TaskSpec, Tokens
from bench.layers import xavier


class Concat(Fusion):
    """f = W [z_1; ...; z_M] + b, which splits exactly into u_m = W_m z_m + b / M."""

    paper = "Peng, Wei, Deng, Wang and Hu, Balanced multimodal learning, CVPR 2022 (the concatenation baseline)"
    reference = "GeWu-Lab/OGM-GE_CVPR2022 (MIT)"

    @dataclass(frozen=True)
    class Settings(api.Settings):
        """None."""

    def __init__(self, settings: Settings, task: TaskSpec) -> None:
        super().__init__(settings, task)
        self.widths = [task.dims[m] for m in task.modalities]
        self.head = nn.Linear(sum(self.widths), task.num_outputs)
        xavier(self.head)

    @classmethod
    def provides(cls, settings: Settings) -> frozenset[Capability]:
        """The split of the logits over the modalities, beside what every fusion provides."""
        return super().provides(settings) | {Capability.EXACT_UNIMODAL}

    def forward(self, tokens: Mapping[str, Tokens]) -> Output:
        """Joint logits, and each modality's share of them."""
        features = {m: tokens[m].pooled for m in self.task.modalities}
        logits = self.head(torch.cat(list(features.values()), dim=1))
        share = self.head.bias / len(features)
        weights = self.head.weight.split(self.widths, dim=1)  # M x [outputs, dim of m]
        exact = {m: F.linear(z, w, share) for (m, z), w in zip(features.items(), weights, strict=True)}
        return Output(logits, features, {"exact": exact})
