"""Where keys lie around the query, and how AIR and attention went over the epochs: the picture behind RollingQ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from bench.analysis.contract import Analysis, Answer, Measurement, Row, by_dataset, provides
from bench.analysis.geometry import Geometry, angles, geometry, imbalance_after
from bench.analysis.geometry import shown as showing
from bench.analysis.layout import flat, section, shown, slug, trainings
from bench.analysis.loaded import LoadedTrial
from bench.api import Capability, TaskSpec, attention_imbalance
from bench.plan import TrialSpec
from bench.report.layout import Table, number
from bench.stats import Interval

_POINTS = 250
"""Drawn per modality, evenly from the test samples in order."""


class KeyGeometry(Analysis):
    """Angles and lengths of every test sample's mean keys around the query of each attention site."""

    name = "keys"
    title = "Key geometry"
    paper = "RollingQ, ICML 2025, the distribution of keys around the query"

    def skips(self, spec: TrialSpec, task: TaskSpec) -> str | None:
        """Only a query over several modalities has keys to choose between."""
        if Capability.ATTENTION_SITE not in provides(spec):
            return "no attention in which modalities compete"
        return "one modality alone has nothing to compete with" if len(task.modalities) < 2 else None

    def measure(self, trial: LoadedTrial) -> Measurement:
        """By site: AIR and the geometry of the mean keys on test; cosines and norms of every sample as arrays."""
        sites = trial.model.fusion.sites()
        with showing(sites) as samples:
            for _, inputs in trial.batches("test"):
                with trial.quiet():
                    trial.model.fuse(trial.encode(inputs))
        found = {name: geometry(site, samples[name]) for name, site in sites.items() if samples[name]}
        arrays: dict[str, np.ndarray] = {}
        for name, seen in found.items():
            arrays |= {f"{name}/cosine/{m}": x.astype(np.float32) for m, x in seen.cosines.items()}
            arrays |= {f"{name}/radius/{m}": x.astype(np.float32) for m, x in seen.radii.items()}
        return Measurement({name: _values(seen) for name, seen in found.items()}, arrays)

    def tables(self, rows: Sequence[Row]) -> list[Table]:
        """`keys`: the geometry at the stored epoch; `keys_rotations`: what every rotation was to do, and did."""
        sections, values = [], []
        for group in by_dataset(rows):
            texts = []
            for row in group:
                for site in row.measurements[0].values:
                    each = {name: _read(row, site, key) for name, key in _COLUMNS.items()}
                    cosines = {f"cos {m}": row.interval(site, "cosine", m) for m in _modalities(row, site)}
                    texts.append(
                        {
                            "Method": row.label,
                            "Site": site,
                            **{name: shown(x, 3) for name, x in each.items()},
                            **{name: number(x.mean, 3) for name, x in cosines.items()},
                            **trainings(row),
                        }
                    )
                    values.append({**row.identity(), "site": site, **flat({**each, **cosines})})
            note = (
                "On test. AIR: difference (range, for more than two) of the mean cosines of query and mean keys. "
                "Key cosine: of the modalities' mean keys over all samples. Distance: of the same, in pooled "
                "standard deviations. Turned: degrees by which rotations moved the query"
            )
            sections.append(section(group, [{k: t.get(k, "") for k in _columns(texts)} for t in texts], note))
        made = [Table(self.name, self.title, tuple(sections), pd.DataFrame(values))]
        return made + ([_rotations(rows)] if any(True for _ in _events(rows)) else [])

    def figures(self, rows: Sequence[Row]) -> dict[str, str]:
        """Per data set: the keys around the query, histograms of their cosines, and the course over epochs."""
        made = {}
        for group in by_dataset(rows):
            made[f"_polar-{slug(group[0])}"] = _polar(group)
            made[f"_cosines-{slug(group[0])}"] = _histograms(group)
            made[f"_epochs-{slug(group[0])}"] = _course(group)
        return made


_COLUMNS = {
    "AIR": "air",
    "Key cosine": "key_cosine",
    "Distance": "distance",
    "Query norm": "query_norm",
    "Turned": "turned",
}


def _values(seen: Geometry) -> dict[str, Any]:
    return {
        "air": attention_imbalance(seen.means),
        "key_cosine": seen.key_cosine,
        "distance": seen.distance,
        "query_norm": seen.query_norm,
        "turned": seen.turned,
        "cosine": seen.means,
        "radius": {m: float(x.mean()) for m, x in seen.radii.items()},
        "ray_cosine": dict(seen.ray_cosines),
        "ray_radius": dict(seen.ray_radii),
    }


def _read(row: Row, site: str, key: str) -> Interval | None:
    return row.interval(site, key) if all(m.has(site, key) for m in row.measurements) else None


def _modalities(row: Row, site: str) -> list[str]:
    return list(row.measurements[0].values[site]["cosine"])


def _columns(texts: Sequence[Mapping[str, str]]) -> list[str]:
    """All columns of lines that need not have the same ones, the number of trials last."""
    return [*dict.fromkeys(name for text in texts for name in text if name != "Trials"), "Trials"]


def _events(rows: Sequence[Row]) -> Iterator[tuple[Row, Answer, str, int, float, float | None, float]]:
    """Every rotation of the stored epochs: row, trial, site, epoch, AIR before, predicted (for two), next epoch's."""
    for row in rows:
        for answer in row.answers:
            for now, following in zip(answer.epochs, answer.epochs[1:], strict=False):
                for action in now["actions"]:
                    if action["kind"] != "rotate":
                        continue
                    site = action["values"]["site"]
                    record = now["sites"][site]
                    before = attention_imbalance(record["cosines"])
                    predicted = None
                    if len(record["cosines"]) == 2 and action["values"]["air"] == "dataset":
                        predicted = imbalance_after(before, record["key_cosine"], action["values"]["rho"])
                    after = attention_imbalance(following["sites"][site]["cosines"])
                    yield row, answer, site, int(now["epoch"]), before, predicted, after


def _rotations(rows: Sequence[Row]) -> Table:
    sections, values = [], []
    for group in by_dataset(rows):
        texts = []
        for row, answer, site, epoch, before, predicted, after in _events(group):
            texts.append(
                {
                    "Method": row.label,
                    "Site": site,
                    "Seed": str(answer.seed),
                    "Epoch": str(epoch),
                    "AIR before": number(before, 3, sign=True),
                    "Predicted": number(predicted, 3, sign=True),
                    "After the next epoch": number(after, 3, sign=True),
                }
            )
            where = {"trial": answer.trial, "seed": answer.seed, "fold": answer.fold, "site": site, "epoch": epoch}
            values.append({**row.identity(), **where, "before": before, "predicted": predicted, "after": after})
        if texts:
            note = (
                "AIR on the fixed part of train, before a rotation and after the epoch that followed it. Predicted: "
                "right after the rotation, -tanh(rho AIR) (1 - gamma) / N, exact where samples' mean keys agree"
            )
            sections.append(section(group, texts, note))
    return Table("keys_rotations", "Rotations", tuple(sections), pd.DataFrame(values))


def _first(row: Row) -> tuple[Answer, str]:
    """The trial and the site that are drawn: the first trial, the last site."""
    return row.answers[0], list(row.answers[0].measured.values)[-1]


def _title(row: Row) -> str:
    answer, site = _first(row)
    more = f", {site}" if len(answer.measured.values) > 1 else ""
    return f"{row.label}, seed {answer.seed}{more}"


def _polar(group: Sequence[Row]) -> str:
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    from bench.report.figures import COLOURS, INK, STYLE, plain, svg

    columns = min(2, len(group))
    lines = -(-len(group) // columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.6 * columns, 2.2 * lines + 0.5), layout="constrained")
        panels = figure.subplots(lines, columns, squeeze=False, subplot_kw={"projection": "polar"})
        modalities: dict[str, str] = {}
        for axes, row in zip(panels.flat, group, strict=False):
            answer, site = _first(row)
            arrays, values = answer.measured.arrays, answer.measured.values[site]
            for m in values["cosine"]:
                modalities.setdefault(m, COLOURS[len(modalities) % len(COLOURS)])
                theta = np.radians(angles(arrays[f"{site}/cosine/{m}"].astype(np.float64)))
                radius = arrays[f"{site}/radius/{m}"]
                some = np.unique(np.linspace(0, len(theta) - 1, min(_POINTS, len(theta))).astype(int))
                axes.plot(theta[some], radius[some], ".", color=modalities[m], markersize=2, alpha=0.5)
                ray = np.radians(angles(np.array([values["ray_cosine"][m]])))[0]
                axes.plot([ray, ray], [0, values["ray_radius"][m]], "-", color=modalities[m], linewidth=2)
            axes.plot([0, 0], [0, values["query_norm"]], "-", color=INK, linewidth=3, clip_on=False)
            if values["turned"] > 0.5:
                before = np.radians(values["turned"])
                axes.plot([before, before], [0, values["query_norm"]], "--", color=INK, linewidth=1)
            axes.set_thetalim(0, np.pi)
            axes.set_thetagrids(range(0, 181, 30))
            axes.yaxis.set_major_locator(MaxNLocator(4))
            axes.tick_params(labelsize=7)
            axes.grid(color=INK, alpha=0.15)
            axes.set_title(plain(_title(row)), fontsize=8)
        for axes in panels.flat[len(group) :]:
            axes.set_visible(False)
        for m, colour in modalities.items():
            panels[0][0].plot([], [], "-", color=colour, label=f"mean keys of {m}")
        panels[0][0].plot([], [], "-", color=INK, label="query, at 0 degrees")
        panels[0][0].plot([], [], "--", color=INK, label="before its rotations")
        figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=8)
        return svg(figure, f"keys-polar-{slug(group[0])}")


def _histograms(group: Sequence[Row]) -> str:
    import matplotlib
    from matplotlib.figure import Figure

    from bench.report.figures import COLOURS, STYLE, plain, svg

    columns = min(2, len(group))
    lines = -(-len(group) // columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.6 * columns, 1.6 * lines + 0.5), layout="constrained")
        panels = figure.subplots(lines, columns, squeeze=False, sharex=True)
        modalities: dict[str, str] = {}
        for axes, row in zip(panels.flat, group, strict=False):
            answer, site = _first(row)
            for m in answer.measured.values[site]["cosine"]:
                modalities.setdefault(m, COLOURS[len(modalities) % len(COLOURS)])
                cosines = answer.measured.arrays[f"{site}/cosine/{m}"]
                axes.hist(cosines, bins=np.linspace(-1, 1, 61), color=modalities[m], alpha=0.6)
            axes.set_title(plain(_title(row)), fontsize=8)
            axes.set_yticks([])
            axes.set_xticks([-1, -0.5, 0, 0.5, 1])
        for axes in panels.flat[len(group) :]:
            axes.set_visible(False)
        for axes in panels[-1]:
            axes.set_xlabel("cos(query, mean key)")
        for m, colour in modalities.items():
            panels[0][0].plot([], [], "-", linewidth=5, alpha=0.6, color=colour, label=m)
        figure.legend(loc="outside lower center", ncols=4, frameon=False)
        return svg(figure, f"keys-cosines-{slug(group[0])}")


def _course(group: Sequence[Row]) -> str:
    import matplotlib
    from matplotlib.figure import Figure

    from bench.report.figures import COLOURS, INK, STYLE, plain, svg

    styles, names = ("-", "--", ":", "-.", (0, (1, 3))), ("solid", "dashed", "dotted", "dash-dotted", "sparse")
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 3.0), layout="constrained")
        air, mass = figure.subplots(1, 2)
        modalities: list[str] = []
        for k, row in enumerate(group):
            colour = COLOURS[k % len(COLOURS)]
            site = _first(row)[1]
            courses = [[epoch["sites"][site] for epoch in answer.epochs] for answer in row.answers]
            each = [[attention_imbalance(record["cosines"]) for record in course] for course in courses]
            for one in each:
                air.plot(one, color=colour, linewidth=0.8, alpha=0.35)
            air.plot(np.mean(each, axis=0), color=colour, linewidth=1.6, label=plain(row.label))
            modalities = list(courses[0][0]["mass"])
            for m, style in zip(modalities, styles, strict=False):
                shares = [[record["mass"][m] for record in course] for course in courses]
                mass.plot(np.mean(shares, axis=0), color=colour, linestyle=style, linewidth=1.4)
            for answer in row.answers:
                for epoch in answer.epochs:
                    if any(a["kind"] == "rotate" and a["values"]["site"] == site for a in epoch["actions"]):
                        at = attention_imbalance(epoch["sites"][site]["cosines"])
                        air.plot([epoch["epoch"]], [at], "o", color=colour, markersize=4)
        air.axhline(0, color=INK, alpha=0.3, linewidth=0.8)
        air.set_title("AIR: mean and single trainings; dots: rotations", fontsize=8)
        told = ", ".join(f"{m} {style}" for m, style in zip(modalities, names, strict=False))
        mass.set_title(f"Attention mass ({told})", fontsize=8)
        mass.set_ylim(0, 1)
        for axes in (air, mass):
            axes.set_xlabel("epoch")
            axes.grid(color=INK, alpha=0.15)
        figure.legend(loc="outside lower center", ncols=3, frameon=False)
        return svg(figure, f"keys-epochs-{slug(group[0])}")
