"""How much of a model's score each modality gives: exact Shapley values, and what the modalities know on the way."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, combinations
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from bench import api
from bench.analysis.changes import FILLS, draws_of, filling
from bench.analysis.contract import Analysis, Measurement, Row, by_dataset
from bench.analysis.layout import flat, metric_of, section, shown, slug, trainings
from bench.analysis.loaded import Condition, LoadedTrial
from bench.api import TaskSpec, setting
from bench.plan import TrialSpec
from bench.report.layout import Table, number
from bench.stats import GroupDraws, Interval

Coalition = frozenset[str]

RESAMPLES = 2_000


class Contribution(Analysis):
    """The Shapley value of each modality (Shapley, 1953) in the game whose value is the score with the others masked.

    All 2^M coalitions are evaluated; the values of the modalities sum to the score with all less that with none.
    A share is a modality's part of this sum.
    """

    name = "contribution"
    title = "Contribution of the modalities"

    @dataclass(frozen=True)
    class Settings(api.Settings):
        fill: str = setting("zero", choices=FILLS, help="what stands in for a masked modality's inputs")

    def skips(self, spec: TrialSpec, task: TaskSpec) -> str | None:
        """One modality gives everything; and without a class there is no chance level to start from."""
        if len(task.modalities) < 2:
            return "it reads one modality, which gives everything"
        return None if task.kind == "classes" else "its score is no accuracy"

    def measure(self, trial: LoadedTrial) -> Measurement:
        """`shapley/<m>`, `coalitions/<names>`, `probes/<m>` by epoch; and what is right by sample."""
        draws = draws_of(trial, 0)
        fills = {m: filling(self.settings.fill, m, trial.material, draws) for m in trial.modalities}
        conditions = {
            coalition: Condition(inputs={m: fill for m, fill in fills.items() if m not in coalition})
            for coalition in coalitions(trial.modalities)
        }
        target = trial.truth.targets["test"]
        right = {c: e.logits.argmax(axis=1) == target for c, e in trial.evaluate("test", conditions).items()}
        by_sample = shapley({c: x.astype(np.float64) for c, x in right.items()}, trial.modalities)  # [M, sample]
        values = by_sample.mean(axis=1)
        _, groups = np.unique(trial.truth.groups["test"], return_inverse=True)
        return Measurement(
            {
                "shapley": {m: float(x) for m, x in zip(trial.modalities, values, strict=True)},
                "coalitions": {name_of(c, trial.modalities): float(x.mean()) for c, x in right.items()},
                "probes": probes(trial),
            },
            {"by_sample": by_sample.astype(np.float32), "group": groups.astype(np.int64)},
        )

    def tables(self, rows: Sequence[Row]) -> list[Table]:
        """Two sections per data set: the modalities' values, and the accuracy of every coalition behind them."""
        sections, values = [], []
        for group in by_dataset(rows):
            texts, behind = [], []
            for row in group:
                modalities = list(row.measurements[0].values["shapley"])
                shares = {m: share(row, k, m) for k, m in enumerate(modalities)}
                points = {m: value(row, k, m) for k, m in enumerate(modalities)}
                last = {m: last_probe(row, m) for m in modalities}
                names = list(row.measurements[0].values["coalitions"])
                scores = {name: row.interval("coalitions", name, scale=100) for name in names}
                texts.append(
                    {
                        "Method": row.label,
                        **{f"Share {m}": shown(x, 2) for m, x in shares.items()},
                        **{f"Points {m}": shown(x, 1) for m, x in points.items()},
                        **{f"Probe {m}": "" if x is None else number(x.mean, 1) for m, x in last.items()},
                        **trainings(row),
                    }
                )
                behind.append({"Method": row.label, **{name: number(x.mean, 1) for name, x in scores.items()}})
                columns: dict[str, Interval | None] = {f"share {m}": x for m, x in shares.items()}
                columns |= {f"shapley {m}": x for m, x in points.items()}
                columns |= {f"with {name}": x for name, x in scores.items()}
                columns |= {f"probe {m}": x for m, x in last.items()}
                values.append({**row.identity(), **flat(columns)})
            sections.append(section(group, texts, self._caption(metric_of(group[0])[0])))
            masked = (
                f"Accuracy (%) on test with nothing but these modalities; the others are masked ({self.settings.fill})"
            )
            sections.append(section(group, behind, masked, "coalitions"))
        return [Table(self.name, self.title, tuple(sections), pd.DataFrame(values))]

    def figures(self, rows: Sequence[Row]) -> dict[str, str]:
        """Shares as bars, and each modality's own score over the epochs; one figure per data set."""
        return {f"-{slug(group[0])}": self._figure(group) for group in by_dataset(rows)}

    def _caption(self, metric: str) -> str:
        return (
            f"Shapley values of the accuracy on test, the other modalities' inputs replaced ({self.settings.fill}), "
            "exact over all coalitions: in points, and as shares of what all modalities add together, left out where "
            f"that may be nothing. Probe: {metric} on val of the modality's own logits after the last epoch. Of a "
            "single trial the interval is a bootstrap over groups of test samples"
        )

    def _figure(self, group: Sequence[Row]) -> str:
        import matplotlib
        from matplotlib.figure import Figure

        from bench.report.figures import COLOURS, INK, STYLE, plain, svg

        modalities = group[0].modalities
        heading, _, _ = metric_of(group[0])
        with matplotlib.rc_context(STYLE):
            figure = Figure(figsize=(2.6 * (1 + len(modalities)) + 1, 1.4 + 0.28 * len(group)), layout="constrained")
            bars, *curves = figure.subplots(1, 1 + len(modalities))
            for k, row in enumerate(group):
                colour, dash = COLOURS[k % len(COLOURS)], ("-", "--", ":")[k // len(COLOURS) % 3]
                left = 0.0
                for j, m in enumerate(modalities):
                    part = share(row, j, m)
                    if part is not None:
                        bars.barh(k, part.mean, left=left, color=COLOURS[j], alpha=0.75, height=0.7)
                        left += part.mean
                    mean = _probe_curve(row, m)
                    if mean:
                        curves[j].plot(range(len(mean)), mean, dash, color=colour, linewidth=1.3)
                curves[0].plot([], [], dash, color=colour, label=plain(row.label))
            bars.set_yticks(range(len(group)), [plain(row.label) for row in group])
            bars.invert_yaxis()
            bars.set_title("share: " + ", then ".join(modalities), fontsize=8)
            for m, axes in zip(modalities, curves, strict=True):
                axes.set_title(f"{m} alone, {heading} on val", fontsize=8)
                axes.set_xlabel("epoch")
                axes.grid(color=INK, alpha=0.15)
            figure.legend(loc="outside lower center", ncols=3, frameon=False)
            return svg(figure, f"{self.name}-{slug(group[0])}")


def coalitions(modalities: Sequence[str]) -> list[Coalition]:
    """All subsets, the empty one first."""
    sizes = range(len(modalities) + 1)
    return [frozenset(c) for c in chain.from_iterable(combinations(modalities, size) for size in sizes)]


def shapley(game: Mapping[Coalition, np.ndarray], players: Sequence[str]) -> Float[np.ndarray, "player *rest"]:
    """The exact Shapley value of each player, for a game whose values are arrays of one shape.

    The mean, over all orders in which players can join, of what a player adds to those before it.
    """
    count = len(players)
    values = []
    for player in players:
        total = np.zeros_like(game[frozenset()])
        for others in coalitions([p for p in players if p != player]):
            orders = math.factorial(len(others)) * math.factorial(count - len(others) - 1)
            total = total + orders / math.factorial(count) * (game[others | {player}] - game[others])
        values.append(total)
    return np.stack(values)


def name_of(coalition: Coalition, modalities: Sequence[str]) -> str:
    """The members in the order of the modalities."""
    return " and ".join(m for m in modalities if m in coalition) or "none"


def probes(trial: LoadedTrial) -> dict[str, list[float]]:
    """The val score of each modality's own logits after every epoch; nothing where epochs were not kept."""
    found: dict[str, list[float]] = {}
    if len(trial.positions["val"]) == 0:
        return found
    for epoch in range(len(trial.record["epochs"])):
        outputs = trial.outputs(epoch)
        if outputs is None:
            return {}
        for m in trial.modalities:
            if f"val/unimodal/{m}" in outputs:
                found.setdefault(m, []).append(trial.score(outputs[f"val/unimodal/{m}"], "val"))
    return found


def share(row: Row, place: int, modality: str) -> Interval | None:
    """A modality's share with its interval; None where all modalities together are not surely above none of them."""
    drawn = _resampled(row.measurements[0]) if len(row.answers) == 1 else None
    total = row.over(gain) if drawn is None else _bounds(row.over(gain).mean, drawn.sum(axis=0))
    if total.mean <= 0 or (total.low is not None and total.low <= 0):
        return None
    if any(gain(measured) <= 0 for measured in row.measurements):  # a share of nothing, in this one
        return None
    if drawn is None:
        return row.over(lambda measured: measured.at("shapley", modality) / gain(measured))
    sure = drawn[:, drawn.sum(axis=0) > 0]
    return _bounds(row.measurements[0].at("shapley", modality) / total.mean, sure[place] / sure.sum(axis=0))


def gain(measured: Measurement) -> float:
    """The accuracy with all modalities less that with none: what the Shapley values sum to."""
    return float(sum(measured.values["shapley"].values()))


def value(row: Row, place: int, modality: str) -> Interval:
    """A modality's Shapley value in points, with its interval."""
    if len(row.answers) == 1 and (drawn := _resampled(row.measurements[0])) is not None:
        return _bounds(100 * row.measurements[0].at("shapley", modality), 100 * drawn[place])
    return row.interval("shapley", modality, scale=100)


def last_probe(row: Row, modality: str) -> Interval | None:
    """A modality's own score on val after the last epoch, in percent."""
    if not all(m.values["probes"].get(modality) for m in row.measurements):
        return None
    return row.over(lambda m: 100 * float(m.values["probes"][modality][-1]))


def _probe_curve(row: Row, modality: str) -> list[float]:
    each: list[Any] = [m.values["probes"].get(modality, []) for m in row.measurements]
    if len({len(curve) for curve in each}) != 1:
        return []
    means: list[float] = (100 * np.mean(each, axis=0)).tolist()
    return means


def _resampled(measured: Measurement) -> Float[np.ndarray, "modality resample"] | None:
    """Shapley values in a bootstrap over groups of test samples; None where all samples are one group."""
    groups = measured.arrays["group"]
    if len(np.unique(groups)) < 2:
        return None
    draws = GroupDraws(groups, RESAMPLES)
    return np.stack([draws.means(x.astype(np.float64)) for x in measured.arrays["by_sample"]])


def _bounds(mean: float, drawn: np.ndarray) -> Interval:
    low, high = np.quantile(drawn, (0.025, 0.975))
    return Interval(mean, float(low), float(high))
