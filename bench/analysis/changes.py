"""What can be done to a modality before a model sees it: noise that is the same for every model, or nothing at all."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from bench import streams
from bench.analysis.loaded import LoadedTrial, Material, Moments

Mode = Literal["add", "mix"]
Fill = Literal["zero", "mean", "noise"]
FILLS: tuple[Fill, ...] = ("zero", "mean", "noise")


class Draws:
    """Standard normal values that depend on (seed, sample id, modality) and on nothing else.

    Not on the model, the level, the order of the samples, the batch size or the device: a sample's values are one
    stream, of which a longer tensor takes more.
    """

    def __init__(self, ids: np.ndarray, seed: int) -> None:
        self.ids, self.seed = ids, seed
        self._last: dict[str, tuple[tuple[object, ...], Tensor]] = {}

    def __call__(self, modality: str, values: Tensor, positions: np.ndarray) -> Tensor:
        """Draws in the shape of `values` [batch, ...] for the samples at these positions."""
        shape = tuple(values.shape[1:])
        key = (shape, values.device, positions.tobytes())
        known = self._last.get(modality)
        if known is None or known[0] != key:
            each = [self._sample(modality, position, math.prod(shape)) for position in positions]
            drawn = torch.from_numpy(np.stack(each)).view(len(positions), *shape).to(values.device)
            known = self._last[modality] = (key, drawn)
        return known[1].to(values.dtype)

    def _sample(self, modality: str, position: int, count: int) -> np.ndarray:
        source = np.random.Philox(streams.derive("noise", self.seed, modality, str(self.ids[position])))
        return np.random.Generator(source).standard_normal(count, dtype=np.float32)


@dataclass(frozen=True)
class Noise:
    """x + level std e (`add`), or (1 - level) x + level (mean + std e) (`mix`: at level 1 nothing of x is left)."""

    draws: Draws
    mode: Mode
    level: float
    mean: float
    std: float

    @classmethod
    def of(cls, draws: Draws, mode: Mode, level: float, moments: Moments) -> Noise:
        """Noise with a modality's own mean and spread."""
        return cls(draws, mode, level, moments.mean, moments.std)

    def __call__(self, modality: str, values: Tensor, positions: np.ndarray) -> Tensor:
        """The values with noise."""
        drawn = self.draws(modality, values, positions)
        if self.mode == "add":
            return values + self.level * self.std * drawn
        return (1 - self.level) * values + self.level * (self.mean + self.std * drawn)


@dataclass(frozen=True)
class Zero:
    """Nothing but zeros."""

    def __call__(self, modality: str, values: Tensor, positions: np.ndarray) -> Tensor:
        """Zeros in the shape of `values`."""
        return torch.zeros_like(values)


@dataclass(frozen=True, eq=False)
class Average:
    """The same average sample for everyone."""

    average: Tensor  # [...]

    def __call__(self, modality: str, values: Tensor, positions: np.ndarray) -> Tensor:
        """The average in the shape of `values`."""
        return self.average.to(values.dtype).expand_as(values)


def filling(fill: Fill, modality: str, material: Material, draws: Draws) -> Noise | Zero | Average:
    """What stands in for the inputs of a modality that is missing."""
    if fill == "zero":
        return Zero()
    moments = material.moments(modality)
    return Average(moments.average) if fill == "mean" else Noise.of(draws, "mix", 1.0, moments)


def draws_of(trial: LoadedTrial, seed: int) -> Draws:
    """The draws of one noise seed for the samples of a trial."""
    return Draws(trial.ids, seed)
