"""Bring your own data: the arrays of one .npz file, without writing code."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Generator, Tensor

from bench import api
from bench.api import DataError, DataSet, DataSpec, EncoderSpec, Item, ModalitySpec, Sample, setting
from bench.data.npz import Content, Request, directory, is_image, read


class Arrays(DataSet):
    """Modalities are the float or integer arrays of two or more dimensions; everything else has a name.

    [N, D] is a vector, [N, T, D] a sequence, [N, H, W, C] an image, and so is [N, H, W] of uint8. `target` of whole
    numbers or strings gives classes, in sorted order; of floats a regression. `split` holds 0/1/2 or train/val/test,
    `group` what must not cross it, `mask_<modality>` [N, T] the valid steps. Other arrays [N] go to the index, other
    one-dimensional ones are passed over.

    Where the file has no split, one is drawn by group from a fixed seed (`fold` of 5); where it has no val, that is
    carved out of train by group. Float and integer values are standardised per feature (images per channel) with the
    mean and deviation of the valid train values; a feature that is constant in train is 0 everywhere, as nothing can
    be learned from it. uint8 images are stored as they are and scaled to [-1, 1].
    """

    @dataclass(frozen=True)
    class Settings(api.Settings):
        path: str = setting("", help="the .npz file, relative to the current folder")
        target: str = setting("label", help="the array of targets")
        split: str = setting("split", help="the array of splits, where there is one; empty: draw one")
        group: str = setting("", help="the array of groups; empty: `group`, where there is one")
        modalities: str = setting("", help="a|b; empty: every array of two or more dimensions")
        images: str = setting("", help="a|b: arrays [N, H, W] that are images though they are not uint8")
        fold: int = setting(0, low=0, high=4, help="which drawn fold is test, where the file has no split")

    title = "Arrays"
    source = "the user's file"
    licence = "the user's"
    known_faults = ("whether a given split leaks is not known here: `bench data audit` looks",)
    epochs = 15
    listed = False

    def unusable(self, root: Path) -> str | None:
        """Why the file cannot be used."""
        if not self.settings.path:
            return "arrays: no file is named; write arrays:path=FILE.npz"
        return None if Path(self.settings.path).expanduser().is_file() else f"arrays: there is no file {self._file}"

    @property
    def _file(self) -> Path:
        return Path(self.settings.path).expanduser().absolute()

    def raw_key(self, root: Path) -> str:
        """The checksums of all arrays, as the file's own directory lists them."""
        return ",".join(f"{entry.filename}:{entry.CRC:08x}" for entry in directory(self.settings.path))

    def describe(self, root: Path) -> DataSpec:
        """One modality per array, and what the targets say of the outputs."""
        content = self._content()
        modalities = {}
        for m in content.modalities:
            values = content.arrays[m]
            shape = values.shape[1:]
            image = content.is_image(m)
            loaded = ((shape[2] if len(shape) == 3 else 1), *shape[:2]) if image else shape
            modalities[m] = ModalitySpec(
                encoder=_encoder(shape, image),
                shape=loaded,
                stored_shape=shape,
                dtype="uint8" if image and values.dtype == np.uint8 else "float32",
                masked=f"mask_{m}" in content.arrays,
            )
        if content.class_names:
            return DataSpec(modalities, len(content.class_names), class_names=content.class_names)
        return DataSpec(modalities, 1, kind="regression", metric="mae")

    def samples(self, root: Path) -> list[Sample]:
        """One sample per row, in the file's order."""
        content = self._content()
        return [
            Sample(
                id=f"{row:07d}",
                target=float(content.target[row]),
                sources=dict.fromkeys(content.modalities, str(row)),
                split=content.split[row],
                group=str(content.group[row]),
                metadata={name: _plain(values[row]) for name, values in content.metadata.items()},
            )
            for row in range(len(content.target))
        ]

    def read(self, root: Path, modality: str, key: str) -> Item:
        """One row, standardised; padded steps are 0."""
        content, row = self._content(), int(key)
        values = content.arrays[modality][row]
        mask = content.arrays[f"mask_{modality}"][row].astype(bool) if f"mask_{modality}" in content.arrays else None
        if values.dtype == np.uint8 and content.is_image(modality):
            return Item(values)
        mean, scale = content.statistics[modality]
        standard = (values - mean) * scale
        if mask is not None:
            standard[~mask] = 0.0
        return Item(standard.astype(np.float32), mask)

    def load(self, modality: str, stored: Tensor, generator: Generator | None) -> Tensor:
        """Images channels first, everything float."""
        # Decided by what is stored: training must not need the file.
        forced = modality in self.settings.images.split("|")
        if not (forced or is_image(stored.ndim, stored.dtype == torch.uint8)):
            return stored.float()
        images = stored.float() / 127.5 - 1.0 if stored.dtype == torch.uint8 else stored
        return images.unsqueeze(1) if images.ndim == 3 else images.movedim(-1, 1)

    def _content(self) -> Content:
        if reason := self.unusable(Path()):
            raise DataError(reason)
        s = self.settings
        lists = {name: tuple(m for m in getattr(s, name).split("|") if m) for name in ("modalities", "images")}
        return read(Request(s.path, s.target, s.split, s.group, **lists, fold=s.fold), self.raw_key(Path()))


def _encoder(shape: tuple[int, ...], image: bool) -> EncoderSpec:
    if image:  # about eight patches a side
        return EncoderSpec("vit", patch=(max(1, -(-shape[0] // 8)), max(1, -(-shape[1] // 8))))
    return EncoderSpec("vector" if len(shape) == 1 else "sequence")


def _plain(value: np.generic) -> str | float:
    plain = value.item()
    return float(plain) if isinstance(plain, bool | int | float) else str(plain)
