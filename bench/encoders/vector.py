"""A residual MLP over one feature vector [dim]: a modality that has no sequence."""

from __future__ import annotations

from torch import Tensor, nn

from bench.api import Encoder, EncoderSpec, Tokens
from bench.layers import xavier


class _ResidualMLP(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        self.apply(xavier)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        del mask  # a single token is always valid
        hidden: Tensor = x + self.mlp(self.norm(x))
        return hidden


class VectorEncoder(Encoder):
    """Linear projection to a single token, which is its own class token, and residual MLP stages."""

    def __init__(self, spec: EncoderSpec, shape: tuple[int, ...]) -> None:
        super().__init__()
        if len(shape) != 1:
            raise ValueError(f"the vector encoder takes [dim], not {list(shape)}")
        self.dim = spec.dim
        self.project = nn.Linear(shape[0], spec.dim)
        self.stages = nn.ModuleList(_ResidualMLP(spec.dim) for _ in range(spec.depth))
        self.norm = nn.LayerNorm(spec.dim, eps=1e-6)
        xavier(self.project)

    def stem(self, x: Tensor, mask: Tensor | None = None) -> Tokens:
        """One token [batch, 1, dim]."""
        del mask  # one vector has no steps to mask
        return Tokens(self.project(x).unsqueeze(1))
