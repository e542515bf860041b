"""Placebo: random gradient scales that cannot help, to count how often a board sees an improvement where none is."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from bench import api
from bench.api import Batch, Output, Run, Strategy, TaskSpec, setting

OTHER_SEEDS = 10_000
"""Beyond any seed that is asked for, so that no training of the base is met again."""


class Placebo(Strategy):
    """Every step multiplies the gradient of each branch by a number drawn evenly from [1 - width, 1 + width].

    It has the form of gradient modulation (OGM and its kin) without its idea: nothing it does depends on the data.
    With `width=0` no gradient is touched and the training has another seed (its own + 10,000): the base method
    again, under other luck. How often such rows beat their base is a board's empirical false-discovery rate.
    """

    paper = "none: a control"
    reference = "none"
    home = "concat"
    listed = False

    @dataclass(frozen=True)
    class Settings(api.Settings):
        """How far the scales reach."""

        width: float = setting(0.1, low=0.0, high=1.0, help="scales lie in [1 - width, 1 + width]; 0: other seeds")

    settings: Settings

    def __init__(self, settings: Settings, task: TaskSpec) -> None:
        super().__init__(settings, task)
        self.branches: dict[str, list[nn.Parameter]] = {}
        self.draws: Generator | None = None

    @classmethod
    def seed_offset(cls, settings: Settings) -> int:
        """A placebo without width is its base under other seeds."""
        return OTHER_SEEDS if settings.width == 0 else 0

    def epoch_start(self, run: Run) -> None:
        """Look up the branches and take this epoch's generator."""
        self.branches = {m: run.model.branch(m) for m in run.task.modalities}
        self.draws = run.generator("placebo")

    def grads(self, run: Run, batch: Batch, output: Output) -> None:
        """Scale every branch by its own draw; the numbers never leave the device."""
        if self.settings.width == 0:
            return
        for m, branch in self.branches.items():
            scale = self._draw(run)
            run.log(f"placebo/scale/{m}", scale)
            for p in branch:
                if p.grad is not None:
                    p.grad.mul_(scale)

    def _draw(self, run: Run) -> Tensor:
        device = next(run.model.parameters()).device
        even = 2 * torch.rand((), generator=self.draws, device=device) - 1  # in [-1, 1)
        return 1 + self.settings.width * even
