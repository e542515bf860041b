"""Trained epochs that 50 given (rho, beta) pairs of RollingQ cost: alone, sharing what they train, and with halving.

Counted, not timed: every epoch that any process trains, those trained again on the way to a fork included. The task
is `planted:preset=collapse`, made small; the pairs are drawn once, rho from its ten levels, beta evenly. The first
run of `shared` has to give every pair the logits it has alone, bit for bit.

    python -m benchmarks.tuning [--pairs 50] [--epochs 30] [--json]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bench.config import load
from bench.data.selection import Selected, select
from bench.errors import TrialError
from bench.execute.events import EpochDone, Event, Failed, Finished, Jobs, Started
from bench.plan import TrialSpec, make_plan
from bench.store import Store
from bench.study.record import Search, Study, read_study
from bench.study.space import Point, SearchSpace
from bench.study.tuning import Budget, Tuning
from bench.train import Training
from bench.trajectory import Visit, read_outputs
from bench.trial import run

DATASET = "planted:preset=collapse:samples=1200:classes=8:tokens=4"
SMALL = ("encoder.dim=16", "encoder.depth=1", "encoder.heads=2", "recipe.batch_size=256", "recipe.lr=0.03")
TARGETS = {"shared": 30.0, "halving": 12.0}
"""Trainings' worth of epochs for 50 pairs of 30 epochs (spec/performance.md)."""


@dataclass
class Counting:
    """An executor in this process that counts epochs and keeps a digest of every trial's logits."""

    trained: int = 0
    digests: dict[str, list[str]] = field(default_factory=dict)

    def run(self, jobs: Jobs) -> Iterator[Event]:
        """The events of these jobs."""
        while (taken := jobs.take()) is not None:
            trial, make_job = taken
            job, visits = make_job("cpu"), list[Visit]()
            yield Started(trial, "cpu")
            try:
                with self._counted():
                    info = run(job, visits.append)
            except TrialError as error:
                yield Failed(trial, error.cause, error.text)
                continue
            outputs = (read_outputs(job.trajectories, v.segment, v.record.epoch) for v in visits)
            self.digests[trial] = [hashlib.sha256(o["val/logits"].tobytes()).hexdigest() for o in outputs]
            yield from (EpochDone(trial, visit) for visit in visits)
            yield Finished(trial, info)

    def _counted(self) -> Any:
        from unittest.mock import patch

        train = Training.train

        def counted(training: Training, epoch: int) -> Any:
            self.trained += 1
            return train(training, epoch)

        return patch.object(Training, "train", counted)


def study(
    folder: Path, spec: TrialSpec, selected: Selected, space: SearchSpace, points: list[Point], eta: int
) -> tuple[Study, Counting]:
    """These points as one study in a results folder of its own."""
    store, counting = Store(folder), Counting()
    tuning = Tuning(spec, selected, store, space, Search(eta=eta), points)
    for _ in tuning.run(counting, Budget(len(points))):
        pass
    found = read_study(store, tuning.name)
    assert found is not None
    return found, counting


def measure(pairs: int = 50, epochs: int = 30) -> dict[str, Any]:
    """Epochs of the three ways, whether scores and winner agree, and the |AIR| curve of the untouched training."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        overrides = {"methods": "rollingq", "datasets": DATASET, "seeds": "1"}
        config, sources = load(None, overrides, (*SMALL, f"recipe.epochs={epochs}"))
        (selected,), _ = select(config.datasets, root, root / "prepared", config.settings)
        spec = make_plan(config, sources, [selected]).trials[0]
        space = SearchSpace.of(spec)
        points: list[Point] = list(space.draws(pairs, seed=0))
        alone = [study(root / f"alone-{i}", spec, selected, space, [p], 0) for i, p in enumerate(points)]
        shared, counted = study(root / "shared", spec, selected, space, points, 0)
        halved, counted_halved = study(root / "halved", spec, selected, space, points, Search().eta)
        trunk = _trunk(root / "shared")
    own = {trial: digests for _, c in alone for trial, digests in c.digests.items()}
    best, best_halved = shared.best(), halved.best()
    return {
        "pairs": pairs,
        "epochs": epochs,
        "independent": sum(c.trained for _, c in alone),
        "shared": counted.trained,
        "halving": counted_halved.trained,
        "logits_equal": counted.digests == own,
        "scores_equal": [t.val for t in shared.trials] == [s.trials[0].val for s, _ in alone],
        "winner": None if best is None else {"settings": dict(best.settings), "val": best.value},
        "winner_with_halving": None
        if best_halved is None
        else {"settings": dict(best_halved.settings), "val": best_halved.value},
        "first_actions": sorted({-1 if t.first_action is None else t.first_action for t in shared.trials}),
        "air": trunk,
    }


def _trunk(results: Path) -> list[float]:
    """|AIR| after every epoch of the longest stored training before any action."""
    curves = []
    for lineage in (results / "trajectories").glob("*/lineage.json"):
        if json.loads(lineage.read_text())["forks"]:
            continue
        records = [json.loads(f.read_text())["content"]["record"] for f in sorted(lineage.parent.glob("epoch-*.json"))]
        cosines = [next(iter(r["sites"].values()))["cosines"].values() for r in records]
        curves.append([round(max(c) - min(c), 3) for c in cosines])
    return max(curves, key=len)


def main() -> None:
    """Print trainings' worth of epochs beside the targets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=50)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    found = measure(given.pairs, given.epochs)
    if given.json:
        print(json.dumps(found, indent=1))
        return
    print(f"{given.pairs} pairs of {given.epochs} epochs; |AIR| without a rotation: {found['air']}")
    for way in ("independent", "shared", "halving"):
        trainings = found[way] / given.epochs
        target = TARGETS.get(way)
        verdict = "" if target is None else f" (target {target:g}: {'met' if trainings <= target else 'not met'})"
        print(f"{way:12} {found[way]:5} epochs = {trainings:5.1f} trainings{verdict}")
    print(f"logits of all pairs equal bit for bit: {found['logits_equal']}; scores: {found['scores_equal']}")
    print(f"winner: {found['winner']}; with halving: {found['winner_with_halving']}")


if __name__ == "__main__":
    main()
