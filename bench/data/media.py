"""Audio and frames out of WAV, FLV, MP4 and folders of images; what is empty or cut short is said, not passed on."""

from __future__ import annotations

import os
import re
import wave
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from bench.api import DataError

if TYPE_CHECKING:
    from av.container import InputContainer

VIDEOS = (".flv", ".mp4", ".mkv", ".webm", ".avi", ".mov")
IMAGES = (".jpg", ".jpeg", ".png")
POINTER = b"version https://git-lfs"
"""How a file begins that Git LFS has not fetched."""

LOST_SECONDS, LOST_SHARE = 0.5, 0.1
"""A stream may end this much earlier than its container says, whichever is more: audio and video rarely agree."""


def inside(root: Path, key: str) -> Path:
    """What a key names in a folder; DataError if it is not there, or lies elsewhere once links are followed."""
    path = root / key
    real = path.resolve()
    if not real.is_relative_to(root.resolve()):
        raise DataError(f"{path}: leads out of {root} to {real}; only what lies in the raw folder is read")
    if not real.exists():
        raise DataError(f"{path}: there is no such file")
    return path


def waveform(path: Path, rate: int, start: float = 0.0, seconds: float | None = None) -> np.ndarray:
    """The sound of a file as one channel in [-1, 1] at `rate`, float32 [samples], or `seconds` of it from `start`."""
    import av

    parts = []
    with _opened(path) as container:
        if not container.streams.audio:
            raise DataError(f"{path}: has no sound")
        stream = container.streams.audio[0]
        native = int(stream.rate)
        first, last = round(start * native), None if seconds is None else round((start + seconds) * native)
        mono = av.AudioResampler(format="flt", layout="mono")
        count = 0
        for frame in container.decode(stream):
            for converted in mono.resample(frame):
                parts.append(converted.to_ndarray()[0])
                count += len(parts[-1])
            if last is not None and count >= last:
                break
        parts += [rest.to_ndarray()[0] for rest in mono.resample(None)]
        stated = _stated_seconds(path, container, stream)
    whole = np.concatenate(parts) if parts else np.zeros(0, dtype=np.float32)
    if len(whole) == 0:
        raise DataError(f"{path}: holds no sound, 0 samples")
    if last is None or len(whole) < last:
        _check_length(path, "sound", len(whole) / native, stated)
    sound = np.clip(whole[first:last], -1.0, 1.0)
    if len(sound) == 0:
        raise DataError(f"{path}: ends after {len(whole) / native:.2f} s, before {start:g} s")
    return _resampled(sound, native, rate)


def frames(
    path: Path, fps: float = 1.0, start: float = 0.0, seconds: float | None = None, expected: float | None = None
) -> list[np.ndarray]:
    """The frames nearest to start, start + 1 / fps, ... of a video, uint8 [height, width, 3] each.

    `expected` is how long the video should be where another source says so; half of it is asked for.
    """
    taken: list[np.ndarray] = []
    with _opened(path) as container:
        if not container.streams.video:
            raise DataError(f"{path}: has no picture")
        stream = container.streams.video[0]
        stream.thread_count = 1  # the processes that read already fill the cores
        step = 1 / float(stream.average_rate or 25)
        origin: float | None = None
        span, ended = 0.0, False
        for frame in container.decode(stream):
            if frame.pts is None or frame.time_base is None:
                continue
            time = float(frame.pts * frame.time_base)
            # FLV and AVI begin a little after 0; without this the first frame would be taken twice.
            origin = time if origin is None else origin
            since = time - origin - start
            span = time - origin + step
            if seconds is not None and since + step / 2 >= seconds:
                ended = True
                break
            if since + step / 2 >= len(taken) / fps:
                taken.append(frame.to_ndarray(format="rgb24"))
        stated = _stated_seconds(path, container, stream)
    if not ended:
        # A truncated FLV ends early without an error.
        _check_length(path, "picture", span, stated)
        if expected is not None and span < expected / 2:
            raise DataError(
                f"{path}: is cut short, its picture ends after {span:.2f} s and the sound beside it lasts "
                f"{expected:.2f} s; fetch it again"
            )
    if not taken:
        raise DataError(f"{path}: ends after {span:.2f} s, before {start:g} s")
    return taken


def seconds_of(path: Path) -> float | None:
    """How long a file says it is, or None where it does not say."""
    with _opened(path) as container:
        return _stated_seconds(path, container, None)


def images(folder: Path) -> list[Path]:
    """The images of a folder in the order of their numbers: frame_2 before frame_10."""
    found = [Path(entry.path) for entry in os.scandir(folder) if Path(entry.name).suffix.lower() in IMAGES]
    if not found:
        raise DataError(f"{folder}: holds no frames ({', '.join(IMAGES)})")
    return sorted(found, key=lambda file: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", file.name)])


def image(path: Path) -> np.ndarray:
    """An image file as uint8 [height, width, 3]."""
    try:
        with Image.open(path) as opened:
            return np.asarray(opened.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: {_because(path, error)}") from error


def square(picture: np.ndarray, side: int) -> np.ndarray:
    """The middle of a picture scaled so that its shorter side is `side`: uint8 [side, side, 3]."""
    height, width = picture.shape[:2]
    edge = min(height, width)
    left, top = (width - edge) // 2, (height - edge) // 2
    middle = np.ascontiguousarray(picture[top : top + edge, left : left + edge])
    return np.asarray(Image.fromarray(middle).resize((side, side), Image.Resampling.BILINEAR))


def spread(count: int, wanted: int) -> list[int]:
    """Which of `count` frames stand for `wanted` equal parts: the middle of each; repeated where there are fewer."""
    return [int((part + 0.5) * count / wanted) for part in range(wanted)]


@contextmanager
def _opened(path: Path) -> Iterator[InputContainer]:
    """A media file; whatever the decoder finds wrong is a DataError that names it."""
    import av

    try:
        with av.open(str(path)) as container:
            yield container
    except (av.FFmpegError, OSError, EOFError) as error:
        raise DataError(f"{path}: {_because(path, error)}") from error


def _because(path: Path, error: Exception) -> str:
    try:
        with path.open("rb") as file:
            begin = file.read(len(POINTER))
    except OSError:
        begin = b"?"
    if not begin:
        return "is empty"
    if begin == POINTER:
        return "was not fetched, it is a pointer of Git LFS; run `git lfs pull` there"
    return f"cannot be decoded ({error})"


def _stated_seconds(path: Path, container: InputContainer, stream: Any) -> float | None:
    if path.suffix.lower() == ".wav" and (stated := _wav_seconds(path)) is not None:
        return stated
    if stream is not None and stream.duration is not None:
        return float(stream.duration * stream.time_base)
    return None if container.duration is None else container.duration / 1e6


def _wav_seconds(path: Path) -> float | None:
    """The length in a WAV's header, which the decoder passes over; None where there is no PCM header or no length."""
    try:
        with wave.open(str(path)) as opened:
            width = opened.getnchannels() * opened.getsampwidth()
            # Programs that write to a pipe leave the largest number there is.
            unknown = opened.getnframes() * width >= 0x7FFFF000
            return None if unknown else opened.getnframes() / opened.getframerate()
    except (wave.Error, EOFError):
        return None


def _check_length(path: Path, what: str, found: float, stated: float | None) -> None:
    if stated is not None and stated - found > max(LOST_SECONDS, LOST_SHARE * stated):
        raise DataError(f"{path}: is cut short, its {what} ends after {found:.2f} s of {stated:.2f} s; fetch it again")


def _resampled(sound: np.ndarray, native: int, rate: int) -> np.ndarray:
    import soxr

    if native == rate:
        return sound
    length = -(-len(sound) * rate // native)
    converted = np.asarray(soxr.resample(sound, native, rate, quality="HQ"), dtype=np.float32)[:length]
    return np.pad(converted, (0, length - len(converted)))
