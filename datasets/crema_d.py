"""CREMA-D: 91 actors speak 12 sentences in six emotions, heard and seen."""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from bench import api
from bench.api import DataError, DataSet, DataSpec, EncoderSpec, Item, ModalitySpec, Sample, setting
from bench.data import media
from bench.data.frames import stored_side, to_inputs, to_store
from bench.data.lists import read_list
from bench.data.spectrogram import log_stft, standardised, tile_or_cut

EMOTIONS = ("NEU", "HAP", "SAD", "FEA", "DIS", "ANG")
CLIP = re.compile(rf"(\d{{4}})_([A-Z]{{3}})_({'|'.join(EMOTIONS)})_([A-Z]{{1,2}})")
"""Actor, sentence, emotion, intensity."""
AUDIO = ("AudioWAV", "audio")
VISUAL = ("VideoFlash", "VideoMP4", "Image-01-FPS", "video", "visual/Image-01-FPS", "visual")
WEIGHTS = "vit_base_patch16_224.augreg_in21k"


class CREMAD(DataSet):
    """Audio as a spectrogram of 3 s with time as its height; of the frames at 1 per second, one at a time.

    Raw files: `AudioWAV/<clip>.wav` (or `audio/`) beside `VideoFlash/<clip>.flv`, MP4 files, or folders of frames
    `Image-01-FPS/<clip>/*.jpg`. The emotion and the actor stand in a clip's name. Folds are drawn by actor; lists
    of `clip,LABEL` (`train_list`, `test_list`, else train.csv and test.csv beside the clips) are the published split.

    `audio=released` is what the public code of OGM-GE and RollingQ does: 22.05 kHz, hop 353, log magnitude, 257x188.
    `audio=paper` has the shape that papers state, 257x299: 16 kHz, windows of 512 that overlap by 353, standardised.
    In training one of `candidates` stored frames is drawn, in evaluation the middle one is taken; the released code
    draws then too.
    """

    @dataclass(frozen=True)
    class Settings(api.Settings):
        audio: str = setting("released", choices=("released", "paper"), help="which spectrogram")
        size: int = setting(224, low=16, high=512, help="side of the frames an encoder sees")
        candidates: int = setting(3, low=1, high=10, help="frames stored per clip, of which training draws one")
        limit: int = setting(0, low=0, help="clips per actor, the first by name; 0: all")
        train_list: str = setting("", place=True, help="published train clips; empty: train.csv, if it is there")
        test_list: str = setting("", place=True, help="published test clips; empty: test.csv, if it is there")

    title = "CREMA-D"
    source = "github.com/CheyneyComputerScience/CREMA-D (Cao et al., IEEE Trans. Affective Computing 2014)"
    licence = "Open Database License 1.0"
    groups = "actor"
    known_faults = (
        "all 91 actors of the published test list are also in the published train list",
        "the published lists have no validation part: papers select on test",
        "1076_MTI_SAD_XX has no sound",
    )
    recipe = "published"

    def unusable(self, root: Path) -> str | None:
        """Which folder is missing."""
        folder = _folder(root)
        if not any((folder / name).is_dir() for name in AUDIO):
            return (
                f"crema_d: no folder {' or '.join(AUDIO)} in {folder}; clone {self.source.split()[0]} there (Git LFS)"
            )
        if not any((folder / name).is_dir() for name in VISUAL):
            return f"crema_d: no folder {', '.join(VISUAL[:-1])} or {VISUAL[-1]} in {folder}; frames or videos go there"
        return None

    def raw_key(self, root: Path) -> str:
        """The content of the lists that were named; others belong to the raw files."""
        named = [Path(text).expanduser() for text in (self.settings.train_list, self.settings.test_list) if text]
        try:
            return ",".join(hashlib.sha256(file.read_bytes()).hexdigest() for file in named)
        except OSError as error:
            raise DataError(f"crema_d: a list cannot be read: {error}") from error

    def describe(self, root: Path) -> DataSpec:
        """Spectrograms [1, time, 257] and frames [3, size, size]."""
        s = self.settings
        encoder = EncoderSpec("vit", dim=768, depth=4, heads=12, patch=(16, 16), edge="crop", weights=WEIGHTS)
        sound = (1, 188 if s.audio == "released" else 299, 257)
        side = stored_side(s.size)
        modalities = {
            "audio": ModalitySpec(encoder, sound, sound, "float16"),
            "visual": ModalitySpec(encoder, (3, s.size, s.size), (s.candidates, side, side, 3), "uint8"),
        }
        return DataSpec(modalities, len(EMOTIONS), class_names=EMOTIONS)

    def group_of(self, sample_id: str) -> str:
        """The actor."""
        return sample_id.partition("_")[0] if CLIP.fullmatch(sample_id) else ""

    def samples(self, root: Path) -> list[Sample]:
        """Every clip that is heard, seen or listed, in the order of names; half a pair is found when it is read."""
        if reason := self.unusable(root):
            raise DataError(reason)
        folder = _folder(root)
        heard, seen = _found(folder, AUDIO, (".wav",)), _found(folder, VISUAL, media.VIDEOS, folders=True)
        listed, actors = self._listed(folder), _demographics(folder)
        kept: dict[str, int] = {}
        samples = []
        for clip in sorted({*heard, *seen, *listed}):
            actor, sentence, emotion, intensity = _parts(clip)
            kept[actor] = kept.get(actor, 0) + 1
            if self.settings.limit and kept[actor] > self.settings.limit:
                continue
            about: dict[str, str | float] = {"sentence": sentence, "intensity": intensity, **actors.get(actor, {})}
            if listed:
                about["published_split"] = listed.get(clip, "")
            sources = {
                "audio": heard.get(clip, f"{AUDIO[0]}/{clip}.wav"),
                "visual": seen.get(clip, f"{VISUAL[0]}/{clip}.flv"),
            }
            samples.append(Sample(clip, float(EMOTIONS.index(emotion)), sources, group=actor, metadata=about))
        return samples

    def read(self, root: Path, modality: str, key: str) -> Item:
        """One spectrogram, or the frames of one clip."""
        path = media.inside(_folder(root), key)
        if modality == "audio":
            return Item(_spectrogram(path, self.settings.audio))
        if path.is_dir():
            pictures = [media.image(file) for file in media.images(path)]
        else:
            pictures = media.frames(path, expected=_sound_seconds(_folder(root), path.stem))
        return Item(to_store(pictures, self.settings.candidates, self.settings.size))

    def load(self, modality: str, stored: Tensor, generator: Generator | None) -> Tensor:
        """Frames cropped and mirrored in training; spectrograms as they are (`paper`: mean 0 and spread 1 each)."""
        if modality == "visual":
            return to_inputs(stored, self.settings.size, 1, generator).squeeze(2)
        return standardised(stored.float()) if self.settings.audio == "paper" else stored.float()

    def _listed(self, folder: Path) -> dict[str, str]:
        """Clip -> published split."""
        found: dict[str, str] = {}
        for split, named in (("train", self.settings.train_list), ("test", self.settings.test_list)):
            file = Path(named).expanduser() if named else folder / f"{split}.csv"
            if not named and not file.is_file():
                continue
            for line in read_list(file):
                clip, label = line.fields[0], line.fields[-1]
                if (match := CLIP.fullmatch(clip)) is None:
                    raise DataError(f"{file}:{line.number}: {clip!r} names no clip; expected e.g. 1001_DFA_ANG_XX")
                if len(line.fields) > 1 and label != match[3]:
                    raise DataError(f"{file}:{line.number}: {clip} is listed as {label}, and its name says {match[3]}")
                if clip in found:
                    raise DataError(f"{file}:{line.number}: {clip} is listed a second time (first in {found[clip]})")
                found[clip] = split
        if found and set(found.values()) != {"train", "test"}:
            raise DataError(f"crema_d: only a {next(iter(found.values()))} list was found; the published split has two")
        return found


def _folder(root: Path) -> Path:
    names = ("crema_d", "CREMA-D", "CREMAD")
    return next((root / name for name in names if (root / name).is_dir()), root)


def _found(folder: Path, places: Iterable[str], endings: tuple[str, ...], folders: bool = False) -> dict[str, str]:
    """Clip -> path in `folder`, from the first place that has it."""
    found: dict[str, str] = {}
    for place in places:
        for entry in sorted((folder / place).iterdir()) if (folder / place).is_dir() else ():
            is_clip = entry.suffix.lower() in endings or (folders and entry.suffix == "" and entry.is_dir())
            if is_clip and CLIP.fullmatch(entry.stem):
                found.setdefault(entry.stem, f"{place}/{entry.name}")
    return found


def _sound_seconds(folder: Path, clip: str) -> float | None:
    """The length of a clip's WAV; a FLV whose header was lost does not know its own."""
    for place in AUDIO:
        if (folder / place / f"{clip}.wav").is_file():
            try:
                return media.seconds_of(media.inside(folder, f"{place}/{clip}.wav"))
            except DataError:  # said when the sound is read
                return None
    return None


def _parts(clip: str) -> tuple[str, str, str, str]:
    match = CLIP.fullmatch(clip)
    assert match is not None  # only such names are collected
    return match[1], match[2], match[3], match[4]


def _demographics(folder: Path) -> Mapping[str, Mapping[str, Any]]:
    """Actor -> age, sex, race and ethnicity, where the table is there."""
    file = folder / "VideoDemographics.csv"
    if not file.is_file():
        return {}
    with file.open(encoding="utf-8-sig", newline="") as opened:
        rows = list(csv.DictReader(opened))
    wanted = {"ActorID", "Age", "Sex", "Race", "Ethnicity"}
    if missing := wanted - set(rows[0] if rows else ()):
        raise DataError(f"{file}: no column {', '.join(sorted(missing))}; expected {', '.join(sorted(wanted))}")
    try:
        return {
            row["ActorID"]: {"age": float(row["Age"]), **{k.lower(): row[k] for k in ("Sex", "Race", "Ethnicity")}}
            for row in rows
        }
    except ValueError as error:
        raise DataError(f"{file}: an age is no number ({error})") from error


def _spectrogram(path: Path, recipe: str) -> np.ndarray:
    """float32 [1, time, frequency]."""
    rate = 22050 if recipe == "released" else 16000
    wave = tile_or_cut(torch.from_numpy(media.waveform(path, rate)), 3 * rate)
    released = recipe == "released"
    spectrogram = log_stft(wave, 512, 353) if released else log_stft(wave, 512, 512 - 353, centre=False)
    return spectrogram.T.unsqueeze(0).contiguous().numpy()
