"""`bench plan`: what would run, what is there, and what the rest will take."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bench.cli.options import (
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
    with_place,
)
from bench.cli.place import left_out, planned, workplace
from bench.cli.screen import print_json, say, table

if TYPE_CHECKING:
    from bench.forecast import Forecast


def plan(
    methods: Methods = None,
    datasets: Datasets = None,
    seeds: Seeds = None,
    folds: Folds = None,
    protocol: Protocol = None,
    detect: Annotated[
        float | None, typer.Option("--detect", help="Seeds and folds it takes to see so many points of difference.")
    ] = None,
    tuned: Annotated[bool, typer.Option("--tuned", help="Also the studies that `bench run --tuned` would do.")] = False,
    timed: Annotated[
        bool, typer.Option("--time/--no-time", help="Hours and disk; what never ran here is tried for a moment.")
    ] = True,
    device: Device = None,
    assign: Assign = None,
    results: Results = None,
    data_root: DataRoot = None,
    prepared: Prepared = None,
    config: ConfigFile = None,
    format: Format = "text",
) -> None:
    """What would run, what is already there, how long the rest takes and how much disk. Stores no result."""
    from bench.calibration import strangers
    from bench.errors import RequestError
    from bench.execute.local import devices
    from bench.forecast import forecast, study_forecast
    from bench.report.power import detect as seeds_needed
    from bench.requested import request_of
    from bench.store import Store
    from bench.study.record import Search
    from bench.study.tuned import tunings
    from bench.study.tuning import Budget
    from bench.sweep import Sweep

    overrides = {"methods": methods, "datasets": datasets, "seeds": seeds, "folds": folds, "protocol": protocol}
    place = workplace(config, results, data_root, prepared, overrides, with_place(assign, None, device))
    selected, unusable, wanted = planned(place)
    store = Store(place.results, writable=False)
    specs = Sweep(wanted, selected, store).missing()
    missing = {spec.id for spec in specs}
    request = request_of(wanted)
    needs = [] if detect is None else seeds_needed(detect, store, request, selected)
    expected: dict[str, Forecast] = {}
    slots = devices(place.config.execute.device, place.config.execute.slots)
    if timed:
        unknown = len(strangers(specs, store, slots))
        if unknown:
            say(True, f"trying {unknown} kinds of trials that never ran here for a few steps; --no-time leaves it")
        try:
            expected["trials"] = forecast(specs, selected, store, slots)
            for tuning in tunings(wanted, selected, store, Search()) if tuned else ():
                name = f"tuning {tuning.spec.method} on {tuning.spec.data}"
                expected[name] = study_forecast(tuning, Budget(place.config.tune.trials), store, slots)
        except RequestError as error:  # what would run can be said nevertheless
            say(True, f"how long it takes is not known: {error}")
    if format == "json":
        not_usable = [{"dataset": u.label, "reason": u.reason} for u in unusable]
        state = {"trials": len(wanted.trials), "missing": sorted(missing), "unusable": not_usable}
        if needs:
            state["detect"] = [need.to_json() for need in needs]
        if expected:
            state["forecast"] = {name: each.to_json() for name, each in expected.items()}
        print_json({**request, **state, "config": place.config.model_dump(mode="json")})
        return
    rows = []
    for row in wanted.rows:
        ids = [spec.id for group in row.groups for spec in group]
        there = sum(i not in missing for i in ids)
        rows.append([row.dataset, row.label, row.method, str(len(ids)), str(there), str(len(ids) - there)])
    table(["data set", "label", "method", "trials", "there", "missing"], rows)
    say(False, *left_out(wanted, unusable))
    print(f"\n{len(missing)} of {len(wanted.trials)} distinct trials to train; results in {store.folder}")
    for name, each in expected.items():
        print(f"{name}: {_expected(each, len(slots))}")
    for need in needs:
        print(need)
    print(f"\nThe configuration in use:\n{_lines(place.config.model_dump(mode='json'))}")


def _expected(forecast: Forecast, slots: int) -> str:
    shared = forecast.epochs_alone - forecast.epochs
    saved = f", {shared} more are shared or stored" if shared else ""
    return (
        f"{forecast.epochs} epochs to train{saved}; about {duration(forecast.seconds)} with {slots} at a time; "
        f"{size(forecast.bytes)} of disk"
    )


def duration(seconds: float) -> str:
    """Two units of a time: `2 h 5 min`, `4 min 10 s`, `12 s`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def size(count: float) -> str:
    """Bytes in the largest unit that leaves a whole number."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{round(count)} bytes"


def _lines(values: dict[str, Any]) -> str:
    """A configuration, one line per key, as bench.yaml would say it."""
    return "\n".join(f"  {key}: {json.dumps(value)}" for key, value in values.items())
