"""Trainings that several files ask."""

from __future__ import annotations

import pytest

from tests.analysis.asking import trained
from tests.world import DATASET, World

ROTATED = "vanilla_mt+rollingq:beta=0"


@pytest.fixture(scope="session")
def collapsed(tmp_path_factory: pytest.TempPathFactory) -> World:
    """With one attention, the same rotated, two attentions, and none."""
    methods = f"vanilla_mt,{ROTATED},vanilla_mt:layers=2,concat"
    return trained(tmp_path_factory.mktemp("collapsed"), methods, "recipe.epochs=2", datasets=DATASET)
