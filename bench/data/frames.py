"""Stored frames of clips as encoder inputs: chosen, cropped, mirrored and normalised a batch at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Generator, Tensor

from bench.data import media
from bench.data.augment import random_resized_crop

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's pixels in red, green and blue."""


def stored_side(size: int) -> int:
    """The side of a stored frame for inputs of `size`: 256 for 224."""
    return -(-size * 8 // 7)


def to_store(pictures: Sequence[np.ndarray], count: int, size: int) -> np.ndarray:
    """`count` frames spread evenly over the given ones, uint8 [count, side, side, 3]."""
    side = stored_side(size)
    chosen = media.spread(len(pictures), count)
    squares = {i: media.square(pictures[i], side) for i in set(chosen)}
    return np.stack([squares[i] for i in chosen])


def to_inputs(
    stored: UInt8[Tensor, "batch frames side side 3"], size: int, segments: int, generator: Generator | None
) -> Float[Tensor, "batch 3 segments size size"]:
    """One frame of each of `segments` equal parts: a random one, cropped and mirrored at random, if a generator is
    given, else the middle of the middle one. All frames of a clip share the crop.
    """
    batch, count = stored.shape[:2]
    each = count // segments
    mean, deviation = (torch.tensor(v, device=stored.device) for v in (MEAN, DEVIATION))
    if generator is None:
        first = (stored.shape[-2] - size) // 2
        middle = stored[:, each // 2 :: each, first : first + size, first : first + size][:, :segments]
        # Whole rows of pixels are scaled at once: three channels alone are too few for vector instructions.
        rows = middle.to(torch.float32, memory_format=torch.contiguous_format).flatten(-2)
        rows.div_(255).sub_(mean.repeat(size)).div_(deviation.repeat(size))
        return rows.unflatten(-1, (size, 3)).movedim(-1, 1)
    within = torch.randint(each, (batch, segments), generator=generator, device=generator.device)
    sample, segment = (torch.arange(n, device=stored.device) for n in (batch, segments))
    chosen = within.to(stored.device) + each * segment + count * sample[:, None]
    frames = stored.flatten(0, 1).index_select(0, chosen.flatten()).unflatten(0, (batch, segments))
    clips = frames.movedim(-1, 1).contiguous().float().div_(255)  # [B, 3, segments, side, side]
    cropped = random_resized_crop(clips, size, generator, mirrored=0.5)
    return cropped.sub_(mean.view(3, 1, 1, 1)).div_(deviation.view(3, 1, 1, 1))
