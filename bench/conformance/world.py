"""A world in memory, small enough to train in a blink: three classes in 48 samples of up to four modalities."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from bench import names
from bench.api import DataSpec, EncoderSpec, EpochRecord, Fusion, Inputs, Kind, ModalitySpec, Strategy, TaskSpec
from bench.assembly import assemble
from bench.data.reader import Reader
from bench.recipes import Recipe
from bench.train import Training

SAMPLES, CLASSES = 48, 3
SPECS: Mapping[str, ModalitySpec] = {
    "text": ModalitySpec(EncoderSpec("sequence", dim=32, depth=1, heads=2), (6, 5), (6, 5), "float32", masked=True),
    "visual": ModalitySpec(EncoderSpec("vit", dim=32, depth=1, heads=2, patch=(4, 4)), (1, 8, 8), (1, 8, 8), "float32"),
    "sensor": ModalitySpec(EncoderSpec("vector", dim=32, depth=1), (7,), (7,), "float32"),
    "motion": ModalitySpec(EncoderSpec("sequence", dim=32, depth=1, heads=2), (4, 5), (4, 5), "float32"),
}
TWO, THREE = ("text", "visual"), ("text", "visual", "sensor")
TOKENS = ("text", "visual", "motion")
"""Several tokens each: over a single one attention weights are constant, and queries get no gradient."""
RECIPE = Recipe("conformance", lr=2e-2, epochs=2, batch_size=16, warmup_epochs=0.0, air_samples=SAMPLES)


@dataclass(frozen=True)
class World:
    """What a trial takes from a data set, for these modalities; `widths` are the encoders' (32 where not given)."""

    modalities: tuple[str, ...] = TWO
    kind: Kind = "classes"
    widths: Sequence[int] = ()
    double: bool = False

    @property
    def num_outputs(self) -> int:
        """Three classes, or the one number that is regressed."""
        return CLASSES if self.kind == "classes" else 1

    @property
    def data(self) -> DataSpec:
        """Modalities and outputs."""
        widths = self.widths or [32] * len(self.modalities)
        specs = {m: SPECS[m] for m in self.modalities}
        modalities = {
            m: dataclasses.replace(spec, encoder=dataclasses.replace(spec.encoder, dim=width))
            for (m, spec), width in zip(specs.items(), widths, strict=True)
        }
        return DataSpec(modalities, self.num_outputs, self.kind)

    def targets(self) -> Tensor:
        """Classes 0 1 2 0 1 2 ..., or the same as numbers [48]."""
        classes = torch.arange(SAMPLES) % CLASSES
        return classes if self.kind == "classes" else classes.float()

    def inputs(self) -> Inputs:
        """All samples: a class pattern in noise, and masks with every length from 1 to all steps."""
        values, masks = {}, {}
        for m, spec in self.data.modalities.items():
            noise = Generator().manual_seed(sum(map(ord, m)))
            patterns = torch.randn(CLASSES, *spec.shape, generator=noise)
            drawn = torch.randn(SAMPLES, *spec.shape, generator=noise) + patterns[torch.arange(SAMPLES) % CLASSES]
            values[m] = drawn.double() if self.double else drawn
            if spec.masked:
                lengths = 1 + torch.arange(SAMPLES) % spec.shape[0]
                masks[m] = torch.arange(spec.shape[0]) < lengths.unsqueeze(1)  # [48, steps]
        return Inputs(values, masks)


@dataclass(frozen=True)
class Subject:
    """What is trained: a fusion with its settings, and strategies by name."""

    fusion: type[Fusion]
    settings: Any
    strategies: Mapping[str, tuple[type[Strategy], Any]] = field(default_factory=dict)

    def task(self, world: World) -> TaskSpec:
        """What the fusion and the strategies may know of a world."""
        used = self.fusion.uses(self.settings, world.modalities)
        dims = {m: world.data.modalities[m].encoder.dim for m in used}
        return TaskSpec(used, dims, world.num_outputs, SAMPLES, world.kind)

    def training(self, world: World, seed: int = 0, watch: Mapping[str, Strategy] | None = None) -> Training:
        """A fresh model at its first step; `watch` are further strategies that only look on."""
        task, data = self.task(world), world.data
        specs = {m: data.modalities[m].encoder for m in task.modalities}
        model = assemble(self.fusion, self.settings, task, specs, data, seed)
        if world.double:
            model = model.double()
        strategies = {name: kind(settings, task) for name, (kind, settings) in self.strategies.items()}
        positions = np.arange(SAMPLES)
        return Training(
            model,
            {**strategies, **(watch or {})},
            task,
            RECIPE,
            seed,
            MemoryReader(world.inputs(), task.modalities),
            positions,
            world.targets(),
            torch.device("cpu"),
        )


class MemoryReader(Reader):
    """Gives samples by position from tensors instead of from a prepared data set."""

    def __init__(self, everything: Inputs, modalities: Sequence[str]) -> None:
        # Nothing of what a Reader opens exists here, so that its own constructor is not called.
        self.modalities, self.everything = tuple(modalities), everything

    def inputs(self, positions: np.ndarray | Tensor, generator: Generator | None = None) -> Inputs:
        """The samples at `positions`; there is nothing to augment."""
        del generator
        wanted = torch.as_tensor(positions, dtype=torch.int64)
        values = {m: self.everything.values[m][wanted] for m in self.modalities}
        masks = {m: self.everything.masks[m][wanted] for m in self.modalities if m in self.everything.masks}
        return Inputs(values, masks)


def train(training: Training, first: int = 0, epochs: int = RECIPE.epochs) -> list[EpochRecord]:
    """The records of epochs `first` to `epochs` - 1, with the actions that the strategies decide on in between."""
    history: list[EpochRecord] = []
    for epoch in range(first, epochs):
        history.append(training.train(epoch))
        if epoch + 1 == epochs:
            break
        decided = [strategy.decide(tuple(history)) for strategy in training.strategies.values()]
        for action in decided:
            if action is not None:
                training.apply(action)
    return history


def at_home(name: str, kind: type[Strategy], settings: Any, world: World) -> Subject:
    """A strategy on its home fusion."""
    home = names.resolve_method(kind.home, world.modalities)
    others = {part.name: (part.plugin, part.settings) for part in home.strategies}
    return Subject(home.base.plugin, home.base.settings, {**others, name: (kind, settings)})
