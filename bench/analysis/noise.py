"""How much a model loses when a modality gets noisy: Table 3, with every reading of it the paper leaves open."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from bench import api
from bench.analysis.changes import Draws, Mode, Noise, draws_of
from bench.analysis.contract import Analysis, Measurement, Row, by_dataset
from bench.analysis.layout import flat, metric_of, section, shown, slug, trainings
from bench.analysis.loaded import CLEAN, Change, Condition, LoadedTrial
from bench.api import setting
from bench.errors import RequestError
from bench.report.layout import Table, number
from bench.scoring import MAXIMISED
from bench.stats import Interval

ALL = "all"
"""Every modality at once; `both` in the paper."""
PLACES = ("input", "tokens")
MODES: tuple[Mode, ...] = ("mix", "add")

Variant = tuple[str, str, Mode]
"""Target, place and mode."""


class NoiseGrid(Analysis):
    """Trained clean, tested noisy: target modality x place x mode x level, the same noise for every model.

    At `input`, noise has the mean and spread of the modality's inputs over train; at `tokens`, of the tokens that
    this fusion reads. `add` leaves the signal in, `mix` at level 1 replaces it.
    """

    name = "noise"
    title = "Noise at test"
    paper = "RollingQ, ICML 2025, Table 3"

    @dataclass(frozen=True)
    class Settings(api.Settings):
        levels: str = setting("0.25|0.5|1", help="how much noise, separated by |")
        seeds: int = setting(1, low=1, high=100, help="noise seeds, whose mean is taken; each test sample has its own")

    settings: Settings

    def __init__(self, settings: Any = None) -> None:
        super().__init__(settings)
        try:
            self.levels = [float(text) for text in self.settings.levels.split("|")]
        except ValueError:
            raise RequestError(f"noise.levels={self.settings.levels}: expected numbers such as 0.25|0.5|1") from None
        if not all(0 <= level <= 1 for level in self.levels):  # nan is in no range
            raise RequestError(f"noise.levels={self.settings.levels}: every level must lie in 0 to 1")

    def measure(self, trial: LoadedTrial) -> Measurement:
        """`clean` and `noisy/<target>/<place>/<mode>/<level>`: the metric of record on test."""
        variants = list(variants_of(trial.modalities))
        scores: dict[tuple[Variant, float], list[float]] = {}
        clean = 0.0
        for seed in range(self.settings.seeds):
            draws = draws_of(trial, seed)
            conditions: dict[Any, Condition] = {
                (variant, level): noisy(trial, draws, variant, level)
                for variant, level in product(variants, self.levels)
            }
            found = trial.evaluate("test", {"clean": CLEAN, **conditions})
            clean = trial.score(found.pop("clean").logits)
            for key, evaluation in found.items():
                scores.setdefault(key, []).append(trial.score(evaluation.logits))
        values: dict[str, Any] = {}
        for ((target, place, mode), level), each in scores.items():
            levels = values.setdefault(target, {}).setdefault(place, {}).setdefault(mode, {})
            levels[f"{level:g}"] = float(np.mean(each))
        return Measurement({"clean": clean, "noisy": values})

    def tables(self, rows: Sequence[Row]) -> list[Table]:
        """One section per data set and variant; drops and what is retained at every level in the file of values."""
        sections, values = [], []
        for group in by_dataset(rows):
            heading, scale, digits = metric_of(group[0])
            for variant in variants_in(group):
                texts = []
                for row in (row for row in group if _has(row, variant)):
                    each = {level: self._read(row, variant, level, scale) for level in self.levels}
                    last = each[self.levels[-1]]
                    texts.append(
                        {
                            "Method": row.label,
                            f"{heading} clean": number(row.interval("clean", scale=scale).mean, digits),
                            **{f"{level:g}": number(found["score"].mean, digits) for level, found in each.items()},
                            f"Drop at {self.levels[-1]:g}": shown(last["drop"], digits),
                            **({"Retained": shown(last["retained"], 3)} if "retained" in last else {}),
                            **trainings(row),
                        }
                    )
                    for level, found in each.items():
                        target, place, mode = variant
                        where = {"target": target, "place": place, "mode": mode, "level": level}
                        clean = {"clean": row.interval("clean", scale=scale)}
                        values.append({**row.identity(), **where, **flat({**clean, **found})})
                sections.append(section(group, texts, self._caption(variant), _words(variant)))
        return [Table(self.name, self.title, tuple(sections), pd.DataFrame(values))]

    def figures(self, rows: Sequence[Row]) -> dict[str, str]:
        """Curves over the level: a panel per place, mode and target, one figure per data set."""
        return {f"-{slug(group[0])}": self._curves(group) for group in by_dataset(rows)}

    def _read(self, row: Row, variant: Variant, level: float, scale: float) -> dict[str, Interval]:
        where = ("noisy", *variant, f"{level:g}")
        sign = 1 if MAXIMISED[row.metric] else -1
        found = {
            "score": row.interval(*where, scale=scale),
            "drop": row.over(lambda m: sign * scale * (m.at("clean") - m.at(*where))),
        }
        if MAXIMISED[row.metric] and all(m.at("clean") > 0 for m in row.measurements):
            found["retained"] = row.over(lambda m: m.at(*where) / m.at("clean"))
        return found

    def _curve(self, row: Row, variant: Variant, scale: float) -> list[float]:
        """The mean score without noise and at every level."""
        noisy_ = [row.interval("noisy", *variant, f"{level:g}", scale=scale).mean for level in self.levels]
        return [row.interval("clean", scale=scale).mean, *noisy_]

    def _caption(self, variant: Variant) -> str:
        target, place, mode = variant
        formula = {"mix": "(1 - level) x + level (mean + sd e)", "add": "x + level sd e"}[mode]
        seeds = f"{self.settings.seeds} noise seed{'s' if self.settings.seeds > 1 else ''}"
        return (
            f"{formula}, e standard normal and the same for every model; mean and sd over train, of the {place} of "
            f"{'each modality' if target == ALL else target}; {seeds}. Drop: clean minus noisy, paired in each trial"
        )

    def _curves(self, group: Sequence[Row]) -> str:
        import matplotlib
        from matplotlib.figure import Figure

        from bench.report.figures import COLOURS, INK, STYLE, plain, svg

        heading, scale, _ = metric_of(group[0])
        variants = list(variants_in(group))
        targets = list(dict.fromkeys(target for target, _, _ in variants))
        kinds = list(product(PLACES, MODES))
        styles = [(COLOURS[k % len(COLOURS)], ("-", "--", ":")[k // len(COLOURS) % 3]) for k in range(len(group))]
        width, height, foot = 2.4 * len(targets) + 0.6, 1.8 * len(kinds) + 0.3, 0.5 + 0.2 * math.ceil(len(group) / 3)
        with matplotlib.rc_context(STYLE):
            figure = Figure(figsize=(width, height + foot))
            panels = figure.subplots(len(kinds), len(targets), sharex=True, sharey=True, squeeze=False)
            # Placed by hand: matplotlib's own layouts take seconds for so many panels.
            edges = {"left": 0.6 / width, "right": 1 - 0.1 / width, "bottom": foot / (height + foot)}
            figure.subplots_adjust(**edges, top=1 - 0.3 / (height + foot), wspace=0.08, hspace=0.25)
            for (place, mode), line in zip(kinds, panels, strict=True):
                for target, axes in zip(targets, line, strict=True):
                    for row, (colour, dash) in zip(group, styles, strict=True):
                        if _has(row, (target, place, mode)):
                            curve = self._curve(row, (target, place, mode), scale)
                            axes.plot([0.0, *self.levels], curve, dash, color=colour, linewidth=1.4)
                    axes.set_title(f"{target}, {place}, {mode}", fontsize=8)
                    axes.grid(color=INK, alpha=0.15)
            for axes in panels[-1]:
                axes.set_xlabel("level")
            for axes in panels[:, 0]:
                axes.set_ylabel(heading)
            named = zip(group, styles, strict=True)
            lines = [axes.plot([], [], dash, color=c, label=plain(row.label))[0] for row, (c, dash) in named]
            figure.legend(handles=lines, loc="lower center", ncols=3, frameon=False)
            return svg(figure, f"{self.name}-{slug(group[0])}")


def variants_of(modalities: Sequence[str]) -> Iterator[Variant]:
    """The paper's first reading first: noise in the place of the input."""
    targets = [*modalities, *([ALL] if len(modalities) > 1 else [])]
    for (place, mode), target in product(product(PLACES, MODES), targets):
        yield target, place, mode


def variants_in(group: Sequence[Row]) -> Iterator[Variant]:
    """The variants that some row has, in order."""
    for variant in variants_of(group[0].modalities):
        if any(_has(row, variant) for row in group):
            yield variant


def noisy(trial: LoadedTrial, draws: Draws, variant: Variant, level: float) -> Condition:
    """The condition of one variant at one level."""
    target, place, mode = variant
    moments = trial.material.moments if place == "input" else trial.token_moments
    wanted = trial.modalities if target == ALL else (target,)
    changes: dict[str, Change] = {m: Noise.of(draws, mode, level, moments(m)) for m in wanted}
    return Condition(inputs=changes) if place == "input" else Condition(tokens=changes)


def _has(row: Row, variant: Variant) -> bool:
    return all(variant[0] in m.values["noisy"] for m in row.measurements)


def _words(variant: Variant) -> str:
    target, place, mode = variant
    return f"{'all modalities' if target == ALL else target}, {place}, {mode}"
