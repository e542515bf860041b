"""Augmentation of whole batches on the device: each sample draws for itself, without a loop over samples."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Generator, Tensor
from torch.nn import functional as F


def random_crop(
    images: Float[Tensor, "batch *channels height width"], padding: int, generator: Generator
) -> Float[Tensor, "batch *channels height width"]:
    """Each image (or all frames of a clip) padded with zeros on every side and cut back to its size anywhere."""
    height, width = images.shape[-2:]
    padded = F.pad(images, (padding,) * 4)
    top, left = _integers((2, len(images)), 2 * padding + 1, images, generator)
    rows = top[:, None] + torch.arange(height, device=images.device)  # [B, H]
    columns = left[:, None] + torch.arange(width, device=images.device)  # [B, W]
    padded = padded.flatten(1, -3) if images.ndim > 3 else padded.unsqueeze(1)  # [B, C, H', W']
    sample = torch.arange(len(images), device=images.device)
    cropped = padded.permute(0, 2, 3, 1)[sample[:, None, None], rows[:, :, None], columns[:, None, :]]  # [B, H, W, C]
    return cropped.permute(0, 3, 1, 2).reshape(images.shape)


def random_resized_crop(
    images: Float[Tensor, "batch *channels height width"],
    size: int,
    generator: Generator,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    mirrored: float = 0.0,
) -> Float[Tensor, "batch *channels size size"]:
    """A random box of each image (the same of all frames of a clip), resized to size x size.

    `scale` is the box's share of the area and `ratio` its width over its height, drawn evenly on a logarithmic
    scale; the first of ten boxes that fits counts, else the whole image. With a probability of `mirrored` the result
    is as if `horizontal_flip` came next, without a copy of its own.
    """
    height, width = images.shape[-2:]
    share, shape, down, along = (_uniform(10 * len(images), images, generator).view(-1, 10) for _ in range(4))
    area = height * width * (scale[0] + share * (scale[1] - scale[0]))  # [B, 10]
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = (low + shape * (high - low)).exp()
    tall, wide = (area / aspect).sqrt(), (area * aspect).sqrt()
    fits = (tall <= height) & (wide <= width)
    first = fits.int().argmax(dim=1, keepdim=True)  # [B, 1]
    whole = ~fits.gather(1, first)
    tall = tall.gather(1, first).masked_fill(whole, height)
    wide = wide.gather(1, first).masked_fill(whole, width)
    top, left = down[:, :1] * (height - tall), along[:, :1] * (width - wide)
    steps = (torch.arange(size, device=images.device) + 0.5) / size
    rows = 2 * (top + steps * tall) / height - 1  # [B, size], -1 and 1 are the outer edges
    columns = 2 * (left + steps * wide) / width - 1
    if mirrored > 0:
        flipped = _uniform(len(images), images, generator) < mirrored
        columns = torch.where(flipped[:, None], columns.flip(-1), columns)
    square = (len(images), size, size)
    grid = torch.stack([columns[:, None, :].expand(square), rows[:, :, None].expand(square)], dim=-1)
    flat = images.flatten(1, -3)  # [B, C x frames, H, W]
    resized = F.grid_sample(flat, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return resized.reshape(*images.shape[:-2], size, size)


def horizontal_flip(
    images: Float[Tensor, "batch *channels height width"], generator: Generator, probability: float = 0.5
) -> Float[Tensor, "batch *channels height width"]:
    """Each image (or all frames of a clip) mirrored with a probability."""
    chosen = _uniform(len(images), images, generator) < probability
    return torch.where(_spread(chosen, images), images.flip(-1), images)


def time_shift(
    x: Float[Tensor, "batch *rest frames"], most: int, generator: Generator
) -> Float[Tensor, "batch *rest frames"]:
    """Each sample rolled along its last axis by up to `most` frames either way."""
    frames = x.shape[-1]
    shift = _integers((len(x),), 2 * most + 1, x, generator) - most  # [B]
    source = (torch.arange(frames, device=x.device) - shift[:, None]) % frames  # [B, frames]
    return x.gather(-1, _spread(source, x, last=True).expand_as(x))


def mask_band(
    x: Float[Tensor, batch * rest], axis: int, widest: int, generator: Generator, fill: float = 0.0
) -> Float[Tensor, batch * rest]:
    """Each sample with one random band of 0 to `widest` steps along an axis set to `fill` (SpecAugment)."""
    length = x.shape[axis]
    width = (_uniform(len(x), x, generator) * (min(widest, length) + 1)).floor()
    start = (_uniform(len(x), x, generator) * (length - width + 1)).floor()
    steps = torch.arange(length, device=x.device)
    band = (steps >= start[:, None]) & (steps < (start + width)[:, None])  # [B, length]
    shape = [1] * x.ndim
    shape[0], shape[axis] = len(x), length
    return x.masked_fill(band.view(shape), fill)


def _uniform(count: int, like: Tensor, generator: Generator) -> Float[Tensor, " count"]:
    return torch.rand(count, generator=generator, device=generator.device).to(like.device)


def _integers(shape: tuple[int, ...], high: int, like: Tensor, generator: Generator) -> Tensor:
    return torch.randint(high, shape, generator=generator, device=generator.device).to(like.device)


def _spread(values: Tensor, like: Tensor, last: bool = False) -> Tensor:
    """[B] as [B, 1, ..., 1], or [B, n] as [B, 1, ..., n]."""
    ones = (1,) * (like.ndim - 2)
    return values.view(len(values), *ones, -1) if last else values.view(len(values), *ones, 1)
