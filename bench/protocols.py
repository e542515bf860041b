"""Protocols: named pairs of a split, which is part of a trial, and a selection, which is read off stored logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ProtocolName = Literal["honest", "published", "carved_val_best", "carved_test_best"]
Split = Literal["honest", "published", "carved"]
"""What `bench.data.splits.split_positions` draws."""
Selection = Literal["val-best", "last", "test-best"]
SELECTIONS: tuple[Selection, ...] = ("val-best", "last", "test-best")


@dataclass(frozen=True)
class Protocol:
    """Which samples a trial trains and is tested on, and which of its epochs counts.

    Protocols that share a split share their trials.
    """

    name: ProtocolName
    version: int
    """Raised when its split or its selection comes to mean something else."""
    split: Split
    selection: Selection
    about: str
    """How the epoch is chosen and on what, for a caption."""
    unranked: str = ""
    """Why its rows are not ranked; empty where they are."""

    @property
    def title(self) -> str:
        """Name and version."""
        return f"{self.name}, version {self.version}"


PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol("honest", 1, "honest", "val-best", "best val epoch, test scored once after selection"),
        Protocol(
            "published",
            1,
            "published",
            "test-best",
            "the published lists, best epoch on test, as the papers did",
            "the epoch that counts was chosen on test",
        ),
        Protocol(
            "carved_val_best",
            1,
            "carved",
            "val-best",
            "the published lists with val carved out of train by sample, best val epoch",
            "the published lists may have one group in train and test",
        ),
        Protocol(
            "carved_test_best",
            1,
            "carved",
            "test-best",
            "the published lists with val carved out of train by sample, best epoch on test",
            "the epoch that counts was chosen on test",
        ),
    )
}


def of_split(split: str) -> Protocol:
    """The first protocol with a split: that of trials of which nothing but their split is known."""
    return next(protocol for protocol in PROTOCOLS.values() if protocol.split == split)
