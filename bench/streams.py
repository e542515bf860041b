"""Random streams derived from (seed, epoch, name): nothing random needs to be saved, and no stream moves another."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Generator


def derive(*words: int | str) -> int:
    """A 63-bit seed that depends on every word and on nothing else."""
    text = "/".join(str(word) for word in words)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def generator(*words: int | str, device: torch.device | str = "cpu") -> Generator:
    """A fresh torch generator for these words."""
    return Generator(device=device).manual_seed(derive(*words))


def permutation(count: int, *words: int | str) -> np.ndarray:
    """A random order of `count` items for these words, the same on every machine [count]."""
    return np.random.Generator(np.random.PCG64(derive(*words))).permutation(count)


@contextmanager
def seeded(*words: int | str) -> Iterator[None]:
    """Torch's global random state seeded by these words; the state from before comes back."""
    with torch.random.fork_rng(devices=_devices()):
        torch.manual_seed(derive(*words))
        yield


@contextmanager
def untouched() -> Iterator[None]:
    """Whatever happens inside, torch's global random state is as before afterwards."""
    with torch.random.fork_rng(devices=_devices()):
        yield


def _devices() -> list[int]:
    return list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
