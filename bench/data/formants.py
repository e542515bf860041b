"""A small formant synthesiser that says the digits: a stand-in for recordings where none may be downloaded.

Voiced sounds are harmonics of a gliding pitch, weighted by three resonances that move from phone to phone; unvoiced
ones are noise in bands. Vowel resonances are the averages for men of Peterson and Barney (JASA 1952).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

RATE = 8000
BANDS = 16
FRAME = 40
"""Samples between two values of an envelope: 5 ms."""


@dataclass(frozen=True)
class Phone:
    """Resonances in Hz, loudness of voice and of noise, the noise's centre and width in Hz, milliseconds."""

    resonances: tuple[float, float, float]
    voice: float
    noise: float = 0.0
    centre: float = 3000.0
    spread: float = 800.0
    duration: float = 110.0


PHONES = {
    "IY": Phone((270, 2290, 3010), 1.0, duration=160),
    "IH": Phone((390, 1990, 2550), 1.0),
    "EH": Phone((530, 1840, 2480), 1.0),
    "AH": Phone((640, 1190, 2390), 1.0),
    "AA": Phone((730, 1090, 2440), 1.0, duration=130),
    "AO": Phone((570, 840, 2410), 1.0, duration=160),
    "UH": Phone((440, 1020, 2240), 0.9, duration=90),
    "UW": Phone((300, 870, 2240), 0.9, duration=170),
    "W": Phone((290, 610, 2150), 0.6, duration=80),
    "R": Phone((310, 1060, 1380), 0.6, duration=80),
    "N": Phone((250, 1400, 2300), 0.35, duration=90),
    "V": Phone((300, 1200, 2300), 0.35, 0.08, 2000, 1500, 70),
    "Z": Phone((300, 1500, 2500), 0.25, 0.25, 3600, 500, 90),
    "S": Phone((320, 1500, 2500), 0.0, 0.5, 3700, 500, 130),
    "F": Phone((320, 1100, 2300), 0.0, 0.15, 2200, 1800, 110),
    "TH": Phone((320, 1400, 2500), 0.0, 0.12, 2800, 1500, 100),
    "T": Phone((320, 1700, 2600), 0.0, 0.6, 3300, 900, 30),
    "K": Phone((320, 1700, 2300), 0.0, 0.6, 1800, 500, 35),
    "-": Phone((320, 1500, 2400), 0.0, duration=45),
}

WORDS = (
    ("Z", "IH", "R", "AO", "UH"),
    ("W", "AH", "N"),
    ("-", "T", "UW"),
    ("TH", "R", "IY"),
    ("F", "AO", "R"),
    ("F", "AA", "IH", "V"),
    ("S", "IH", "-", "K", "S"),
    ("S", "EH", "V", "AH", "N"),
    ("EH", "IH", "-", "T"),
    ("N", "AA", "IH", "N"),
)


@dataclass(frozen=True)
class Speaker:
    """A voice: mean pitch in Hz, length of the vocal tract relative to the table's, tempo, breathiness."""

    pitch: float
    tract: float
    tempo: float
    breath: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Speaker:
        """A random voice, from low and large to high and small."""
        size = rng.random()
        pitch = 95 + 130 * size + rng.normal(0, 12)
        return cls(pitch, 1.05 - 0.2 * size + rng.normal(0, 0.02), rng.uniform(0.8, 1.25), rng.uniform(0.0, 0.06))


def say(digit: int, speaker: Speaker, rng: np.random.Generator) -> np.ndarray:
    """One utterance of a digit at 8 kHz with root mean square 1, float64 [samples]; no two are alike."""
    phones = [PHONES[name] for name in WORDS[digit]]
    tempo = speaker.tempo * rng.uniform(0.9, 1.1)
    milliseconds = np.array([p.duration for p in phones]) / tempo * rng.uniform(0.8, 1.2, len(phones))
    ends = np.cumsum(milliseconds)
    frames = int(ends[-1] * RATE / 1000 / FRAME) + 2
    centres = ends - milliseconds / 2
    when = np.arange(frames) * FRAME * 1000 / RATE
    wobble = rng.normal(1, 0.03, (len(phones), 3)) / speaker.tract
    targets = np.array([p.resonances for p in phones]) * wobble
    resonances = np.stack([np.interp(when, centres, targets[:, k]) for k in range(3)])  # [3, frames]
    voice = _envelope(when, ends, np.array([p.voice for p in phones]))
    pitch = speaker.pitch * rng.normal(1, 0.04) * np.linspace(1.08, 0.92, frames * FRAME)
    phase = 2 * np.pi * np.cumsum(pitch) / RATE
    wave = _stretch(voice) * _voiced(phase, pitch, resonances)
    wave = wave + _unvoiced(phones, when, ends, voice * speaker.breath, rng)
    loudness = math.sqrt(np.mean(wave**2))
    spoken: np.ndarray = wave / loudness
    return spoken


def _envelope(when: np.ndarray, ends: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """The level of the phone at each time, smoothed over about 15 ms; silent after the last."""
    phone = np.searchsorted(ends, when)
    stepped = np.append(levels, 0.0)[phone]
    return np.convolve(stepped, np.ones(3) / 3, mode="same")


def _stretch(frames: np.ndarray) -> np.ndarray:
    """Levels [..., frames] as levels [..., frames x 40], joined by straight lines."""
    ahead = np.concatenate([frames[..., 1:], frames[..., -1:]], axis=-1)
    weight = np.arange(FRAME) / FRAME
    joined = frames[..., None] * (1 - weight) + ahead[..., None] * weight
    return joined.reshape(*frames.shape[:-1], -1)


def _voiced(phase: np.ndarray, pitch: np.ndarray, resonances: np.ndarray) -> np.ndarray:
    harmonics = np.arange(1, int(RATE / 2 / pitch.min()) + 1)[:, None]
    coarse = harmonics * pitch[None, ::FRAME]  # [harmonics, frames], Hz
    gain = np.zeros_like(coarse)
    for centre, bandwidth, level in zip(resonances, (80.0, 110.0, 160.0), (1.0, 0.6, 0.35), strict=True):
        gain += level / (1 + ((coarse - centre) / bandwidth) ** 2)
    gain[coarse > 0.48 * RATE] = 0.0
    tones = np.exp(1j * phase)[None].repeat(len(harmonics), axis=0).cumprod(axis=0).imag  # sin(k x phase)
    return np.einsum("kt,kt->t", _stretch(gain), tones)


def _unvoiced(
    phones: list[Phone],
    when: np.ndarray,
    ends: np.ndarray,
    breath: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    edges = np.linspace(0, RATE / 2, BANDS + 1)
    middle = (edges[:-1] + edges[1:]) / 2
    levels = np.stack(
        [_envelope(when, ends, np.array([_hiss(p, hertz) for p in phones])) + breath for hertz in middle]
    )  # [bands, frames]
    length = levels.shape[1] * FRAME
    spectrum = np.fft.rfft(rng.standard_normal(length))
    band = np.clip(np.digitize(np.fft.rfftfreq(length, 1 / RATE), edges) - 1, 0, BANDS - 1)
    bands = np.fft.irfft(np.where(band == np.arange(BANDS)[:, None], spectrum, 0), length, axis=1)
    return 2.0 * np.einsum("bt,bt->t", _stretch(levels), bands)


def _hiss(phone: Phone, hertz: float) -> float:
    return phone.noise * math.exp(-(((hertz - phone.centre) / phone.spread) ** 2))
