"""What a study looks like: its history, what mattered, and how two settings share the plane, as SVG."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, combinations
from pathlib import Path
from typing import TYPE_CHECKING

from bench.scoring import MAXIMISED
from bench.store import Store, write_atomically
from bench.study.record import Study, TrialOfStudy
from bench.study.space import Axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PERCENT = ("accuracy", "macro_f1", "acc2", "f1", "acc2_nonzero", "f1_nonzero", "acc7")


def draw(study: Study, store: Store) -> list[Path]:
    """The files written to `results/figures`; none where no trial has a score yet."""
    folder = store.folder / "figures"
    folder.mkdir(exist_ok=True)
    scored = [trial for trial in study.ended if trial.value is not None]
    files = []
    for name, figure in _figures(study, scored) if scored else ():
        files.append(folder / f"study-{study.name}-{name}.svg")
        write_atomically(files[-1], lambda scratch, figure=figure: _save(figure, scratch))  # type: ignore[misc]  # mypy reads the default as an argument
    return files


def history(study: Study, scored: Sequence[TrialOfStudy]) -> Figure:
    """Every trial's best val score in order, and the best of the finished ones so far."""
    figure, axes = _new(f"trial of {study.spec.method}", _label(study))
    for state, marker in (("finished", "o"), ("stopped", "x")):
        some = [t for t in scored if t.state == state]
        axes.scatter([t.number for t in some], [_shown(study, t) for t in some], marker=marker, s=18, label=state)
    finished = [t for t in scored if t.state == "finished"]
    pick = max if MAXIMISED[study.metric] else min
    best = list(accumulate((_shown(study, t) for t in finished), pick))
    axes.step([t.number for t in finished], best, where="post", color="black", linewidth=1, label="best so far")
    axes.legend(frameon=False)
    return figure


def importance(study: Study) -> Figure:
    """How much every setting has to do with scoring well."""
    shares = dict(study.importance or {})
    figure, axes = _new("share of importance (PED-ANOVA)", "")
    axes.barh(list(shares), list(shares.values()))
    return figure


def surface(study: Study, scored: Sequence[TrialOfStudy], across: Axis, up: Axis) -> Figure:
    """Every trial at its two settings, coloured by score; the number is the epoch after which it first acted."""
    figure, axes = _new(across.name, up.name)
    x, y = [t.settings[across.name] for t in scored], [t.settings[up.name] for t in scored]
    points = axes.scatter(x, y, c=[_shown(study, t) for t in scored], cmap="viridis", s=60)
    for trial, here, there in zip(scored, x, y, strict=True):
        text = "-" if trial.first_action is None else str(trial.first_action)
        axes.annotate(text, (here, there), textcoords="offset points", xytext=(6, 4), fontsize=7)
    for axis, scale in ((across, axes.set_xscale), (up, axes.set_yscale)):
        if axis.log:
            scale("log")
    figure.colorbar(points, label=_label(study))
    axes.set_title("number: epoch of the first action; -: none", fontsize=8)
    return figure


def _figures(study: Study, scored: Sequence[TrialOfStudy]) -> Iterator[tuple[str, Figure]]:
    yield "history", history(study, scored)
    if study.importance is not None:
        yield "importance", importance(study)
    for across, up in combinations(study.space.axes, 2):
        yield f"surface-{across.setting}-{up.setting}", surface(study, scored, across, up)


def _new(across: str, up: str) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 3.6), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _label(study: Study) -> str:
    return f"best val {study.metric}" + (" (%)" if study.metric in PERCENT else "")


def _shown(study: Study, trial: TrialOfStudy) -> float:
    return float(trial.value or 0.0) * (100.0 if study.metric in PERCENT else 1.0)


def _save(figure: Figure, file: Path) -> None:
    import matplotlib

    # Equal studies give equal files: element ids from a fixed salt, no date.
    with matplotlib.rc_context({"svg.hashsalt": "bench"}):
        figure.savefig(file, format="svg", metadata={"Date": None})
