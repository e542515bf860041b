"""Generated modalities whose truth is known: what each sample shows, how well, and how much can be read from it."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np

from bench import api
from bench.api import DataError, DataSet, DataSpec, EncoderSpec, Item, ModalitySpec, Sample, setting
from bench.data.truth import Code, Interplay, accuracy_bounds, symbol_evidence

NAMES = ("audio", "visual", "text", "depth", "touch")
WIDTH = 16
"""Of a prototype; a product code shows twice as many values."""

Prior = Literal["even", "opposed"]
Split = Literal["train", "val", "test"]


@dataclass(frozen=True)
class Channel:
    """How one modality shows its symbol: tokens are strength x quality x code + noise."""

    code: Code
    strength: float
    noise: float

    @property
    def width(self) -> int:
        """Values per token."""
        return WIDTH if self.code == "linear" else 2 * WIDTH


@dataclass(frozen=True)
class Preset:
    """A task: channels (the last stands for all further modalities) and the defaults of the settings."""

    channels: tuple[Channel, ...]
    samples: int = 1200
    classes: int = 8
    tokens: int = 8
    quality: Prior = "even"
    dim: int = 32
    """The encoders' width."""


PRESETS: Mapping[str, Preset] = {
    # Modalities that cannot be told apart but by their names.
    "symmetric": Preset((Channel("linear", 0.9, 2.5), Channel("linear", 0.9, 2.5))),
    # Only the first says anything.
    "one_sided": Preset((Channel("linear", 1.2, 2.5), Channel("linear", 0.0, 2.5))),
    # The first is learned fast, the second slowly: attention collapses onto the first.
    "collapse": Preset((Channel("linear", 1.2, 1.5), Channel("product", 1.6, 1.0)), samples=4000, classes=10, dim=64),
    # Where one modality is good the others are poor: what attention should follow.
    "quality": Preset((Channel("linear", 1.2, 2.5), Channel("linear", 1.2, 2.5)), quality="opposed"),
    "three": Preset((Channel("linear", 0.9, 2.5), Channel("product", 1.6, 1.0), Channel("linear", 0.6, 2.5))),
}


class Planted(DataSet):
    """Class prototypes and sign products in noise, with a true quality per sample and modality in the index.

    The qualities are independent and even in [0, 1]; in `quality` they are a Dirichlet(1/2) draw and sum to 1. A
    modality that shows nothing has quality 0.
    """

    @dataclass(frozen=True)
    class Settings(api.Settings):
        preset: str = setting("symmetric", choices=tuple(PRESETS), help="which task")
        modalities: int = setting(0, low=0, high=5, help="how many, 2 to 5; 0: the preset's")
        samples: int = setting(0, low=0, help="in train; val has a quarter, test half as many; 0: the preset's")
        classes: int = setting(0, low=0, help="at least 2; 0: the preset's")
        tokens: int = setting(0, low=0, help="per modality; 0: the preset's")
        unique: float = setting(0.0, low=0.0, high=1.0, help="share of samples whose class one modality alone shows")
        synergy: float = setting(0.0, low=0.0, high=1.0, help="share whose class only two modalities together show")
        seed: int = setting(0, low=0, help="of the generator; the seed of a trial is another one")

    title = "Planted"
    source = "generated"
    licence = "none needed"
    known_faults = ("samples are independent and identically distributed: nothing follows about shifts",)
    epochs = 10
    embedded = True

    def describe(self, root: Path) -> DataSpec:
        """Sequences [tokens, 16], or [tokens, 32] where the code is a product."""
        task = _task(self.settings)
        modalities = {
            m: ModalitySpec(EncoderSpec("sequence", dim=task.dim, depth=2, heads=2), shape, shape, "float32")
            for m, channel in task.channels.items()
            for shape in [(task.tokens, channel.width)]
        }
        return DataSpec(modalities, task.classes)

    def samples(self, root: Path) -> list[Sample]:
        """Train, val and test samples with their true qualities."""
        truth = _truth(self.settings)
        names = list(truth.quality)
        return [
            Sample(
                id=f"{position:06d}",
                target=float(truth.target[position]),
                sources=dict.fromkeys(names, str(position)),
                split=truth.split[position],
                metadata={f"quality_{m}": float(truth.quality[m][position]) for m in names},
            )
            for position in range(len(truth.target))
        ]

    def read(self, root: Path, modality: str, key: str) -> Item:
        """The tokens [tokens, width] of one sample."""
        task, truth, position = _task(self.settings), _truth(self.settings), int(key)
        channel = task.channels[modality]
        rng = np.random.default_rng([self.settings.seed, 1, zlib.crc32(modality.encode()), position])
        shown = truth.prototypes[modality][truth.symbols[modality][position]]
        if channel.code == "product":
            signs = rng.integers(0, 2, WIDTH) * 2.0 - 1.0
            shown = np.concatenate([signs, signs * shown])
        amplitude = channel.strength * truth.quality[modality][position]
        noise = rng.standard_normal((task.tokens, channel.width)) * channel.noise
        return Item((amplitude * shown + noise).astype(np.float32))

    def bayes_accuracy(self, count: int = 2000, draws: int = 256) -> tuple[float, float]:
        """Bounds of the best accuracy any model can reach on test, from its first `count` samples.

        The lower one is what an observer reaches who knows the generator and averages over `draws` quality vectors,
        the upper one what it reaches when told the true qualities (see `bench.data.truth.accuracy_bounds`).
        """
        task, truth = _task(self.settings), _truth(self.settings)
        test = np.flatnonzero(np.array(truth.split) == "test")[:count]
        # float64 like the evidence; the mean over tokens is all that the noise leaves to know
        means = {
            m: np.stack(
                [self.read(Path(), m, str(position)).values.mean(axis=0, dtype=np.float64) for position in test]
            )
            for m in task.channels
        }

        def evidence(quality: Mapping[str, np.ndarray]) -> np.ndarray:
            shown = {
                m: symbol_evidence(
                    c.code, means[m], truth.prototypes[m], c.strength * quality[m], c.noise**2 / task.tokens
                )
                for m, c in task.channels.items()
            }
            return task.interplay.class_evidence(shown)

        rng = np.random.default_rng([self.settings.seed, 2])
        prior = _qualities(rng, task, draws)
        drawn = _qualities(np.random.default_rng([self.settings.seed, 0]), task, len(truth.target))
        return accuracy_bounds(evidence, {m: q[test] for m, q in drawn.items()}, prior, truth.target[test])


@dataclass(frozen=True)
class _Task:
    channels: Mapping[str, Channel]
    samples: int
    classes: int
    tokens: int
    dim: int
    quality: Prior
    interplay: Interplay


@dataclass(frozen=True)
class _Truth:
    target: np.ndarray
    split: list[Split]
    quality: Mapping[str, np.ndarray]
    symbols: Mapping[str, np.ndarray]
    prototypes: Mapping[str, np.ndarray]


def _task(settings: Planted.Settings) -> _Task:
    """What the settings and their preset say together."""
    preset = PRESETS[settings.preset]
    count = settings.modalities or len(preset.channels)
    classes = settings.classes or preset.classes
    if count < 2 or classes < 2:
        raise DataError(f"planted: {count} modalities and {classes} classes; allowed: 2 to 5 and at least 2")
    if settings.unique + settings.synergy > 1:
        raise DataError(f"planted: unique={settings.unique} and synergy={settings.synergy} are more than 1 together")
    channels = {m: preset.channels[min(k, len(preset.channels) - 1)] for k, m in enumerate(NAMES[:count])}
    return _Task(
        channels=channels,
        samples=settings.samples or preset.samples,
        classes=classes,
        tokens=settings.tokens or preset.tokens,
        dim=preset.dim,
        quality=preset.quality,
        interplay=Interplay(settings.unique, settings.synergy),
    )


@lru_cache(maxsize=2)
def _truth(settings: Planted.Settings) -> _Truth:
    task = _task(settings)
    sizes: dict[Split, int] = {
        "train": task.samples,
        "val": max(1, task.samples // 4),
        "test": max(1, task.samples // 2),
    }
    total = sum(sizes.values())
    rng = np.random.default_rng([settings.seed, 0])
    quality = _qualities(rng, task, total)
    target = rng.integers(0, task.classes, total)
    names = list(task.channels)
    draw, shift, only = rng.random(total), rng.integers(0, task.classes, total), rng.integers(0, len(names), total)
    unique = draw < settings.unique
    synergy = ~unique & (draw < settings.unique + settings.synergy)
    symbols = dict.fromkeys(names, target)
    symbols[names[0]] = np.where(synergy, (target + shift) % task.classes, target)
    symbols[names[1]] = np.where(synergy, shift, target)
    for position, (m, channel) in enumerate(task.channels.items()):
        shows = (~unique | (only == position)) & (~synergy | (position < 2)) & (channel.strength > 0)
        quality[m] = np.where(shows, quality[m], 0.0)
    prototypes = {}
    for m, channel in task.channels.items():
        drawn = np.random.default_rng([settings.seed, 3, zlib.crc32(m.encode())]).standard_normal((task.classes, WIDTH))
        prototypes[m] = drawn if channel.code == "linear" else np.where(drawn < 0, -1.0, 1.0)
    split = [name for name, size in sizes.items() for _ in range(size)]
    return _Truth(target, split, quality, symbols, prototypes)


def _qualities(rng: np.random.Generator, task: _Task, count: int) -> dict[str, np.ndarray]:
    """Qualities in [0, 1] of every modality, [count] each."""
    names = list(task.channels)
    opposed = task.quality == "opposed"
    drawn = rng.dirichlet([0.5] * len(names), count) if opposed else rng.random((count, len(names)))
    return {m: drawn[:, k] for k, m in enumerate(names)}
