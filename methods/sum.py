"""One linear head per modality, logits added: late fusion without interaction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from bench import api
from bench.api import Capability, Fusion, Output, TaskSpec, Tokens
from bench.layers import xavier


class Sum(Fusion):
    """f = sum of u_m with u_m = W_m z_m + b_m.

    The same functions as concatenation can represent, from another start: each W_m is drawn for its own width, and
    M biases make the bias of the sum move M times as fast.
    """

    paper = "Peng, Wei, Deng, Wang and Hu, Balanced multimodal learning, CVPR 2022 (the summation baseline)"
    reference = "GeWu-Lab/OGM-GE_CVPR2022 (MIT)"

    @dataclass(frozen=True)
    class Settings(api.Settings):
        """None."""

    def __init__(self, settings: Settings, task: TaskSpec) -> None:
        super().__init__(settings, task)
        self.heads = nn.ModuleDict({m: nn.Linear(task.dims[m], task.num_outputs) for m in task.modalities})
        self.heads.apply(xavier)

    @classmethod
    def provides(cls, settings: Settings) -> frozenset[Capability]:
        """The split of the logits over the modalities, beside what every fusion provides."""
        return super().provides(settings) | {Capability.EXACT_UNIMODAL}

    def forward(self, tokens: Mapping[str, Tokens]) -> Output:
        """Joint logits, and the modalities' logits they are the sum of."""
        features = {m: tokens[m].pooled for m in self.task.modalities}
        exact = {m: self.heads[m](z) for m, z in features.items()}
        return Output(torch.stack(list(exact.values())).sum(dim=0), features, {"exact": exact})
