"""Telling samples of the known kind from others by how sure a model is: scores, and how well they separate."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.special import log_softmax, logsumexp
from scipy.stats import rankdata


def confidence(logits: Float[np.ndarray, "sample outputs"]) -> dict[str, Float[np.ndarray, " sample"]]:
    """Scores that are larger for what a classifier takes for known.

    The largest probability (Hendrycks and Gimpel, 2017), the largest logit (Hendrycks et al., 2022), the negative
    free energy at temperature 1 (Liu et al., 2020), and the negative entropy of the probabilities in nats.
    """
    logits = logits.astype(np.float64)
    log_probability = log_softmax(logits, axis=1)
    probability = np.exp(log_probability)
    return {
        "msp": probability.max(axis=1),
        "max_logit": logits.max(axis=1),
        "energy": logsumexp(logits, axis=1),
        "entropy": (probability * log_probability).sum(axis=1),
    }


@dataclass(frozen=True)
class Separation:
    """How well a score tells known samples (high) from others (low); all in [0, 1]."""

    auroc: float
    """The probability that a known sample scores higher than another one, ties counting half."""
    low: float
    high: float
    aupr_in: float
    """Average precision with the known samples as positives."""
    aupr_out: float
    """Average precision with the others as positives."""
    fpr95: float
    """Share of the others that pass the threshold which at least 95 % of the known samples pass."""


def separation(known: Float[np.ndarray, " known"], other: Float[np.ndarray, " other"]) -> Separation:
    """How well a score separates; the AUROC's 95 % interval is DeLong's. ValueError for fewer than two on a side."""
    if min(len(known), len(other)) < 2:
        raise ValueError(f"a separation needs two samples on both sides: {len(known)} and {len(other)}")
    auroc, error = _auroc(known, other)
    half = 1.959964 * error
    return Separation(
        auroc=auroc,
        low=max(0.0, auroc - half),
        high=min(1.0, auroc + half),
        aupr_in=_average_precision(known, other),
        aupr_out=_average_precision(-other, -known),
        fpr95=_false_positives(known, other),
    )


def _auroc(known: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """The AUROC and its standard error (DeLong, DeLong and Clarke-Pearson, 1988, by midranks)."""
    m, n = len(known), len(other)
    joint = rankdata(np.concatenate([known, other]))
    # How much of the other side each sample is above; ties count half.
    of_known = (joint[:m] - rankdata(known)) / n
    of_other = 1 - (joint[m:] - rankdata(other)) / m
    variance = float(of_known.var(ddof=1)) / m + float(of_other.var(ddof=1)) / n
    return float(of_known.mean()), math.sqrt(variance)


def _average_precision(positive: np.ndarray, negative: np.ndarray) -> float:
    """The sum of precision times gain in recall over all thresholds; equal scores share one."""
    scores = np.concatenate([positive, negative])
    hits = np.concatenate([np.ones(len(positive)), np.zeros(len(negative))])
    order = np.argsort(-scores, kind="stable")
    last_of_ties = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    found = np.cumsum(hits[order])[last_of_ties]
    precision = found / (last_of_ties + 1)
    return float((precision * np.diff(found, prepend=0.0)).sum() / len(positive))


def _false_positives(known: np.ndarray, other: np.ndarray) -> float:
    kept = math.ceil(0.95 * len(known) - 1e-9)
    threshold = np.sort(known)[len(known) - kept]
    return float((other >= threshold).mean())
