"""Codes by which a planted modality tells its class, and what an ideal observer can make of them.

A modality shows a symbol s by the mean z of its tokens: under the linear code z ~ N(a p_s, v I); under the product
code z = (z1, z2) with z1 ~ N(a u, v I), z2 ~ N(a u p_s, v I) for an unknown vector u of fair signs and a sign
prototype p_s, so that neither half alone says anything. a is strength x quality, v the noise variance of the mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

Code = Literal["linear", "product"]


def symbol_evidence(
    code: Code, mean: np.ndarray, prototypes: np.ndarray, amplitude: np.ndarray, variance: float
) -> np.ndarray:
    """Log-likelihood [samples, symbols] of every symbol, less that of no symbol at all (amplitude 0).

    `mean` [samples, width] is the mean token, `prototypes` [symbols, width] ([symbols, width / 2] for the product
    code), `amplitude` [samples].
    """
    a = amplitude[:, None]
    if code == "linear":
        energy = (prototypes**2).sum(axis=1)
        linear: np.ndarray = (a * (mean @ prototypes.T) - a**2 * energy / 2) / variance
        return linear
    half = mean.shape[1] // 2
    # Averaging exp(a u (z1 + p z2) / v) over u = +1 and -1 gives a cosh per coordinate.
    inner = a[..., None] * (mean[:, None, :half] + prototypes * mean[:, None, half:]) / variance
    magnitude = np.abs(inner)
    log_cosh = magnitude + np.log1p(np.exp(-2 * magnitude)) - math.log(2)
    product: np.ndarray = log_cosh.sum(axis=2) - half * a**2 / variance
    return product


@dataclass(frozen=True)
class Interplay:
    """How the class is spread over modalities.

    With probability `unique` one modality, drawn evenly, shows it and the others show nothing; with `synergy` the
    first shows class + r and the second r for a random r (modulo the number of classes), the others nothing;
    otherwise all show it.
    """

    unique: float = 0.0
    synergy: float = 0.0

    def class_evidence(self, evidence: Mapping[str, np.ndarray]) -> np.ndarray:
        """Log-likelihood [samples, classes] of every class, from the symbol evidence of each modality."""
        parts = []
        each = list(evidence.values())
        if (redundant := 1 - self.unique - self.synergy) > 0:
            parts.append(math.log(redundant) + sum(each[1:], start=each[0]))
        if self.unique > 0:
            parts += [math.log(self.unique / len(each)) + one for one in each]
        if self.synergy > 0:
            classes = each[0].shape[1]
            shifted = [np.roll(each[0], -r, axis=1) + each[1][:, [r]] for r in range(classes)]
            parts += [math.log(self.synergy / classes) + one for one in shifted]
        combined: np.ndarray = np.logaddexp.reduce(parts, axis=0)
        return combined


def accuracy_bounds(
    evidence: Callable[[Mapping[str, np.ndarray]], np.ndarray],
    quality: Mapping[str, np.ndarray],
    draws: Mapping[str, np.ndarray],
    target: np.ndarray,
) -> tuple[float, float]:
    """Accuracy of two observers between whom the Bayes-optimal accuracy lies, but for sampling error.

    `evidence(quality)` is the class evidence [samples, classes] under the given quality of each modality. The upper
    observer knows every sample's true `quality` (more than a model can know). The lower one averages the likelihood
    over the `draws` [count] from the prior of qualities: no classifier can beat the Bayes-optimal one, this one
    included, and it approaches it as the draws grow.
    """
    upper = float((evidence(quality).argmax(axis=1) == target).mean())
    total: np.ndarray | None = None
    for k in range(len(next(iter(draws.values())))):
        one = evidence({m: np.full(len(target), drawn[k]) for m, drawn in draws.items()})
        total = one if total is None else np.logaddexp(total, one)
    assert total is not None
    return float((total.argmax(axis=1) == target).mean()), upper
