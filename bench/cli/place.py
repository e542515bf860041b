"""From options to a workplace, and from there to a plan."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.data.selection import Selected, Unusable
    from bench.plan import Plan
    from bench.workplace import Workplace


def workplace(
    config: Path | None,
    results: Path | None,
    data_root: Path | None,
    prepared: Path | None,
    overrides: dict[str, str | None],
    assign: Sequence[str] | None,
) -> Workplace:
    """Where a command works; plugins beside its bench.yaml are found from here on."""
    from bench import guard, plugins
    from bench.workplace import find

    given = {key: value for key, value in overrides.items() if value is not None}
    place = find(config, results, data_root, prepared, given, assign or ())
    guard.install(guard.Places.of([place.prepared], place.results, [place.data_root]))  # before any plugin
    plugins.use_folder(place.folder)
    return place


def planned(place: Workplace) -> tuple[list[Selected], list[Unusable], Plan]:
    """The data sets asked for, prepared; those that are not usable; and what is to run on them."""
    from bench.plan import make_plan

    selected, unusable = prepared_sets(place)
    return selected, unusable, make_plan(place.config, place.sources, selected)


def prepared_sets(place: Workplace) -> tuple[list[Selected], list[Unusable]]:
    """The data sets asked for, prepared, and those that are not usable."""
    from bench.data.selection import modalities_of, select
    from bench.plan import refuse_early
    from bench.progress import Preparing

    config, sources = place.config, place.sources
    refuse_early(config, sources, modalities_of(config.datasets, place.data_root, config.settings))
    places = [sources.place(("datasets", i)) for i in range(len(config.datasets))]
    with Preparing() as progress:
        return select(
            config.datasets,
            place.data_root,
            place.prepared,
            config.settings,
            places=places,
            workers=len(os.sched_getaffinity(0)),
            progress=progress,
        )


def left_out(plan: Plan, unusable: Sequence[Unusable]) -> list[str]:
    """One line for everything that was asked for and cannot be."""
    lines = [f"not usable here: {u.label}: {u.reason}" for u in unusable]
    return lines + [f"skipped: {s.label} on {s.dataset}: {s.reason}" for s in plan.skipped]
