"""A data set for tests: two modalities, shared clips, masks, and sources that can be made unreadable or slow."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Generator, Tensor

from bench import api
from bench.api import DataError, DataSet, DataSpec, EncoderSpec, Item, ModalitySpec, Sample, setting

STEPS, WIDTH = 5, 3


class Small(DataSet):
    """Sample k has image k and clip k // 2, which is its group."""

    @dataclass(frozen=True)
    class Settings(api.Settings):
        count: int = setting(40)
        unreadable: str = setting("", help="keys a|b")
        poisoned: str = setting("", help="keys whose values are NaN")
        seconds: float = setting(0.0, help="per item")
        split: str = setting("thirds", choices=("thirds", "none", "crossing", "no_val"))

    title = "Small"

    def describe(self, root: Path) -> DataSpec:
        """A masked sequence and a byte image."""
        sound = ModalitySpec(EncoderSpec("sequence"), (STEPS, WIDTH), (STEPS, WIDTH), "float16", masked=True)
        image = ModalitySpec(EncoderSpec("vit", patch=(2, 2)), (1, 4, 4), (4, 4), "uint8")
        return DataSpec({"audio": sound, "visual": image}, 3)

    def samples(self, root: Path) -> list[Sample]:
        """In order of their number."""
        return [
            Sample(
                f"s{k:04d}",
                float(k % 3),
                {"audio": f"a{k // 2}", "visual": f"v{k}"},
                self._split(k),
                f"g{k // 2}",
                {"k": float(k)},
            )
            for k in range(self.settings.count)
        ]

    def _split(self, k: int) -> Literal["train", "val", "test", ""]:
        n, how = self.settings.count, self.settings.split
        if how == "none":
            return ""
        if how == "crossing":
            return ("train", "test")[k % 2] if k > 3 else "val"
        if how == "no_val":
            return "train" if k < n - 10 else "test"
        return "train" if k < n - 20 else ("val" if k < n - 10 else "test")

    def read(self, root: Path, modality: str, key: str) -> Item:
        """Values drawn from the key."""
        time.sleep(self.settings.seconds)
        if key in self.settings.unreadable.split("|"):
            raise DataError(f"{root / key}.wav: cut short")
        rng = np.random.default_rng(list(key.encode()))
        if modality == "visual":
            return Item(rng.integers(0, 256, (4, 4)).astype(np.uint8))
        values = rng.standard_normal((STEPS, WIDTH))
        if key in self.settings.poisoned.split("|"):
            values[0, 0] = np.nan
        return Item(values, np.arange(STEPS) < 1 + int(key[1:]) % STEPS)

    def load(self, modality: str, stored: Tensor, generator: Generator | None) -> Tensor:
        """Augmented by one random number per sample."""
        x = stored.float() if modality == "audio" else stored.float().unsqueeze(1)
        if generator is not None:
            x = x + torch.rand(len(x), generator=generator).view(-1, *[1] * (x.ndim - 1))
        return x
