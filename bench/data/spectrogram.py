"""Spectrograms of waveforms, with the conventions of librosa, computed in torch."""

from __future__ import annotations

import math
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

FLOOR = 1e-7
"""Added before the logarithm, as the public audio-visual code does."""


def log_stft(
    waves: Float[Tensor, "... samples"], n_fft: int, hop: int, centre: bool = True, floor: float = FLOOR
) -> Float[Tensor, "... frequencies frames"]:
    """log(|STFT| + floor), 1 + n_fft / 2 frequencies.

    `centre`: frame t is centred at t x hop, zeros beyond the ends, 1 + samples // hop frames (`librosa.stft`); else
    it starts there and only whole frames count (the shapes of `scipy.signal.spectrogram`).
    """
    return (_magnitude(waves, n_fft, hop, centre) + floor).log()


def log_mel(
    waves: Float[Tensor, "... samples"], rate: int, n_fft: int, hop: int, mels: int, floor: float = FLOOR
) -> Float[Tensor, "... mels frames"]:
    """log(mel power + floor), centred frames; for small sets, where 257 frequencies are too many."""
    power = _magnitude(waves, n_fft, hop, centre=True) ** 2
    return (mel_filters(rate, n_fft, mels).to(power) @ power + floor).log()


def tile_or_cut(wave: Float[Tensor, " samples"], length: int) -> Float[Tensor, " length"]:
    """The wave repeated until it has `length` samples, and cut there."""
    if len(wave) == 0:
        return wave.new_zeros(length)
    return wave.repeat(-(-length // len(wave)))[:length]


def standardised(x: Float[Tensor, "batch channels frequencies frames"]) -> Tensor:
    """Each spectrogram with mean 0 and standard deviation 1, whatever its recording level."""
    deviation, mean = torch.std_mean(x, dim=(1, 2, 3), keepdim=True, correction=0)
    return (x - mean).div_(deviation + 1e-3)


@cache
def mel_filters(rate: int, n_fft: int, mels: int) -> Float[Tensor, "mels frequencies"]:
    """Triangles of equal area, evenly spaced on Slaney's mel scale from 0 to rate / 2 (librosa's default)."""
    frequencies = torch.linspace(0, rate / 2, 1 + n_fft // 2, dtype=torch.float64)
    edges = _to_hertz(torch.linspace(0, _to_mel(rate / 2), mels + 2, dtype=torch.float64))
    width = edges.diff()
    ramps = edges[:, None] - frequencies  # [mels + 2, frequencies]
    rising, falling = -ramps[:-2] / width[:-1, None], ramps[2:] / width[1:, None]
    triangles = torch.minimum(rising, falling).clamp_min(0)
    return (triangles * (2 / (edges[2:] - edges[:-2]))[:, None]).float()


# Slaney's scale: linear up to 1000 Hz (200 / 3 Hz a mel), then 27 mels for a factor of 6.4.
_LINEAR, _KNEE, _STEP = 200 / 3, 1000.0, math.log(6.4) / 27


def _to_mel(hertz: float) -> float:
    return hertz / _LINEAR if hertz < _KNEE else _KNEE / _LINEAR + math.log(hertz / _KNEE) / _STEP


def _to_hertz(mel: Tensor) -> Tensor:
    knee = _KNEE / _LINEAR
    return torch.where(mel < knee, mel * _LINEAR, _KNEE * torch.exp(_STEP * (mel - knee)))


def _magnitude(waves: Tensor, n_fft: int, hop: int, centre: bool) -> Tensor:
    window = torch.hann_window(n_fft, periodic=True, dtype=waves.dtype, device=waves.device)
    flat = waves.reshape(-1, waves.shape[-1])
    stft = torch.stft(flat, n_fft, hop, window=window, center=centre, pad_mode="constant", return_complex=True)
    return stft.abs().reshape(*waves.shape[:-1], *stft.shape[-2:])
