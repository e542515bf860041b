"""Kinetics-Sounds: 31 actions of Kinetics that can be both heard and seen, in clips of ten seconds."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Generator, Tensor

from bench import api
from bench.api import DataError, DataSet, DataSpec, EncoderSpec, Item, ModalitySpec, Sample, setting
from bench.data import media
from bench.data.fbank import log_fbank
from bench.data.frames import stored_side, to_inputs, to_store
from bench.data.lists import Line, read_list
from bench.data.spectrogram import log_stft, standardised, tile_or_cut

CLASSES = (
    "blowing nose",
    "blowing out candles",
    "bowling",
    "chopping wood",
    "dribbling basketball",
    "laughing",
    "mowing lawn",
    "playing accordion",
    "playing bagpipes",
    "playing bass guitar",
    "playing clarinet",
    "playing drums",
    "playing guitar",
    "playing harmonica",
    "playing keyboard",
    "playing organ",
    "playing piano",
    "playing saxophone",
    "playing trombone",
    "playing trumpet",
    "playing violin",
    "playing xylophone",
    "ripping paper",
    "shoveling snow",
    "shuffling cards",
    "singing",
    "stomping grapes",
    "tap dancing",
    "tapping guitar",
    "tapping pen",
    "tickling",
)
SPLITS: tuple[Literal["train", "val", "test"], ...] = ("train", "val", "test")
LISTS = {
    "train": ("train.csv", "train.txt", "my_train.txt", "ks_train_overlap.txt", "ks_train.txt"),
    "val": ("val.csv", "val.txt", "validate.csv"),
    "test": ("test.csv", "test.txt", "my_test.txt", "ks_test_overlap.txt", "ks_test.txt"),
}
NAME = re.compile(r"[A-Za-z0-9_-]+")
VIDEO = re.compile(r"([A-Za-z0-9_-]{11})(?:_(\d+))?(?:_(\d+))?")
"""YouTube id, start and end in seconds."""
RATE, SECONDS, SEGMENTS = 16000, 10, 3
AUDIO_SET = (-4.503877, 5.141276)
"""Mean and deviation of log filter banks that the public code shifts and scales by (twice the deviation)."""
WEIGHTS = "vit_base_patch16_224.augreg_in21k"


class KineticsSounds(DataSet):
    """Ten seconds of sound with time as height, and three frames, one from each third of the frames at 1 per second.

    Clips are found below the raw folder by the names in a list: videos `<id>.mp4`, `<id>_<start>.mp4` or
    `<id>_000012_000022.mp4`; or what others have prepared: `<name>.npy` (1024x128) or `<name>.wav` and a folder
    `<name>/` of frames. Lists are Kinetics' CSV with its header, or lines `id,start,end,label`, `name,...,label` or
    `name ... label`; rows of other classes are passed over. A class number is taken as it is, a name is counted in
    alphabetical order. What a list names and the disk has not is left out and counted.
    """

    @dataclass(frozen=True)
    class Settings(api.Settings):
        audio: str = setting("fbank", choices=("fbank", "spectrogram"), help="1024x128 log-mel, or 1004x257 log |STFT|")
        size: int = setting(224, low=16, high=512, help="side of the frames an encoder sees")
        candidates: int = setting(1, low=1, high=3, help="frames stored per third, of which training draws one")
        split: str = setting("listed", choices=("listed", "drawn"), help="drawn: honest folds by video")
        limit: int = setting(0, low=0, help="clips per split, the first of the list; 0: all")
        train_list: str = setting("", place=True, help="train clips; empty: looked for beside the clips")
        val_list: str = setting("", place=True, help="val clips, where there are any")
        test_list: str = setting("", place=True, help="test clips; empty: looked for beside the clips")

    title = "Kinetics-Sounds"
    source = "Kinetics-400 (DeepMind), classes of Arandjelovic and Zisserman (ICCV 2017) that are left"
    licence = "annotations CC BY 4.0; the videos belong to their uploaders"
    groups = "video"
    known_faults = (
        "clips vanish from YouTube: two copies are rarely the same set, and the split hash says so",
        "public lists have no validation part: papers select on test",
        "public lists number the classes without naming them",
    )
    recipe = "published"
    published_settings: ClassVar[Mapping[str, Mapping[str, Any]]] = {"rollingq": {"max_rotations": 3}}
    tolerated_loss = 0.5

    def unusable(self, root: Path) -> str | None:
        """Which list is missing."""
        folder = _folder(root)
        for split in ("train", "test"):
            if self._list(folder, split) is None:
                return (
                    f"kinetics_sounds: no {split} list in {folder} ({', '.join(LISTS[split])}); "
                    f"put one beside the clips, or name it: {split}_list=FILE"
                )
        return None

    def raw_key(self, root: Path) -> str:
        """The content of the lists that were named; others belong to the raw files."""
        named = [(split, getattr(self.settings, f"{split}_list")) for split in SPLITS]
        try:
            return ",".join(
                f"{split}:{hashlib.sha256(Path(text).expanduser().read_bytes()).hexdigest()}"
                for split, text in named
                if text
            )
        except OSError as error:
            raise DataError(f"kinetics_sounds: a list cannot be read: {error}") from error

    def describe(self, root: Path) -> DataSpec:
        """Sound [1, time, frequency] and frames [3, 3, size, size]."""
        s = self.settings
        encoder = EncoderSpec("vit", dim=768, depth=4, heads=12, patch=(16, 16), edge="crop", weights=WEIGHTS)
        sound = (1, 1024, 128) if s.audio == "fbank" else (1, 1004, 257)
        side = stored_side(s.size)
        stored = (SEGMENTS * s.candidates, side, side, 3)
        modalities = {
            "audio": ModalitySpec(encoder, sound, sound, "float16"),
            "visual": ModalitySpec(encoder, (3, SEGMENTS, s.size, s.size), stored, "uint8"),
        }
        return DataSpec(modalities, len(CLASSES))

    def group_of(self, sample_id: str) -> str:
        """The video's YouTube id."""
        match = VIDEO.fullmatch(sample_id)
        return match[1] if match else sample_id

    def samples(self, root: Path) -> list[Sample]:
        """What the lists name, split by split."""
        if reason := self.unusable(root):
            raise DataError(reason)
        folder = _folder(root)
        on_disk = _walk(folder)
        drawn = self.settings.split == "drawn"
        samples: list[Sample] = []
        first: dict[str, str] = {}
        for split in SPLITS:
            file = self._list(folder, split)
            clips = [] if file is None else list(_clips(file))
            for clip in clips[: self.settings.limit or None]:
                if clip.name in first:
                    raise DataError(f"{clip.place}: {clip.name} is listed a second time (first in {first[clip.name]})")
                first[clip.name] = clip.place
                about: dict[str, str | float] = {"label": clip.label, **({"published_split": split} if drawn else {})}
                samples.append(
                    Sample(
                        id=clip.name,
                        target=float(clip.target),
                        sources=self._sources(clip, on_disk),
                        split="" if drawn else split,
                        group=clip.video,
                        metadata=about,
                    )
                )
        return samples

    def read(self, root: Path, modality: str, key: str) -> Item:
        """The sound of one clip, or its frames."""
        place, _, window = key.partition("#t=")
        path = media.inside(_folder(root), place)
        start, seconds = _window(path, window)
        if modality == "audio":
            return Item(self._sound(path, start))
        if path.is_dir():
            pictures = [media.image(file) for file in media.images(path)]
        else:
            pictures = media.frames(path, start=start, seconds=seconds)
        return Item(to_store(pictures, SEGMENTS * self.settings.candidates, self.settings.size))

    def load(self, modality: str, stored: Tensor, generator: Generator | None) -> Tensor:
        """Frames cropped and mirrored in training; log |STFT| with mean 0 and spread 1 each."""
        if modality == "visual":
            return to_inputs(stored, self.settings.size, SEGMENTS, generator)
        return stored.float() if self.settings.audio == "fbank" else standardised(stored.float())

    def _sound(self, path: Path, start: float) -> np.ndarray:
        if path.suffix == ".npy":
            return _stored_bank(path)
        wave = torch.from_numpy(media.waveform(path, RATE, start, SECONDS))
        if self.settings.audio == "spectrogram":
            whole = tile_or_cut(wave, SECONDS * RATE)
            return log_stft(whole, 512, 512 - 353, centre=False).T.unsqueeze(0).contiguous().numpy()
        bank = log_fbank(wave - wave.mean(), RATE, 128)[:1024]
        padded = torch.nn.functional.pad(bank, (0, 0, 0, 1024 - len(bank)))
        # Zeros are added before the shift, as in the public code.
        return ((padded - AUDIO_SET[0]) / (2 * AUDIO_SET[1])).unsqueeze(0).numpy()

    def _list(self, folder: Path, split: str) -> Path | None:
        if named := getattr(self.settings, f"{split}_list"):
            return Path(named).expanduser()
        return next((folder / name for name in LISTS[split] if (folder / name).is_file()), None)

    def _sources(self, clip: _Clip, on_disk: dict[str, dict[str, str]]) -> dict[str, str]:
        sounds = ("npy", "wav", "video") if self.settings.audio == "fbank" else ("wav", "video")
        found = {}
        for m, kinds in (("audio", sounds), ("visual", ("folder", "video"))):
            places = [(kind, on_disk[kind][name]) for name in clip.names for kind in kinds if name in on_disk[kind]]
            kind, place = places[0] if places else ("", f"{clip.name}.mp4")
            found[m] = f"{place}#t={clip.start:g},{clip.end:g}" if kind == "video" and clip.timed else place
        return found


@dataclass(frozen=True)
class _Clip:
    """One line of a list: the clip's name there, its video, its seconds, and its class."""

    place: str
    name: str
    video: str
    start: float
    end: float
    timed: bool
    label: str
    target: int

    @property
    def names(self) -> tuple[str, ...]:
        """What it may be called on disk, the most exact first."""
        if not self.timed:
            return (self.name,)
        start, end = int(self.start), int(self.end)
        exact = (f"{self.video}_{start:06d}_{end:06d}", f"{self.video}_{start}_{end}", f"{self.video}_{start}")
        return tuple(dict.fromkeys((self.name, *exact, self.video)))


def _clips(file: Path) -> Iterator[_Clip]:
    """The clips of a list that are of the 31 classes."""
    lines = read_list(file)
    header = {name.lower(): i for i, name in enumerate(lines[0].fields)}
    columns = header if "youtube_id" in header else None
    for line in lines[1:] if columns else lines:
        place = f"{file}:{line.number}"
        fields = line.fields
        if columns:
            try:
                name, start, end, label = (
                    fields[columns[c]] for c in ("youtube_id", "time_start", "time_end", "label")
                )
            except (KeyError, IndexError):
                raise DataError(f"{place}: expected the columns youtube_id, time_start, time_end and label") from None
        elif len(fields) < 2:
            raise DataError(f"{place}: expected a clip and its class, found {' '.join(fields)!r}")
        else:
            name, (start, end), label = fields[0], _seconds(line), _label(line)
        if not NAME.fullmatch(name):
            raise DataError(f"{place}: {name!r} names no clip; allowed are letters, digits, - and _")
        target = _target(place, label)
        if target is None:
            continue
        match = VIDEO.fullmatch(name)
        video = match[1] if match else name
        if not start and match and match[2]:
            start = match[2]
            end = match[3] or str(float(start) + SECONDS)
        timed = bool(start)
        try:
            seconds = (float(start), float(end or float(start) + SECONDS)) if timed else (0.0, 0.0)
        except ValueError:
            raise DataError(f"{place}: {start!r} to {end!r} are no seconds") from None
        if match and not match[2] and timed:
            name = f"{video}_{int(seconds[0])}"
        yield _Clip(place, name, video, *seconds, timed, label, target)


def _seconds(line: Line) -> tuple[str, str]:
    """Start and end where a line has them: `id,start,end,label`."""
    return (line.fields[1], line.fields[2]) if len(line.fields) == 4 else ("", "")


def _label(line: Line) -> str:
    # Fields may have been parted at blanks, and so may a class name.
    words = [field for field in line.fields[1:] if not re.fullmatch(r"[\d.]+", field)]
    return line.fields[-1] if not words or words[-1] in CLASSES else " ".join(words)


def _target(place: str, label: str) -> int | None:
    """The class of a label; None where it is one of Kinetics' other classes."""
    if label.isdigit():
        if int(label) >= len(CLASSES):
            raise DataError(f"{place}: class {label}; allowed: 0 to {len(CLASSES) - 1}, or a name")
        return int(label)
    name = label.replace("_", " ").lower()
    return CLASSES.index(name) if name in CLASSES else None


def _folder(root: Path) -> Path:
    names = ("kinetics_sounds", "Kinetics-Sounds", "KineticSound", "KS")
    return next((root / name for name in names if (root / name).is_dir()), root)


def _walk(folder: Path) -> dict[str, dict[str, str]]:
    """Kind -> name -> path below `folder`, of videos, sounds, stored banks and folders of frames."""
    found: dict[str, dict[str, str]] = {"video": {}, "wav": {}, "npy": {}, "folder": {}}
    for place, folders, files in os.walk(folder):
        folders.sort()
        here = Path(place).relative_to(folder)
        if any(Path(name).suffix.lower() in media.IMAGES for name in files):
            found["folder"].setdefault(here.name, str(here))
        for name in sorted(files):
            stem, ending = Path(name).stem, Path(name).suffix.lower()
            kind = "video" if ending in media.VIDEOS else ending.removeprefix(".")
            if kind in found:
                found[kind].setdefault(stem, str(here / name))
    return found


def _window(path: Path, window: str) -> tuple[float, float | None]:
    """Where in a file the clip lies: at the start of what was cut out already, else at its own seconds."""
    if not window:
        return 0.0, float(SECONDS)
    start, end = (float(part) for part in window.split(","))
    whole = media.seconds_of(path)
    is_cut = (
        VIDEO.fullmatch(path.stem) is None or path.stem[11:] != "" or (whole is not None and whole <= end - start + 1)
    )
    return (0.0 if is_cut else start), end - start


def _stored_bank(path: Path) -> np.ndarray:
    try:
        bank = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    if bank.shape != (1024, 128) or bank.dtype.kind != "f":
        raise DataError(f"{path}: {bank.dtype} {list(bank.shape)}; expected floats [1024, 128]")
    return np.asarray(bank, dtype=np.float32)[None]
