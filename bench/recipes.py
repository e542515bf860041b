"""Recipes: the training settings that all rows of a cell share."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Recipe:
    """How every row of a cell is trained. The fields in `NOT_IN_ID` cannot change what a trial means."""

    name: str
    lr: float
    epochs: int
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    momentum: float = 0.9
    weight_decay: float = 1e-4
    batch_size: int = 64
    warmup_epochs: float = 2.5
    clip_norm: float | None = None
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    air_samples: int = 2048
    """Train samples on which attention is measured after each epoch."""
    eval_batch_size: int = 256
    threads: int = 1
    compile: bool = False

    def identity(self) -> dict[str, Any]:
        """The fields that belong to a trial's id."""
        return {k: v for k, v in dataclasses.asdict(self).items() if k not in NOT_IN_ID}


NOT_IN_ID = frozenset({"eval_batch_size", "threads", "compile"})
"""Recorded with a trial and part of its trajectory's key, but not of its id."""

RECIPES = {
    # The setting of the RollingQ paper and its public code, for encoders that start from pretrained weights.
    "published": Recipe("published", lr=1e-3, epochs=30),
    # At 1e-3 small models trained from scratch stay at chance.
    "small": Recipe("small", lr=2e-2, epochs=10),
}
