"""What a split leaks: groups and content that two parts share, and how the classes are spread."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench.api import DataError, DataSet
from bench.data.lists import read_list
from bench.data.prepared import Prepared
from bench.data.splits import SPLITS, num_folds, sample_groups, split_hash, split_positions

NAMED = 3
"""How many shared groups or samples are named."""
HEADERS = {"id", "name", "clip", "clip_id", "sample_id", "youtube_id", "file", "filename"}
"""How a first column may be called; such a line is no sample."""


@dataclass(frozen=True)
class Overlap:
    """What two parts of a split share."""

    parts: tuple[str, str]
    what: str
    """`samples`, `groups`, or a modality's name: its stored content is the same."""
    count: int
    examples: tuple[str, ...]


@dataclass(frozen=True)
class SplitAudit:
    """One split: its parts, and what they share."""

    name: str
    held: bool
    """Whether it has to be clean: the published lists are what they are."""
    sizes: Mapping[str, int]
    groups: Mapping[str, int]
    classes: Mapping[str, Mapping[str, int]]
    """Part -> class -> samples; empty where the targets are no classes or are not listed."""
    overlaps: tuple[Overlap, ...]
    hash: str = ""
    """Over the sample ids of each part."""
    problem: str = ""
    """Why there is no such split."""

    @property
    def clean(self) -> bool:
        """Whether there is such a split and no two parts share anything."""
        return not self.overlaps and not self.problem


@dataclass(frozen=True)
class Audit:
    """What was found in a data set or in a pair of lists."""

    subject: str
    group: str
    splits: tuple[SplitAudit, ...]

    @property
    def ok(self) -> bool:
        """Whether every split that has to be clean is."""
        return all(split.clean for split in self.splits if split.held)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        splits = [{**asdict(split), "clean": split.clean} for split in self.splits]
        return {"subject": self.subject, "group": self.group, "ok": self.ok, "splits": splits}

    def to_text(self) -> str:
        """A few lines per split."""
        lines = [f"{self.subject}: {'nothing is shared where nothing may be' if self.ok else 'LEAKS'}"]
        for split in self.splits:
            lines += ["", *_split_lines(split, self.group)]
        return "\n".join(lines)


def audit(dataset: DataSet, prepared: Prepared, folds: int = 5) -> Audit:
    """The honest splits of every fold, which must be clean, and the published one, which is only described."""
    index = prepared.index
    targets = prepared.targets() if prepared.spec.kind == "classes" else None
    content = {m: _content(prepared, m) for m in prepared.spec.modalities}
    names = prepared.spec.class_names
    splits = []
    for kind in ("honest", "published"):
        if kind == "published" and not _has_published(index):
            continue
        count = num_folds(index, folds, kind)
        for fold in range(count):
            name = f"{kind}, fold {fold} of {count}" if count > 1 else kind
            splits.append(_one_split(name, kind, index, targets, names, content, fold, folds))
    return Audit(prepared.name, dataset.groups or "group", tuple(splits))


def audit_lists(dataset: DataSet, files: Sequence[Path], prepared: Prepared | None = None) -> Audit:
    """What lists of ids share: ids, groups as the data set reads them from ids, and content where it is prepared."""
    if len(files) < 2:
        raise DataError(f"an audit of lists takes two or more, found {len(files)}")
    parts = [file.name for file in files]
    if len(set(parts)) < len(parts):
        parts = [str(file) for file in files]
    rows = {part: _rows(file) for part, file in zip(parts, files, strict=True)}
    known = {} if prepared is None else dict(zip(prepared.index["sample_id"], range(len(prepared.index)), strict=True))
    in_index = {} if prepared is None else dict(zip(known, prepared.index["group"], strict=True))
    groups = {part: [in_index.get(i) or dataset.group_of(i) for i, _ in ids] for part, ids in rows.items()}
    compared: dict[str, dict[str, list[str]]] = {
        "samples": {part: [i for i, _ in ids] for part, ids in rows.items()},
        "groups": groups,
    }
    if prepared is not None:
        for m in prepared.spec.modalities:
            content = _content(prepared, m)
            compared[m] = {
                part: [content[known[i]] if i in known else "" for i, _ in ids] for part, ids in rows.items()
            }
    split = SplitAudit(
        name=" against ".join(parts),
        held=True,
        sizes={part: len(ids) for part, ids in rows.items()},
        groups={part: len(set(found) - {""}) for part, found in groups.items()},
        classes={part: dict(sorted(Counter(label for _, label in ids if label).items())) for part, ids in rows.items()},
        overlaps=tuple(
            overlap for what, values in compared.items() for overlap in _overlaps(what, values, compared["samples"])
        ),
    )
    return Audit(" ".join(str(file) for file in files), dataset.groups or "group", (split,))


def _one_split(
    name: str,
    kind: str,
    index: pd.DataFrame,
    targets: np.ndarray | None,
    class_names: Sequence[str],
    content: Mapping[str, np.ndarray],
    fold: int,
    folds: int,
) -> SplitAudit:
    problem = ""
    try:
        positions = split_positions(index, fold, kind, folds)
    except DataError as error:
        # What crosses is counted below where the split can be read off; else only the reason can be given.
        problem = str(error)
        split = index["split"].to_numpy(dtype=str)
        positions = {part: np.flatnonzero(split == part) for part in SPLITS}
    ids = index["sample_id"].to_numpy(dtype=str)
    groups = index["group"].to_numpy(dtype=str)
    compared = {"samples": ids, "groups": groups, **content}
    cut = {
        what: {part: values[where].tolist() for part, where in positions.items()} for what, values in compared.items()
    }
    return SplitAudit(
        name=name,
        held=kind == "honest",
        sizes={part: len(where) for part, where in positions.items()},
        groups={part: len(np.unique(sample_groups(index)[where])) for part, where in positions.items()},
        classes={part: _balance(targets[where], class_names) for part, where in positions.items()}
        if targets is not None
        else {},
        overlaps=tuple(o for what, values in cut.items() for o in _overlaps(what, values, cut["samples"])),
        hash=split_hash(index, positions),
        problem=problem,
    )


def _overlaps(what: str, values: Mapping[str, Sequence[str]], ids: Mapping[str, Sequence[str]]) -> list[Overlap]:
    """What every two parts share; nothing is shared by being empty."""
    found = []
    for one, other in itertools.combinations(values, 2):
        shared = sorted((set(values[one]) & set(values[other])) - {""})
        if not shared:
            continue
        if what in ("samples", "groups"):
            examples = tuple(shared[:NAMED])
        else:  # content has no name of its own
            first = [dict(zip(values[part], ids[part], strict=True)) for part in (one, other)]
            examples = tuple(f"{first[0][v]} = {first[1][v]}" for v in shared[:NAMED])
        found.append(Overlap((one, other), what, len(shared), examples))
    return found


def _content(prepared: Prepared, modality: str) -> np.ndarray:
    """A digest of each sample's stored values (and mask), [samples]."""
    values, mask = prepared.array(modality), prepared.mask(modality)
    rows = prepared.rows(modality)
    digests = {}
    for row in np.unique(rows).tolist():
        digest = hashlib.blake2b(np.ascontiguousarray(values[row]).tobytes(), digest_size=16)
        if mask is not None:
            digest.update(mask[row].tobytes())
        digests[row] = digest.hexdigest()
    return np.array([digests[row] for row in rows.tolist()], dtype=str)


def _has_published(index: pd.DataFrame) -> bool:
    return "published_split" in index.columns or bool((index["split"] != "").any())


def _balance(targets: np.ndarray, class_names: Sequence[str]) -> dict[str, int]:
    classes, counts = np.unique(targets, return_counts=True)
    return {class_names[int(c)] if class_names else str(int(c)): int(n) for c, n in zip(classes, counts, strict=True)}


def _rows(file: Path) -> list[tuple[str, str]]:
    """Id and label of every line; an empty label where there is one column."""
    lines = [line.fields for line in read_list(file)]
    if lines[0][0].lower() in HEADERS:
        lines = lines[1:]
    return [(fields[0], fields[-1] if len(fields) > 1 else "") for fields in lines]


def _split_lines(split: SplitAudit, group: str) -> list[str]:
    verdict = "clean" if split.clean else ("LEAKS" if split.held else "leaks, as published")
    lines = [f"{split.name}: {verdict}"]
    if split.problem:
        lines.append(f"  {split.problem}")
    for part, size in split.sizes.items():
        counts = split.classes.get(part, {})
        balance = ""
        if counts and size:
            low, high = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
            balance = f", {len(counts)} classes from {counts[low]} ({low}) to {counts[high]} ({high})"
        lines.append(f"  {part}: {size} samples, {split.groups[part]} of {group}{balance}")
    for overlap in split.overlaps:
        what = {"samples": "samples", "groups": f"of {group}"}.get(overlap.what, f"{overlap.what} contents")
        named = ", ".join(overlap.examples) + (", ..." if overlap.count > len(overlap.examples) else "")
        lines.append(f"  {' and '.join(overlap.parts)} share {overlap.count} {what}: {named}")
    return lines
