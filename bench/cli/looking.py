"""Commands that show what is there."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from bench.cli.options import SOME_FAILED, Assign, ConfigFile, DataRoot, Datasets, Format, Methods, Prepared, Results
from bench.cli.place import workplace
from bench.cli.screen import dataset_line, print_json, short, table


def list_(
    what: Annotated[str, typer.Argument(help="methods, datasets or all.")] = "all",
    data_root: DataRoot = None,
    prepared: Prepared = None,
    config: ConfigFile = None,
    format: Format = "text",
) -> None:
    """Methods and data sets, with paper, requirements and whether they are usable here."""
    from bench import listing
    from bench.errors import RequestError

    if what not in ("all", "methods", "datasets"):
        raise RequestError(f"bench list {what}: expected methods, datasets or all")
    place = workplace(config, None, data_root, prepared, {}, None)
    found: dict[str, Any] = {}
    if what in ("all", "methods"):
        found["methods"] = listing.methods()
    if what in ("all", "datasets"):
        found["datasets"] = listing.datasets(place.data_root, place.prepared)
    if format == "json":
        print_json(found)
        return
    if "methods" in found:
        table(["method", "kind", "requires", "paper"], [_method_line(m) for m in found["methods"]])
    if "datasets" in found:
        table(["data set", "usable", "title", "licence"], [dataset_line(d) for d in found["datasets"]])
    for entry in [e for group in found.values() for e in group if e["kind"] == "broken"]:
        print(f"\n{entry['origin']} cannot be imported:\n{entry['reason']}")


def check(
    name: Annotated[str, typer.Argument(help="A method or a data set, with settings if wanted.")],
    data_root: DataRoot = None,
    config: ConfigFile = None,
    format: Format = "text",
) -> None:
    """The contract tests for one plugin, also somebody else's."""
    from bench import names, plugins
    from bench.conformance import check as conform

    place = workplace(config, None, data_root, None, {}, None)
    is_dataset = names.split_settings(name)[0] in plugins.names("datasets")
    outcomes = conform("datasets" if is_dataset else "methods", name, place.data_root)
    if format == "json":
        print_json([{"check": o.name, "ok": o.ok, "message": o.message, "seconds": o.seconds} for o in outcomes])
    else:
        for o in outcomes:
            print(f"{'ok  ' if o.ok else 'FAIL'} {o.name}{'' if o.ok else f': {o.message}'}")
        print(f"{sum(o.ok for o in outcomes)} of {len(outcomes)} checks passed")
    if not all(o.ok for o in outcomes):
        raise typer.Exit(SOME_FAILED)


def doctor(
    results: Results = None,
    data_root: DataRoot = None,
    prepared: Prepared = None,
    config: ConfigFile = None,
    format: Format = "text",
) -> None:
    """What works on this machine, and what would mend the rest."""
    from bench import listing

    checks = listing.doctor(workplace(config, results, data_root, prepared, {}, None))
    if format == "json":
        print_json(checks)
    else:
        for entry in checks:
            print(f"{'ok  ' if entry['ok'] else 'FAIL'} {entry['name']}: {entry['found']}")
    if not all(entry["ok"] for entry in checks):
        raise typer.Exit(SOME_FAILED)


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

    place = workplace(config, None, data_root, None, {"methods": methods, "datasets": datasets}, assign)
    if preset not in (None, "table4"):
        raise RequestError(f"--preset {preset}: unknown preset; known: table4")
    rows = table4() if preset else costs(place.config, place.data_root, measure_latency, batch_size)
    if format == "json":
        print_json(rows)
        return
    if preset:
        shown = [key for key in rows[0] if key != "note"]
        table([key.replace("_", " ") for key in shown], [[short(row[key]) for key in shown] for row in rows])
        print("\n" + "\n".join(f"{row['method']}: {row['note']}" for row in rows))
        return
    counted = [row for row in rows if "reason" not in row]
    table(list(COLUMNS.values()), [[short(row[key]) for key in COLUMNS] for row in counted])
    if measure_latency:
        keys = ("forward_ms", "step_ms", "forward_peak_mib", "step_peak_mib")
        lines = [[row["dataset"], row["label"], *(short(row["latency"][key]) for key in keys)] for row in counted]
        table(["data set", "method", *(key.replace("_", " ") for key in keys)], lines)
    for row in rows:
        if "reason" in row:
            print(f"left out: {row['label']} on {row['dataset']}: {row['reason']}")


def _method_line(method: dict[str, Any]) -> list[str]:
    if method["kind"] == "broken":
        return [method["name"], "broken", "", method["reason"].strip().splitlines()[-1]]
    return [method["name"], method["kind"], ", ".join(method["requires"]), method["paper"]]
