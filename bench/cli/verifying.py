"""The command that trains the first steps of a stored trial again."""

from __future__ import annotations

from typing import Annotated

import typer

from bench.cli.options import SOME_FAILED, ConfigFile, DataRoot, Format, Prepared, Results
from bench.cli.place import workplace
from bench.cli.screen import print_json


def verify(
    trial: Annotated[str, typer.Argument(help="The id of a finished trial, or how it begins.")],
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="At most so many. [default: those of the first epoch]")
    ] = None,
    results: Results = None,
    data_root: DataRoot = None,
    prepared: Prepared = None,
    config: ConfigFile = None,
    format: Format = "text",
) -> None:
    """Train a trial's first steps again and compare; says where they part, and what changed. Writes nothing."""
    from bench.store import Store
    from bench.verify import verify as verified

    place = workplace(config, results, data_root, prepared, {}, None)
    verdict = verified(Store(place.results, writable=False), trial, place.prepared, steps)
    if format == "json":
        print_json(verdict.to_json())
    else:
        for change in verdict.changes:
            print(f"changed {change.kind}: {change.text}")
        how = "to the bit" if verdict.tolerance == 0 else f"within {verdict.tolerance:g} (another device or library)"
        what = f"{verdict.steps} steps" if verdict.steps else "the first epoch's mean losses"
        if not verdict.replayed:
            print(f"{verdict.method} ({verdict.trial}): not trained again, its data is not here")
        elif verdict.parting is None:
            print(f"{verdict.method} ({verdict.trial}): {what} are equal {how}")
        else:
            print(f"{verdict.method} ({verdict.trial}): diverged at {verdict.parting}; compared {how}")
            if not verdict.changes:
                print(
                    "nothing that is recorded changed: another processor, or the harness itself without a new version"
                )
    if not verdict.equal:
        raise typer.Exit(SOME_FAILED)
