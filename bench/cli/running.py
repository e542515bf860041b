"""Commands that run trials and report them."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from bench.cli.options import (
    SOME_FAILED,
    Assign,
    ConfigFile,
    DataRoot,
    Datasets,
    Device,
    Folds,
    Format,
    Methods,
    Prepared,
    Protocol,
    Results,
    Seeds,
)
from bench.cli.place import left_out, planned, workplace
from bench.cli.screen import print_json, say, table
from bench.cli.tuning import run_studies


def run(
    methods: Methods = None,
    datasets: Datasets = None,
    seeds: Seeds = None,
    folds: Folds = None,
    protocol: Protocol = None,
    device: Device = None,
    tuned: Annotated[bool, typer.Option("--tuned", help="Tune every row first, all with the same budget.")] = False,
    assign: Assign = None,
    results: Results = None,
    data_root: DataRoot = None,
    prepared: Prepared = None,
    config: ConfigFile = None,
    format: Format = "text",
) -> None:
    """Train what is missing, score it, and write the tables."""
    from bench.execute.local import LocalExecutor, devices
    from bench.progress import Display
    from bench.report.build import build
    from bench.store import Store
    from bench.study.record import Search
    from bench.study.tuned import with_tuned
    from bench.sweep import Sweep, truths
    from bench.tracking import mirror

    overrides = {"methods": methods, "datasets": datasets, "seeds": seeds, "folds": folds, "protocol": protocol}
    assign = [*(assign or ()), *([f"execute.device={device}"] if device else ())]
    place = workplace(config, results, data_root, prepared, overrides, assign)
    slots = devices(place.config.execute.device, place.config.execute.slots)
    selected, unusable, wanted = planned(place)
    store = Store(place.results)
    quiet = format == "json"
    if tuned:
        trials = place.config.tune.trials
        run_studies(place, wanted, selected, store, Search(), trials, quiet=quiet)
        wanted = with_tuned(wanted, store, trials)
    sweep = Sweep(wanted, selected, store, disk=place.config.execute.snapshot_gb * 1e9)
    request = sweep.record_request()
    missing = sweep.missing()
    say(quiet, *left_out(wanted, unusable))
    failed = 0
    if not missing:
        say(quiet, f"nothing to do: all {len(wanted.trials)} trials are there")
    else:
        say(quiet, f"{len(missing)} of {len(wanted.trials)} trials to train, {len(slots)} at a time")
        tracking = mirror(place.config.tracking, store, request)
        with LocalExecutor(slots[: len(missing)]) as executor, tracking, Display(missing, quiet=quiet) as display:
            for outcome in sweep.run(executor, display.observe):
                display.done(outcome)
                failed += outcome.status != "finished"
                tracking.submit(outcome.spec.id, finished=outcome.status == "finished")
        say(quiet, *(f"warning: {problem}; `bench sync` repairs it" for problem in tracking.problems))
    report = build(store, request, truths(selected))
    if quiet:
        print_json(report.to_json())
    else:
        print(f"\n{report.paper_markdown}\n\ntables: {store.folder / 'tables'}\npage: {store.folder / 'report.html'}")
    if failed:
        print(f"{failed} trials failed; `bench status` says why; the same command tries them again", file=sys.stderr)
        raise typer.Exit(SOME_FAILED)


def report(
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail on unequal budgets, missing mandatory rows, unfinished rows.")
    ] = False,
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
    from bench.store import Store
    from bench.sweep import request_of_stored, truths_of_stored

    place = workplace(config, results, data_root, prepared, {}, None)
    store = Store(place.results)
    request = store.latest_sweep() or request_of_stored(store)
    if not request["rows"]:
        raise RequestError(f"{store.folder}: nothing was run here yet; `bench run` makes results")
    built = build(store, request, truths_of_stored(place.prepared))
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
    found = listing.status(Store(place.results))
    if format == "json":
        print_json(found)
        return
    lines = [[r["dataset"], r["label"], str(r["finished"]), str(r["failed"]), str(r["missing"])] for r in found["rows"]]
    table(["data set", "row", "finished", "failed", "missing"], lines)
    print(f"{found['trials']} trials in {found['results']}")
    for trial, failure in found["failures"].items():
        print(f"\n{failure['label']} ({trial}): {failure['cause']}\n{failure['text'].rstrip()}")
