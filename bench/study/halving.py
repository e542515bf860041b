"""Successive halving: at every rung only the best share of the trials that reached it is trained further."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

SPACING = 3
"""From one rung to the next so many times the epochs."""


@dataclass(frozen=True)
class Halving:
    """Rungs at `first`, 3 `first`, 9 `first`, ... epochs, at each of which the best 1/`eta` go on; 0 stops nothing.

    Many trials decide alike up to a rung: they are equal there, pass or stop together, and their common training is
    paid for once. So more may pass than a fraction of 1/3 would suggest; a quarter costs less (docs/tuning.md).

    The rule is that of Optuna's SuccessiveHalvingPruner. It is written out because that one keeps counting trials
    that were interrupted and are repeated, so that a resumed study would decide otherwise than an undisturbed one.
    """

    first: int
    eta: int

    @classmethod
    def over(cls, epochs: int, eta: int = 4) -> Halving:
        """Rungs for trainings of so many epochs, the first after a ninth of them."""
        return cls(max(1, epochs // 9), eta)

    def rungs(self, epochs: int) -> list[int]:
        """The rungs before the last epoch."""
        found, rung = [], self.first
        while self.eta > 1 and rung < epochs:
            found.append(rung)
            rung *= SPACING
        return found

    def promotes(self, score: float, others: Sequence[float], maximised: bool) -> bool:
        """Whether a score is in the best 1/eta of itself and the others', equal ones included; the best always is."""
        ranked = sorted([score, *others], reverse=maximised)
        threshold = ranked[max(1, len(ranked) // self.eta) - 1]
        return score >= threshold if maximised else score <= threshold
