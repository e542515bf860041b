"""What is measured at attention sites: AIR, attention mass, and the geometry of mean keys."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor
from torch.nn import functional as F

from bench.api import AttentionSite, SiteMeans, SiteRecord, SiteSample


@dataclass
class SiteSums:
    """Sums over samples in float64, so that the means do not depend on how the samples were cut into batches."""

    heads: int = 1
    count: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)

    def add(self, sample: SiteSample) -> None:
        """Add a batch."""
        query = sample.query.double()
        self._sum("query", query)
        self._sum("query_norm", query.norm(dim=1))
        keys = {m: k.double() for m, k in sample.mean_keys.items()}
        for m, k in keys.items():
            cosines = F.cosine_similarity(self._by_head(query), self._by_head(k), dim=2)  # [B, H]
            self._sum(f"cosine/{m}", cosines.mean(dim=1))
            self._sum(f"head_cosine/{m}", cosines)
            self._sum(f"key/{m}", k)
            self._sum(f"key_norm/{m}", k.norm(dim=1))
            self._sum(f"mass/{m}", sample.mass[m].double())
            self._sum(f"base_rate/{m}", sample.base_rate[m].double())
        for a, b in itertools.combinations(keys, 2):
            self._sum(f"key_cosine/{a}/{b}", F.cosine_similarity(keys[a], keys[b], dim=1))
        self.count += query.shape[0]

    def mean(self, name: str) -> float:
        """The mean of a scalar."""
        return float(self.sums[name] / self.count)

    def by_modality(self, name: str) -> dict[str, float]:
        """The mean of a scalar of every modality."""
        return {key.removeprefix(f"{name}/"): self.mean(key) for key in self.sums if key.startswith(f"{name}/")}

    def means(self) -> SiteMeans:
        """The means a rotation is made from."""
        return SiteMeans(
            query=self.sums["query"] / self.count,
            query_norm=self.mean("query_norm"),
            keys={k.removeprefix("key/"): v / self.count for k, v in self.sums.items() if k.startswith("key/")},
            cosines=self.by_modality("cosine"),
            head_cosines=self._head_cosines() if self.heads > 1 else {},
        )

    def record(self, site: AttentionSite, last_batch: Mapping[str, float]) -> SiteRecord:
        """What an epoch's record holds of this site."""
        pairs = [self.mean(key) for key in self.sums if key.startswith("key_cosine/")]
        return SiteRecord(
            cosines=self.by_modality("cosine"),
            mass=self.by_modality("mass"),
            base_rate=self.by_modality("base_rate"),
            key_norms=self.by_modality("key_norm"),
            key_cosine=min(pairs, default=1.0),
            query_norm=self.mean("query_norm"),
            num_rotations=int(site.num_rotations),
            last_batch=dict(last_batch),
        )

    def _by_head(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (self.heads, -1))  # [B, D] -> [B, H, D / H]

    def _head_cosines(self) -> dict[str, list[float]]:
        prefix = "head_cosine/"
        return {
            key.removeprefix(prefix): (total / self.count).tolist()
            for key, total in self.sums.items()
            if key.startswith(prefix)
        }

    def _sum(self, name: str, values: Tensor) -> None:
        total = values.sum(dim=0)
        self.sums[name] = self.sums[name] + total if name in self.sums else total


@contextmanager
def tapped(sites: Mapping[str, AttentionSite]) -> Iterator[dict[str, SiteSums]]:
    """Sums over everything the sites see inside this context."""
    sums = {name: SiteSums(site.heads) for name, site in sites.items()}
    for name, site in sites.items():
        site.tap = sums[name].add
    try:
        yield sums
    finally:
        for site in sites.values():
            site.tap = None
