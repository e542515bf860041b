"""A transformer over a sequence of feature vectors [steps, dim]: text, frame features, sensor windows."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bench.api import Encoder, EncoderSpec, Tokens
from bench.layers import TransformerBlock, xavier


class SequenceEncoder(Encoder):
    """Linear projection, class token, learned positions, pre-norm blocks; padding is masked throughout."""

    def __init__(self, spec: EncoderSpec, shape: tuple[int, ...]) -> None:
        super().__init__()
        if len(shape) != 2:
            raise ValueError(f"the sequence encoder takes [steps, dim], not {list(shape)}")
        steps, width = shape
        self.dim = spec.dim
        self.project = nn.Linear(width, spec.dim)
        self.class_token = nn.Parameter(torch.zeros(1, 1, spec.dim))
        self.positions = nn.Parameter(torch.empty(1, 1 + steps, spec.dim))
        self.stages = nn.ModuleList(TransformerBlock(spec.dim, spec.heads) for _ in range(spec.depth))
        self.norm = nn.LayerNorm(spec.dim, eps=1e-6)
        xavier(self.project)
        nn.init.trunc_normal_(self.class_token, std=0.02)
        nn.init.trunc_normal_(self.positions, std=0.02)

    def stem(self, x: Tensor, mask: Tensor | None = None) -> Tokens:
        """Class token and projected steps [batch, 1 + steps, dim]."""
        hidden = torch.cat([self.class_token.expand(x.shape[0], -1, -1), self.project(x)], dim=1)
        if mask is not None:
            mask = torch.cat([mask.new_ones(mask.shape[0], 1), mask], dim=1)
        return Tokens(hidden + self.positions, mask)
