"""Which samples of two parts are copies of each other: the same content, or content nearer than look-alikes come."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import stats

from bench.data.fingerprints import CLOSE, Fingerprints, fingerprints
from bench.data.prepared import Prepared

GAP = 4.0
RADII = (0.04, 0.02, 0.01, 0.005, 0.0025, 0.00125)
"""How near a copy may be, in multiples of the distance that is usual for its sample; the first with a gap counts.

Look-alikes have no gap: four times the distance holds `Fingerprints.growth` times as many of them. Copies are near each
other and far from the rest. So a radius counts if four times the radius holds at most twice as many samples, so few
that look-alikes would be so with a probability below CHANCE, and if it holds at most one look-alike of every sample.
"""
CHANCE, LEAST_GROWTH = 0.005, 6.0
"""Content with less growth is of three numbers or so: everything has a look-alike, and only equal content is a copy."""
assert max(RADII) * GAP <= CLOSE


@dataclass(frozen=True, eq=False)
class Content:
    """One modality of a data set: what is stored for each sample, and what it looks like."""

    digests: np.ndarray
    """Of the stored values (and mask) of each sample, [samples]."""
    rows: Int[np.ndarray, " sample"]
    prints: Fingerprints

    @classmethod
    def of(cls, prepared: Prepared, modality: str) -> Content:
        """Everything stored for a modality, read once for the digests and once for the fingerprints."""
        return cls(_digests(prepared, modality), prepared.rows(modality), fingerprints(prepared, modality))

    def near(self, ours: Int[np.ndarray, " a"], theirs: Int[np.ndarray, " b"]) -> Near:
        """The nearest of their samples to each of ours, by position."""
        our_rows, places = np.unique(self.rows[ours], return_inverse=True)
        their_rows, firsts = np.unique(self.rows[theirs], return_index=True)
        found, distances = self.prints.nearest(our_rows, their_rows)
        partner = theirs[firsts[np.searchsorted(their_rows, found)]]
        partners, distance = partner[places], distances[places]
        # What is there to the bit is not also near.
        same = np.isin(self.digests[ours], self.digests[theirs])
        radius = copy_radius(distance[~same], self.prints, len(their_rows))
        return Near(partners, distance, same, radius)


@dataclass(frozen=True, eq=False)
class Near:
    """The samples of one part beside the nearest of another."""

    partners: Int[np.ndarray, " a"]
    distances: Float[np.ndarray, " a"]
    """In multiples of what is usual for a sample."""
    same: Bool[np.ndarray, " a"]
    """Whether the other part holds the same content."""
    radius: float | None
    """Up to which distance content is a copy; None where copies cannot be told from look-alikes, or there are none."""

    @property
    def copies(self) -> Int[np.ndarray, " copy"]:
        """Which of ours are near-copies, the nearest first."""
        if self.radius is None:
            return np.zeros(0, dtype=np.int64)
        return self._within(self.radius)

    @property
    def alike(self) -> Int[np.ndarray, " alike"]:
        """Which of ours have a partner that near, whether or not it can be told from a look-alike."""
        return self._within(max(RADII))

    def _within(self, radius: float) -> np.ndarray:
        chosen = np.flatnonzero(~self.same & (self.distances <= radius))
        ordered: np.ndarray = chosen[np.argsort(self.distances[chosen], kind="stable")]
        return ordered


def copy_radius(distances: Float[np.ndarray, " sample"], prints: Fingerprints, others: int) -> float | None:
    """The largest radius with a gap around it, held against so many others; None where no radius tells copies."""
    if prints.growth < LEAST_GROWTH:
        return None
    for radius in RADII:
        inside, around = int((distances <= radius).sum()), int((distances <= GAP * radius).sum())
        if inside == 0 or around > 2 * inside or prints.crowd(others, GAP * radius) > 1:
            continue
        if stats.binom.sf(inside - 1, around, 1 / prints.growth) < CHANCE:
            return radius
    return None


def _digests(prepared: Prepared, modality: str) -> np.ndarray:
    values, mask = prepared.array(modality), prepared.mask(modality)
    rows = prepared.rows(modality)
    digests = {}
    for row in np.unique(rows).tolist():
        digest = hashlib.blake2b(np.ascontiguousarray(values[row]).tobytes(), digest_size=16)
        if mask is not None:
            digest.update(mask[row].tobytes())
        digests[row] = digest.hexdigest()
    return np.array([digests[row] for row in rows.tolist()], dtype=str)
