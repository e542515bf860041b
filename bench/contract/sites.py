"""The attention site: where a query competes over modalities, and what is measured there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class AttentionSite(nn.Module):
    """The place where one query competes over the keys of several modalities.

    The only contact point of a rotation: `rotation` [dim, dim] is a persistent buffer that is always applied, the
    identity at birth, so that a model that was saved and loaded stays rotated. Where the attention has several
    `heads`, each owns dim / heads consecutive channels of queries and keys, and a rotation mixes channels of one head
    only. `tap`, while set, is called with what the measurements of `bench.sites` need.
    """

    rotation: Tensor
    num_rotations: Tensor

    def __init__(self, dim: int, heads: int = 1) -> None:
        super().__init__()
        self.dim, self.heads = dim, heads
        self.register_buffer("rotation", torch.eye(dim))
        self.register_buffer("num_rotations", torch.zeros((), dtype=torch.long))
        self.tap: Callable[[SiteSample], None] | None = None

    def forward(self, query: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch dim"]:
        """The query that competes: `query` times the transposed rotation."""
        return F.linear(query, self.rotation)

    def rotate(self, rotation: Float[Tensor, "dim dim"]) -> None:
        """Apply one more rotation after those already there (y = R x for column vectors)."""
        product = rotation.cpu().double() @ self.rotation.cpu().double()  # not every device has float64
        self.rotation.copy_(product.to(self.rotation.dtype))
        self.num_rotations += 1


@dataclass(frozen=True)
class SiteSample:
    """What a site shows of a batch: the (rotated) query, each modality's mean key, its attention mass."""

    query: Float[Tensor, "batch dim"]
    mean_keys: Mapping[str, Tensor]  # m -> [batch, dim], over the valid tokens of m
    mass: Mapping[str, Tensor]  # m -> [batch]
    base_rate: Mapping[str, Tensor]  # m -> [batch]: the mass uniform attention would give


@dataclass(frozen=True)
class SiteRecord:
    """What was measured at one site after an epoch; per-modality values are in the order of the modalities."""

    cosines: Mapping[str, float]
    """E[cos(query, mean key of m)], the mean over heads where there are several."""
    mass: Mapping[str, float]
    """Mean attention mass."""
    base_rate: Mapping[str, float]
    """The mass that uniform attention would give."""
    key_norms: Mapping[str, float]
    """Mean norm of the samples' mean keys."""
    key_cosine: float
    """Smallest cosine between the modalities' mean keys over the samples (gamma for two)."""
    query_norm: float
    num_rotations: int
    last_batch: Mapping[str, float]
    """E[cos] on the last training batch alone, before its optimizer step (what the released code looks at)."""

    @property
    def air(self) -> float:
        """Attention imbalance rate: first minus second cosine for two modalities, else their range."""
        return attention_imbalance(self.cosines)

    @property
    def last_batch_air(self) -> float:
        """The same from the last training batch."""
        return attention_imbalance(self.last_batch)


def attention_imbalance(cosines: Mapping[str, float]) -> float:
    """AIR in [-2, 2]: c_a - c_v for two modalities (signed), max - min for more (>= 0)."""
    values = list(cosines.values())
    return values[0] - values[1] if len(values) == 2 else max(values) - min(values)


@dataclass(frozen=True)
class SiteMeans:
    """Exact means over the whole train split at one site, in float64."""

    query: Float[Tensor, " dim"]
    query_norm: float
    keys: Mapping[str, Tensor]  # m -> E[mean key of m] [dim]
    cosines: Mapping[str, float]
    head_cosines: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """m -> E[cos] of every head; empty where there is one."""
