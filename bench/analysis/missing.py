"""How much a model loses when a whole modality is missing at test, depending on what stands in for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from bench import api
from bench.analysis.changes import FILLS, Fill, draws_of, filling
from bench.analysis.contract import Analysis, Measurement, Row, by_dataset
from bench.analysis.layout import flat, metric_of, section, shown, trainings
from bench.analysis.loaded import CLEAN, Condition, LoadedTrial
from bench.api import TaskSpec, setting
from bench.plan import TrialSpec
from bench.report.layout import Table, number
from bench.scoring import MAXIMISED
from bench.stats import Interval

_WORDS: Mapping[Fill, str] = {"zero": "zeros", "mean": "mean of train", "noise": "noise"}


class Missing(Analysis):
    """One modality's inputs replaced for every test sample: by zeros, by the mean train sample, by noise like train."""

    name = "missing"
    title = "Missing modality at test"

    @dataclass(frozen=True)
    class Settings(api.Settings):
        seed: int = setting(0, low=0, help="of the noise")

    settings: Settings

    def skips(self, spec: TrialSpec, task: TaskSpec) -> str | None:
        """Without its only modality a model has nothing left."""
        return None if len(task.modalities) > 1 else "it reads one modality"

    def measure(self, trial: LoadedTrial) -> Measurement:
        """`clean` and `missing/<modality>/<fill>`: the metric of record on test."""
        draws = draws_of(trial, self.settings.seed)
        conditions: dict[tuple[str, str], Condition] = {
            (m, fill): Condition(inputs={m: filling(fill, m, trial.material, draws)})
            for m in trial.modalities
            for fill in FILLS
        }
        found = trial.evaluate("test", {("", ""): CLEAN, **conditions})
        scores = {key: trial.score(evaluation.logits) for key, evaluation in found.items()}
        missing = {m: {fill: scores[m, fill] for fill in FILLS} for m in trial.modalities}
        return Measurement({"clean": scores["", ""], "missing": missing})

    def tables(self, rows: Sequence[Row]) -> list[Table]:
        """A section per data set and missing modality."""
        sections, values = [], []
        for group in by_dataset(rows):
            heading, scale, digits = metric_of(group[0])
            for m in group[0].modalities:
                having = [row for row in group if all(m in x.values["missing"] for x in row.measurements)]
                texts = []
                for row in having:
                    clean = row.interval("clean", scale=scale)
                    each = {fill: self._read(row, m, fill, scale) for fill in FILLS}
                    text = {"Method": row.label, f"{heading} clean": number(clean.mean, digits)}
                    for fill, found in each.items():
                        text[_WORDS[fill]] = number(found["score"].mean, digits)
                        text[f"drop, {_WORDS[fill]}"] = shown(found["drop"], digits)
                        values.append({**row.identity(), "missing": m, "fill": fill, **flat({"clean": clean, **found})})
                    texts.append({**text, **trainings(row)})
                if texts:
                    caption = (
                        f"Inputs of {m} replaced for every sample. Drop: clean minus replaced, paired in each trial"
                    )
                    sections.append(section(group, texts, caption, f"without {m}"))
        return [Table(self.name, self.title, tuple(sections), pd.DataFrame(values))]

    def _read(self, row: Row, modality: str, fill: Fill, scale: float) -> dict[str, Interval]:
        sign = 1 if MAXIMISED[row.metric] else -1
        return {
            "score": row.interval("missing", modality, fill, scale=scale),
            "drop": row.over(lambda m: sign * scale * (m.at("clean") - m.at("missing", modality, fill))),
        }
