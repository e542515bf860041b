"""Average the predictions of models that were trained on one modality each: fusion without joint training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bench import api
from bench.api import Derived, Kind


class Ensemble(Derived):
    """The mean of the unimodal rows' probabilities (or outputs, for regression) of the same seed."""

    paper = "none: the control that shows what joint training adds"
    reference = "none"

    @dataclass(frozen=True)
    class Settings(api.Settings):
        """None."""

    def parts(self, modalities: Sequence[str]) -> list[str]:
        """Every modality alone."""
        return [f"unimodal:modality={m}" for m in modalities]

    def combine(self, logits: Sequence[np.ndarray], kind: Kind) -> np.ndarray:
        """Logarithm of the mean probability [sample, outputs], so that a softmax gives the mean back; float32."""
        stacked = np.stack(logits).astype(np.float64)  # [M, sample, outputs]
        if kind == "regression":
            return stacked.mean(axis=0).astype(np.float32)
        log_probabilities = stacked - np.logaddexp.reduce(stacked, axis=-1, keepdims=True)
        mean = np.logaddexp.reduce(log_probabilities, axis=0) - np.log(len(stacked))
        return mean.astype(np.float32)
