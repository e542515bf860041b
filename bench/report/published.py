"""Published values, and what became of them: published, reproduced under the published protocol, honest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench import names, stats
from bench.report.cell import Cell, split_method
from bench.stats import Interval

ROLLINGQ = "Ni, Wei, Liu, Chen, Peng, Lin and Hu, RollingQ, ICML 2025 (arXiv 2506.11465)"

DATASETS = ("crema_d", "kinetics_sounds", "cmu_mosei")

_TABLE_1 = {
    "audio": (47.6, 53.9, None),
    "visual": (36.3, 57.0, 47.1),
    "concat": (49.3, 68.0, 62.8),
    "concat+ogm": (51.2, 68.2, 62.7),
    "concat+pmr": (50.1, 68.2, 63.0),
    "vanilla_mt": (48.8, 67.0, 62.7),
    "mbt": (51.5, 72.2, 63.0),
    "mmml": (52.0, 69.8, 62.8),
    "vanilla_mt+rollingq": (51.9, 69.3, 63.2),
    "mmml+rollingq": (52.7, 70.7, 63.2),
}
"""Accuracy in percent on `DATASETS`, by the row's fusion and strategies; a modality alone by its name."""

NOISE_LEVELS = (0.0, 0.25, 0.5, 1.0)


@dataclass(frozen=True)
class Published:
    """A value that somebody printed."""

    dataset: str
    method: str
    """Fusion and strategies without settings, or a modality."""
    quantity: str
    value: float
    source: str
    remark: str = ""


PUBLISHED: tuple[Published, ...] = (
    *(
        Published(dataset, method, "accuracy", value, f"{ROLLINGQ}, Table 1")
        for method, row in _TABLE_1.items()
        for dataset, value in zip(DATASETS, row, strict=True)
        if value is not None
    ),
    Published("crema_d", "jmt", "accuracy", 50.7, f"{ROLLINGQ}, Table 4"),
    *(
        Published("kinetics_sounds", method, f"accuracy at noise {level:g}", value, f"{ROLLINGQ}, Table 3", remark)
        for method, values, remarks in (
            ("vanilla_mt", (67.0, 62.7, 52.9, 34.7), ("", "", "", "")),
            (
                "vanilla_mt+rollingq",
                (69.3, 67.2, 58.2, 40.6),
                ("", "the paper prints a drop of 1.9 beside it; 69.3 - 67.2 is 2.1", "", ""),
            ),
        )
        for level, value, remark in zip(NOISE_LEVELS, values, remarks, strict=True)
    ),
    *(
        Published(dataset, method, "Pearson of attention and input quality", value, f"{ROLLINGQ}, Table 2")
        for method, values in (("vanilla_mt", (0.52, 0.44)), ("vanilla_mt+rollingq", (0.76, 0.78)))
        for dataset, value in zip(DATASETS[:2], values, strict=True)
    ),
    *(
        Published("crema_d", method, quantity, value, f"{ROLLINGQ}, Table 4")
        for method, params, gflops in (
            ("mbt", 114.21, 2746.90),
            ("mmml", 77.88, 1828.29),
            ("jmt", 62.23, 1494.87),
            ("vanilla_mt+rollingq", 60.46, 1489.20),
        )
        for quantity, value in (("parameters (M)", params), ("GFLOPs of a batch of 64", gflops))
    ),
)


@dataclass(frozen=True)
class Fate:
    """What became of one published accuracy."""

    published: Published
    label: str
    reproduced: Cell | None
    """Under the published protocol."""
    honest: Cell | None

    @property
    def not_reproduced(self) -> Interval | None:
        """Reproduced minus published; the interval is that of the reproduction, for no paper printed one."""
        cell, value = self.reproduced, self.published.value
        if cell is None or cell.mean is None:
            return None
        return Interval(
            cell.mean - value, *(None if bound is None else bound - value for bound in (cell.low, cell.high))
        )

    @property
    def protocol_gap(self) -> Interval | None:
        """Honest minus reproduced (Welch): what the protocol is worth. The two have other splits, so nothing pairs."""
        honest, reproduced = _score(self.honest), _score(self.reproduced)
        return None if honest is None or reproduced is None else stats.difference_of_means(*honest, *reproduced)


def published(cell: Cell, quantity: str = "accuracy") -> Published | None:
    """What was published for a row, whatever its settings are."""
    dataset, method = dataset_of(cell), _row_of(cell)
    found = (p for p in PUBLISHED if (p.dataset, p.method, p.quantity) == (dataset, method, quantity))
    return next(found, None) if cell.metric == "accuracy" or quantity != "accuracy" else None


def fates(cells: Sequence[Cell]) -> list[Fate]:
    """Every row with a published accuracy, in the user's order."""
    found: dict[tuple[str, str], Fate] = {}
    for cell in cells:
        value = published(cell)
        if value is None:
            continue
        key = (cell.dataset, cell.method)
        other = found.get(key, Fate(value, cell.label, None, None))
        reproduced = cell if cell.protocol == "published" else other.reproduced
        honest = cell if cell.protocol == "honest" else other.honest
        found[key] = Fate(value, other.label, reproduced, honest)
    return list(found.values())


def _score(cell: Cell | None) -> tuple[Interval, int] | None:
    """The mean with its interval, and over how many folds or, on one fold, seeds it is."""
    if cell is None or not cell.values:
        return None
    found = stats.interval(cell.values, folds=cell.folds, sizes=cell.sizes)
    return found, cell.n_folds if cell.n_folds > 1 else len(cell.values)


def dataset_of(cell: Cell) -> str:
    """The data set's name without its settings."""
    return names.split_settings(cell.dataset)[0]


def _row_of(cell: Cell) -> str:
    fusion, settings = names.split_settings(split_method(cell.method)[0])
    return settings.get("modality", "") if fusion == "unimodal" else "+".join(cell.parts)
