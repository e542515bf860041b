"""Batches of encoder inputs from a prepared data set, gathered by position without a loop over samples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Generator, Tensor

from bench.api import DataError, DataSet, Inputs
from bench.data.prepared import Prepared


class Reader:
    """Gathers stored rows and lets the data set turn them into inputs on the device.

    On a CPU the arrays stay memory maps. On an accelerator they are copied there whole where they take less than
    half of the free memory (or as `resident` says); otherwise each batch is gathered first and copied then.
    """

    def __init__(
        self,
        prepared: Prepared,
        dataset: DataSet,
        modalities: Sequence[str],
        device: torch.device | str = "cpu",
        resident: bool | None = None,
    ) -> None:
        missing = [m for m in modalities if m not in prepared.spec.modalities]
        if missing:
            known = ", ".join(prepared.spec.modalities)
            raise DataError(f"{prepared.name} has no modality {missing[0]!r}; it has {known}")
        self.dataset, self.modalities, self.device = dataset, tuple(modalities), torch.device(device)
        self._all = tuple(prepared.spec.modalities)
        self._values = {m: _mapped(prepared.array(m)) for m in self.modalities}
        masks = {m: prepared.mask(m) for m in self.modalities}
        self._masks = {m: _mapped(mask) for m, mask in masks.items() if mask is not None}
        self._rows = {m: torch.from_numpy(prepared.rows(m).copy()) for m in self.modalities}
        self.resident = self._fits() if resident is None else resident
        if self.resident:
            self._values = {m: _copied(x, self.device) for m, x in self._values.items()}
            self._masks = {m: _copied(x, self.device) for m, x in self._masks.items()}
            self._rows = {m: rows.to(self.device) for m, rows in self._rows.items()}

    def inputs(self, positions: np.ndarray | Tensor, generator: Generator | None = None) -> Inputs:
        """Encoder inputs of the samples at `positions`, augmented if a generator is given.

        Every modality of the data set, read here or not, takes one number of `generator` as the seed of a stream
        of its own: a unimodal model sees its modality augmented as a multimodal one does. A CPU generator avoids
        waiting for the device.
        """
        streams = self._streams(generator)
        wanted = torch.as_tensor(positions, dtype=torch.int64)
        values, masks = {}, {}
        for m in self.modalities:
            rows = self._rows[m]
            rows = rows.index_select(0, wanted.to(rows.device))
            values[m] = self.dataset.load(m, self._gather(self._values[m], rows), streams.get(m))
            if m in self._masks:
                masks[m] = self._gather(self._masks[m], rows)
        return Inputs(values, masks)

    def _gather(self, stored: Tensor, rows: Tensor) -> Tensor:
        gathered = stored.index_select(0, rows)
        if gathered.device == self.device:
            return gathered
        if self.device.type == "cuda":
            gathered = gathered.pin_memory()
        return gathered.to(self.device, non_blocking=True)

    def _streams(self, generator: Generator | None) -> dict[str, Generator]:
        if generator is None:
            return {}
        seeds = torch.randint(2**62, (len(self._all),), generator=generator, device=generator.device).tolist()
        return {m: Generator(self.device).manual_seed(seed) for m, seed in zip(self._all, seeds, strict=True)}

    def _fits(self) -> bool:
        if self.device.type != "cuda":
            return False
        needed = sum(x.nbytes for x in (*self._values.values(), *self._masks.values()))
        return needed < torch.cuda.mem_get_info(self.device)[0] / 2


def _mapped(array: np.ndarray) -> Tensor:
    """A tensor over the same pages; copy-on-write, because torch knows no read-only tensors."""
    assert isinstance(array, np.memmap)
    assert array.filename is not None  # only a map without a file has no name
    private: np.ndarray = np.load(array.filename, mmap_mode="c", allow_pickle=False)
    return torch.from_numpy(private)


def _copied(mapped: Tensor, device: torch.device) -> Tensor:
    return mapped.clone() if device.type == "cpu" else mapped.to(device)
