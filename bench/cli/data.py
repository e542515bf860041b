"""`bench data`: list, prepare, verify, audit."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bench.cli.options import SOME_FAILED, Assign, ConfigFile, DataRoot, Format, Prepared
from bench.cli.place import workplace
from bench.cli.screen import dataset_line, print_json, table

if TYPE_CHECKING:
    from bench.data.prepared import Prepared as PreparedSet
    from bench.data.priors import Score
    from bench.data.selection import Selected
    from bench.workplace import Workplace

app = typer.Typer(name="data", help="Data sets: list, prepare, verify, audit.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="A data set with settings, e.g. av_mnist:samples=5000.")]


@app.command(name="list")
def list_(
    data_root: DataRoot = None, prepared: Prepared = None, config: ConfigFile = None, format: Format = "text"
) -> None:
    """Data sets, and what would make those usable that are not."""
    from bench import listing

    place = workplace(config, None, data_root, prepared, {}, None)
    found = listing.datasets(place.data_root, place.prepared)
    if format == "json":
        print_json(found)
        return
    table(["data set", "usable", "title", "licence"], [dataset_line(d) for d in found])
    for entry in found:
        if entry.get("reason"):
            print(f"\n{entry['name']}: {entry['reason']}")


@app.command()
def prepare(
    name: Name,
    raw: Annotated[Path | None, typer.Option("--raw", help="Folder of the raw files. [default: the data root]")] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Only so many; what that means, the set says.")
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Afterwards compare every file with its hash.")] = False,
    allow_missing: Annotated[bool, typer.Option("--allow-missing", help="However many files cannot be read.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Also if it is prepared already.")] = False,
    workers: Annotated[int, typer.Option(help="Processes. [default: one per core]")] = 0,
    data_root: DataRoot = None,
    prepared: Prepared = None,
    config: ConfigFile = None,
    assign: Assign = None,
) -> None:
    """Turn raw files into prepared arrays; a second call does nothing, a killed one is gone on with."""
    from bench.data.selection import select
    from bench.progress import Preparing

    text = name if limit is None else f"{name}:limit={limit}"
    place = workplace(config, None, raw or data_root, prepared, {"datasets": text}, assign)
    with Preparing() as progress:
        selected, _ = select(
            [text],
            place.data_root,
            place.prepared,
            place.config.settings,
            workers=workers or len(os.sched_getaffinity(0)),
            progress=progress,
            allow_missing=allow_missing,
            overwrite=overwrite,
        )
    for each in selected:
        print(f"{each.label}: {len(each.prepared.index)} samples in {each.prepared.folder}")
        left_out = each.prepared.manifest["counts"]["left_out"]
        if left_out:
            print(f"{left_out} samples were left out; {each.prepared.folder / 'left_out.csv'} says which and why")
        if verify:
            _verify(each.label, each.prepared)


@app.command(name="verify")
def verify_(
    name: Name,
    data_root: DataRoot = None,
    prepared: Prepared = None,
    config: ConfigFile = None,
    assign: Assign = None,
) -> None:
    """Compare the prepared arrays with the hashes in their manifest; prepares nothing."""
    from bench import names
    from bench.data.manifest import folder_of
    from bench.data.prepared import Prepared as PreparedSet

    place = workplace(config, None, data_root, prepared, {"datasets": name}, assign)
    part, dataset = names.resolve_dataset(name, place.config.settings)
    folder = folder_of(part.name, dataset, part.code, place.data_root, place.prepared)
    _verify(name, PreparedSet.open(folder))


@app.command()
def audit(
    name: Name,
    lists: Annotated[
        tuple[Path, Path] | None, typer.Option("--lists", help="Two lists of ids to hold against each other.")
    ] = None,
    results: Annotated[
        Path | None,
        typer.Option("--results", help="Whose unimodal scores are looked at. [default: beside bench.yaml, if there]"),
    ] = None,
    data_root: DataRoot = None,
    prepared: Prepared = None,
    config: ConfigFile = None,
    assign: Assign = None,
    format: Format = "text",
) -> None:
    """What a data set's splits, or two lists of ids, share: samples, groups, copies and near copies of content.

    Also class balance, conflicting targets, what the group alone tells, and scores too good to be true. Exit code 1
    where an honest split or two lists share anything; published splits and warnings do not change it.
    """
    from bench import names
    from bench.data.audit import audit as audit_splits
    from bench.data.audit import audit_lists
    from bench.data.prepared import find

    place = workplace(config, results, data_root, prepared, {"datasets": name}, assign)
    if lists is None:
        selected = _prepared(name, place)
        trained = _unimodal_scores(place, selected.prepared)
        found = audit_splits(selected.dataset, selected.prepared, trained=trained)
    else:
        part, dataset = names.resolve_dataset(name, place.config.settings)
        found = audit_lists(dataset, lists, find(part.name, dataset, part.code, place.data_root, place.prepared))
    if format == "json":
        print_json(found.to_json())
    else:
        print(found.to_text())
    if not found.ok:
        raise typer.Exit(SOME_FAILED)


def _prepared(name: str, place: Workplace) -> Selected:
    from bench.data.selection import select

    selected, _ = select([name], place.data_root, place.prepared, place.config.settings)
    return selected[0]


def _unimodal_scores(place: Workplace, prepared: PreparedSet) -> list[Score]:
    from bench.report.ceilings import unimodal_scores
    from bench.store import Store

    if not (place.results / "trials").is_dir():
        return []
    return unimodal_scores(Store(place.results, writable=False), prepared.fingerprint)


def _verify(label: str, prepared: PreparedSet) -> None:
    broken = prepared.verify()
    if broken:
        print("\n".join(f"changed: {prepared.folder / file}" for file in broken))
        print(f"`bench data prepare {label} --overwrite` makes them again")
        raise typer.Exit(SOME_FAILED)
    print(f"{label}: every file is as it was written")
