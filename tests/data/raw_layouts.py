"""Real media files in the layouts that CREMA-D and Kinetics-Sounds have on disk.

Speech and mouth movements are those of GRID's speaker 1 where they are at hand, else tones and moving patterns.
"""

from __future__ import annotations

import os
import wave
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

RATE, FPS = 16000, 25
SIZE = (64, 48)
EMOTIONS = ("ANG", "DIS", "FEA", "HAP", "NEU", "SAD")


def crema_clips(actors: int = 6) -> list[str]:
    """One clip of every emotion by each actor, in the order of names."""
    return [f"{1001 + actor}_DFA_{emotion}_XX" for actor in range(actors) for emotion in EMOTIONS]


def write_crema_d(root: Path, layout: str = "flv", actors: int = 6, lists: bool = True) -> list[str]:
    """CREMA-D with `layout` = flv, mp4 or frames; every sixth clip is in the test list, so actors are in both."""
    clips = crema_clips(actors)
    for number, clip in enumerate(clips):
        write_wav(root / "AudioWAV" / f"{clip}.wav", sound(number, 2.4))
        pictures = picture(number, 2.4)
        if layout == "frames":
            write_frames(root / "Image-01-FPS" / clip, pictures[::FPS])
        else:
            folder = {"flv": "VideoFlash", "mp4": "VideoMP4"}[layout]
            write_video(root / folder / f"{clip}.{layout}", pictures)
    if lists:
        test = clips[::6]
        lines = {"test": test, "train": [c for c in clips if c not in test]}
        for split, listed in lines.items():
            text = "".join(f"{clip},{clip.split('_')[2]}\n" for clip in listed)
            # The published train list begins with a byte-order mark, the test list does not.
            (root / f"{split}.csv").write_text(text, encoding="utf-8-sig" if split == "train" else "utf-8")
    header, row = "ActorID,Age,Sex,Race,Ethnicity\n", "{},{},Female,Caucasian,Not Hispanic\n"
    about = "".join(row.format(1001 + actor, 20 + actor) for actor in range(actors))
    (root / "VideoDemographics.csv").write_text(header + about)
    return clips


def video_id(number: int) -> str:
    """An id as YouTube gives them; some begin with a dash."""
    return f"{'-' if number % 2 else '_'}clip{number:06d}"


def write_kinetics(root: Path, count: int = 12, seconds: float = 4.0) -> None:
    """MP4s cut out of videos as Kinetics' downloaders name them, in class folders, with Kinetics' own CSV."""
    rows: dict[str, list[str]] = {"train": [], "test": []}
    names = ("playing_drums", "tap_dancing", "blowing_nose")
    for number in range(count):
        split = "test" if number % 4 == 0 else "train"
        name, start = names[number % 3], 3 * number
        file = root / split / name / f"{video_id(number)}_{start:06d}_{start + 10:06d}.mp4"
        write_video(file, picture(number, seconds), sound(number, seconds))
        label = name.replace("_", " ")
        rows[split].append(f'"{label}",{video_id(number)},{start},{start + 10},{split}')
    for split, lines in rows.items():
        other = f"abseiling,{'z' * 11},0,10,{split}"
        text = ["label,youtube_id,time_start,time_end,split", *lines, other]
        (root / f"{split}.csv").write_text("\n".join(text) + "\n")


def write_prepared_kinetics(root: Path, count: int = 12) -> None:
    """Filter banks of 1024 x 128 and folders of frames, with lists that number the classes."""
    rng = np.random.default_rng(0)
    lines: dict[str, list[str]] = {"train": [], "test": []}
    for number in range(count):
        split, name = ("test" if number % 4 == 0 else "train"), f"{video_id(number)}_{number}"
        (root / f"{split}_spec").mkdir(parents=True, exist_ok=True)
        np.save(root / f"{split}_spec" / f"{name}.npy", rng.normal(number % 3, 0.5, (1024, 128)).astype(np.float32))
        write_frames(root / f"{split}-frames-1fps" / name, np.tile(picture(number, 2.4)[::10], (2, 1, 1, 1))[:10])
        lines[split].append(f"{name} 10 {number % 3}")
    for split, listed in lines.items():
        (root / f"ks_{split}_overlap.txt").write_text("\n".join(listed) + "\n")


def write_wav(file: Path, samples: np.ndarray, rate: int = RATE) -> None:
    """16-bit PCM, one channel."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(file), "wb") as opened:
        opened.setnchannels(1)
        opened.setsampwidth(2)
        opened.setframerate(rate)
        opened.writeframes((samples * 32767).astype("<i2").tobytes())


def write_video(file: Path, pictures: np.ndarray, samples: np.ndarray | None = None) -> None:
    """FLV or MP4 by its ending, with sound if there is any."""
    file.parent.mkdir(parents=True, exist_ok=True)
    flash = file.suffix == ".flv"
    with av.open(str(file), "w", options={} if flash else {"movflags": "faststart"}) as container:
        stream: Any = container.add_stream("flv1" if flash else "libx264", rate=FPS)
        stream.height, stream.width = pictures.shape[1:3]
        stream.pix_fmt = "yuv420p"
        voice: Any = container.add_stream("aac", rate=RATE, layout="mono") if samples is not None else None
        for shown in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(shown), format="rgb24")))
        container.mux(stream.encode(None))
        if samples is not None:
            heard = av.AudioFrame.from_ndarray(samples[None].astype(np.float32), format="fltp", layout="mono")
            heard.sample_rate = RATE
            container.mux(voice.encode(heard))
            container.mux(voice.encode(None))


def write_frames(folder: Path, pictures: np.ndarray) -> None:
    """frame_00001.jpg and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, shown in enumerate(pictures, 1):
        Image.fromarray(shown).save(folder / f"frame_{number:05d}.jpg")


def sound(number: int, seconds: float) -> np.ndarray:
    """Speech, or a tone whose pitch is the clip's number, float [samples] at 16 kHz."""
    count = round(seconds * RATE)
    grid = _grid()
    if grid is None:
        return 0.5 * np.sin(2 * np.pi * (200 + 50 * number) * np.arange(count) / RATE)
    coded = grid[0][number % len(grid[0])].astype(np.float64) / 127.5 - 1
    plain = np.sign(coded) * (256.0 ** np.abs(coded) - 1) / 255  # mu-law
    return np.resize(np.repeat(plain, 2), count)  # 8 kHz


def picture(number: int, seconds: float) -> np.ndarray:
    """A talking mouth, or a wandering bar, uint8 [frames, 48, 64, 3]."""
    count = round(seconds * FPS)
    grid = _grid()
    if grid is None:
        columns = np.arange(SIZE[0])
        bars = [128 + 100 * np.sin((columns + 3 * t) * (1 + number % 7) / 8) for t in range(count)]
        grey = np.stack([np.tile(bar, (SIZE[1], 1)) for bar in bars]).astype(np.uint8)
    else:
        clip = grid[1][number % len(grid[1])]
        grey = np.stack([np.asarray(Image.fromarray(clip[t % len(clip)]).resize(SIZE)) for t in range(count)])
    return np.repeat(grey[..., None], 3, axis=-1)


@cache
def _grid() -> tuple[np.ndarray, np.ndarray] | None:
    """Sound and picture of the first clips of GRID, where they are at hand."""
    shared = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"
    for root in (Path(os.environ.get("BENCH_DATA") or shared), shared):
        folder = root / "grid_s1"
        if (folder / "grid_s1_video.npz").is_file():
            heard = np.load(folder / "grid_s1_audio.npz", allow_pickle=False)["audio_mulaw"]
            seen = np.load(folder / "grid_s1_video.npz", allow_pickle=False)["video"]
            return heard[:64].copy(), seen[:64].copy()
    return None
