"""Word- or frame-aligned features of CMU-MOSI and CMU-MOSEI, from the pickles of MultiBench and MMSA."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from bench import api
from bench.api import DataError, DataSet, DataSpec, EncoderSpec, Item, ModalitySpec, Sample, setting
from bench.data import pickles

Split = Literal["train", "val", "test"]

SPLITS: Mapping[str, Split] = {"train": "train", "valid": "val", "test": "test"}
"""The names of the splits in the files, and ours."""
FEATURES = {"text": "text", "visual": "vision", "audio": "audio"}
"""Modalities, and what the files call them."""
SCALE = (-3.0, 3.0)
CLASSES = {
    "3": ("negative", "neutral", "positive"),
    "2": ("negative", "non-negative"),
    "7": ("-3", "-2", "-1", "0", "1", "2", "3"),
}
CHUNK = 256
"""Samples that are looked at together; the files are larger than some memories."""


class SentimentSet(DataSet):
    """Utterances with text, visual and audio feature sequences and a sentiment between -3 and 3.

    3 classes: below -0.5, above 0.5, between (BalanceBenchmark's reading, which fits the published accuracies);
    2 classes: below 0 or not; 7 classes: rounded to whole numbers; or the value itself. Features are standardised
    by the valid steps of train. NaN and infinities become 0 before that, and are counted per sample in the index
    (`nonfinite_<modality>`). The steps before the first and after the last that is not all 0 are padding, wherever
    a file puts it; MMSA's lengths are used where the file has them.
    """

    @dataclass(frozen=True)
    class Settings(api.Settings):
        task: str = setting("3", choices=(*CLASSES, "regression"), help="number of classes, or regression")
        modalities: str = setting("text|visual|audio", help="in order; RollingQ's pair seems to be text|visual")
        text: str = setting("50x300", help="steps x features")
        visual: str = setting("50x35", help="steps x features")
        audio: str = setting("50x74", help="steps x features")
        file: str = setting("", place=True, help="its path, or its name in the data root; needed if there are several")

    folder: ClassVar[str] = ""
    """The folder under the data root."""
    files: ClassVar[tuple[str, ...]] = ()
    """Names under which the file is known."""
    where: ClassVar[str] = ""
    """Where it can be had."""
    groups = "video"
    recipe = "published"

    def unusable(self, root: Path) -> str | None:
        """No file, or several without a choice."""
        found = self._candidates(root)
        if len(found) == 1:
            return None
        if found:
            return f"{self.folder}: {', '.join(f.name for f in found)} are all in {found[0].parent}; choose one: file="
        if self.settings.file:
            return f"{self.folder}: there is no file {self.settings.file}, neither as a path nor in {self._home(root)}"
        return f"{self.folder}: no {' or '.join(self.files)} in {self._home(root)}; {self.where}, or give file=PATH"

    def describe(self, root: Path) -> DataSpec:
        """Masked sequences of the stated shapes; a file of other shapes is refused when it is read."""
        encoder = EncoderSpec("sequence", dim=120, depth=4, heads=8)
        modalities = {}
        for m in self._modalities():
            shape = self._shape(m)
            modalities[m] = ModalitySpec(encoder, shape, shape, "float32", masked=True)
        if self.settings.task == "regression":
            return DataSpec(modalities, 1, kind="regression", metric="mae", scale=SCALE)
        names = CLASSES[self.settings.task]
        return DataSpec(modalities, len(names), class_names=names)

    def samples(self, root: Path) -> list[Sample]:
        """Every utterance of every split, in the file's order."""
        content, samples = self._content(root), []
        wrong = {m: _survey(*content.key, m).wrong for m in self._modalities()}
        for split, part in content.parts.items():
            for row, (segment, video) in enumerate(zip(part.segments, part.videos, strict=True)):
                samples.append(
                    Sample(
                        id=segment,
                        target=target_of(float(part.sentiment[row]), self.settings.task),
                        sources=dict.fromkeys(self._modalities(), f"{split}/{row}"),
                        split=split,
                        group=video,
                        metadata={f"nonfinite_{m}": float(counts[split][row]) for m, counts in wrong.items()},
                    )
                )
        return samples

    def read(self, root: Path, modality: str, key: str) -> Item:
        """One utterance, standardised; padding is 0."""
        content = self._content(root)
        survey = _survey(*content.key, modality)
        split, _, row = key.partition("/")
        part = content.parts[SPLITS.get(split, "val")]
        values = _finite(part.features[modality][int(row)])
        first, end = survey.spans[SPLITS.get(split, "val")][int(row)]
        mask = np.zeros(len(values), dtype=bool)
        mask[first:end] = True
        standard = np.where(mask[:, None], (values - survey.mean) * survey.scale, 0.0)
        return Item(standard.astype(np.float32), mask)

    def _content(self, root: Path) -> Content:
        if reason := self.unusable(root):
            raise DataError(reason)
        file = self._candidates(root)[0]
        facts = file.stat()
        content = _read(file, facts.st_mtime_ns, facts.st_size)
        for m in self._modalities():
            for split, part in content.parts.items():
                _check_shape(file, split, m, part, self._shape(m))
        return content

    def _modalities(self) -> tuple[str, ...]:
        chosen = tuple(self.settings.modalities.split("|"))
        strange = [m for m in chosen if m not in FEATURES]
        if strange or len(set(chosen)) != len(chosen):
            raise DataError(
                f"{self.folder}: modalities={self.settings.modalities}; allowed: {', '.join(FEATURES)}, "
                "each at most once, separated by |"
            )
        return chosen

    def _shape(self, modality: str) -> tuple[int, int]:
        text = getattr(self.settings, modality)
        if not (match := re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)):
            raise DataError(f"{self.folder}: {modality}={text}; allowed: steps x features, such as 50x74")
        return int(match[1]), int(match[2])

    def _home(self, root: Path) -> Path:
        return root / self.folder if (root / self.folder).is_dir() else root

    def _candidates(self, root: Path) -> list[Path]:
        if self.settings.file:
            named = Path(self.settings.file).expanduser()
            return [p for p in (self._home(root) / named, named) if p.is_file()][:1]
        return [p for name in self.files if (p := self._home(root) / name).is_file()]


def target_of(sentiment: float, task: str) -> float:
    """The class of a sentiment, or the sentiment itself for regression; NaN stays NaN."""
    if task == "regression" or np.isnan(sentiment):
        return sentiment
    if task == "2":
        return float(sentiment >= 0)
    if task == "3":
        return float(np.searchsorted((-0.5, 0.5), sentiment, side="left" if sentiment > 0 else "right"))
    return float(np.clip(np.rint(sentiment), *SCALE) + 3)


@dataclass(frozen=True, eq=False)
class Part:
    """One split of a file: features [N, steps, dim] mapped from it, and lengths [N] where it has them."""

    segments: tuple[str, ...]
    videos: tuple[str, ...]
    sentiment: np.ndarray
    features: Mapping[str, np.ndarray]
    lengths: Mapping[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Content:
    """A file, checked but for the shapes of the features."""

    key: tuple[Path, int, int]
    parts: Mapping[Split, Part]


@dataclass(frozen=True, eq=False)
class Survey:
    """What one pass over a modality tells: train statistics, and per split and sample spans and faults."""

    mean: np.ndarray
    scale: np.ndarray
    spans: Mapping[Split, np.ndarray]  # [N, 2]: first valid step and the one after the last
    wrong: Mapping[Split, np.ndarray]  # [N]: values that are NaN or infinite


@lru_cache(maxsize=2)
def _read(file: Path, mtime: int, size: int) -> Content:
    found = pickles.load(file)
    if not isinstance(found, dict) or not set(SPLITS) <= set(found):
        named = f"a dict of {', '.join(map(str, list(found)[:8]))}" if isinstance(found, dict) else type(found).__name__
        raise DataError(f"{file}: expected a dict of {', '.join(SPLITS)}, found {named}")
    parts = {ours: _part(file, theirs, found[theirs]) for theirs, ours in SPLITS.items()}
    return Content((file, mtime, size), parts)


def _part(file: Path, split: str, found: Any) -> Part:
    label = next((k for k in ("regression_labels", "labels") if isinstance(found, dict) and k in found), None)
    if label is None or "id" not in found:
        keys = ", ".join(map(str, found)) if isinstance(found, dict) else type(found).__name__
        raise DataError(f"{file}: {split} needs 'id' and 'labels' or 'regression_labels'; found {keys}")
    try:
        values = np.asarray(found[label], dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{file}: {split}: {label!r} does not hold numbers ({error})") from error
    # MOSEI's labels are [N, 1, 1], or [N, 1, 7] with six emotions behind the sentiment.
    sentiment = values.reshape(len(values), -1)[:, 0] if values.size else values.reshape(-1)
    segments, videos = _names(file, split, found["id"])
    count = len(segments)
    features = {m: found[name] for m, name in FEATURES.items() if isinstance(found.get(name), np.ndarray)}
    lengths = {m: np.asarray(found[f"{FEATURES[m]}_lengths"]) for m in features if f"{FEATURES[m]}_lengths" in found}
    tokens = found.get("text_bert")  # [N, 3, steps]: token ids, mask, segment ids
    text = features.get("text")
    if isinstance(tokens, np.ndarray) and text is not None and tokens.shape == (count, 3, *text.shape[1:2]):
        lengths["text"] = tokens[:, 1].sum(axis=1)
    for name, part in {label: sentiment, **features, **{f"lengths of {m}": v for m, v in lengths.items()}}.items():
        if len(part) != count:
            raise DataError(f"{file}: {split} has {count} ids, but {len(part)} {name}")
    return Part(segments, videos, sentiment, features, {m: v.astype(np.int64) for m, v in lengths.items()})


def _names(file: Path, split: str, ids: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Segment and video of every sample; a repeated segment gets a number."""
    segments, videos = [], []
    seen: dict[str, int] = {}
    for row in ids:
        parts = [_text(p) for p in (np.asarray(row, dtype=object).reshape(-1) if not isinstance(row, str) else [row])]
        # MultiBench writes video[segment] or (video, start, end), MMSA video$_$segment.
        video = re.sub(r"(\$_\$|\[)[^\[$]*$", "", parts[0]) if parts else ""
        if not video:
            raise DataError(f"{file}: {split} has the id {'|'.join(parts)!r}, which names no video")
        segment = "|".join(parts)
        seen[segment] = seen.get(segment, 0) + 1
        segments.append(segment if seen[segment] == 1 else f"{segment}#{seen[segment]}")
        videos.append(video)
    return tuple(segments), tuple(videos)


def _text(part: Any) -> str:
    return part.decode("latin1") if isinstance(part, bytes) else str(part)


def _check_shape(file: Path, split: str, modality: str, part: Part, stated: tuple[int, int]) -> None:
    name = FEATURES[modality]
    if modality not in part.features:
        raise DataError(f"{file}: {split} has no array {name!r}; leave {modality} out of modalities=")
    found = part.features[modality]
    if found.ndim != 3 or found.dtype.kind not in "fiu":
        raise DataError(f"{file}: {split}: {name!r} is {found.dtype} {list(found.shape)}; allowed: numbers [N, T, D]")
    if found.shape[1:] != stated:
        steps, dim = found.shape[1:]
        raise DataError(
            f"{file}: {split}: {name!r} has {steps} steps of {dim} features, and {modality}={stated[0]}x{stated[1]} "
            f"is set; give {modality}={steps}x{dim}"
        )


@lru_cache(maxsize=6)
def _survey(file: Path, mtime: int, size: int, modality: str) -> Survey:
    """One pass over all splits; shapes have been checked."""
    content = _read(file, mtime, size)
    dim = content.parts["train"].features[modality].shape[2]
    count, mean, squares = 0, np.zeros(dim), np.zeros(dim)
    spans: dict[Split, np.ndarray] = {}
    wrong: dict[Split, np.ndarray] = {}
    for split, part in content.parts.items():
        found = [_looked_at(values, ends) for values, ends in _chunks(part, modality)]
        spans[split] = np.concatenate([chunk[0] for chunk in found]) if found else np.zeros((0, 2), dtype=np.int64)
        wrong[split] = np.concatenate([chunk[1] for chunk in found]) if found else np.zeros(0, dtype=np.int64)
    train = content.parts["train"].features[modality]
    for start in range(0, len(train), CHUNK):
        values = train[start : start + CHUNK]
        ends = spans["train"][start : start + CHUNK]
        step = np.arange(values.shape[1])
        valid = _finite(values[(step >= ends[:, :1]) & (step < ends[:, 1:])])  # [valid steps, dim]
        if len(valid) == 0:
            continue
        # Chan's update: adding raw squares would cancel where the mean is large.
        shift = valid.mean(axis=0) - mean
        squares += valid.var(axis=0) * len(valid) + shift**2 * count * len(valid) / (count + len(valid))
        count += len(valid)
        mean += shift * len(valid) / count
    deviation = np.sqrt(squares / max(count, 1))
    # Rounding leaves a constant feature a tiny deviation.
    dead = deviation <= 1e-7 * np.maximum(np.abs(mean), 1e-30)
    return Survey(mean, np.where(dead, 0.0, 1.0 / np.where(dead, 1.0, deviation)), spans, wrong)


def _chunks(part: Part, modality: str) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    values, lengths = part.features[modality], part.lengths.get(modality)
    for start in range(0, len(values), CHUNK):
        yield values[start : start + CHUNK], None if lengths is None else lengths[start : start + CHUNK]


def _looked_at(values: np.ndarray, lengths: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Spans [n, 2] and the number of NaN or infinite values [n]."""
    steps = values.shape[1]
    finite = np.isfinite(values)
    wrong = values[0].size - np.count_nonzero(finite, axis=(1, 2))
    if lengths is not None:
        ends = np.clip(lengths, 0, steps)
        return np.stack([np.zeros_like(ends), ends], axis=1), wrong
    present = ((values != 0) & finite).any(axis=2)  # [n, steps]
    first, last = present.argmax(axis=1), steps - present[:, ::-1].argmax(axis=1)
    some = present.any(axis=1)
    return np.stack([np.where(some, first, 0), np.where(some, last, 0)], axis=1), wrong


def _finite(values: np.ndarray) -> np.ndarray:
    """Float64 with 0 for NaN and infinities."""
    return np.where(np.isfinite(values), values, 0.0).astype(np.float64, copy=False)
