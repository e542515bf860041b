"""A training small enough to look into: 53 samples of two sequences in memory, three classes, encoders of width 16."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench import names
from bench.api import DataSpec, EncoderSpec, Inputs, ModalitySpec, Strategy, TaskSpec
from bench.assembly import assemble
from bench.conformance.world import MemoryReader
from bench.data.reader import Reader
from bench.recipes import Recipe
from bench.train import Training

SAMPLES, CLASSES = 53, 3
SHAPES = {"audio": (6, 5), "visual": (4, 7)}
RECIPE = Recipe("tiny", lr=2e-2, epochs=3, batch_size=20, warmup_epochs=0.5)
"""Batches of 20, 20 and 13: an epoch's mean loss is not the mean of its batches'."""
ENCODER = EncoderSpec("sequence", dim=16, depth=1, heads=2)
DATA = DataSpec({m: ModalitySpec(ENCODER, shape, shape, "float32") for m, shape in SHAPES.items()}, CLASSES)


def targets() -> Tensor:
    """Classes 0 1 2 0 1 2 ... [53]."""
    return torch.arange(SAMPLES) % CLASSES


def inputs() -> Inputs:
    """A class pattern in noise, clearer in audio."""
    values = {}
    for seed, (m, shape) in enumerate(SHAPES.items()):
        noise = torch.Generator().manual_seed(seed)
        patterns = torch.randn(CLASSES, *shape, generator=noise)
        values[m] = torch.randn(SAMPLES, *shape, generator=noise) + (1 - 0.5 * seed) * patterns[targets()]
    return Inputs(values)


def training_of(
    method: str,
    recipe: Recipe = RECIPE,
    seed: int = 0,
    watch: Mapping[str, Strategy] | None = None,
    reader: Reader | None = None,
    probes: bool = True,
    **changes: Any,
) -> Training:
    """A method at its first step; `watch` are further strategies, `changes` replace fields of the recipe."""
    found = names.resolve_method(method, tuple(SHAPES))
    used = found.base.plugin.uses(found.base.settings, tuple(SHAPES))
    task = TaskSpec(used, dict.fromkeys(used, ENCODER.dim), CLASSES, SAMPLES)
    model = assemble(found.base.plugin, found.base.settings, task, dict.fromkeys(used, ENCODER), DATA, seed)
    if not probes:
        model.probes.clear()
    strategies = {part.name: part.plugin(part.settings, task) for part in found.strategies}
    return Training(
        model,
        {**strategies, **(watch or {})},
        task,
        dataclasses.replace(recipe, **changes),
        seed,
        MemoryReader(inputs(), used) if reader is None else reader,
        np.arange(SAMPLES),
        targets(),
        torch.device("cpu"),
    )


def losses_of(training: Training, epochs: Sequence[int] = (0, 1, 2)) -> list[dict[str, float]]:
    """The losses of epochs trained one after another, with the actions that strategies decide on in between."""
    history = []
    for epoch in epochs:
        history.append(training.train(epoch))
        for strategy in training.strategies.values():
            action = strategy.decide(tuple(history)) if epoch != epochs[-1] else None
            if action is not None:
                training.apply(action)
    return [dict(record.losses) for record in history]
