"""Commands that run trials and report them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bench.cli.options import (
    SOME_FAILED,
    TAINTED,
    AllowMixed,
    Assign,
    ConfigFile,
    DataRoot,
    Datasets,
    Device,
    ExecutorName,
    Folds,
    Format,
    Methods,
    Prepared,
    Protocol,
    Results,
    Seeds,
    with_place,
)
from bench.cli.place import left_out, planned, workplace
from bench.cli.screen import print_json, say, table
from bench.cli.tuning import run_studies

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bench.sweep import Sweep
    from bench.workplace import Workplace


def run(
    methods: Methods = None,
    datasets: Datasets = None,
    seeds: Seeds = None,
    folds: Folds = None,
    protocol: Protocol = None,
    executor: ExecutorName = None,
    device: Device = None,
    tuned: Annotated[bool, typer.Option("--tuned", help="Tune every row first, all with the same budget.")] = False,
    allow_mixed: AllowMixed = False,
    assign: Assign = None,
    results: Results = None,
    data_root: DataRoot = None,
    prepared: Prepared = None,
    config: ConfigFile = None,
    format: Format = "text",
) -> None:
    """Train what is missing, score it, and write the tables."""
    from bench.execute.choose import check
    from bench.report.build import build
    from bench.requested import truths
    from bench.store import Store
    from bench.study.record import Search
    from bench.study.tuned import with_tuned
    from bench.sweep import Sweep

    overrides = {"methods": methods, "datasets": datasets, "seeds": seeds, "folds": folds, "protocol": protocol}
    assign = with_place(assign, executor, device)
    place = workplace(config, results, data_root, prepared, overrides, assign)
    check(place.config)
    selected, unusable, wanted = planned(place)
    store = Store(place.results)
    quiet = format == "json"
    failed: list[str] = []
    if tuned:
        trials = place.config.tune.trials
        if place.config.execute.executor != "slurm":  # its jobs train what was tuned before
            studies = run_studies(place, wanted, selected, store, Search(), trials, quiet=quiet)
            failed += ["tainted" for study in studies for trial in study.trials if trial.cause.startswith("tainted")]
        wanted = with_tuned(wanted, store, trials)
    sweep = Sweep(wanted, selected, store, disk=place.config.execute.snapshot_gb * 1e9)
    request = sweep.record_request()
    say(quiet, *left_out(wanted, unusable))
    words = _again(place, overrides, assign, tuned, allow_mixed)
    failed += train_missing(place, sweep, request, quiet, words)
    report = build(store, request, truths(selected), allow_mixed)
    if quiet:
        print_json(report.to_json())
    else:
        print(f"\n{report.paper_markdown}\n\ntables: {store.folder / 'tables'}\npage: {store.folder / 'report.html'}")
    leave_if_failed(failed)


def train_missing(
    place: Workplace, sweep: Sweep, request: Mapping[str, Any], quiet: bool, words: Sequence[str] = ()
) -> list[str]:
    """Train what a sweep misses, with progress and the MLflow mirror; returns the cause of every failure.

    `words` are the `bench run` that makes the same sweep in a job; without them it cannot run by Slurm.
    """
    from bench.execute.choose import sweep_executor
    from bench.progress import Display
    from bench.tracking import mirror

    missing = sweep.missing()
    if not missing:
        say(quiet, f"nothing to do: all {len(sweep.plan.trials)} trials are there")
        return []
    chosen, how = sweep_executor(place.config, words, sweep.store.folder / "slurm", len(missing))
    say(quiet, f"{len(missing)} of {len(sweep.plan.trials)} trials to train, {how}")
    failed: list[str] = []
    tracking = mirror(place.config.tracking, sweep.store, request)
    with chosen as executor, tracking, Display(missing, quiet=quiet) as display:
        for outcome in sweep.run(executor, display.observe):
            display.done(outcome)
            failed += [outcome.status] if outcome.status != "finished" else []
            tracking.submit(outcome.spec.id, finished=outcome.status == "finished")
    say(quiet, *(f"warning: {problem}; `bench sync` repairs it" for problem in tracking.problems))
    return failed


def _again(
    place: Workplace, overrides: Mapping[str, str | None], assign: Sequence[str], tuned: bool, allow_mixed: bool
) -> list[str]:
    """The words of the same `bench run` in another process that sees the same folders."""
    words = [word for key, value in overrides.items() if value is not None for word in (f"--{key}", value)]
    words += [word for each in assign for word in ("--set", each)]
    folders = {"results": place.results, "data-root": place.data_root, "prepared": place.prepared}
    if place.file is not None:
        folders["config"] = place.file
    words += [word for key, folder in folders.items() for word in (f"--{key}", str(folder.absolute()))]
    return ["run", *words, *(["--tuned"] if tuned else []), *(["--allow-mixed"] if allow_mixed else [])]


def leave_if_failed(causes: Sequence[str]) -> None:
    """End with the exit code of a run in which trials failed of these causes."""
    if causes:
        tainted = causes.count("tainted")
        how = f", {tainted} of them tainted" if tainted else ""
        print(
            f"{len(causes)} trials failed{how}; `bench status` says why; the same command tries them again",
            file=sys.stderr,
        )
        raise typer.Exit(TAINTED if tainted else SOME_FAILED)


def report(
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail on unequal budgets, missing mandatory rows, unfinished rows.")
    ] = False,
    allow_mixed: AllowMixed = False,
    results: Results = None,
    data_root: DataRoot = None,
    prepared: Prepared = None,
    config: ConfigFile = None,
    format: Format = "text",
) -> None:
    """Write the tables of the latest run again, from what is stored. Trains nothing."""
    from bench.errors import RequestError
    from bench.report.build import build
    from bench.report.build import strict as problems_of
    from bench.report.ladder_table import build_ladder
    from bench.requested import request_of_stored, truths_of_stored
    from bench.store import Store

    place = workplace(config, results, data_root, prepared, {}, None)
    store = Store(place.results)
    request = store.latest_sweep() or request_of_stored(store)
    if not request["rows"]:
        raise RequestError(f"{store.folder}: nothing was run here yet; `bench run` makes results")
    if "ladder" in request:
        if strict:
            raise RequestError("--strict: the latest run was `bench ladder`, which has no boards to hold to anything")
        climbed = build_ladder(store, request, truths_of_stored(place.prepared), allow_mixed)
        if format == "json":
            print_json(climbed.to_json())
        else:
            print("\n".join([climbed.markdown, *(str(path) for path in climbed.paths)]))
        return
    built = build(store, request, truths_of_stored(place.prepared), allow_mixed)
    if format == "json":
        print_json(built.to_json())
    else:
        print(f"{built.markdown}\n\ntables: {store.folder / 'tables'}\npage: {store.folder / 'report.html'}")
    problems = problems_of(built) if strict else []
    if problems:
        print("\n".join(f"not fair: {problem}" for problem in problems), file=sys.stderr)
        raise typer.Exit(SOME_FAILED)


def prune(results: Results = None, config: ConfigFile = None, assign: Assign = None) -> None:
    """Remove weights and states that only save time, down to execute.snapshot_gb; results stay."""
    from bench.retention import prune as prune_trajectories
    from bench.store import Store

    place = workplace(config, results, None, None, {}, assign)
    done = prune_trajectories(Store(place.results), None, int(place.config.execute.snapshot_gb * 1e9))
    print(f"{done.freed / 1e6:.1f} MB freed, {done.kept / 1e6:.1f} MB kept")


def status(results: Results = None, config: ConfigFile = None, format: Format = "text") -> None:
    """How far the latest run is, and why trials failed."""
    from bench import listing
    from bench.store import Store

    place = workplace(config, results, None, None, {}, None)
    found = listing.status(Store(place.results, writable=False))
    if format == "json":
        print_json(found)
        return
    lines = [[r["dataset"], r["label"], str(r["finished"]), str(r["failed"]), str(r["missing"])] for r in found["rows"]]
    table(["data set", "row", "finished", "failed", "missing"], lines)
    print(f"{found['trials']} trials in {found['results']}")
    for trial, failure in found["failures"].items():
        print(f"\n{failure['label']} ({trial}): {failure['cause']}\n{failure['text'].rstrip()}")
