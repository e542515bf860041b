"""`bench analyse`: what finished trials can be asked without training again."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING, Annotated, Any

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
    with_place,
)
from bench.cli.place import left_out, planned, workplace
from bench.cli.screen import print_json, say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.analysis.measuring import Inquiry
    from bench.analysis.showing import Shown


def analyse(
    names: Annotated[str, typer.Argument(help="E.g. noise, or noise,contribution, or all. NAME.KEY=VALUE by --set.")],
    methods: Methods = None,
    datasets: Datasets = None,
    seeds: Seeds = None,
    folds: Folds = None,
    protocol: Protocol = None,
    device: Device = None,
    assign: Assign = None,
    results: Results = None,
    data_root: DataRoot = None,
    prepared: Prepared = None,
    config: ConfigFile = None,
    format: Format = "text",
) -> None:
    """Noise, missing modalities, contributions and more, from finished trials. Trains nothing."""
    from bench.analysis.measuring import Inquiry
    from bench.analysis.registry import resolve, split_assignments
    from bench.analysis.showing import show
    from bench.execute.local import devices
    from bench.progress import Asking
    from bench.store import Store

    own, others = split_assignments(assign or ())
    analyses = resolve(names, own)
    overrides = {"methods": methods, "datasets": datasets, "seeds": seeds, "folds": folds, "protocol": protocol}
    place = workplace(config, results, data_root, prepared, overrides, with_place(others, None, device))
    where = devices(place.config.execute.device, place.config.execute.slots)
    selected, unusable, wanted = planned(place)
    store = Store(place.results)
    inquiry = Inquiry(analyses, wanted, store, selected)
    quiet = format == "json"
    files = {"results": results, "data-root": data_root, "prepared": prepared, "config": config}
    given = {**overrides, **{name: str(path) for name, path in files.items() if path is not None}}
    command = _command(given, others)
    inquiry.refuse_if_empty(command)
    say(quiet, *left_out(wanted, unusable), *_left_out(inquiry))
    if inquiry.missing:
        say(quiet, f"{len(inquiry.missing)} trials are not finished and left out; `{command}` trains them")
    kept = inquiry.asked - inquiry.questions
    say(quiet, f"{inquiry.questions} measurements to make, {len(where)} at a time, {kept} are there")
    failed = 0
    with Asking(inquiry.questions, quiet=quiet) as display:
        for measured in inquiry.run(where):
            display.done(measured.analysis, measured.spec, measured.seconds, measured.problem)
            failed += bool(measured.problem)
    inquiry.close()
    shown = show(store, analyses)
    _mirror(place.config.tracking, store, quiet)
    if quiet:
        print_json(_to_json(shown, inquiry, failed))
    else:
        print("\n" + "\n".join(one.markdown for one in shown))
        print(f"tables: {store.folder / 'tables'}; figures: {store.folder / 'figures'}; `bench report` shows them too")
    if failed or inquiry.missing:
        print(f"{failed} measurements failed, {len(inquiry.missing)} trials are missing", file=sys.stderr)
        raise typer.Exit(SOME_FAILED)


def _mirror(tracking: Any, store: Any, quiet: bool) -> None:
    from bench.errors import ResultsError
    from bench.tracking import mirror_analyses

    if not tracking.mlflow:
        return
    try:
        mirror_analyses(store, tracking.uri)
    except ResultsError as error:
        say(quiet, f"warning: {error}; `bench sync` repairs it")


def _command(given: dict[str, str | None], assignments: Sequence[str]) -> str:
    words = [word for name, value in given.items() if value is not None for word in (f"--{name}", value)]
    words += [word for assignment in assignments for word in ("--set", assignment)]
    return shlex.join(["bench", "run", *words])


def _left_out(inquiry: Inquiry) -> list[str]:
    planned = {(s.label, s.dataset) for s in inquiry.plan.skipped}
    return [
        f"skipped by {name}: {entry['label']} on {entry['dataset']}: {entry['reason']}"
        for name, skipped in inquiry.skipped.items()
        for entry in skipped
        if (entry["label"], entry["dataset"]) not in planned
    ]


def _to_json(shown: Sequence[Shown], inquiry: Inquiry, failed: int) -> dict[str, Any]:
    """Plain values: every analysis with the rows of its tables and its files, and what is missing."""
    return {
        "analyses": [one.to_json() for one in shown],
        "missing": [spec.id for spec in inquiry.missing],
        "failed": failed,
    }
