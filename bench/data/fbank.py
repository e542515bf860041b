"""Log-mel filter banks as Kaldi computes them, the input that audio spectrogram transformers were published with."""

from __future__ import annotations

from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

LOWEST = 20.0
"""Hz; below it no filter reaches."""
PREEMPHASIS = 0.97
FLOOR = torch.finfo(torch.float32).eps


def log_fbank(wave: Float[Tensor, " samples"], rate: int, mels: int) -> Float[Tensor, "frames mels"]:
    """The logarithm of mel power of frames of 25 ms every 10 ms; only whole frames count.

    Each frame loses its mean, is pre-emphasised and weighted by a symmetric Hann window; filters are triangles in
    Kaldi's mel scale, 1127 ln(1 + f / 700), from 20 Hz to rate / 2.
    """
    length, hop = rate * 25 // 1000, rate // 100
    if len(wave) < length:
        return wave.new_zeros(0, mels)
    frames = wave.unfold(0, length, hop)  # [frames, length]
    frames = frames - frames.mean(dim=1, keepdim=True)
    before = torch.cat([frames[:, :1], frames[:, :-1]], dim=1)
    frames = (frames - PREEMPHASIS * before) * torch.hann_window(length, periodic=False, dtype=wave.dtype)
    n_fft = 1 << (length - 1).bit_length()
    power = torch.fft.rfft(F.pad(frames, (0, n_fft - length))).abs() ** 2
    return (power @ _filters(rate, n_fft, mels).to(power)).clamp_min(FLOOR).log()


@cache
def _filters(rate: int, n_fft: int, mels: int) -> Float[Tensor, "frequencies mels"]:
    frequencies = torch.linspace(0, rate / 2, 1 + n_fft // 2, dtype=torch.float64)
    limits = _to_mel(torch.tensor([LOWEST, rate / 2], dtype=torch.float64))
    edges = limits[0] + (limits[1] - limits[0]) * torch.linspace(0, 1, mels + 2, dtype=torch.float64)
    place = _to_mel(frequencies)[:, None]
    rising = (place - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - place) / (edges[2:] - edges[1:-1])
    return torch.minimum(rising, falling).clamp_min(0).float()


def _to_mel(hertz: Tensor) -> Tensor:
    return 1127 * (1 + hertz / 700).log()
