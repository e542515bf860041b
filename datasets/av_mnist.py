"""Handwritten and spoken digits: MNIST images paired with recordings of the Free Spoken Digit Dataset."""

from __future__ import annotations

import gzip
import hashlib
import io
import math
import re
import wave
import zipfile
import zlib
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Generator, Tensor

from bench import api
from bench.api import DataError, DataSet, DataSpec, EncoderSpec, Item, ModalitySpec, Sample, setting
from bench.data.download import content_md5, fetch
from bench.data.spectrogram import log_mel, standardised

FILES = {  # MD5 of the content: the .gz around it differs between mirrors
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
MIRRORS = ("https://ossci-datasets.s3.amazonaws.com/mnist", "https://storage.googleapis.com/cvdf-datasets/mnist")
COMMIT = "26eb9aaf76e81b692f806f9140c2d2777410d7a1"
SPEECH = f"https://github.com/Jakobovski/free-spoken-digit-dataset/archive/{COMMIT}.zip"
SPOKEN = "ec93f09bf1b2425ba65e70b40558d45d"
"""MD5 over the MD5s of the recordings in the order of their names: archives of one commit differ in their bytes."""
LARGEST = 64 << 20
"""Bytes of content: what is longer is no MNIST file, nor is a recording of more than 1 MiB one."""
SPLITS: dict[Literal["train", "val", "test"], tuple[str, int, int, range]] = {
    # file, first and last image, takes of the recordings
    "train": ("train", 0, 55_000, range(10, 50)),
    "val": ("train", 55_000, 60_000, range(5, 10)),
    "test": ("t10k", 0, 10_000, range(5)),
}
RECORDING = re.compile(r"(?:^|/)recordings/(\d)_([a-z]+)_(\d+)\.wav$")
RECORDINGS = 3000
RATE, LENGTH, N_FFT, HOP, MELS = 8000, 8000, 256, 128, 40


class AVMNIST(DataSet):
    """Image i goes with a recording of the same digit; takes 10-49 are for train, 5-9 for val, 0-4 for test.

    The defaults weaken both: the image keeps the leading principal components (of the train images) that hold 25 %
    of the variance, the recording gets white noise of its own power. `energy=1:snr_db=inf` is the clean set. Few
    recordings back many pairs (2,400 / 300 / 300 for 55,000 / 5,000 / 10,000), so a recording is the group.
    """

    @dataclass(frozen=True)
    class Settings(api.Settings):
        samples: int = setting(0, low=0, high=55_000, help="train pairs, val and test in proportion; 0: all")
        energy: float = setting(0.25, low=0.0, high=1.0, help="share of the image variance that is kept")
        snr_db: float = setting(0.0, low=-40.0, help="of the recording in white noise; inf: no noise")
        seed: int = setting(0, low=0, help="of pairing and noise")

    title = "AV-MNIST"
    source = "MNIST (LeCun, Cortes, Burges); github.com/Jakobovski/free-spoken-digit-dataset at 26eb9aa"
    licence = "images CC BY-SA 3.0, recordings CC BY-SA 4.0"
    groups = "recording"
    known_faults = (
        "paired by us: numbers are not comparable with MultiBench's AV-MNIST, whose file is not available",
        "all six speakers are in every split: nothing follows about new speakers",
    )
    epochs = 15

    def unusable(self, root: Path) -> str | None:
        """Which file is missing."""
        folder = _folder(root)
        for name in FILES:
            if not any((folder / f"{name}{ending}").is_file() for ending in ("", ".gz")):
                return (
                    f"av_mnist: no {name}.gz in {folder}; put MNIST's four files there, or name av_mnist to fetch them"
                )
        if _recordings(folder) is None:
            return (
                f"av_mnist: no free-spoken-digit-dataset*.zip and no folder recordings/ in {folder}; "
                "put the archive of github.com/Jakobovski/free-spoken-digit-dataset there"
            )
        return None

    def fetch(self, root: Path) -> None:
        """MNIST from its mirrors and the recordings from GitHub, 27 MB, into `av_mnist/` or where some of it lies."""
        known = _folder(root)
        begun = _recordings(known) is not None or any((known / f"{n}{e}").is_file() for n in FILES for e in ("", ".gz"))
        folder = known if begun else root / "av_mnist"
        for name, md5 in FILES.items():
            if not (folder / name).is_file():
                addresses = [f"{mirror}/{name}.gz" for mirror in MIRRORS]
                fetch(addresses, folder / f"{name}.gz", LARGEST, partial(_not_mnist, md5))
        if _recordings(folder) is None:
            fetch([SPEECH], folder / f"free-spoken-digit-dataset-{COMMIT[:7]}.zip", LARGEST, _not_speech)

    def describe(self, root: Path) -> DataSpec:
        """Log-mel spectrograms [1, 40, 63] and images [1, 28, 28]."""
        audio, visual = (1, MELS, 1 + LENGTH // HOP), (1, 28, 28)
        modalities = {
            "audio": ModalitySpec(EncoderSpec("vit", patch=(8, 8)), audio, audio, "float16"),
            "visual": ModalitySpec(EncoderSpec("vit", patch=(7, 7)), visual, visual, "uint8"),
        }
        return DataSpec(modalities, 10)

    def samples(self, root: Path) -> list[Sample]:
        """All pairs; the recordings of a digit are dealt out evenly, in an order drawn from the seed."""
        folder = self._usable(root)
        known = _listed(folder)
        pairs = []
        for position, (split, (file, first, last, takes)) in enumerate(SPLITS.items()):
            wanted = self.settings.samples or 55_000
            count = max(1, round((last - first) * wanted / 55_000))
            labels = _idx(folder, f"{file}-labels-idx1-ubyte")[first : first + count]
            for digit in range(10):
                clips = sorted(name for name in known if (name.digit, name.take in takes) == (digit, True))
                order = np.random.default_rng([self.settings.seed, position, digit]).permutation(len(clips))
                for turn, image in enumerate(np.flatnonzero(labels == digit).tolist()):
                    clip = clips[order[turn % len(clips)]].text
                    name = f"{file}/{first + image:05d}"
                    pairs.append(Sample(name, float(digit), {"audio": clip, "visual": name}, split, group=clip))
        return sorted(pairs, key=lambda pair: (list(SPLITS).index(pair.split or "train"), pair.id))

    def read(self, root: Path, modality: str, key: str) -> Item:
        """One weakened image or one noisy spectrogram."""
        folder = self._usable(root)
        if modality == "visual":
            file, _, position = key.partition("/")
            image = _idx(folder, f"{file}-images-idx3-ubyte")[int(position)]
            if self.settings.energy < 1:
                image = _weaken(image, *_components(folder, self.settings.energy))
            return Item(image[None])
        clip = _waveform(folder, key)
        padded = np.zeros(LENGTH)
        padded[: min(len(clip), LENGTH)] = clip[:LENGTH]
        power = np.mean(clip**2)
        rng = np.random.default_rng([self.settings.seed, zlib.crc32(key.encode())])
        padded += rng.normal(0, math.sqrt(power) * 10 ** (-self.settings.snr_db / 20), LENGTH)
        loudness = math.sqrt(np.mean(padded**2)) or 1.0
        tensor = torch.from_numpy((padded / loudness).astype(np.float32))
        return Item(log_mel(tensor, RATE, N_FFT, HOP, MELS).unsqueeze(0).numpy().astype(np.float16))

    def load(self, modality: str, stored: Tensor, generator: Generator | None) -> Tensor:
        """Images shifted and scaled by the mean and spread of MNIST; spectrograms with mean 0 and spread 1 each."""
        x = stored.float()
        return (x / 255 - 0.13) / 0.31 if modality == "visual" else standardised(x)

    def _usable(self, root: Path) -> Path:
        if reason := self.unusable(root):
            raise DataError(reason)
        return _folder(root)


@dataclass(frozen=True, order=True)
class _Clip:
    digit: int
    speaker: str
    take: int

    @property
    def text(self) -> str:
        return f"{self.digit}_{self.speaker}_{self.take}"


def _not_mnist(md5: str, file: Path) -> str:
    found = content_md5(file, LARGEST)
    return "" if found == md5 else f"the content has MD5 {found or '(unreadable)'} instead of {md5}"


def _not_speech(file: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    try:
        with zipfile.ZipFile(file) as archive:
            found = {
                m.group(0).rpartition("/")[2]: e for e in archive.infolist() if (m := RECORDING.search(e.filename))
            }
            if any(entry.file_size > 1 << 20 for entry in found.values()):
                return "a recording is longer than 1 MiB"
            for _, entry in sorted(found.items()):
                digest.update(hashlib.md5(archive.read(entry), usedforsecurity=False).digest())
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        return f"no archive ({error})"
    return "" if digest.hexdigest() == SPOKEN else f"{len(found)} recordings have MD5 {digest.hexdigest()} not {SPOKEN}"


def _folder(root: Path) -> Path:
    return root / "av_mnist" if (root / "av_mnist").is_dir() else root


def _recordings(folder: Path) -> Path | None:
    """The archive or the folder that holds the recordings."""
    archives = sorted(folder.glob("free-spoken-digit-dataset*.zip"))
    unpacked = [p.parent for p in (folder / "recordings", *folder.glob("free-spoken-digit-dataset*/recordings"))]
    found = [*archives, *(p for p in unpacked if (p / "recordings").is_dir())]
    return found[0] if found else None


@lru_cache(maxsize=2)
def _members(folder: Path) -> dict[str, str]:
    """Clip name -> member of the archive or path of the file."""
    place = _recordings(folder)
    assert place is not None
    if place.is_dir():
        names = [str(p) for p in (place / "recordings").iterdir()]
    else:
        with zipfile.ZipFile(place) as archive:
            names = [entry.filename for entry in archive.infolist() if entry.file_size < 1 << 20]
    found = {"_".join(match.groups()): name for name in names if (match := RECORDING.search(name))}
    if len(found) != RECORDINGS:
        raise DataError(f"{place}: {len(found)} recordings instead of {RECORDINGS}; fetch the archive at 26eb9aa again")
    return found


def _listed(folder: Path) -> list[_Clip]:
    parts = (name.split("_") for name in _members(folder))
    return [_Clip(int(digit), speaker, int(take)) for digit, speaker, take in parts]


def _waveform(folder: Path, clip: str) -> np.ndarray:
    """A recording as float64 in [-1, 1]; members of the archive are read, never unpacked to disk."""
    place, member = _recordings(folder), _members(folder)[clip]
    assert place is not None
    try:
        content = Path(member).read_bytes() if place.is_dir() else _archive(place).read(member)
        with wave.open(io.BytesIO(content)) as recording:
            form = (recording.getframerate(), recording.getnchannels(), recording.getsampwidth())
            if form != (RATE, 1, 2):
                raise DataError(f"{member}: {form} instead of 8000 Hz, one channel, two bytes")
            samples = np.frombuffer(recording.readframes(recording.getnframes()), dtype="<i2")
    except (OSError, EOFError, wave.Error, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{place}: {member} cannot be read ({error})") from error
    if len(samples) == 0:
        raise DataError(f"{place}: {member} holds no samples")
    return samples / 32768


@lru_cache(maxsize=1)
def _archive(place: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(place)


@lru_cache(maxsize=4)
def _idx(folder: Path, name: str) -> np.ndarray:
    """The array of an idx file, packed or not, after its content was checked."""
    plain, packed = folder / name, folder / f"{name}.gz"
    file = plain if plain.is_file() else packed
    try:
        with file.open("rb") if file is plain else gzip.open(packed) as stream:
            content = stream.read(LARGEST)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file}: cannot be read ({error}); fetch it again") from error
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != FILES[name]:
        raise DataError(f"{file}: the content has MD5 {found} instead of {FILES[name]}; fetch it again")
    axes = content[3]
    shape = [int.from_bytes(content[4 + 4 * axis : 8 + 4 * axis], "big") for axis in range(axes)]
    return np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * axes).reshape(shape)


@lru_cache(maxsize=1)
def _components(folder: Path, energy: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean [784] and leading components [784, k] of the train images that hold `energy` of the variance."""
    images = _idx(folder, "train-images-idx3-ubyte")[: SPLITS["train"][2]].reshape(-1, 784).astype(np.float64)
    mean = images.mean(axis=0)
    # Sums of products of bytes are exact in float64, whatever the order of adding.
    covariance = images.T @ images / len(images) - np.outer(mean, mean)
    variances, vectors = np.linalg.eigh(covariance)
    kept = np.cumsum(variances[::-1]) / variances.sum()
    count = int(np.searchsorted(kept, energy)) + 1 if energy > 0 else 0
    return mean, vectors[:, ::-1][:, :count]


def _weaken(image: np.ndarray, mean: np.ndarray, components: np.ndarray) -> np.ndarray:
    flat = image.reshape(-1) - mean
    restored = mean + components @ (components.T @ flat)
    return np.clip(np.rint(restored), 0, 255).astype(np.uint8).reshape(image.shape)
