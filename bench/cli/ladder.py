"""`bench ladder`: where the points of published numbers went."""

from __future__ import annotations

from typing import Annotated

import typer

from bench.cli.options import (
    AllowMixed,
    Assign,
    ConfigFile,
    DataRoot,
    Device,
    Folds,
    Format,
    Methods,
    Prepared,
    Results,
    Seeds,
    with_place,
)
from bench.cli.place import left_out, prepared_sets, workplace
from bench.cli.running import leave_if_failed, train_missing
from bench.cli.screen import print_json, say
from bench.cli.tuning import run_studies


def ladder(
    dataset: Annotated[str, typer.Option("--dataset", help="A data set with settings.")],
    methods: Methods = None,
    seeds: Seeds = None,
    folds: Folds = "all",
    trials: Annotated[
        int | None,
        typer.Option("--trials", min=0, help="Of tuning, per row and fold; 0: none. [default: tune.trials]"),
    ] = None,
    device: Device = None,
    allow_mixed: AllowMixed = False,
    assign: Assign = None,
    results: Results = None,
    data_root: DataRoot = None,
    prepared: Prepared = None,
    config: ConfigFile = None,
    format: Format = "text",
) -> None:
    """Mend the published protocol one step at a time, and show what every step removes."""
    from bench.errors import RequestError
    from bench.execute.choose import check
    from bench.report.ladder import honest_plan, plan_ladder
    from bench.report.ladder_table import build_ladder
    from bench.requested import truths
    from bench.store import Store
    from bench.study.record import Search
    from bench.study.tuned import with_tuned
    from bench.sweep import Sweep

    overrides = {"methods": methods, "datasets": dataset, "seeds": seeds, "folds": folds}
    place = workplace(config, results, data_root, prepared, overrides, with_place(assign, None, device))
    if len(place.config.datasets) > 1 or dataset == "all":  # before any of them is prepared
        found = ", ".join(place.config.datasets)
        raise RequestError(f"--dataset {dataset}: a ladder is climbed on one data set, found {found}")
    check(place.config)
    selected, unusable = prepared_sets(place)
    store = Store(place.results)
    quiet = format == "json"
    count = place.config.tune.trials if trials is None else trials
    if count:
        wanted = honest_plan(place.config, place.sources, selected[0])
        run_studies(place, wanted, selected, store, Search(), count, quiet=quiet)
    tune = (lambda plan: with_tuned(plan, store, count)) if count else None
    planned = plan_ladder(place.config, place.sources, selected[0], tune)
    request = planned.request()
    store.write_sweep(request["id"], request)
    say(
        quiet, *left_out(planned.plan, unusable), *(f"left out: {step}: {why}" for step, why in planned.dropped.items())
    )
    sweep = Sweep(planned.plan, selected, store, disk=place.config.execute.snapshot_gb * 1e9)
    failed = train_missing(place, sweep, request, quiet)
    report = build_ladder(store, request, truths(selected), allow_mixed)
    if quiet:
        print_json(report.to_json())
    else:
        print(f"\n{report.markdown}\n")
        print("\n".join(str(path) for path in report.paths))
    leave_if_failed(failed)
