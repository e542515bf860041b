"""What a study found, as it is stored: every trial with its curve, the budget spent, the best settings."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bench import scoring
from bench.errors import RequestError
from bench.plan import TrialSpec
from bench.store import Store, read_json, write_json
from bench.study.halving import Halving
from bench.study.space import SearchSpace

Sampler = Literal["tpe", "random", "grid", "exhaustive"]


@dataclass(frozen=True)
class Search:
    """How a study looks for settings; with the trial and its space this names the study."""

    sampler: Sampler = "tpe"
    """`tpe`, `random`, `grid` (as fine as the budget allows) or `exhaustive` (ten values per setting)."""
    eta: int = 4
    """At a rung of successive halving the best 1/eta go on; 0 trains every trial to its end."""
    seed: int = 0
    """Of the sampler, and of the trainings: they run with seed 1,000,000 + this."""

    def halving(self, epochs: int) -> Halving:
        """The rungs for trainings of so many epochs."""
        return Halving.over(epochs, self.eta)


@dataclass(frozen=True)
class TrialOfStudy:
    """One trial of a study."""

    number: int
    settings: Mapping[str, float]
    method: str
    state: str
    """`finished`, `stopped` at a rung, `failed` or `running`."""
    value: float | None
    """The best val score it reached."""
    val: Sequence[float]
    """The val score after every epoch."""
    trained_epochs: int
    """Those it had to train; the others were stored already."""
    first_action: int | None
    """The epoch after which a strategy first acted."""
    cause: str = ""
    trial: str = ""
    """The id of its specification."""


@dataclass(frozen=True)
class Study:
    """Everything a study did. `spec` is the trial with the settings it began from."""

    name: str
    spec: TrialSpec
    space: SearchSpace
    search: Search
    metric: str
    trials: tuple[TrialOfStudy, ...] = ()
    wasted_epochs: int = 0
    """Trained by interrupted trials whose repetition found them stored."""
    seconds: float = 0.0
    importance: Mapping[str, float] | None = None
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def trained_epochs(self) -> int:
        """What the study cost."""
        return self.wasted_epochs + sum(trial.trained_epochs for trial in self.trials)

    @property
    def ended(self) -> tuple[TrialOfStudy, ...]:
        """The trials that are over, in order."""
        return tuple(trial for trial in self.trials if trial.state != "running")

    def best(self, trials: int | None = None) -> TrialOfStudy | None:
        """The first of the best finished trials among the first `trials`; None where none finished."""
        finished = [t for t in self.ended[:trials] if t.state == "finished" and t.value is not None]
        if not finished:
            return None
        return finished[scoring.best([float(t.value or 0.0) for t in finished], self.metric)]

    def to_json(self) -> dict[str, Any]:
        """Plain values: best settings and budget first, so that a person finds them."""
        best = self.best()
        return {
            "name": self.name,
            "method": self.spec.method,
            "data": self.spec.data,
            "fold": self.spec.fold,
            "metric": self.metric,
            "best": None if best is None else dataclasses.asdict(best),
            "spent": {
                "trials": len(self.ended),
                "trained_epochs": self.trained_epochs,
                "epochs": sum(len(t.val) for t in self.trials),
                "seconds": self.seconds,
            },
            "search": dataclasses.asdict(self.search),
            "space": self.space.to_json(),
            "importance": None if self.importance is None else dict(self.importance),
            "wasted_epochs": self.wasted_epochs,
            "versions": dict(self.versions),
            "spec": self.spec.to_json(),
            "trials": [dataclasses.asdict(t) for t in self.trials],
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Study:
        """The study that `to_json` wrote."""
        return cls(
            name=values["name"],
            spec=TrialSpec.from_json(values["spec"]),
            space=SearchSpace.from_json(values["space"]),
            search=Search(**values["search"]),
            metric=values["metric"],
            trials=tuple(TrialOfStudy(**t) for t in values["trials"]),
            wasted_epochs=values["wasted_epochs"],
            seconds=values["spent"]["seconds"],
            importance=values["importance"],
            versions=values["versions"],
        )


def study_name(spec: TrialSpec, space: SearchSpace, search: Search) -> str:
    """Readable words and a hash of search space, data, recipe, code and how it is searched."""
    what = {
        "trial": spec.identity(),
        "space": space.to_json(),
        "search": {**dataclasses.asdict(search), "rungs": search.halving(spec.recipe.epochs).rungs(spec.recipe.epochs)},
    }
    digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:12]
    words = re.sub(r"[^a-z0-9_]+", "-", f"{spec.method}-{spec.data}".lower())[:80].strip("-")
    return f"{words}-fold{spec.fold}-{search.sampler}-{digest}"


def folder_of(store: Store) -> Path:
    """Where studies are."""
    return store.folder / "studies"


def write_study(store: Store, study: Study) -> None:
    """Store a study atomically."""
    folder_of(store).mkdir(parents=True, exist_ok=True)
    write_json(folder_of(store) / f"{study.name}.json", study.to_json())


def read_study(store: Store, name: str) -> Study | None:
    """A stored study; None if there is none of this name."""
    file = folder_of(store) / f"{name}.json"
    return Study.from_json(read_json(file)) if file.is_file() else None


def studies(store: Store) -> list[Study]:
    """Every stored study, by name."""
    return [Study.from_json(read_json(file)) for file in sorted(folder_of(store).glob("*.json"))]


def require_tuned(study: Study | None, spec: TrialSpec, trials: int) -> TrialOfStudy:
    """The best of the first `trials` trials of a study. Raises RequestError where it has fewer, or none finished."""
    what = f"{spec.method} on {spec.data}" + (f" fold {spec.fold}" if spec.fold else "")
    done = 0 if study is None else len(study.ended)
    if study is None or done < trials:
        raise RequestError(
            f"{what}: tuned with {done} of {trials} trials; `bench tune '{spec.method}' --dataset '{spec.data}' "
            f"--trials {trials}` trains the rest, or allow fewer with --set tune.trials={max(done, 1)}"
        )
    best = study.best(trials)
    if best is None:
        raise RequestError(f"{what}: none of its {trials} tuning trials finished; see {study.name}.json for the causes")
    return best
