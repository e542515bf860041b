"""RollingQ on tokens of a ResNet-18, alone and beside OGM: four map positions, no class token, batch norms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from bench import names
from bench.api import DataSpec, EncoderSpec, Inputs, ModalitySpec, TaskSpec
from bench.assembly import assemble
from bench.conformance.world import MemoryReader, train
from bench.recipes import Recipe
from bench.train import Training

SAMPLES, CLASSES = 8, 3
SHAPES = {"audio": (5, 4), "visual": (1, 40, 40)}
ENCODERS = {"audio": EncoderSpec("sequence", dim=16, depth=1, heads=2), "visual": EncoderSpec("resnet", dim=16)}
DATA = DataSpec({m: ModalitySpec(ENCODERS[m], shape, shape, "float32") for m, shape in SHAPES.items()}, CLASSES)
RECIPE = Recipe("tiny", lr=1e-2, epochs=2, batch_size=4, warmup_epochs=0.0)


def training_of(text: str) -> Training:
    """A composition at its first step."""
    method = names.resolve_method(text, tuple(SHAPES))
    task = TaskSpec(tuple(SHAPES), dict.fromkeys(SHAPES, 16), CLASSES, SAMPLES)
    model = assemble(method.base.plugin, method.base.settings, task, ENCODERS, DATA, 0)
    generator = torch.Generator().manual_seed(0)
    values = {m: torch.randn(SAMPLES, *shape, generator=generator) for m, shape in SHAPES.items()}
    return Training(
        model,
        {part.name: part.plugin(part.settings, task) for part in method.strategies},
        task,
        RECIPE,
        0,
        MemoryReader(Inputs(values), tuple(SHAPES)),
        np.arange(SAMPLES),
        torch.arange(SAMPLES) % CLASSES,
        torch.device("cpu"),
    )


@pytest.mark.parametrize(
    "text", ["vanilla_mt+rollingq:beta=0+ogm", "mmml:readout=attn+rollingq:beta=0"], ids=["with OGM", "on MMML"]
)
def test_the_query_over_map_positions_is_rotated(text):
    training = training_of(text)
    first, second = train(training, epochs=2)
    ((name, site),) = training.model.fusion.sites().items()
    assert (first.sites[name].num_rotations, second.sites[name].num_rotations) == (0, 1)
    assert not torch.equal(site.rotation, torch.eye(16))
    assert first.sites[name].base_rate == pytest.approx({"audio": 6 / 11, "visual": 4 / 11})  # 11 with its own token
    assert all(math.isfinite(value) for record in (first, second) for value in record.losses.values())
