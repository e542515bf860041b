"""Whether attention follows what a modality is worth for a sample: Table 2, by three measures of quality."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.special import softmax
from torch import Tensor

from bench import api, streams
from bench.analysis.changes import Draws, draws_of
from bench.analysis.contract import Analysis, Measurement, Row, by_dataset, provides
from bench.analysis.correlation import contrast, correlate, draws_over
from bench.analysis.geometry import geometry, shown
from bench.analysis.layout import section, slug, table_of, trainings
from bench.analysis.layout import shown as written
from bench.analysis.loaded import CLEAN, Condition, LoadedTrial, Moments
from bench.api import Capability, TaskSpec, setting
from bench.plan import TrialSpec
from bench.report.layout import Table, number
from bench.stats import GroupDraws, Interval
from bench.train import Evaluation

LEVELS = (0.0, 0.25, 0.5, 1.0)
"""Of the noise in a sample's input; at 1 nothing of it is left."""
SOURCES = {"noise": "added noise", "probe": "probes", "truth": "true quality"}
MEASURES = ("share", "log_ratio", "cosine")
_BINS = 10


@dataclass(frozen=True)
class Seen:
    """What an attention made of a split under one condition, by modality [sample]."""

    evaluation: Evaluation
    share: Mapping[str, np.ndarray]
    """Attention mass as a part of what all modalities get."""
    log_ratio: Mapping[str, np.ndarray]
    """log of (mass / the mass uniform attention would give), against the other modalities."""
    cosine: Mapping[str, np.ndarray]
    """cos(query, mean key), against the other modalities."""


@dataclass(frozen=True, eq=False)
class Degraded:
    """(1 - level) x + level (mean + sd e), with a level of its own for every sample."""

    draws: Draws
    levels: np.ndarray  # [all samples of the data set]
    moments: Moments

    def __call__(self, modality: str, values: Tensor, positions: np.ndarray) -> Tensor:
        """The values with noise."""
        drawn = self.draws(modality, values, positions)
        each = torch.from_numpy(self.levels[positions]).to(values.device, values.dtype)
        level = each.view(-1, *(1,) * (values.ndim - 1))
        return (1 - level) * values + level * (self.moments.mean + self.moments.std * drawn)


class AttentionQuality(Analysis):
    """The correlation over test samples of the attention a modality gets with how good it is.

    Quality is measured against that of the other modalities (visual noise less audio noise, for the audio of two),
    in three ways: A, noise of a drawn level in one modality at a time; B, the probability that each modality's own
    logits give to the right class, nothing disturbed; and, where the data set tells it, the true quality.
    """

    name = "attention"
    title = "Attention against input quality"
    paper = "RollingQ, ICML 2025, Table 2"

    @dataclass(frozen=True)
    class Settings(api.Settings):
        seed: int = setting(0, low=0, help="of the noise and of its levels")

    settings: Settings

    def skips(self, spec: TrialSpec, task: TaskSpec) -> str | None:
        """Only an attention that spans several modalities has shares of them."""
        if Capability.ATTENTION_SITE not in provides(spec):
            return "no attention in which modalities compete"
        return "one modality alone has nothing to compete with" if len(task.modalities) < 2 else None

    def measure(self, trial: LoadedTrial) -> Measurement:
        """`<source>/<measure>/<modality>` holds a correlation; `shift/<modality>` how attention moves off noise."""
        levels = {m: levels_of(trial.ids, m, self.settings.seed) for m in trial.modalities}
        clean = look(trial, CLEAN)
        degraded = {m: look(trial, self._condition(trial, m, levels[m])) for m in trial.modalities}
        test = trial.positions["test"]
        groups = trial.truth.groups["test"]
        sources: dict[str, tuple[dict[str, np.ndarray], list[Seen]]] = {}
        quality = {
            m: np.concatenate([1 - (levels[m][test] if m == d else np.zeros(len(test))) for d in degraded])
            for m in trial.modalities
        }
        sources["noise"] = contrast(quality), list(degraded.values())
        if trial.task.kind == "classes" and set(clean.evaluation.unimodal) == set(trial.modalities):
            right = trial.truth.targets["test"].astype(int)
            likely = {m: softmax(u, axis=1) for m, u in clean.evaluation.unimodal.items()}
            own = {m: p[np.arange(len(p)), right].astype(np.float64) for m, p in likely.items()}
            sources["probe"] = contrast(own), [clean]
        if all(f"quality_{m}" in trial.index.columns for m in trial.modalities):
            true = {m: trial.index[f"quality_{m}"].to_numpy(dtype=np.float64)[test] for m in trial.modalities}
            sources["truth"] = contrast(true), [clean]
        values: dict[str, Any] = {"shift": {m: shift(clean, seen, levels[m][test], m) for m, seen in degraded.items()}}
        arrays: dict[str, np.ndarray] = {}
        once, repeated = draws_over(groups), draws_over(np.tile(groups, len(degraded)))
        first = trial.modalities[0]
        for source, (better, seen) in sources.items():
            values[source] = correlations(better, seen, repeated if source == "noise" else once)
            arrays[f"bins/{source}"] = binned(better[first], np.concatenate([s.share[first] for s in seen]))
        for m, seen_m in degraded.items():
            at = [seen_m.share[m][levels[m][test] == level] for level in LEVELS]
            arrays[f"levels/{m}"] = np.array([share.mean() if len(share) else np.nan for share in at])
        return Measurement(values, arrays)

    def _condition(self, trial: LoadedTrial, modality: str, levels: np.ndarray) -> Condition:
        moments = trial.material.moments(modality)
        return Condition(inputs={modality: Degraded(draws_of(trial, self.settings.seed), levels, moments)})

    def tables(self, rows: Sequence[Row]) -> list[Table]:
        """`attention`: r of the share by every measure of quality; `attention_measures`: the same read otherwise."""
        columns = {f"r, {words}": _reader(source, "share") for source, words in SOURCES.items()}
        columns["Shift"] = lambda row: row.over(lambda m: float(np.mean(list(m.values["shift"].values()))))
        columns["|r| by chance"] = _reader("noise", "share", "null")
        note = (
            "Pearson's r over test samples of a modality's share of the attention with its quality against the other "
            "modalities', mean over modalities where there are more than two. Added noise: of level 0, 0.25, 0.5 or "
            "1 in one modality at a time. Probes: the probability its own logits give to the right class. Shift: "
            "what a modality's share gains when its input is replaced by noise (attention that follows quality "
            "loses). By chance: what 95 % of random orders of the qualities stay below, for added noise"
        )
        shown_columns = {name: read for name, read in columns.items() if any(read(row) is not None for row in rows)}
        return [table_of(self.name, self.title, rows, shown_columns, note), self._measures(rows)]

    def _measures(self, rows: Sequence[Row]) -> Table:
        """Every correlation with its own trial's interval in the file of values; means over trials to read."""
        sections, values = [], []
        for group in by_dataset(rows):
            texts = []
            for row in group:
                for source in (s for s in SOURCES if _has(row, s)):
                    for m in row.measurements[0].values[source]["share"]:
                        at = {measure: row.interval(source, measure, m, "r") for measure in MEASURES}
                        rank = row.interval(source, "share", m, "spearman")
                        texts.append(
                            {
                                "Method": row.label,
                                "Against": f"{SOURCES[source]}, {m}",
                                "Share": written(at["share"], 3),
                                "Log ratio": written(at["log_ratio"], 3),
                                "Cosine": written(at["cosine"], 3),
                                "Spearman": number(rank.mean, 3),
                                **trainings(row),
                            }
                        )
            values += [one for row in group for one in _single(row)]
            note = (
                "Pearson's r of quality with the share of the attention, with the log of attention over what uniform "
                "attention would give, and with the cosine of query and mean key; Spearman's rho of the share"
            )
            sections.append(section(group, texts, note))
        return Table(f"{self.name}_measures", f"{self.title}: other readings", tuple(sections), pd.DataFrame(values))

    def figures(self, rows: Sequence[Row]) -> dict[str, str]:
        """One figure per data set: the share under noise by level, and by quality where nothing is disturbed."""
        return {f"-{slug(group[0])}": _figure(group) for group in by_dataset(rows)}


def levels_of(ids: np.ndarray, modality: str, seed: int) -> np.ndarray:
    """A level for every sample, a function of (seed, sample id, modality) alone."""
    return np.array([LEVELS[streams.derive("level", seed, modality, str(name)) % len(LEVELS)] for name in ids])


def look(trial: LoadedTrial, condition: Condition) -> Seen:
    """What the last attention of a trial makes of test under a condition."""
    name, site = list(trial.model.fusion.sites().items())[-1]
    with shown({name: site}) as samples:
        evaluation = trial.evaluate("test", {0: condition})[0]
    mass = {m: x.astype(np.float64) for m, x in evaluation.mass.items()}
    total = np.sum(list(mass.values()), axis=0)
    base = {m: np.concatenate([s.base_rate[m].double().cpu().numpy() for s in samples[name]]) for m in mass}
    tiny = np.finfo(np.float32).tiny
    return Seen(
        evaluation=evaluation,
        share={m: x / np.maximum(total, tiny) for m, x in mass.items()},
        log_ratio=contrast({m: np.log(np.maximum(x, tiny) / np.maximum(base[m], tiny)) for m, x in mass.items()}),
        cosine=contrast(geometry(site, samples[name]).cosines),
    )


def correlations(better: Mapping[str, np.ndarray], seen: Sequence[Seen], draws: GroupDraws) -> dict[str, Any]:
    """Every measure's correlation with quality, by modality; of two modalities the second mirrors the first."""
    names = list(better) if len(better) > 2 else list(better)[:1]
    return {
        measure: {
            m: asdict(correlate(np.concatenate([getattr(s, measure)[m] for s in seen]), better[m], draws))
            for m in names
        }
        for measure in MEASURES
    }


def shift(clean: Seen, degraded: Seen, levels: np.ndarray, modality: str) -> float:
    """The mean change of a modality's share where its input was replaced by noise; 0 if that happened nowhere."""
    replaced = levels == 1
    moved = degraded.share[modality][replaced] - clean.share[modality][replaced]
    return float(moved.mean()) if len(moved) else 0.0


def binned(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Means of x and y over ten groups of as many samples, in the order of x [2, 10]; fewer where samples are few."""
    parts = [part for part in np.array_split(np.argsort(x, kind="stable"), _BINS) if len(part)]
    return np.array([[values[part].mean() for part in parts] for values in (x, y)])


def _has(row: Row, source: str) -> bool:
    return bool(row.measurements) and all(source in m.values for m in row.measurements)


def _reader(source: str, measure: str, part: str = "r") -> Callable[[Row], Interval | None]:
    def read(row: Row) -> Interval | None:
        if not _has(row, source):
            return None
        return row.over(lambda m: float(np.mean([each[part] for each in m.values[source][measure].values()])))

    return read


def _single(row: Row) -> list[dict[str, Any]]:
    return [
        {**row.identity(), "trial": a.trial, "seed": a.seed, "fold": a.fold, "quality": s, "measure": k, "modality": m}
        | dict(a.measured.values[s][k][m])
        for a in row.answers
        for s in SOURCES
        if s in a.measured.values
        for k in MEASURES
        for m in a.measured.values[s][k]
    ]


def _figure(group: Sequence[Row]) -> str:
    import matplotlib
    from matplotlib.figure import Figure

    from bench.report.figures import COLOURS, INK, STYLE, plain, svg

    source = "truth" if all(_has(row, "truth") for row in group) else "probe"
    modalities = group[0].modalities
    styles = ("-", "--", ":", "-.", (0, (1, 3)))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 3.2), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        for k, row in enumerate(group):
            colour = COLOURS[k % len(COLOURS)]
            for m, style in zip(modalities, styles, strict=False):
                each = [a.arrays[f"levels/{m}"] for a in row.measurements if f"levels/{m}" in a.arrays]
                if each:
                    left.plot(LEVELS, np.nanmean(each, axis=0), "o", linestyle=style, color=colour, markersize=3)
            if _has(row, source):
                x, y = np.mean([a.arrays[f"bins/{source}"] for a in row.measurements], axis=0)
                right.plot(x, y, "o-", color=colour, markersize=3, label=plain(row.label))
            else:
                right.plot([], [], "o-", color=colour, markersize=3, label=plain(row.label))
        names = ("solid", "dashed", "dotted", "dash-dotted", "sparse")
        told = ", ".join(f"{m} {style}" for m, style in zip(modalities, names, strict=False))
        left.set_title(f"Share of the noisy modality ({told})", fontsize=8)
        left.set_xlabel("level of the noise in it")
        right.set_title(f"Share of {modalities[0]}, nothing disturbed, by tenths of the samples", fontsize=8)
        right.set_xlabel(f"{SOURCES[source]} of {modalities[0]} against the rest")
        for axes in (left, right):
            axes.set_ylim(0, 1)
            axes.grid(color=INK, alpha=0.15)
        figure.legend(loc="outside lower center", ncols=3, frameon=False)
        return svg(figure, f"attention-{slug(group[0])}")
