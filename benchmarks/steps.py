"""A training and a validation step of the four-layer ViT-B/16 audio-visual model against the plain way."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from typing import Literal

import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.cost import table4_data
from bench.recipes import RECIPES
from bench.train import Training
from benchmarks.measured import Measured, interleaved, ratio, spread
from benchmarks.overhead import training_on
from benchmarks.plain import PlainModel, train_step, validate

BATCH, REPETITIONS = 8, 3
SIDE = 2048
"""Of the square matrices whose product is taken for the peak."""


def run() -> Iterator[Measured]:
    """Equal results, then the ratios in fp32 and bf16, and how much of the bf16 peak a step reaches."""
    ours, bf16 = _training("fp32"), _training("bf16")
    plain = PlainModel(ours.model)
    optimizer = torch.optim.SGD(plain.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)
    (batch,) = ours._batches()
    values, target = batch.inputs.values, batch.target

    def harness(training: Training) -> None:
        training.optimizer.param_groups[0]["lr"] = 1e-3
        training.model.train()
        training._train_step(batch, training.model)

    def checked(training: Training) -> None:
        found = training.evaluate(training.positions.numpy())
        (found.logits.argmax(axis=1) == target.numpy()).sum()

    for _ in range(2):
        harness(ours)
        train_step(plain, optimizer, values, target)
    yield Measured("largest difference of weights after two steps", _apart(ours, plain), 1e-5, "at most", "")
    seconds = interleaved(
        {
            "plain": lambda: train_step(plain, optimizer, values, target),
            "fp32": lambda: harness(ours),
            "bf16": lambda: harness(bf16),
        },
        REPETITIONS,
    )
    for precision, goal in (("fp32", 1.4), ("bf16", 2.2)):
        faster = ratio(seconds, "plain", precision)
        yield Measured(f"train step, {precision}", faster, goal, "at least", "x faster", spread(seconds))
    with FlopCounterMode(display=False) as counter:
        harness(ours)
    rate, peak = counter.get_total_flops() / min(seconds["bf16"]), _peak()
    detail = {"GFLOP a step": round(counter.get_total_flops() / 1e9, 1), "peak GFLOP/s": round(peak / 1e9, 1)}
    yield Measured("share of the bf16 matmul peak", 100 * rate / peak, 60, "at least", "%", detail)
    seconds = interleaved(
        {
            "plain": lambda: validate(plain, values, target),
            "fp32": lambda: checked(ours),
            "bf16": lambda: checked(bf16),
        },
        REPETITIONS,
    )
    for precision, goal in (("fp32", 1.5), ("bf16", 2.5)):
        faster = ratio(seconds, "plain", precision)
        yield Measured(f"validation, {precision}", faster, goal, "at least", "x faster", spread(seconds))


def _training(precision: Literal["fp32", "bf16"]) -> Training:
    recipe = dataclasses.replace(RECIPES["published"], batch_size=BATCH, precision=precision)
    return training_on("vanilla_mt:dropout=0", table4_data(), BATCH, recipe)


def _apart(ours: Training, plain: PlainModel) -> float:
    """The largest absolute difference between weights that mean the same."""
    pairs = zip(ours.model.parameters(), plain.original.parameters(), strict=True)
    return max(float((a - b).detach().abs().max()) for a, b in pairs)


def _peak() -> float:
    """FLOP per second of a square bf16 matrix product."""
    a, b = (torch.randn(SIDE, SIDE).bfloat16() for _ in range(2))
    taken = []
    for _ in range(8):
        started = time.process_time()
        a @ b
        taken.append(time.process_time() - started)
    return 2 * SIDE**3 / min(taken)
