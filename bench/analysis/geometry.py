"""Where the mean keys of every modality lie around the query of an attention site."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from bench.api import AttentionSite, SiteSample


@dataclass(frozen=True)
class Geometry:
    """One site over a set of samples, in float64; cosines are the mean over heads where there are several."""

    cosines: Mapping[str, Float[np.ndarray, " sample"]]
    """m -> cos(query, mean key of m)."""
    radii: Mapping[str, Float[np.ndarray, " sample"]]
    """m -> norm of the sample's mean key."""
    query_norm: float
    turned: float
    """Degrees between the mean query as it competes and the same before its rotation."""
    ray_cosines: Mapping[str, float]
    """m -> cos(mean query, mean of all mean keys)."""
    ray_radii: Mapping[str, float]
    key_cosine: float
    """Smallest cosine between the mean keys of two modalities over all samples (gamma for two)."""
    distance: float | None
    """Largest distance of two modalities' mean keys, in pooled standard deviations; None where no sample differs."""

    @property
    def means(self) -> dict[str, float]:
        """E[cos] of every modality: what AIR is made of."""
        return {m: float(values.mean()) for m, values in self.cosines.items()}


def angles(cosines: Float[np.ndarray, " sample"]) -> Float[np.ndarray, " sample"]:
    """Degrees in [0, 180]."""
    degrees: np.ndarray = np.degrees(np.arccos(np.clip(cosines, -1.0, 1.0)))
    return degrees


def geometry(site: AttentionSite, samples: Sequence[SiteSample]) -> Geometry:
    """The geometry of all samples that a site has shown."""
    query = torch.cat([s.query for s in samples]).double().cpu()
    keys = {m: torch.cat([s.mean_keys[m] for s in samples]).double().cpu() for m in samples[0].mean_keys}
    mean_query = query.mean(dim=0)
    means = {m: k.mean(dim=0) for m, k in keys.items()}
    rotation = site.rotation.detach().cpu().double()
    names = list(keys)
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    variance = {m: float((k - means[m]).square().sum(dim=1).mean()) for m, k in keys.items()}
    return Geometry(
        cosines={m: _by_head(query, k, site.heads).numpy() for m, k in keys.items()},
        radii={m: k.norm(dim=1).numpy() for m, k in keys.items()},
        query_norm=float(query.norm(dim=1).mean()),
        # `query` is R q, so that q is what the transpose gives back.
        turned=math.degrees(math.acos(max(-1.0, min(1.0, _cosine(mean_query, mean_query @ rotation))))),
        ray_cosines={m: _cosine(mean_query, k) for m, k in means.items()},
        ray_radii={m: float(k.norm()) for m, k in means.items()},
        key_cosine=min((_cosine(means[a], means[b]) for a, b in pairs), default=1.0),
        distance=_largest(
            float((means[a] - means[b]).norm()) / math.sqrt((variance[a] + variance[b]) / 2)
            for a, b in pairs
            if variance[a] + variance[b] > 0
        ),
    )


@contextmanager
def shown(sites: Mapping[str, AttentionSite]) -> Iterator[dict[str, list[SiteSample]]]:
    """Everything the sites show inside this context, batch by batch."""
    seen: dict[str, list[SiteSample]] = {name: [] for name in sites}
    for name, site in sites.items():
        site.tap = seen[name].append
    try:
        yield seen
    finally:
        for site in sites.values():
            site.tap = None


def imbalance_after(imbalance: float, key_cosine: float, rho: float) -> float:
    """AIR right after a rotation, for two modalities: -tanh(rho AIR) (1 - gamma) / N.

    gamma is the cosine of the two mean keys and N the length of the anchor between them, by which RollingQ turns the
    query. Exact where every sample's mean keys have the direction of the means over all samples.
    """
    alpha = 0.5 * (1 + math.tanh(-rho * imbalance))
    squared = alpha**2 + (1 - alpha) ** 2 + 2 * alpha * (1 - alpha) * key_cosine
    return -math.tanh(rho * imbalance) * (1 - key_cosine) / math.sqrt(squared) if squared > 1e-12 else 0.0


def _by_head(query: Tensor, keys: Tensor, heads: int) -> Tensor:
    query, keys = query.unflatten(1, (heads, -1)), keys.unflatten(1, (heads, -1))
    return F.cosine_similarity(query, keys, dim=2).mean(dim=1)  # [sample]


def _cosine(a: Tensor, b: Tensor) -> float:
    return float(F.cosine_similarity(a, b, dim=0))


def _largest(values: Iterable[float]) -> float | None:
    return max(values, default=None)
