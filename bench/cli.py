"""The command line: the only file that prints. Heavy libraries are imported inside commands."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from bench.data.selection import Selected, Unusable
    from bench.plan import Plan
    from bench.workplace import Workplace

app = typer.Typer(
    name="bench",
    help="A referee for multimodal fusion methods: train, compare, tabulate.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(name="data", help="Data sets: list, prepare, verify.", no_args_is_help=True)
app.add_typer(data_app)

DONE, SOME_FAILED, WRONG_REQUEST, INTERRUPTED = 0, 1, 2, 130

Results = Annotated[Path | None, typer.Option("--results", help="Results folder. [default: beside bench.yaml]")]
DataRoot = Annotated[
    Path | None, typer.Option("--data-root", help="Raw data. [default: $BENCH_DATA, else ~/.cache/bench/data]")
]
Prepared = Annotated[
    Path | None,
    typer.Option("--prepared", help="Prepared arrays. [default: $BENCH_PREPARED, else ~/.cache/bench/prepared]"),
]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="A bench.yaml. [default: the one in this folder]")]
Methods = Annotated[str | None, typer.Option("--methods", help="E.g. vanilla_mt,rollingq:rho=2,concat+ogm or all.")]
Datasets = Annotated[str | None, typer.Option("--datasets", help="E.g. planted,av_mnist:samples=5000 or all.")]
Seeds = Annotated[str | None, typer.Option("--seeds", help="How many, or a list: 5 or 0,1,7.")]
Folds = Annotated[str | None, typer.Option("--folds", help="A list of folds, or all.")]
Protocol = Annotated[str | None, typer.Option("--protocol", help="honest.")]
Assign = Annotated[
    list[str] | None,
    typer.Option("--set", help="KEY=VALUE: recipe.epochs=5, or PLUGIN.SETTING=VALUE. Repeatable."),
]
Format = Annotated[str, typer.Option("--format", help="text or json.")]


def main() -> NoReturn:
    """Run the command line; every error the user can mend is one text on stderr and exit code 2."""
    from bench.errors import BenchError

    # Libraries that would call home, or wait a minute for a hub that is not there.
    for name in ("MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK", "HF_HUB_DISABLE_TELEMETRY"):
        os.environ.setdefault(name, "true")
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler writes to stderr
    try:
        app()
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(WRONG_REQUEST)
    except KeyboardInterrupt:
        print("stopped; the same command goes on where this one ended", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(DONE)
    sys.exit(DONE)


@app.command()
def run(
    methods: Methods = None,
    datasets: Datasets = None,
    seeds: Seeds = None,
    folds: Folds = None,
    protocol: Protocol = None,
    device: Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")] = None,
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
    from bench.sweep import Sweep, truths
    from bench.tracking import mirror

    overrides = {"methods": methods, "datasets": datasets, "seeds": seeds, "folds": folds, "protocol": protocol}
    assign = [*(assign or ()), *([f"execute.device={device}"] if device else ())]
    place = _workplace(config, results, data_root, prepared, overrides, assign)
    slots = devices(place.config.execute.device, place.config.execute.slots)
    store = Store(place.results)
    selected, unusable, plan = _plan(place)
    sweep = Sweep(plan, selected, store)
    request = sweep.record_request()
    missing = sweep.missing()
    quiet = format == "json"
    _say(quiet, *_left_out(plan, unusable))
    failed = 0
    if not missing:
        _say(quiet, f"nothing to do: all {len(plan.trials)} trials are there")
    else:
        _say(quiet, f"{len(missing)} of {len(plan.trials)} trials to train, {len(slots)} at a time")
        tracking = mirror(place.config.tracking, store, request)
        with LocalExecutor(slots[: len(missing)]) as executor, tracking, Display(missing, quiet=quiet) as display:
            for outcome in sweep.run(executor, display.observe):
                display.done(outcome)
                failed += outcome.status != "finished"
                tracking.submit(outcome.spec.id, finished=outcome.status == "finished")
        _say(quiet, *(f"warning: {problem}; `bench sync` repairs it" for problem in tracking.problems))
    report = build(store, request, truths(selected))
    if quiet:
        _print_json(report.to_json())
    else:
        print(f"\n{report.paper_markdown}\n\ntables: {store.folder / 'tables'}")
    if failed:
        print(f"{failed} trials failed; `bench status` says why; the same command tries them again", file=sys.stderr)
        raise typer.Exit(SOME_FAILED)


@app.command()
def plan(
    methods: Methods = None,
    datasets: Datasets = None,
    seeds: Seeds = None,
    folds: Folds = None,
    protocol: Protocol = None,
    assign: Assign = None,
    results: Results = None,
    data_root: DataRoot = None,
    prepared: Prepared = None,
    config: ConfigFile = None,
    format: Format = "text",
) -> None:
    """What would run, and what is already there. Trains nothing."""
    from bench.store import Store
    from bench.sweep import Sweep, request_of

    overrides = {"methods": methods, "datasets": datasets, "seeds": seeds, "folds": folds, "protocol": protocol}
    place = _workplace(config, results, data_root, prepared, overrides, assign)
    store = Store(place.results)
    selected, unusable, planned = _plan(place)
    missing = {spec.id for spec in Sweep(planned, selected, store).missing()}
    if format == "json":
        request = request_of(planned)
        left_out = [{"dataset": u.label, "reason": u.reason} for u in unusable]
        state = {"trials": len(planned.trials), "missing": sorted(missing), "unusable": left_out}
        _print_json({**request, **state, "config": place.config.model_dump(mode="json")})
        return
    rows = []
    for row in planned.rows:
        ids = [spec.id for group in row.groups for spec in group]
        there = sum(i not in missing for i in ids)
        rows.append([row.dataset, row.label, row.method, str(len(ids)), str(there), str(len(ids) - there)])
    _table(["data set", "label", "method", "trials", "there", "missing"], rows)
    _say(False, *_left_out(planned, unusable))
    print(f"\n{len(missing)} of {len(planned.trials)} distinct trials to train; results in {store.folder}")
    print(f"\nThe configuration in use:\n{_yaml_like(place.config.model_dump(mode='json'))}")


@app.command()
def report(
    results: Results = None,
    data_root: DataRoot = None,
    prepared: Prepared = None,
    config: ConfigFile = None,
    format: Format = "text",
) -> None:
    """Write the tables of the latest run again, from what is stored. Trains nothing."""
    from bench.errors import RequestError
    from bench.report.build import build
    from bench.store import Store
    from bench.sweep import truths_of_stored

    place = _workplace(config, results, data_root, prepared, {}, None)
    store = Store(place.results)
    request = store.latest_sweep()
    if request is None:
        raise RequestError(f"{store.folder}: nothing was run here yet; `bench run` makes results")
    built = build(store, request, truths_of_stored(place.prepared))
    if format == "json":
        _print_json(built.to_json())
    else:
        print(f"{built.markdown}\n\ntables: {store.folder / 'tables'}")


@app.command()
def cost(
    methods: Methods = None,
    datasets: Datasets = None,
    preset: Annotated[
        str | None, typer.Option("--preset", help="table4: the published rows of RollingQ's Table 4.")
    ] = None,
    measure_latency: Annotated[
        bool, typer.Option("--latency", help="Also time a forward pass and a step here.")
    ] = False,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="For --latency.")] = 1,
    assign: Assign = None,
    data_root: DataRoot = None,
    config: ConfigFile = None,
    format: Format = "text",
) -> None:
    """Parameters and GFLOPs, as papers print them and as they are. Needs no data."""
    from bench.cost import table4
    from bench.errors import RequestError
    from bench.report.costs import COLUMNS, costs

    place = _workplace(config, None, data_root, None, {"methods": methods, "datasets": datasets}, assign)
    if preset not in (None, "table4"):
        raise RequestError(f"--preset {preset}: unknown preset; known: table4")
    rows = table4() if preset else costs(place.config, place.data_root, measure_latency, batch_size)
    if format == "json":
        _print_json(rows)
        return
    if preset:
        shown = [key for key in rows[0] if key != "note"]
        _table([key.replace("_", " ") for key in shown], [[_short(row[key]) for key in shown] for row in rows])
        print("\n" + "\n".join(f"{row['method']}: {row['note']}" for row in rows))
        return
    counted = [row for row in rows if "reason" not in row]
    _table(list(COLUMNS.values()), [[_short(row[key]) for key in COLUMNS] for row in counted])
    if measure_latency:
        keys = ("forward_ms", "step_ms", "forward_peak_mib", "step_peak_mib")
        lines = [[row["dataset"], row["label"], *(_short(row["latency"][key]) for key in keys)] for row in counted]
        _table(["data set", "method", *(key.replace("_", " ") for key in keys)], lines)
    for row in rows:
        if "reason" in row:
            print(f"left out: {row['label']} on {row['dataset']}: {row['reason']}")


@app.command(name="list")
def list_(
    what: Annotated[str, typer.Argument(help="methods, datasets or all.")] = "all",
    data_root: DataRoot = None,
    config: ConfigFile = None,
    format: Format = "text",
) -> None:
    """Methods and data sets, with paper, requirements and whether they are usable here."""
    from bench import listing
    from bench.errors import RequestError

    if what not in ("all", "methods", "datasets"):
        raise RequestError(f"bench list {what}: expected methods, datasets or all")
    place = _workplace(config, None, data_root, None, {}, None)
    found: dict[str, Any] = {}
    if what in ("all", "methods"):
        found["methods"] = listing.methods()
    if what in ("all", "datasets"):
        found["datasets"] = listing.datasets(place.data_root)
    if format == "json":
        _print_json(found)
        return
    if "methods" in found:
        _table(["method", "kind", "requires", "paper"], [_method_line(m) for m in found["methods"]])
    if "datasets" in found:
        _table(["data set", "usable", "title", "licence"], [_dataset_line(d) for d in found["datasets"]])
    for entry in [e for group in found.values() for e in group if e["kind"] == "broken"]:
        print(f"\n{entry['origin']} cannot be imported:\n{entry['reason']}")


@app.command()
def status(results: Results = None, config: ConfigFile = None, format: Format = "text") -> None:
    """How far the latest run is, and why trials failed."""
    from bench import listing
    from bench.store import Store

    place = _workplace(config, results, None, None, {}, None)
    found = listing.status(Store(place.results))
    if format == "json":
        _print_json(found)
        return
    lines = [[r["dataset"], r["label"], str(r["finished"]), str(r["failed"]), str(r["missing"])] for r in found["rows"]]
    _table(["data set", "row", "finished", "failed", "missing"], lines)
    print(f"{found['trials']} trials in {found['results']}")
    for trial, failure in found["failures"].items():
        print(f"\n{failure['label']} ({trial}): {failure['cause']}\n{failure['text'].rstrip()}")


@app.command()
def check(
    name: Annotated[str, typer.Argument(help="A method or a data set, with settings if wanted.")],
    data_root: DataRoot = None,
    config: ConfigFile = None,
    format: Format = "text",
) -> None:
    """The contract tests for one plugin, also somebody else's."""
    from bench import names, plugins
    from bench.conformance import check as conform

    place = _workplace(config, None, data_root, None, {}, None)
    is_dataset = names.split_settings(name)[0] in plugins.names("datasets")
    outcomes = conform("datasets" if is_dataset else "methods", name, place.data_root)
    if format == "json":
        _print_json([{"check": o.name, "ok": o.ok, "message": o.message, "seconds": o.seconds} for o in outcomes])
    else:
        for o in outcomes:
            print(f"{'ok  ' if o.ok else 'FAIL'} {o.name}{'' if o.ok else f': {o.message}'}")
        print(f"{sum(o.ok for o in outcomes)} of {len(outcomes)} checks passed")
    if not all(o.ok for o in outcomes):
        raise typer.Exit(SOME_FAILED)


@app.command()
def doctor(
    results: Results = None,
    data_root: DataRoot = None,
    prepared: Prepared = None,
    config: ConfigFile = None,
    format: Format = "text",
) -> None:
    """What works on this machine, and what would mend the rest."""
    from bench import listing

    checks = listing.doctor(_workplace(config, results, data_root, prepared, {}, None))
    if format == "json":
        _print_json(checks)
    else:
        for entry in checks:
            print(f"{'ok  ' if entry['ok'] else 'FAIL'} {entry['name']}: {entry['found']}")
    if not all(entry["ok"] for entry in checks):
        raise typer.Exit(SOME_FAILED)


@app.command()
def sync(results: Results = None, config: ConfigFile = None, assign: Assign = None) -> None:
    """Mirror everything that is stored into MLflow; what is there already is left alone."""
    from bench.store import Store
    from bench.tracking import sync as synchronise

    place = _workplace(config, results, None, None, {}, assign)
    count = synchronise(Store(place.results), place.config.tracking.uri)
    print(f"{count} trials added")


@app.command()
def ui(
    results: Results = None,
    config: ConfigFile = None,
    port: Annotated[int, typer.Option(help="On 127.0.0.1.")] = 5000,
) -> None:
    """Open the MLflow UI on loopback."""
    from bench.store import Store
    from bench.tracking import serve

    place = _workplace(config, results, None, None, {}, None)
    print(f"http://127.0.0.1:{port} (Ctrl-C ends it)")
    raise typer.Exit(serve(Store(place.results), place.config.tracking.uri, port))


@data_app.command(name="list")
def data_list(data_root: DataRoot = None, config: ConfigFile = None, format: Format = "text") -> None:
    """Data sets, and what would make those usable that are not."""
    from bench import listing

    place = _workplace(config, None, data_root, None, {}, None)
    found = listing.datasets(place.data_root)
    if format == "json":
        _print_json(found)
        return
    _table(["data set", "usable", "title", "licence"], [_dataset_line(d) for d in found])
    for entry in found:
        if entry.get("reason"):
            print(f"\n{entry['name']}: {entry['reason']}")


@data_app.command(name="prepare")
def data_prepare(
    name: Annotated[str, typer.Argument(help="A data set with settings, e.g. av_mnist:samples=5000.")],
    data_root: DataRoot = None,
    prepared: Prepared = None,
    config: ConfigFile = None,
    assign: Assign = None,
    workers: Annotated[int, typer.Option(help="Processes. [default: one per core]")] = 0,
) -> None:
    """Turn raw files into prepared arrays; a second call does nothing."""
    from bench.data.selection import select
    from bench.progress import Preparing

    place = _workplace(config, None, data_root, prepared, {"datasets": name}, assign)
    with Preparing() as progress:
        selected, _ = select(
            [name],
            place.data_root,
            place.prepared,
            place.config.settings,
            workers=workers or len(os.sched_getaffinity(0)),
            progress=progress,
        )
    for each in selected:
        print(f"{each.label}: {len(each.prepared.index)} samples in {each.prepared.folder}")


@data_app.command(name="verify")
def data_verify(
    name: Annotated[str, typer.Argument(help="A data set with settings.")],
    data_root: DataRoot = None,
    prepared: Prepared = None,
    config: ConfigFile = None,
    assign: Assign = None,
) -> None:
    """Compare the prepared arrays with the hashes in their manifest."""
    from bench.data.selection import select

    place = _workplace(config, None, data_root, prepared, {"datasets": name}, assign)
    selected, _ = select([name], place.data_root, place.prepared, place.config.settings)
    broken = [f"{each.prepared.folder / file}" for each in selected for file in each.prepared.verify()]
    if broken:
        print("\n".join(f"changed: {file}" for file in broken))
        print(f"remove the folder and run `bench data prepare {name}`")
        raise typer.Exit(SOME_FAILED)
    print(f"{name}: every file is as it was written")


def _workplace(
    config: Path | None,
    results: Path | None,
    data_root: Path | None,
    prepared: Path | None,
    overrides: dict[str, str | None],
    assign: Sequence[str] | None,
) -> Workplace:
    from bench import plugins, workplace

    given = {key: value for key, value in overrides.items() if value is not None}
    place = workplace.find(config, results, data_root, prepared, given, assign or ())
    plugins.use_folder(place.folder)
    return place


def _plan(place: Workplace) -> tuple[list[Selected], list[Unusable], Plan]:
    from bench.data.selection import select
    from bench.plan import make_plan
    from bench.progress import Preparing

    config, sources = place.config, place.sources
    places = [sources.place(("datasets", i)) for i in range(len(config.datasets))]
    with Preparing() as progress:
        selected, unusable = select(
            config.datasets,
            place.data_root,
            place.prepared,
            config.settings,
            places=places,
            workers=len(os.sched_getaffinity(0)),
            progress=progress,
        )
    return selected, unusable, make_plan(config, sources, selected)


def _left_out(plan: Plan, unusable: Sequence[Unusable]) -> list[str]:
    lines = [f"not usable here: {u.label}: {u.reason}" for u in unusable]
    return lines + [f"skipped: {s.label} on {s.dataset}: {s.reason}" for s in plan.skipped]


def _method_line(method: dict[str, Any]) -> list[str]:
    if method["kind"] == "broken":
        return [method["name"], "broken", "", method["reason"].strip().splitlines()[-1]]
    return [method["name"], method["kind"], ", ".join(method["requires"]), method["paper"]]


def _dataset_line(dataset: dict[str, Any]) -> list[str]:
    if dataset["kind"] == "broken":
        return [dataset["name"], "broken", dataset["reason"].strip().splitlines()[-1], ""]
    return [dataset["name"], "yes" if dataset["usable"] else "no", dataset["title"], dataset["licence"]]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(*header, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def _short(value: Any) -> str:
    return (
        f"{value:.4g}"
        if isinstance(value, float) and abs(value) < 100
        else f"{value:.2f}"
        if isinstance(value, float)
        else str(value)
    )


def _say(quiet: bool, *lines: str) -> None:
    for line in lines:
        print(line, file=sys.stderr if quiet else sys.stdout)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, allow_nan=False))


def _yaml_like(values: dict[str, Any]) -> str:
    return "\n".join(f"  {key}: {json.dumps(value)}" for key, value in values.items())
