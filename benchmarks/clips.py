"""Files in the shape of CREMA-D's, made here: WAV at 16 kHz and JPEG frames of 480 x 360 in folders."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
from PIL import Image

CODES = ("IEO", "TIE", "IOM", "IWW", "TAI", "MTI", "IWL", "ITH")


def write_clips(root: Path, count: int, distinct: int = 64) -> list[str]:
    """`count` clips of 2.5 s and three frames, `distinct` of them different and the others links; returns their ids."""
    folder = root / "crema_d"
    (folder / "AudioWAV").mkdir(parents=True)
    (folder / "Image-01-FPS").mkdir()
    emotions = ("NEU", "HAP", "SAD", "FEA", "DIS", "ANG")
    ids = [f"{1001 + k // 48}_{CODES[k % 8]}_{emotions[k // 8 % 6]}_XX" for k in range(count)]
    for k, clip in enumerate(ids):
        sound, frames = folder / "AudioWAV" / f"{clip}.wav", folder / "Image-01-FPS" / clip
        frames.mkdir()
        if k < distinct:
            _speak(sound, k)
            _film(frames, k)
            continue
        same = ids[k % distinct]
        sound.hardlink_to(folder / "AudioWAV" / f"{same}.wav")
        for frame in (folder / "Image-01-FPS" / same).iterdir():
            (frames / frame.name).hardlink_to(frame)
    return ids


def _speak(file: Path, seed: int) -> None:
    rng, rate = np.random.default_rng(seed), 16000
    time = np.arange(int(2.5 * rate)) / rate
    pitch = 110 + 60 * rng.random()
    sound = sum(rng.random() / n * np.sin(2 * np.pi * n * pitch * time) for n in range(1, 20))
    sound = sound * np.sin(np.pi * time / 2.5) + 0.02 * rng.standard_normal(len(time))
    with wave.open(str(file), "wb") as opened:
        opened.setnchannels(1)
        opened.setsampwidth(2)
        opened.setframerate(rate)
        opened.writeframes((8000 * sound / np.abs(sound).max()).astype("<i2").tobytes())


def _film(folder: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for number in range(3):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((480, 360))
        grain = rng.normal(0, 4, (360, 480, 3))
        picture = np.clip(np.asarray(coarse) + grain, 0, 255).astype(np.uint8)
        Image.fromarray(picture).save(folder / f"{number:05d}.jpg", quality=92)
