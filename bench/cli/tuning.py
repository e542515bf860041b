"""`bench tune`: settings of methods chosen on validation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from bench.cli.options import (
    TAINTED,
    Assign,
    ConfigFile,
    DataRoot,
    Device,
    ExecutorName,
    Format,
    Prepared,
    Results,
    with_place,
)
from bench.cli.place import planned, workplace
from bench.cli.screen import print_json, say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.data.selection import Selected
    from bench.plan import Plan
    from bench.store import Store
    from bench.study.record import Search, Study
    from bench.workplace import Workplace


def tune(
    method: Annotated[str, typer.Argument(help="A method, e.g. rollingq or concat+ogm:ge=false.")],
    dataset: Annotated[str, typer.Option("--dataset", help="A data set with settings.")],
    trials: Annotated[int | None, typer.Option("--trials", min=1, help="[default: tune.trials of bench.yaml]")] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", min=1, help="Stop after so many trained epochs.")] = None,
    sampler: Annotated[
        Literal["tpe", "random", "grid", "exhaustive"], typer.Option("--sampler", help="How settings are proposed.")
    ] = "tpe",
    executor: ExecutorName = None,
    device: Device = None,
    assign: Assign = None,
    results: Results = None,
    data_root: DataRoot = None,
    prepared: Prepared = None,
    config: ConfigFile = None,
    format: Format = "text",
) -> None:
    """Search a method's settings on validation; the same line again goes on."""
    from bench.errors import RequestError
    from bench.store import Store
    from bench.study.record import Search

    assign = with_place(assign, executor, device)
    place = workplace(config, results, data_root, prepared, {"methods": method, "datasets": dataset}, assign)
    selected, _, wanted = planned(place)
    store = Store(place.results)
    quiet = format == "json"
    count = trials or place.config.tune.trials
    studies = run_studies(place, wanted, selected, store, Search(sampler=sampler), count, epochs, quiet)
    if not studies:
        raise RequestError(f"{method}: it has no setting with a search range; `bench list` shows those that have")
    if quiet:
        print_json([study.to_json() for study in studies])
    if any(trial.cause.startswith("tainted") for study in studies for trial in study.trials):
        raise typer.Exit(TAINTED)


def run_studies(
    place: Workplace,
    wanted: Plan,
    selected: Sequence[Selected],
    store: Store,
    search: Search,
    trials: int,
    epochs: int | None = None,
    quiet: bool = False,
) -> list[Study]:
    """Every study that a plan needs, run until the budget is spent, drawn, and mirrored."""
    from bench.execute.choose import trial_executor
    from bench.study.figures import draw
    from bench.study.record import read_study
    from bench.study.tuned import tunings
    from bench.study.tuning import Budget
    from bench.tracking import mirror_study

    pending = tunings(wanted, selected, store, search)
    if not pending:
        return []
    found: list[Study] = []
    with trial_executor(place.config)[0] as executor:
        for tuning in pending:
            for trial in tuning.run(executor, Budget(trials, epochs)):
                value = "" if trial.value is None else f", val {trial.value:.4f}"
                say(
                    quiet,
                    f"[{trial.number}] {trial.method}: {trial.state}{value}, {trial.trained_epochs} epochs trained",
                )
            study = read_study(store, tuning.name)
            if study is None:
                continue
            found.append(study)
            best = study.best()
            shown = "none finished" if best is None else f"{best.method}, val {best.value:.4f}"
            say(quiet, f"{study.spec.method} on {study.spec.data}: best {shown}; {study.trained_epochs} epochs trained")
            say(quiet, *(f"figure: {path}" for path in draw(study, store)))
            if place.config.tracking.mlflow:
                mirror_study(store, study.to_json(), place.config.tracking.uri)
    return found
