"""Copies are found through what re-encoding does to them, and samples that merely look alike are not called copies."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from bench import api
from bench.api import DataSet, DataSpec, EncoderSpec, Item, ModalitySpec, Sample
from bench.data import formants
from bench.data.audit import audit
from bench.data.copies import Content, Near, copy_radius
from bench.data.fingerprints import Fingerprints
from bench.data.prepared import Prepared, prepare
from bench.data.spectrogram import log_mel

PICTURES, SPOKEN, COPIES = 800, 300, 20
LENGTH, HOP = 6000, 128
Change = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, eq=False)
class Given(DataSet):
    """Samples whose stored values, splits and targets are given."""

    values: np.ndarray
    splits: tuple[str, ...]
    targets: tuple[int, ...]
    shape: tuple[int, ...]

    @dataclass(frozen=True)
    class Settings(api.Settings):
        """None."""

    @property
    def settings(self) -> Settings:  # type: ignore[override]  # a frozen dataclass has no room for the attribute
        """None."""
        return self.Settings()

    def describe(self, root: Path) -> DataSpec:
        """One modality."""
        family = "vit" if len(self.shape) > 2 else "vector"
        stored = ModalitySpec(EncoderSpec(family), self.shape, self.values.shape[1:], str(self.values.dtype))
        return DataSpec({"content": stored}, 10)

    def samples(self, root: Path) -> list[Sample]:
        """In the order given."""
        rows = enumerate(zip(self.splits, self.targets, strict=True))
        return [Sample(f"s{i:04d}", float(t), {"content": str(i)}, split) for i, (split, t) in rows]  # type: ignore[arg-type]  # one of the splits

    def read(self, root: Path, modality: str, key: str) -> Item:
        """The values."""
        return Item(self.values[int(key)])


def prepared(folder: Path, values: np.ndarray, in_train: np.ndarray, targets: np.ndarray | None = None) -> Prepared:
    """The values as a data set of a train and a test part."""
    splits = tuple(np.where(in_train, "train", "test").tolist())
    labels = tuple((np.arange(len(values)) % 10 if targets is None else targets).tolist())
    shape = values.shape[1:] if values.ndim == 2 else (1, *values.shape[-2:])
    return prepare("given", Given(values, splits, labels, shape), "c0de", folder, folder / "store")


def near(made: Prepared) -> Near:
    """Test held against train."""
    test, train = (np.flatnonzero(made.index["split"] == part) for part in ("test", "train"))
    return Content.of(made, "content").near(test, train)


@cache
def pictures() -> np.ndarray:
    """Handwritten digits, uint8 [800, 24, 24]."""
    small = (load_digits().images[:PICTURES] * 13 + 20).astype(np.uint8)
    return np.stack([np.array(Image.fromarray(x).resize((24, 24), Image.Resampling.BICUBIC)) for x in small])


@cache
def waves() -> np.ndarray:
    """Spoken digits of 20 voices with a little noise, float32 [300, 6000]."""
    made = np.zeros((SPOKEN, LENGTH), dtype=np.float32)
    for i in range(SPOKEN):
        rng = np.random.default_rng(i)
        voice = formants.Speaker.draw(np.random.default_rng([7, i % 20]))
        spoken = formants.say(i // 20 % 10, voice, rng)[:LENGTH]
        start = rng.integers(0, LENGTH - len(spoken) + 1)
        made[i] = 0.03 * rng.normal(size=LENGTH)
        made[i, start : start + len(spoken)] += spoken
    return made


def spectrograms(sound: np.ndarray) -> np.ndarray:
    """Log-mel, float16 [n, 1, 32, 47]."""
    return log_mel(torch.from_numpy(sound.astype(np.float32)), 8000, 256, HOP, 32).unsqueeze(1).numpy().astype("f2")


def bytes_of(x: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(x), 0, 255).astype(np.uint8)


def noise(x: np.ndarray, deviation: float) -> np.ndarray:
    return x + np.random.default_rng(1).normal(0, deviation, x.shape)


def jpeg(x: np.ndarray) -> np.ndarray:
    """Through a file of quality 50."""
    coded = []
    for one in x:
        file = io.BytesIO()
        Image.fromarray(one).save(file, "JPEG", quality=50)
        coded.append(np.array(Image.open(file)))
    return np.stack(coded)


def mu_law(sound: np.ndarray) -> np.ndarray:
    """Through 8 bits."""
    peak = np.abs(sound).max(axis=1, keepdims=True)
    coded = np.rint(np.sign(sound) * np.log1p(255 * np.abs(sound) / peak) / np.log(256) * 127) / 127
    return np.sign(coded) * (256 ** np.abs(coded) - 1) / 255 * peak


def with_copies(of: np.ndarray, changed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values with copies of the first ones at the end, and which of all are train: the originals are, copies not."""
    in_train = np.random.default_rng(0).random(len(of)) < 0.7
    in_train[: len(changed)] = True
    return np.concatenate([of, changed]), np.concatenate([in_train, np.zeros(len(changed), dtype=bool)])


def recall(found: Near, count: int) -> tuple[float, int]:
    """The share of the last `count` of test whose original was named, and how many others were called copies."""
    planted = found.copies[found.copies >= len(found.partners) - count]
    right = found.partners[planted] == planted - (len(found.partners) - count)
    return float(right.sum()) / count, len(found.copies) - len(planted)


PICTURE_CHANGES: dict[str, Change] = {
    "brighter": lambda x: bytes_of(x + 25.0),
    "less contrast": lambda x: bytes_of(0.7 * x),
    "gamma": lambda x: bytes_of(255 * (x / 255) ** 0.8),
    "noise": lambda x: bytes_of(noise(x, 6.0)),
    "JPEG": jpeg,
    "one column to the right": lambda x: np.concatenate([x[:, :, :1], x[:, :, :-1]], axis=2),
    "one row up": lambda x: np.concatenate([x[:, 1:], x[:, -1:]], axis=1),
}
SOUND_CHANGES: dict[str, Change] = {
    "quieter": lambda x: 0.5 * x,
    "mu-law": mu_law,
    "noise at 30 dB": lambda x: noise(x, 10**-1.5 * float(np.sqrt((x**2).mean()))),
    "one frame later": lambda x: np.roll(x, HOP, axis=1),
}


@pytest.mark.parametrize("change", PICTURE_CHANGES)
def test_a_changed_picture_is_a_near_copy(tmp_path: Path, change: str) -> None:
    everything = with_copies(pictures(), PICTURE_CHANGES[change](pictures()[:COPIES]))
    found, false_alarms = recall(near(prepared(tmp_path, *everything)), COPIES)
    assert found >= 0.9
    assert false_alarms == 0


@pytest.mark.parametrize("change", SOUND_CHANGES)
def test_a_changed_recording_is_a_near_copy(tmp_path: Path, change: str) -> None:
    everything = with_copies(spectrograms(waves()), spectrograms(SOUND_CHANGES[change](waves()[:COPIES])))
    found, false_alarms = recall(near(prepared(tmp_path, *everything)), COPIES)
    assert found >= 0.9
    assert false_alarms == 0


@pytest.mark.parametrize("kind", ["pictures", "spoken"])
def test_other_writers_and_voices_are_no_copies(tmp_path: Path, kind: str) -> None:
    values = pictures() if kind == "pictures" else spectrograms(waves())
    content = Content.of(prepared(tmp_path, values, np.ones(len(values), dtype=bool)), "content")
    for seed in range(30):
        drawn = np.random.default_rng(seed).permutation(len(values))
        found = content.near(np.sort(drawn[: len(values) // 4]), np.sort(drawn[len(values) // 4 :]))
        assert len(found.copies) == 0


def test_where_everything_is_alike_nothing_is_called_a_copy(tmp_path: Path) -> None:
    """Blurred to a few cells, handwriting has many look-alikes; they are counted, and no copy is claimed."""
    mean = pictures().reshape(PICTURES, -1).mean(axis=0)
    flat = pictures().reshape(PICTURES, -1) - mean
    _, _, directions = np.linalg.svd(flat, full_matrices=False)
    weak = bytes_of(mean + flat @ directions[:3].T @ directions[:3]).reshape(pictures().shape)
    found = near(prepared(tmp_path, weak, np.arange(PICTURES) % 4 > 0))
    assert found.radius is None
    assert len(found.alike) > 20
    assert len(found.copies) == 0


def known_growth(growth: float, close: float = 0.0) -> Fingerprints:
    """Of content whose look-alikes are as said: `close` is the share of other samples within 0.16."""
    near_ones = np.full(round(1000 * close), 0.1)
    nothing = np.zeros((1, 0, 1), dtype=np.float32)
    return Fingerprints(np.zeros(0, dtype=np.int64), nothing, np.zeros(0, dtype=np.float32), near_ones, 1000, growth)


@pytest.mark.parametrize(
    ("within", "around", "growth", "close", "radius"),
    [
        (10, 12, 50.0, 0.0, 0.04),  # copies, and nothing near them
        (100, 900, 50.0, 0.0, None),  # far more than chance, but look-alikes go on without a gap
        (1, 1, 50.0, 0.0, None),  # one of one is within a quarter in one of 50 cases
        (1, 1, 1000.0, 0.0, 0.04),
        (10, 12, 50.0, 0.01, None),  # each of 200 has two look-alikes on average
        (10, 12, 4.0, 0.0, None),  # content of few numbers
    ],
)
def test_a_radius_needs_a_gap(within: int, around: int, growth: float, close: float, radius: float | None) -> None:
    distances = np.concatenate([np.full(within, 0.03), np.full(around - within, 0.1), np.ones(50)])
    assert copy_radius(distances, known_growth(growth, close), 200) == radius


@pytest.mark.parametrize(("width", "allowed"), [(3, 0), (6, 1)])
def test_vectors_of_few_numbers_come_near_each_other_by_chance(tmp_path: Path, width: int, allowed: int) -> None:
    called = 0
    for seed in range(12):
        values = np.random.default_rng(seed).normal(size=(300, width)).astype(np.float32)
        called += len(near(prepared(tmp_path / str(seed), values, np.arange(300) % 4 > 0)).copies) > 0
    assert called <= allowed


def test_copied_vectors_are_found(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(300, 40)).astype(np.float32)
    copies = noise(values[:COPIES], 0.02).astype(np.float32)
    assert recall(near(prepared(tmp_path, *with_copies(values, copies))), COPIES) == (1.0, 0)


def test_an_exact_copy_is_not_counted_as_a_near_one(tmp_path: Path) -> None:
    found = near(prepared(tmp_path, *with_copies(pictures(), pictures()[:COPIES])))
    assert found.same[-COPIES:].all()
    assert found.same.sum() == COPIES
    assert len(found.copies) == 0


def test_near_copies_make_an_honest_split_leak(tmp_path: Path) -> None:
    values, in_train = with_copies(pictures(), PICTURE_CHANGES["brighter"](pictures()[:COPIES]))
    targets = np.concatenate([np.arange(PICTURES) % 10, np.arange(COPIES) % 10])
    targets[-3:] += 1  # so that three copies have another target than their original
    made = prepared(tmp_path, values, in_train, targets % 10)
    found = audit(Given(values, (), (), (1, 24, 24)), made)
    (overlap,) = found.splits[0].overlaps
    assert (overlap.kind, overlap.parts, overlap.what) == ("near", ("train", "test"), "content")
    assert (overlap.count, overlap.conflicting) == (COPIES, 3)
    assert all(example.startswith("s00") and " = s08" in example for example in overlap.examples)
    assert not found.ok
    assert f"train and test share {COPIES} near copies of content contents (3 with another target)" in found.to_text()


def test_look_alikes_are_a_warning_and_no_leak(tmp_path: Path) -> None:
    values = np.random.default_rng(3).normal(size=(400, 3)).astype(np.float32)
    made = prepared(tmp_path, values, np.arange(400) % 4 > 0)
    found = audit(Given(values, (), (), (3,)), made)
    assert found.ok
    assert found.splits[0].alike[0].count > 0
    assert any("they need not be copies" in text for text in found.warnings)
