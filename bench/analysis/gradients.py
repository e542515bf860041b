"""Which branch the gradient of the loss reaches, and whether through the values or through the keys."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from bench import api, streams
from bench.analysis.branches import SiteNorms, gradients
from bench.analysis.contract import Analysis, Measurement, Row, by_dataset
from bench.analysis.layout import flat, section, shown, slug, trainings
from bench.analysis.loaded import LoadedTrial, chunks
from bench.api import Batch, Inputs, TaskSpec, setting
from bench.plan import TrialSpec
from bench.report.layout import Table, number
from bench.stats import Interval


class BranchGradients(Analysis):
    """Norms of the joint loss's gradient, on a fixed part of train in evaluation mode, in float64.

    By modality: of every sample's tokens where they enter the fusion, of the branch's parameters for the mean loss,
    and at a class-token attention the parts through the values and through the keys, by the closed form, which is
    held against autograd in the same pass (`error`).
    """

    name = "gradients"
    title = "Gradients by branch"
    paper = "RollingQ, ICML 2025, the gradient of attention with respect to its tokens"

    @dataclass(frozen=True)
    class Settings(api.Settings):
        samples: int = setting(512, low=2, help="of train, drawn from the trial's seed")

    settings: Settings

    def skips(self, spec: TrialSpec, task: TaskSpec) -> str | None:
        """Branches are compared."""
        return "one modality alone has no other branch" if len(task.modalities) < 2 else None

    def measure(self, trial: LoadedTrial) -> Measurement:
        """`tokens`, `share`, `parameters` by modality, and per site `value`, `key`, `mass` by modality."""
        model = copy.deepcopy(trial.model).double()
        train = trial.positions["train"]
        order = streams.permutation(len(train), trial.spec.seed, "gradients")[: self.settings.samples]
        positions = train[np.sort(order)]
        tokens: dict[str, list[Tensor]] = {m: [] for m in trial.modalities}
        parameters: dict[str, list[Tensor]] = {}
        sites: dict[str, list[SiteNorms]] = {}
        errors: list[float] = []
        for chunk in chunks(positions, trial.spec.recipe.batch_size):
            batch = self._batch(trial, chunk)
            with streams.seeded(trial.spec.seed, "analysis"):
                found = gradients(model, batch)
            for m, norm in found.tokens.items():
                tokens[m].append(norm)
            for m, grads in found.parameters.items():
                old = parameters.get(m)
                parameters[m] = grads if old is None else [a + b for a, b in zip(old, grads, strict=True)]
            for name, norms in found.sites.items():
                sites.setdefault(name, []).append(norms)
            errors += [] if found.error is None else [found.error]
        each = {m: float(torch.cat(norms).mean()) for m, norms in tokens.items()}
        values: dict[str, Any] = {
            "tokens": each,
            "share": shares(each),
            "parameters": {m: _length(grads) / len(positions) for m, grads in parameters.items()},
            "sites": {name: _means(norms) for name, norms in sites.items()},
        }
        if errors:
            values["error"] = max(errors)
        arrays = {f"tokens/{m}": torch.cat(norms).cpu().numpy() for m, norms in tokens.items()}
        return Measurement(values, arrays)

    def _batch(self, trial: LoadedTrial, positions: np.ndarray) -> Batch:
        inputs = trial.reader.inputs(positions)
        doubled = {m: x.double() if x.is_floating_point() else x for m, x in inputs.values.items()}
        at = torch.from_numpy(np.searchsorted(trial.positions["train"], positions))
        targets = torch.from_numpy(trial.truth.targets["train"][at.numpy()]).to(trial.device)
        return Batch(Inputs(doubled, inputs.masks), targets, at)

    def tables(self, rows: Sequence[Row]) -> list[Table]:
        """`gradients`: norms by branch; `gradients_terms`: the parts through values and keys at every site."""
        return [self._branches(rows), *self._terms(rows)]

    def _branches(self, rows: Sequence[Row]) -> Table:
        sections, values = [], []
        for group in by_dataset(rows):
            texts = []
            for row in group:
                each: dict[str, Interval] = {}
                for m in row.measurements[0].values["tokens"]:
                    each[f"{m}, tokens"] = row.interval("tokens", m)
                    each[f"{m}, share"] = row.interval("share", m)
                    each[f"{m}, parameters"] = row.interval("parameters", m)
                shares_only = {name: shown(x, 3) for name, x in each.items() if name.endswith("share")}
                norms = {name: f"{x.mean:.3g}" for name, x in each.items() if not name.endswith("share")}
                texts.append({"Method": row.label, **shares_only, **norms, **trainings(row)})
                values.append({**row.identity(), **flat(each)})
            note = (
                f"On {self.settings.samples} samples of train at most, joint loss only. Tokens: mean over samples of "
                "the norm of the gradient where tokens enter the fusion; share: of the sum over modalities. "
                "Parameters: norm of the gradient of the mean loss over a branch"
            )
            names = list(dict.fromkeys(name for text in texts for name in text if name != "Trials"))
            sections.append(section(group, [{n: t.get(n, "") for n in [*names, "Trials"]} for t in texts], note))
        return Table(self.name, self.title, tuple(sections), pd.DataFrame(values))

    def _terms(self, rows: Sequence[Row]) -> list[Table]:
        sections, values = [], []
        for group in by_dataset([row for row in rows if _sites(row)]):
            texts = []
            for row in group:
                for site in _sites(row):
                    for m in row.measurements[0].values["sites"][site]["value"]:
                        each = {part: row.interval("sites", site, part, m) for part in ("value", "key", "mass")}
                        texts.append(
                            {
                                "Method": row.label,
                                "Site": f"{site}, {m}",
                                "Through values": f"{each['value'].mean:.3g}",
                                "Through keys": f"{each['key'].mean:.3g}",
                                "Attention": number(each["mass"].mean, 3),
                                "Error": _largest_error(row),
                                **trainings(row),
                            }
                        )
                        values.append({**row.identity(), "site": site, "modality": m, **flat(each)})
            note = (
                "Mean over samples of the norm of both parts of the gradient at an attention, "
                "s_j W_V' g and s_j (g.(v_j - h)) W_K' r / sqrt(d); error: the largest difference of their sum "
                "from autograd, relative to the largest gradient"
            )
            sections.append(section(group, texts, note))
        if not sections:
            return []
        return [
            Table(f"{self.name}_terms", f"{self.title}: through values and keys", tuple(sections), pd.DataFrame(values))
        ]

    def figures(self, rows: Sequence[Row]) -> dict[str, str]:
        """Shares of the gradient by branch, one figure per data set."""
        return {f"-{slug(group[0])}": _figure(group) for group in by_dataset(rows)}


def shares(each: Mapping[str, float]) -> dict[str, float]:
    """Every value as a part of the sum; equal parts where all are 0."""
    total = sum(each.values())
    return {m: x / total if total > 0 else 1 / len(each) for m, x in each.items()}


def _length(grads: Sequence[Tensor]) -> float:
    return float(torch.stack([g.norm() for g in grads]).norm()) if grads else 0.0


def _means(norms: Sequence[SiteNorms]) -> dict[str, dict[str, float]]:
    parts = {"value": [n.value for n in norms], "key": [n.key for n in norms], "mass": [n.mass for n in norms]}
    return {
        part: {m: float(torch.cat([one[m] for one in each]).mean()) for m in each[0]} for part, each in parts.items()
    }


def _sites(row: Row) -> list[str]:
    return list(row.measurements[0].values["sites"]) if row.measurements else []


def _largest_error(row: Row) -> str:
    errors = [measured.at("error") for measured in row.measurements if measured.has("error")]
    return f"{max(errors):.0e}" if errors else ""  # there is none where no gradient arrives


def _figure(group: Sequence[Row]) -> str:
    import matplotlib
    from matplotlib.figure import Figure

    from bench.report.figures import COLOURS, INK, STYLE, plain, svg

    modalities = list(dict.fromkeys(m for row in group for m in row.measurements[0].values["share"]))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 0.9 + 0.3 * len(group)), layout="constrained")
        axes = figure.subplots()
        for place, row in enumerate(group):
            start = 0.0
            for k, m in enumerate(modalities):
                if m in row.measurements[0].values["share"]:
                    width = row.interval("share", m).mean
                    axes.barh(place, width, left=start, height=0.7, color=COLOURS[k], alpha=0.75)
                    start += width
        for k, m in enumerate(modalities):
            axes.plot([], [], "-", linewidth=6, alpha=0.75, color=COLOURS[k], label=m)
        axes.axvline(1 / len(modalities), color=INK, alpha=0.4, linewidth=0.8)
        axes.set_yticks(range(len(group)), [plain(row.label) for row in group])
        axes.set_ylim(len(group) - 0.5, -0.5)
        axes.set_xlim(0, 1)
        axes.set_xlabel("share of the gradient that reaches the tokens of a modality")
        figure.legend(loc="outside lower center", ncols=5, frameon=False)
        return svg(figure, f"gradients-{slug(group[0])}")
