"""What the harness costs: an epoch of `Training` against a bare loop over the same model and batches.

Evaluation and the pass that measures attention are not counted, in either. What is compared is processor time,
because on a shared machine waiting is a matter of luck.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch.nn import functional as F

from bench import names
from bench.api import DataSpec, EncoderSpec, Inputs, ModalitySpec, Run, Strategy, TaskSpec
from bench.assembly import assemble
from bench.conformance.world import MemoryReader
from bench.recipes import RECIPES, Recipe
from bench.train import Training
from benchmarks.measured import Measured

LIMIT = 2.0


def run() -> Iterator[Measured]:
    """The overhead in percent for a small model at batch 64 and for a four-layer ViT-B/16 at batch 8."""
    sequence = EncoderSpec("sequence", dim=32, depth=2, heads=2)
    small = _data({"audio": (8, 16), "visual": (8, 16)}, sequence)
    vit = EncoderSpec("vit", dim=768, depth=4, heads=12, patch=(16, 16), edge="crop")
    large = _data({"audio": (1, 188, 257), "visual": (3, 224, 224)}, vit)
    yield _compare("small, batch 64", "concat", small, 1280, RECIPES["small"], 40)
    yield _compare("small with attention, batch 64", "vanilla_mt", small, 1280, RECIPES["small"], 40)
    eight = dataclasses.replace(RECIPES["small"], batch_size=8)
    yield _compare("ViT, batch 8", "vanilla_mt", large, 16, eight, 5)


def training_on(method: str, data: DataSpec, samples: int, recipe: Recipe) -> Training:
    """A method at its first step, on random samples in memory."""
    found = names.resolve_method(method, tuple(data.modalities))
    specs = {m: spec.encoder for m, spec in data.modalities.items()}
    task = TaskSpec(tuple(specs), {m: e.dim for m, e in specs.items()}, data.num_outputs, samples)
    model = assemble(found.base.plugin, found.base.settings, task, specs, data, seed=0)
    draw = torch.Generator().manual_seed(0)
    values = {m: torch.randn(samples, *spec.shape, generator=draw) for m, spec in data.modalities.items()}
    strategies = {part.name: part.plugin(part.settings, task) for part in found.strategies}
    reader, positions = MemoryReader(Inputs(values), task.modalities), np.arange(samples)
    targets = torch.arange(samples) % data.num_outputs
    return Training(model, strategies, task, recipe, 0, reader, positions, targets, torch.device("cpu"))


def _data(shapes: dict[str, tuple[int, ...]], encoder: EncoderSpec) -> DataSpec:
    return DataSpec({m: ModalitySpec(encoder, shape, shape, "float32") for m, shape in shapes.items()}, 6)


class Clock(Strategy):
    """Takes the processor time between the first and the last hook of an epoch."""

    def __init__(self) -> None:
        self.started = self.seconds = 0.0

    def epoch_start(self, run: Run) -> None:
        """Before the first batch."""
        self.started = time.process_time()

    def epoch_end(self, run: Run) -> None:
        """After the last batch, before anything is measured."""
        self.seconds = time.process_time() - self.started


def _compare(what: str, method: str, data: DataSpec, samples: int, recipe: Recipe, repetitions: int) -> Measured:
    with_harness, bare = (training_on(method, data, samples, recipe) for _ in range(2))
    with_harness.strategies["clock"] = clock = Clock()
    loop = _bare_loop(bare)
    pairs = []
    for repetition in range(repetitions + 1):
        with_harness.train(repetition % recipe.epochs)
        started = time.process_time()
        loop()
        pairs.append((clock.seconds, time.process_time() - started))
    ours, theirs = zip(*pairs[1:], strict=True)
    percent = 100 * (statistics.median(a / b for a, b in pairs[1:]) - 1)
    steps = with_harness.steps_per_epoch
    detail = {
        "harness ms a step": round(1000 * statistics.median(ours) / steps, 3),
        "bare ms a step": round(1000 * statistics.median(theirs) / steps, 3),
        "by the fastest epochs %": round(100 * (min(ours) / min(theirs) - 1), 2),
        "epochs": str(repetitions),
    }
    return Measured(f"training, {what}, processor time", percent, LIMIT, "at most", "%", detail)


def _bare_loop(training: Training) -> Callable[[], None]:
    """Ten lines that train the same model, probes included, on the same batches with the same optimizer."""
    model, reader, targets = training.model, training.reader, training.targets
    optimizer = training.new_optimizer(list(model.parameters()))

    def epoch() -> None:
        model.train()
        for index in torch.randperm(len(targets)).split(training.recipe.batch_size):
            output = model(reader.inputs(index))
            target = targets[index]
            loss = F.cross_entropy(output.logits, target)
            for logits in output.unimodal["probe"].values():
                loss = loss + F.cross_entropy(logits, target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return epoch
