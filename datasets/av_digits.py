"""Handwritten digits and synthetic speech that says them: real enough to differ, small enough to ship."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Generator, Tensor

from bench import api
from bench.api import DataError, DataSet, DataSpec, EncoderSpec, Item, ModalitySpec, Sample, setting
from bench.data.augment import time_shift
from bench.data.formants import RATE, Speaker, say
from bench.data.spectrogram import log_mel, standardised

COUNT, VAL_FROM, TEST_FROM = 1797, 1200, 1440
SPEAKERS = {"train": range(12), "val": range(12, 16), "test": range(16, 20)}
LENGTH, N_FFT, HOP, MELS = 6000, 256, 128, 32
FRAMES = 1 + LENGTH // HOP


class AVDigits(DataSet):
    """The 8x8 images of scikit-learn in noise, each with an utterance of its digit in noise.

    Every sample has an utterance of its own, by one of 20 synthetic speakers (12 train, 4 val, 4 test). Images are
    split by position: the file is in the order of its writers, so that other writers come last.
    """

    @dataclass(frozen=True)
    class Settings(api.Settings):
        image_noise: float = setting(4.0, low=0.0, help="standard deviation, where ink is 16")
        snr_db: float = setting(-4.0, low=-40.0, help="of the utterance in white noise; inf: no noise")
        augment: bool = setting(False, help="shift the spectrogram in time during training")
        seed: int = setting(0, low=0, help="of voices and noise")

    title = "AV-Digits"
    source = "images: UCI 'Optical Recognition of Handwritten Digits', as shipped with scikit-learn; audio: synthetic"
    licence = "images CC BY 4.0 (UCI)"
    groups = "speaker"
    known_faults = (
        "speech is synthetic: nothing follows about real speakers",
        "writers are not labelled; splitting by position separates all but those at the two borders",
    )
    epochs = 12
    embedded = True

    def describe(self, root: Path) -> DataSpec:
        """Log-mel spectrograms [1, 32, 47] and images [1, 8, 8]."""
        audio, visual = (1, MELS, FRAMES), (1, 8, 8)
        modalities = {
            "audio": ModalitySpec(EncoderSpec("vit", dim=32, heads=2, patch=(8, 16)), audio, audio, "float16"),
            "visual": ModalitySpec(EncoderSpec("vit", dim=32, heads=2, patch=(4, 4)), visual, visual, "float16"),
        }
        return DataSpec(modalities, 10)

    def samples(self, root: Path) -> list[Sample]:
        """One sample per image, in the file's order."""
        return [
            Sample(
                id=f"{row:04d}",
                target=float(digit),
                sources={"audio": str(row), "visual": str(row)},
                split=_split(row),
                group=f"speaker{_speaker(row):02d}",
            )
            for row, digit in enumerate(_images()[1])
        ]

    def read(self, root: Path, modality: str, key: str) -> Item:
        """One noisy spectrogram or one noisy image."""
        row, s = int(key), self.settings
        images, digits = _images()
        if modality == "visual":
            noise = np.random.default_rng([s.seed, 0, row]).normal(0, 1, (1, 8, 8))
            return Item(((images[row] + s.image_noise * noise) / 16).astype(np.float16))
        speaker = _speaker(row)
        rng = np.random.default_rng([s.seed, 1, speaker, row])
        voice = Speaker.draw(np.random.default_rng([s.seed, 2, speaker]))
        utterance = say(int(digits[row]), voice, rng)[:LENGTH]
        start = rng.integers(0, LENGTH - len(utterance) + 1)
        wave = rng.normal(0, 10 ** (-s.snr_db / 20), LENGTH)
        wave[start : start + len(utterance)] += utterance
        loudness = np.sqrt(np.mean(wave**2))
        tensor = torch.from_numpy((wave / loudness).astype(np.float32))
        return Item(log_mel(tensor, RATE, N_FFT, HOP, MELS).unsqueeze(0).numpy().astype(np.float16))

    def load(self, modality: str, stored: Tensor, generator: Generator | None) -> Tensor:
        """Images of about unit spread; spectrograms with mean 0 and spread 1 each."""
        x = stored.float()
        if modality == "visual":
            return (x - 0.3) / 0.4
        x = standardised(x)
        return time_shift(x, 4, generator) if self.settings.augment and generator is not None else x


def _split(row: int) -> Literal["train", "val", "test"]:
    if row < VAL_FROM:
        return "train"
    return "val" if row < TEST_FROM else "test"


def _speaker(row: int) -> int:
    speakers = SPEAKERS[_split(row)]
    # A multiplicative hash deals them out unlike the digits, which come in runs of ten.
    return speakers[(row * 2654435761 >> 16) % len(speakers)]


@lru_cache(maxsize=1)
def _images() -> tuple[np.ndarray, np.ndarray]:
    """Images [1797, 8, 8] with ink from 0 to 16, and digits [1797]."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    if digits.images.shape != (COUNT, 8, 8):
        raise DataError(f"scikit-learn's digits are {digits.images.shape}, not {(COUNT, 8, 8)}; reinstall it")
    return digits.images, digits.target
