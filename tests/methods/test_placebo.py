"""The placebo: what it draws, that it repeats, and that without width it is its base under other seeds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import NoHostSync, TinyRun, strategy
from torch import Generator

from bench import names
from bench.errors import RequestError
from tests.world import make_world


class PlaceboRun(TinyRun):
    """A run whose placebo stream depends on the epoch alone."""

    def generator(self, stream: str) -> Generator:
        assert stream == "placebo"
        return Generator().manual_seed(7 + self.epoch)


def scales(run: PlaceboRun, width: float, steps: int = 1) -> list[dict[str, float]]:
    """What every branch's gradient was multiplied by, step by step."""
    s = strategy("placebo", run.task, width=width)
    s.epoch_start(run)
    found = []
    for _, batch in zip(range(steps), [next(run.batches())] * steps, strict=True):
        run.model.zero_grad()
        output = run.model(batch.inputs)
        run.model.fusion.terms(output, batch)["joint"].backward()
        before = {m: [p.grad.clone() for p in run.model.branch(m)] for m in run.task.modalities}
        s.grads(run, batch, output)
        ratios = {}
        for m, old in before.items():
            each = [p.grad for p in run.model.branch(m)]
            ratios[m] = float(each[0].norm() / old[0].norm())
            for b, a in zip(old, each, strict=True):
                torch.testing.assert_close(a, ratios[m] * b)
        found.append(ratios)
    return found


def test_every_branch_gets_one_draw_per_step() -> None:
    """All tensors of a branch share a factor; branches and steps have others."""
    drawn = scales(PlaceboRun(modalities=3), 0.5, steps=4)
    assert len({round(value, 4) for one in drawn for value in one.values()}) == 12


def test_draws_fill_the_width_evenly() -> None:
    """400 draws of width 0.2 lie in [0.8, 1.2], evenly."""
    drawn = np.array([v for one in scales(PlaceboRun(), 0.2, steps=200) for v in one.values()])
    assert drawn.min() >= 0.8 - 1e-4
    assert drawn.max() <= 1.2 + 1e-4
    assert np.quantile(drawn, [0.05, 0.5, 0.95]) == pytest.approx([0.82, 1.0, 1.18], abs=0.03)


def test_an_epoch_repeats_and_another_differs() -> None:
    """The draws are those of the epoch's own stream."""
    first, again, later = PlaceboRun(), PlaceboRun(), PlaceboRun()
    later.epoch = 1
    assert scales(first, 0.5) == scales(again, 0.5)
    assert scales(first, 0.5) != scales(later, 0.5)


def test_without_width_no_gradient_is_touched() -> None:
    """Not even by a factor of one."""
    assert scales(PlaceboRun(), 0.0) == [{"audio": 1.0, "visual": 1.0}]


def test_a_step_never_waits_for_the_device() -> None:
    """The draw and its logging stay where the model is."""
    run = PlaceboRun()
    batch = next(run.batches())
    output = run.model(batch.inputs)
    run.model.fusion.terms(output, batch)["joint"].backward()
    s = strategy("placebo", run.task)
    s.epoch_start(run)
    with NoHostSync():
        s.grads(run, batch, output)


def test_it_stands_on_concat_and_is_not_listed() -> None:
    """`--methods all` has no placebo; width is between 0 and 1."""
    assert names.resolve_method("placebo", ("audio", "visual")).canonical == "concat+placebo"
    assert "placebo" not in names.all_methods(("audio", "visual"))
    with pytest.raises(RequestError, match=r"0\.0 to 1\.0"):
        names.resolve_method("placebo:width=1.5", ("audio", "visual"))


def test_without_width_it_is_the_base_under_other_seeds(tmp_path: Path) -> None:
    """Seed 0 trains to the logits of concat with seed 10,000, bit for bit; with width it starts as concat's seed 0."""
    world = make_world(tmp_path, "concat,concat+placebo:width=0,concat+placebo", seeds="0,10000")
    assert all(outcome.status == "finished" for outcome in world.run())
    specs = {(spec.method, spec.seed): spec for spec in world.plan.trials}
    assert len({spec.id for spec in specs.values()}) == 6

    def logits(method: str, seed: int) -> np.ndarray:
        return world.store.arrays(specs[method, seed].id, "logits.npz")["test"]

    assert np.array_equal(logits("concat+placebo:width=0.0", 0), logits("concat", 10_000))
    assert not np.array_equal(logits("concat+placebo:width=0.0", 0), logits("concat", 0))
    assert not np.array_equal(logits("concat+placebo", 0), logits("concat", 0))
    assert not np.array_equal(logits("concat+placebo", 0), logits("concat+placebo", 10_000))
