"""What an audit found, to read and to compute with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from bench.data.priors import GroupPrior, Score

PRIOR_P = 0.01
"""Below which p the group is said to tell the class."""


@dataclass(frozen=True)
class Overlap:
    """What two parts of a split share."""

    parts: tuple[str, str]
    what: str
    """`samples`, `groups`, or a modality's name: its stored content is the same, or nearly."""
    count: int
    examples: tuple[str, ...]
    kind: Literal["exact", "near"] = "exact"
    conflicting: int = 0
    """Of contents: how many of those named by `count` have another target in the other part."""


@dataclass(frozen=True)
class Alike:
    """Content of two parts that may be copied: it cannot be told from content that merely looks alike."""

    parts: tuple[str, str]
    modality: str
    count: int
    examples: tuple[str, ...]


@dataclass(frozen=True)
class Conflict:
    """Samples of one data set that hold the same content and different targets."""

    modality: str
    """Or `every modality`."""
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
    alike: tuple[Alike, ...] = ()
    prior: GroupPrior | None = None
    scores: tuple[Score, ...] = ()
    """Of predictors that understand nothing."""

    @property
    def clean(self) -> bool:
        """Whether there is such a split and no two parts share anything."""
        return not self.overlaps and not self.problem

    @property
    def unseen(self) -> Mapping[str, tuple[str, ...]]:
        """Part -> its classes that train does not have."""
        train = self.classes.get("train", {})
        missing = {part: tuple(sorted(counts.keys() - train.keys())) for part, counts in self.classes.items() if train}
        return {part: classes for part, classes in missing.items() if classes}


@dataclass(frozen=True)
class Audit:
    """What was found in a data set or in a pair of lists."""

    subject: str
    group: str
    splits: tuple[SplitAudit, ...]
    conflicts: tuple[Conflict, ...] = ()
    trained: tuple[Score, ...] = ()
    """Of stored trainings on one modality."""

    @property
    def ok(self) -> bool:
        """Whether every split that has to be clean is; warnings do not count."""
        return all(split.clean for split in self.splits if split.held)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is no leak between parts and worth a look."""
        found = [
            f"{c.count} samples hold the same {c.modality} and different targets: {_named(c.examples, c.count)}"
            for c in self.conflicts
        ]
        seen: set[str] = set()
        for split in self.splits:
            if split.hash not in seen:  # published lists without faults are the honest split
                found += [f"{split.name}: {text}" for text in _warnings(split, self.group)]
            seen |= {split.hash} - {""}
        return (*found, *(_ceiling(score) for score in self.trained if score.at_ceiling))

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        splits = [{**asdict(split), "clean": split.clean} for split in self.splits]
        return {
            "subject": self.subject,
            "group": self.group,
            "ok": self.ok,
            "splits": splits,
            "conflicts": [asdict(conflict) for conflict in self.conflicts],
            "trained": [asdict(score) for score in self.trained],
            "warnings": list(self.warnings),
        }

    def to_text(self) -> str:
        """A few lines per split, and the warnings."""
        lines = [f"{self.subject}: {'nothing is shared where nothing may be' if self.ok else 'LEAKS'}"]
        for split in self.splits:
            lines += ["", *_split_lines(split, self.group)]
        lines += ["", *(f"warning: {text}" for text in self.warnings)] if self.warnings else []
        return "\n".join(lines)


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
        content = f"{'near copies of ' if overlap.kind == 'near' else ''}{overlap.what} contents"
        what = {"samples": "samples", "groups": f"of {group}"}.get(overlap.what, content)
        other = f" ({overlap.conflicting} with another target)" if overlap.conflicting else ""
        named = _named(overlap.examples, overlap.count)
        lines.append(f"  {' and '.join(overlap.parts)} share {overlap.count} {what}{other}: {named}")
    for score in split.scores:
        interval = f"[{100 * score.low:.1f}, {100 * score.high:.1f}]"
        lines.append(f"  {score.predictor} is right on {100 * score.accuracy:.1f} % {interval} of {score.part}")
    if split.prior is not None:
        p = split.prior
        lines.append(
            f"  the {group} tells {p.bits:.2f} bits of the class in train, {p.shuffled_bits:.2f} where classes are "
            f"shuffled (p = {p.p:.3f}): guessing by {group} is right on {100 * p.accuracy:.1f} % instead of "
            f"{100 * p.shuffled_accuracy:.1f} %"
        )
    return lines


def _warnings(split: SplitAudit, group: str) -> list[str]:
    found = [
        f"{a.modality}: {a.count} of {a.parts[1]} look like one of {a.parts[0]}; they need not be copies, "
        f"others come as near: {_named(a.examples, a.count)}"
        for a in split.alike
    ]
    found += [f"{part} has classes that train does not have: {', '.join(c)}" for part, c in split.unseen.items()]
    if split.prior is not None and split.prior.p < PRIOR_P:
        found.append(f"the class can be guessed from the {group}; in train it tells {split.prior.bits:.2f} bits")
    return [*found, *(_ceiling(score) for score in split.scores if score.at_ceiling)]


def _ceiling(score: Score) -> str:
    return (
        f"{score.predictor} is right on {100 * score.accuracy:.1f} % of {score.part}, up to {100 * score.high:.1f} % "
        "with 95 % confidence: as good as perfect means that the answer leaks, or that nothing is left to measure"
    )


def _named(examples: Sequence[str], count: int) -> str:
    return ", ".join(examples) + (", ..." if count > len(examples) else "")
