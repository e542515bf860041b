"""Stored frames of clips as encoder inputs: chosen, cropped, mirrored and normalised a batch at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Generator, Tensor

from bench.data import media
from bench.data.augment import horizontal_flip, random_resized_crop

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
    if generator is None:
        within = torch.full((batch, segments), each // 2)
    else:
        within = torch.randint(each, (batch, segments), generator=generator, device=generator.device)
    chosen = within.to(stored.device) + each * torch.arange(segments, device=stored.device)
    sample = torch.arange(batch, device=stored.device)[:, None]
    clips = stored[sample, chosen].movedim(-1, 1).float() / 255  # [B, 3, segments, side, side]
    if generator is None:
        first = (clips.shape[-1] - size) // 2
        clips = clips[..., first : first + size, first : first + size]
    else:
        clips = horizontal_flip(random_resized_crop(clips, size, generator), generator)
    mean, deviation = (torch.tensor(v, device=clips.device).view(3, 1, 1, 1) for v in (MEAN, DEVIATION))
    return (clips - mean) / deviation
