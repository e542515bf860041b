"""Whether a model is less sure of what it was not trained for: detection of samples out of distribution."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
import torch

from bench import api, names, streams
from bench.analysis.attended import observed
from bench.analysis.changes import Noise, draws_of
from bench.analysis.contract import Analysis, Measurement, Row, by_dataset
from bench.analysis.detection import confidence, separation
from bench.analysis.layout import flat, section, shown, slug, trainings
from bench.analysis.loaded import LoadedTrial, chunks
from bench.api import Inputs, TaskSpec, setting
from bench.data.prepared import Prepared, find
from bench.data.reader import Reader
from bench.data.splits import split_positions
from bench.errors import RequestError
from bench.plan import TrialSpec
from bench.report.layout import Table, number
from bench.stats import Interval

ATTENTION = "attention_entropy"
WORDS = {
    "msp": "Probability",
    "max_logit": "Max logit",
    "energy": "Energy",
    "entropy": "Entropy",
    ATTENTION: "Attention entropy",
}
_METRICS = ("auroc", "aupr_in", "aupr_out", "fpr95")


class UnfitError(RequestError):
    """A data set cannot stand outside the one that a trial was trained on."""


class OutOfDistribution(Analysis):
    """How well a score tells test samples from others that the model was not trained for.

    Always: one modality replaced by noise, and pairs of samples of different classes (the first modality of one, the
    others of another). By setting: `far`, the test part of another data set with inputs of the same shapes; `near`,
    those samples of such a data set whose class the model never had, such as `planted:classes=10` for a model
    trained on `planted:classes=8`. No such sample has a part in any choice. `null` is one half of test against the
    other: there is nothing to detect.
    """

    name = "ood"
    title = "Detection of samples out of distribution"
    paper = "RollingQ, ICML 2025, appendix (OOD detection); the protocol is ours"

    @dataclass(frozen=True)
    class Settings(api.Settings):
        near: str = setting("", help="a prepared data set with further classes, the first ones as in training")
        far: str = setting("", help="another prepared data set with inputs of the same shapes")
        seed: int = setting(0, low=0, help="of noise, pairs and halves")

    settings: Settings

    def skips(self, spec: TrialSpec, task: TaskSpec) -> str | None:
        """The scores are made of class probabilities."""
        return None if task.kind == "classes" else "regression has no class probabilities"

    def measure(self, trial: LoadedTrial) -> Measurement:
        """`kinds/<kind>/<score>/<metric>`; the scores of every sample as arrays `<kind>/<score>`, of test as `test`."""
        found = {"test": certainty(trial, (inputs for _, inputs in trial.batches("test")))}
        for m in trial.modalities:
            found[f"noise in {m}"] = certainty(trial, self._noisy(trial, m))
        if len(trial.modalities) > 1:
            found["mismatched pairs"] = certainty(trial, self._mismatched(trial))
        unfit: dict[str, str] = {}
        for kind, text in (("near", self.settings.near), ("far", self.settings.far)):
            if text:
                try:
                    found[kind] = certainty(trial, elsewhere(trial, text, further_classes=kind == "near"))
                except UnfitError as error:
                    unfit[kind] = str(error)
        known = found["test"]
        others = {kind: scores for kind, scores in found.items() if kind != "test"}
        values = {
            kind: {score: asdict(separation(known[score], scores[score])) for score in scores}
            for kind, scores in others.items()
        }
        # Halves of its own for every trial: an interval over trials would else be one about a single draw.
        order = streams.permutation(len(known["msp"]), self.settings.seed, trial.spec.seed, "halves")
        first, second = np.array_split(order, 2)
        values["null"] = {score: asdict(separation(x[first], x[second])) for score, x in known.items()}
        arrays = {f"{kind}/{score}": x for kind, scores in found.items() for score, x in scores.items()}
        return Measurement({"kinds": values, "unfit": unfit}, arrays)

    def _noisy(self, trial: LoadedTrial, modality: str) -> Iterator[Inputs]:
        noise = Noise.of(draws_of(trial, self.settings.seed), "mix", 1.0, trial.material.moments(modality))
        for positions, inputs in trial.batches("test"):
            changed = noise(modality, inputs.values[modality], positions)
            yield Inputs({**inputs.values, modality: changed}, inputs.masks)

    def _mismatched(self, trial: LoadedTrial) -> Iterator[Inputs]:
        test = trial.positions["test"]
        other = partners(trial.truth.targets["test"], self.settings.seed)
        partner = dict(zip(test.tolist(), test[other].tolist(), strict=True))
        first = trial.modalities[0]
        for positions, inputs in trial.batches("test"):
            strange = trial.reader.inputs(np.array([partner[p] for p in positions.tolist()]))
            masks = {m: inputs.masks[m] if m == first else mask for m, mask in strange.masks.items()}
            yield Inputs({**strange.values, first: inputs.values[first]}, masks)

    def tables(self, rows: Sequence[Row]) -> list[Table]:
        """A section per data set and kind: AUROC of every score, and the rest for the probability."""
        sections, values = [], []
        for group in by_dataset(rows):
            left_out = dict.fromkeys(x for row in group for m in row.measurements for x in m.values["unfit"].values())
            notes = [f"Left out: {reason}." for reason in left_out]
            for kind in _kinds(group):
                having = [row for row in group if _has(row, kind)]
                texts = []
                for row in having:
                    scores = [s for s in WORDS if all(s in m.values["kinds"][kind] for m in row.measurements)]
                    texts.append(
                        {
                            "Method": row.label,
                            **{
                                w: shown(_at(row, kind, s, "auroc") if s in scores else None, 3)
                                for s, w in WORDS.items()
                            },
                            "FPR@95": number(_at(row, kind, "msp", "fpr95").mean, 3),
                            "AUPR in": number(_at(row, kind, "msp", "aupr_in").mean, 3),
                            "AUPR out": number(_at(row, kind, "msp", "aupr_out").mean, 3),
                            **trainings(row),
                        }
                    )
                    values += [
                        {**row.identity(), "kind": kind, "score": s}
                        | flat({metric: _at(row, kind, s, metric) for metric in _METRICS})
                        for s in scores
                    ]
                sections.append(
                    section(having, texts, self._caption(kind), _words(kind), notes if kind == "null" else ())
                )
        return [Table(self.name, self.title, tuple(sections), pd.DataFrame(values))]

    def _caption(self, kind: str) -> str:
        others = {
            "null": "one half of test against the other: 0.5 but for chance",
            "near": f"test against classes of {self.settings.near} that training never had",
            "far": f"test against the test part of {self.settings.far}",
            "mismatched pairs": "test against pairs of samples of different classes",
        }
        what = others.get(kind, f"test against the same samples with {kind}, nothing of it left")
        return f"AUROC, {what}; FPR@95 and AUPR of the largest probability"

    def figures(self, rows: Sequence[Row]) -> dict[str, str]:
        """AUROC of the largest probability by kind, one figure per data set."""
        return {f"-{slug(group[0])}": _figure(group) for group in by_dataset(rows)}


def certainty(trial: LoadedTrial, batches: Iterator[Inputs]) -> dict[str, np.ndarray]:
    """How sure a trial is of every sample, by score [sample]; with attention also how peaked it is (last site)."""
    logits, entropies = [], []
    for inputs in batches:
        with trial.quiet(), observed(trial.model.fusion) as seen:
            logits.append(trial.model.fuse(trial.encode(inputs)).logits.float().cpu())
        entropies += [list(seen.values())[-1].entropy.double().cpu()] if seen else []
    found = confidence(torch.cat(logits).numpy())
    return found | ({ATTENTION: -torch.cat(entropies).numpy()} if entropies else {})


def partners(target: np.ndarray, seed: int) -> np.ndarray:
    """For every sample the index of one of another class, drawn evenly; ValueError where there is one class only."""
    rng = np.random.default_rng(streams.derive("partners", seed))
    found = np.empty(len(target), dtype=np.int64)
    for one in np.unique(target):
        mine = target == one
        others = np.flatnonzero(~mine)
        if len(others) == 0:
            raise ValueError("mismatched pairs need two classes")
        found[mine] = rng.choice(others, int(mine.sum()))
    return found


def elsewhere(trial: LoadedTrial, text: str, further_classes: bool) -> Iterator[Inputs]:
    """Inputs of the test part of another data set; only of classes beyond those of the trial if asked for.

    Raises UnfitError where its inputs have other shapes or nothing is left, RequestError where it is not prepared.
    """
    prepared, reader = _opened(trial, text)
    for m in trial.modalities:
        theirs, ours = prepared.spec.modalities.get(m), trial.data.modalities[m]
        if theirs is None or (theirs.shape, theirs.masked) != (ours.shape, ours.masked):
            found = "is not there" if theirs is None else f"has the shape {list(theirs.shape)}"
            raise UnfitError(f"{m} of {text} {found}; it must be as in training, {list(ours.shape)}")
    positions = split_positions(prepared.index)["test"]
    if further_classes:
        positions = positions[prepared.targets()[positions] >= trial.task.num_outputs]
    if len(positions) < 2:
        beyond = f" of a class beyond the {trial.task.num_outputs} of training" if further_classes else ""
        raise UnfitError(f"{text} has {len(positions)} test samples{beyond}; at least 2 are needed")
    for chunk in chunks(positions, trial.spec.recipe.eval_batch_size):
        yield reader.inputs(chunk)


def _opened(trial: LoadedTrial, text: str) -> tuple[Prepared, Reader]:
    part, dataset = names.resolve_dataset(text)
    folder = trial.material.prepared.folder.parent
    prepared = find(part.name, dataset, part.code, folder, folder)
    if prepared is None:
        raise RequestError(f"ood: {text} is not prepared in {folder}; `bench data prepare {text}` does it")
    known = tuple(m for m in trial.modalities if m in prepared.spec.modalities)
    return prepared, Reader(prepared, dataset, known, trial.device)


def _kinds(group: Sequence[Row]) -> list[str]:
    """In order of first appearance, the one with nothing to detect last."""
    found = dict.fromkeys(kind for row in group for m in row.measurements for kind in m.values["kinds"])
    return sorted(found, key=lambda kind: kind == "null")


def _at(row: Row, kind: str, score: str, metric: str) -> Interval:
    return row.interval("kinds", kind, score, metric)


def _has(row: Row, kind: str) -> bool:
    return all(kind in m.values["kinds"] for m in row.measurements)


def _words(kind: str) -> str:
    return {"null": "nothing to detect", "near": "held-out classes", "far": "another data set"}.get(kind, kind)


def _figure(group: Sequence[Row]) -> str:
    import matplotlib
    from matplotlib.figure import Figure

    from bench.report.figures import COLOURS, INK, STYLE, plain, svg

    kinds = _kinds(group)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 0.9 + 0.16 * len(kinds) * (len(group) + 1)), layout="constrained")
        axes = figure.subplots()
        height = 0.8 / len(group)
        for k, row in enumerate(group):
            colour = COLOURS[k % len(COLOURS)]
            for place, kind in enumerate(kinds):
                if _has(row, kind):
                    mean, low, high = _at(row, kind, "msp", "auroc")
                    at = place + (k - (len(group) - 1) / 2) * height
                    axes.plot([mean], [at], "o", color=colour, markersize=4)
                    if low is not None and high is not None:
                        axes.plot([low, high], [at, at], "-", color=colour, alpha=0.6)
            axes.plot([], [], "o-", color=colour, markersize=4, label=plain(row.label))
        axes.axvline(0.5, color=INK, alpha=0.4, linewidth=0.8)
        axes.set_yticks(range(len(kinds)), [_words(kind) for kind in kinds])
        axes.set_ylim(len(kinds) - 0.5, -0.5)
        axes.set_xlabel("AUROC of the largest probability: mean, 95 % interval; 0.5 is chance")
        axes.grid(axis="x", color=INK, alpha=0.15)
        figure.legend(loc="outside lower center", ncols=3, frameon=False)
        return svg(figure, f"ood-{slug(group[0])}")
