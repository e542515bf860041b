"""What a stored sample looks or sounds like in a few hundred numbers that a copy of it keeps.

Pictures, clips and spectrograms are pooled to a coarse grid, freed of brightness and contrast (gain) and of what all
samples have in common; sequences and vectors are standardised and pooled over time. Two fingerprints are compared by
their cosine: re-encoding, noise, gain and brightness hardly move it, and other content does. A shift by one row,
column or spectrogram frame is undone by comparing the shifted forms too.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from bench.data.prepared import Prepared

GRID, CLIP_GRID = (16, 16), (4, 8, 8)
"""To what pictures and spectrograms, and clips, are pooled."""
SEGMENTS, WIDTH = 4, 256
"""Into how many parts of time a sequence is pooled; how many numbers a fingerprint has at most."""
QUIET = 0.85
"""The share of a spectrogram that is flattened: white noise at 20 dB fills it, and what is louder stays as it is."""
REFERENCES, NEAR_SHARE, FARTHEST = 512, 0.05, 0.4
"""How near other content usually comes: the distance (1 - cosine) of the nearest twentieth of 512 samples."""
CLOSE = 0.16
"""Up to which multiple of the usual distance it is counted how many samples are alike."""
_BLOCK, _CELLS = 256, 1 << 23


@dataclass(frozen=True, eq=False)
class Fingerprints:
    """Unit vectors of the stored rows of one modality."""

    rows: Int[np.ndarray, " kept"]
    """The row of each, ascending."""
    forms: Float[np.ndarray, "form kept width"]
    """As stored, then shifted by one step up, down, left and right where the modality is a map."""
    usual: Float[np.ndarray, " kept"]
    """The distance of each from the nearest twentieth of the set, at most 0.4."""
    close: Float[np.ndarray, " close"]
    """Ascending: distances of rows from reference samples, as multiples of the usual one, as far as they are close."""
    compared: int
    """How many such distances were looked at."""
    growth: float
    """How many times more other samples there are within the usual distance than within a quarter of it."""

    def crowd(self, others: int, radius: float) -> float:
        """How many of so many other samples are within a radius (in usual distances, at most CLOSE) of one."""
        return others * float(np.searchsorted(self.close, radius, side="right")) / max(1, self.compared)

    def nearest(
        self, ours: Int[np.ndarray, " a"], theirs: Int[np.ndarray, " b"]
    ) -> tuple[Int[np.ndarray, " a"], Float[np.ndarray, " a"]]:
        """For each of our rows the nearest of theirs, and its distance as a multiple of what is usual for ours."""
        at, against = np.searchsorted(self.rows, ours), np.searchsorted(self.rows, theirs)
        found, cosine = np.zeros(len(at), dtype=np.int64), np.full(len(at), -np.inf, dtype=np.float32)
        others = self.forms[0, against]
        step = max(1, _CELLS // max(1, len(others)))
        for first in range(0, len(at), step):
            block = slice(first, first + step)
            for form in self.forms[:, at[block]]:
                cosines = form @ others.T  # [a, b]
                best = cosines.argmax(axis=1)
                value = cosines[np.arange(len(best)), best]
                better = value > cosine[block]
                found[block] = np.where(better, theirs[best], found[block])
                cosine[block] = np.where(better, value, cosine[block])
        return found, np.maximum(0.0, 1.0 - cosine) / self.usual[at]


def fingerprints(prepared: Prepared, modality: str) -> Fingerprints:
    """The fingerprints of every row that a sample uses."""
    spec, values, mask = prepared.spec.modalities[modality], prepared.array(modality), prepared.mask(modality)
    rows = np.unique(prepared.rows(modality))
    forms = _of_maps(values, rows) if len(spec.shape) > 2 else _of_steps(values, mask, rows)
    chosen = np.random.default_rng(0).permutation(len(rows))[:REFERENCES]
    share = min(1.0, max(NEAR_SHARE, 4 / len(chosen)))  # of few samples, a copy alone is more than a twentieth
    usual, close, inside, quarter = np.empty(len(rows), dtype=np.float32), [], 0, 0
    for first in range(0, len(rows), _BLOCK):
        apart = 1.0 - forms[0, first : first + _BLOCK] @ forms[0, chosen].T
        # Where more than a twentieth are copies of one sample, 0 would be usual.
        nearest = np.quantile(apart, share, axis=1).clip(1e-3)
        apart[np.arange(first, first + len(apart))[:, None] == chosen] = np.inf
        inside += int((apart <= nearest[:, None]).sum())
        quarter += int((apart <= nearest[:, None] / 4).sum())
        usual[first : first + _BLOCK] = nearest.clip(None, FARTHEST)
        relative = apart / usual[first : first + _BLOCK, None]
        close.append(relative[relative <= CLOSE])
    near = np.sort(np.concatenate(close))
    return Fingerprints(rows, forms, usual, near, len(rows) * (len(chosen) - 1), inside / max(1, quarter))


def _of_maps(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    pooled = np.concatenate([_pooled_forms(_maps(block)) for block in _blocks(values, rows)], axis=1)
    pooled -= pooled.mean(axis=2, keepdims=True)
    pooled /= pooled.std(axis=2, keepdims=True) + 1e-6
    return _unit(pooled - pooled[0].mean(axis=0))


def _maps(block: np.ndarray) -> Float[Tensor, "row *frames height width"]:
    """Stored values without colours; of a spectrogram only what is loud."""
    x = torch.from_numpy(block).float()
    if x.ndim > 3 and x.shape[-1] in (1, 3, 4):
        x = x.mean(-1)
    elif x.ndim > 3 and x.shape[1] in (1, 3):
        x = x.mean(1)
    if block.dtype == np.uint8:
        return x
    cells = x.flatten(1)
    level = cells.kthvalue(max(1, round(QUIET * cells.shape[1])), dim=1).values
    return x.maximum(level.view(-1, *[1] * (x.ndim - 1)))


def _pooled_forms(maps: Tensor) -> np.ndarray:
    """[form, row, cells]: as it is, and shifted by one step each way with the edge repeated."""
    up, down = maps[..., :1, :], maps[..., -1:, :]
    left, right = maps[..., :1], maps[..., -1:]
    forms = [
        maps,
        torch.cat([maps[..., 1:, :], down], dim=-2),
        torch.cat([up, maps[..., :-1, :]], dim=-2),
        torch.cat([maps[..., 1:], right], dim=-1),
        torch.cat([left, maps[..., :-1]], dim=-1),
    ]
    return np.stack([_pooled(form).flatten(1).numpy() for form in forms])


def _pooled(x: Tensor) -> Tensor:
    if x.ndim == 3:
        height, width = (min(g, n) for g, n in zip(GRID, x.shape[1:], strict=True))
        return F.adaptive_avg_pool2d(x.unsqueeze(1), (height, width))
    x = x.flatten(1, -3)
    grid = [min(g, n) for g, n in zip(CLIP_GRID, x.shape[1:], strict=True)]
    return F.adaptive_avg_pool3d(x.unsqueeze(1), (grid[0], grid[1], grid[2]))


def _of_steps(values: np.ndarray, mask: np.ndarray | None, rows: np.ndarray) -> np.ndarray:
    pooled = []
    for first in range(0, len(rows), _BLOCK):
        taken = rows[first : first + _BLOCK]
        x = values[taken].astype(np.float32)
        if x.ndim == 2:
            pooled.append(x)
            continue
        valid = np.ones(x.shape[:2], dtype=np.float32) if mask is None else mask[taken].astype(np.float32)
        cuts = np.linspace(0, x.shape[1], min(SEGMENTS, x.shape[1]) + 1).astype(int)
        parts = [(x[:, a:b] * valid[:, a:b, None]).sum(axis=1) for a, b in itertools.pairwise(cuts)]
        counts = [valid[:, a:b].sum(axis=1)[:, None] for a, b in itertools.pairwise(cuts)]
        pooled.append(np.concatenate([p / np.maximum(n, 1) for p, n in zip(parts, counts, strict=True)], axis=1))
    x = np.concatenate(pooled)
    x = (x - x.mean(axis=0)) / (x.std(axis=0) + 1e-6)
    if x.shape[1] > WIDTH:
        # Random directions keep distances to within a few percent (Johnson and Lindenstrauss).
        x = x @ np.random.default_rng(0).normal(size=(x.shape[1], WIDTH)).astype(np.float32)
    return _unit(x)[None]


def _blocks(values: np.ndarray, rows: np.ndarray) -> Iterator[np.ndarray]:
    for first in range(0, len(rows), _BLOCK):
        yield np.ascontiguousarray(values[rows[first : first + _BLOCK]])


def _unit(x: np.ndarray) -> np.ndarray:
    """Of length one; what is equal to the mean of all has no direction and stays 0, far from everything."""
    scaled: np.ndarray = (x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-6)).astype(np.float32)
    return scaled
