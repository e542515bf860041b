"""What a split leaks: groups and content that two parts share, and what can be guessed without understanding."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from bench.api import DataError, DataSet
from bench.data.copies import Content
from bench.data.findings import Alike, Audit, Conflict, Overlap, SplitAudit
from bench.data.lists import read_list
from bench.data.prepared import Prepared
from bench.data.priors import Score, group_prior, score_by_group
from bench.data.splits import SPLITS, num_folds, sample_groups, split_hash, split_positions

NAMED = 3
"""How many shared groups or samples are named."""
HEADERS = {"id", "name", "clip", "clip_id", "sample_id", "youtube_id", "file", "filename"}
"""How a first column may be called; such a line is no sample."""


@dataclass(frozen=True, eq=False)
class _Known:
    """What is prepared of a data set."""

    ids: np.ndarray
    groups: np.ndarray
    """Empty where a sample has none."""
    targets: np.ndarray
    is_classes: bool
    content: Mapping[str, Content]

    @classmethod
    def of(cls, prepared: Prepared) -> _Known:
        """Read once, for all splits."""
        ids, groups = (prepared.index[name].to_numpy(dtype=str) for name in ("sample_id", "group"))
        content = {m: Content.of(prepared, m) for m in prepared.spec.modalities}
        return cls(ids, groups, prepared.targets(), prepared.spec.kind == "classes", content)


def audit(dataset: DataSet, prepared: Prepared, folds: int = 5, trained: Sequence[Score] = ()) -> Audit:
    """The honest splits of every fold, which must be clean, and the published one, which is only described.

    `trained` are scores of stored trainings on one modality; as good as perfect is worth a warning.
    """
    index, known = prepared.index, _Known.of(prepared)
    splits: list[SplitAudit] = []
    for kind in ("honest", "published"):
        if kind == "published" and not _has_published(index):
            continue
        count = num_folds(index, folds, kind)
        for fold in range(count):
            name = f"{kind}, fold {fold} of {count}" if count > 1 else kind
            splits.append(_one_split(name, kind, index, known, prepared.spec.class_names, fold, folds))
    return Audit(prepared.name, dataset.groups or "group", tuple(splits), _conflicts(known), tuple(trained))


def audit_lists(dataset: DataSet, files: Sequence[Path], prepared: Prepared | None = None) -> Audit:
    """What lists of ids share: ids, groups as the data set reads them from ids, and content where it is prepared."""
    if len(files) < 2:
        raise DataError(f"an audit of lists takes two or more, found {len(files)}")
    parts = [file.name for file in files]
    if len(set(parts)) < len(parts):
        parts = [str(file) for file in files]
    rows = {part: _rows(file) for part, file in zip(parts, files, strict=True)}
    known = None if prepared is None else _Known.of(prepared)
    place = {} if known is None else {str(name): i for i, name in enumerate(known.ids)}
    listed = {} if known is None else dict(zip(known.ids.tolist(), known.groups.tolist(), strict=True))
    groups = {part: [listed.get(i) or dataset.group_of(i) for i, _ in ids] for part, ids in rows.items()}
    samples = {part: [i for i, _ in ids] for part, ids in rows.items()}
    overlaps = [*_shared("samples", samples), *_shared("groups", groups)]
    alike: list[Alike] = []
    if known is not None:
        found = {part: np.array([place[i] for i in ids if i in place], dtype=np.int64) for part, ids in samples.items()}
        same, alike, _ = _content(known, found)
        overlaps += same
    split = SplitAudit(
        name=" against ".join(parts),
        held=True,
        sizes={part: len(ids) for part, ids in rows.items()},
        groups={part: len(set(named) - {""}) for part, named in groups.items()},
        classes={part: dict(sorted(Counter(label for _, label in ids if label).items())) for part, ids in rows.items()},
        overlaps=tuple(overlaps),
        alike=tuple(alike),
    )
    return Audit(" ".join(str(file) for file in files), dataset.groups or "group", (split,))


def _one_split(
    name: str, kind: str, index: pd.DataFrame, known: _Known, class_names: Sequence[str], fold: int, folds: int
) -> SplitAudit:
    problem = ""
    try:
        positions = split_positions(index, fold, kind, folds)
    except DataError as error:
        # What crosses is counted below where the split can be read off; else only the reason can be given.
        problem = str(error)
        split = index["split"].to_numpy(dtype=str)
        positions = {part: np.flatnonzero(split == part) for part in SPLITS}
    groups = sample_groups(index)
    overlaps = [
        overlap
        for what, values in (("samples", known.ids), ("groups", known.groups))
        for overlap in _shared(what, {part: values[where].tolist() for part, where in positions.items()})
    ]
    same, alike, scores = _content(known, positions)
    prior = None
    classes: dict[str, dict[str, int]] = {}
    if known.is_classes:
        classes = {part: _balance(known.targets[where], class_names) for part, where in positions.items()}
        train = positions["train"]
        prior = group_prior(groups[train], known.targets[train])
        for part in ("val", "test"):
            by_group = [(groups[where], known.targets[where]) for where in (train, positions[part])]
            score = score_by_group(part, *by_group) if len(train) and len(positions[part]) else None
            scores += [] if score is None else [score]
    return SplitAudit(
        name=name,
        held=kind == "honest",
        sizes={part: len(where) for part, where in positions.items()},
        groups={part: len(np.unique(groups[where])) for part, where in positions.items()},
        classes=classes,
        overlaps=(*overlaps, *same),
        hash=split_hash(index, positions),
        problem=problem,
        alike=tuple(alike),
        prior=prior,
        scores=tuple(scores),
    )


def _shared(what: str, values: Mapping[str, Sequence[str]]) -> list[Overlap]:
    """The names every two parts share; nothing is shared by being empty."""
    found = []
    for one, other in itertools.combinations(values, 2):
        shared = sorted((set(values[one]) & set(values[other])) - {""})
        if shared:
            found.append(Overlap((one, other), what, len(shared), tuple(shared[:NAMED])))
    return found


def _content(known: _Known, positions: Mapping[str, np.ndarray]) -> tuple[list[Overlap], list[Alike], list[Score]]:
    """Content that every two parts share, what merely looks alike, and how well the nearest of train predicts."""
    overlaps: list[Overlap] = []
    alike: list[Alike] = []
    scores: list[Score] = []
    for m, content in known.content.items():
        for one, other in itertools.combinations(positions, 2):
            theirs, ours = positions[one], positions[other]
            if len(theirs) == 0 or len(ours) == 0:
                continue
            overlaps += _same(known, m, (one, other), theirs, ours)
            near = content.near(ours, theirs)
            partners = near.partners
            differ = known.targets[ours] != known.targets[partners]

            def named(which: np.ndarray, here: np.ndarray = ours, there: np.ndarray = partners) -> tuple[str, ...]:
                return tuple(f"{known.ids[there[i]]} = {known.ids[here[i]]}" for i in which[:NAMED].tolist())

            if len(near.copies):
                conflicting = int(differ[near.copies].sum())
                examples = named(near.copies)
                overlaps.append(Overlap((one, other), m, len(near.copies), examples, "near", conflicting))
            elif len(near.alike):
                alike.append(Alike((one, other), m, len(near.alike), named(near.alike)))
            if one == "train" and known.is_classes:
                right = int((~differ).sum())
                scores.append(Score.of(f"the nearest train sample by {m}", other, right, len(ours)))
    return overlaps, alike, scores


def _same(known: _Known, modality: str, parts: tuple[str, str], theirs: np.ndarray, ours: np.ndarray) -> list[Overlap]:
    """Contents that are equal to the bit."""
    digests = known.content[modality].digests
    first, second = ({d: int(i) for d, i in zip(digests[w][::-1], w[::-1], strict=True)} for w in (theirs, ours))
    shared = sorted(first.keys() & second.keys())
    if not shared:
        return []
    pairs = [(first[digest], second[digest]) for digest in shared]
    conflicting = sum(known.targets[a] != known.targets[b] for a, b in pairs)
    examples = tuple(f"{known.ids[a]} = {known.ids[b]}" for a, b in pairs[:NAMED])
    return [Overlap(parts, modality, len(shared), examples, conflicting=int(conflicting))]


def _conflicts(known: _Known) -> tuple[Conflict, ...]:
    """Samples, of whatever parts, with the same content and another target: by modality, then in all of them."""
    found = []
    looked = {m: content.digests for m, content in known.content.items()}
    if len(looked) > 1:
        looked["every modality"] = np.array(["".join(each) for each in zip(*looked.values(), strict=True)])
    for modality, digests in looked.items():
        _, member = np.unique(digests, return_inverse=True)
        low, high = np.full(member.max() + 1, np.inf), np.full(member.max() + 1, -np.inf)
        np.minimum.at(low, member, known.targets)
        np.maximum.at(high, member, known.targets)
        samples = np.flatnonzero((low < high)[member])
        if len(samples):
            ordered = samples[np.argsort(member[samples], kind="stable")]  # those of one content stand together
            found.append(Conflict(modality, len(samples), tuple(known.ids[ordered[:NAMED]].tolist())))
    return tuple(found)


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
