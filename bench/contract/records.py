"""What is stored of an epoch, and what may be done between two epochs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bench.contract.sites import SiteRecord


@dataclass(frozen=True)
class Action:
    """What a strategy does between two epochs: everything that determines its effect, as plain values."""

    strategy: str
    kind: str
    values: Mapping[str, Any] = field(default_factory=dict)

    def key(self) -> str:
        """A canonical text: equal for equal actions."""
        return json.dumps([self.strategy, self.kind, dict(self.values)], sort_keys=True)


@dataclass(frozen=True)
class EpochRecord:
    """What is stored of an epoch. Validation and test scores are not in it: `decide` cannot see them."""

    epoch: int
    losses: Mapping[str, float]
    """Mean of every loss term over the epoch's samples."""
    lr: float
    sites: Mapping[str, SiteRecord] = field(default_factory=dict)
    diagnostics: Mapping[str, float] = field(default_factory=dict)
    """What strategies logged, e.g. `ogm/coefficient/audio`."""
    steps: int = 0
    train_seconds: float = 0.0
    actions: tuple[Action, ...] = ()
    """Taken after this epoch."""
    num_epochs: int = 0
    """Of the whole training; 0 where it is not known."""
