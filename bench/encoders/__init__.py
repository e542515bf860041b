"""Encoders, one family per file; `build` picks one by its specification."""

from __future__ import annotations

import importlib
from collections.abc import Callable

from bench.api import Encoder, EncoderSpec

FAMILIES = {"vit": "ViTEncoder", "sequence": "SequenceEncoder", "vector": "VectorEncoder", "resnet": "ResNetEncoder"}
"""File name -> class; each is imported when it is first built (timm alone takes seconds)."""


def build(spec: EncoderSpec, shape: tuple[int, ...]) -> Encoder:
    """The encoder that `spec` describes, for inputs of `shape` (without the batch axis)."""
    if spec.family not in FAMILIES:
        raise ValueError(f"unknown encoder family {spec.family!r}; known: {', '.join(FAMILIES)}")
    module = importlib.import_module(f"bench.encoders.{spec.family}")
    encoder: Callable[[EncoderSpec, tuple[int, ...]], Encoder] = getattr(module, FAMILIES[spec.family])
    return encoder(spec, shape)
