"""Batches: the stored rows, in the order asked for, augmented alike whichever modalities are read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from small_set import Small

from bench.api import DataError
from bench.data.prepared import Prepared, prepare
from bench.data.reader import Reader


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    store = tmp_path_factory.mktemp("store")
    return prepare("small", Small(Small.Settings()), "c0de", Path("raw"), store)


@pytest.mark.parametrize("resident", [None, True])
def test_rows_come_in_the_order_asked_for(prepared: Prepared, resident: bool | None) -> None:
    small = Small(Small.Settings())
    inputs = Reader(prepared, small, ["audio", "visual"], resident=resident).inputs(np.array([9, 2, 2, 39]))
    for place, k in enumerate([9, 2, 2, 39]):
        image = small.read(Path("raw"), "visual", f"v{k}")
        clip = small.read(Path("raw"), "audio", f"a{k // 2}")
        assert (inputs.values["visual"][place, 0].numpy() == image.values).all()
        assert (inputs.values["audio"][place].numpy() == clip.values.astype(np.float16)).all()
        assert (inputs.masks["audio"][place].numpy() == clip.mask).all()
    assert inputs.masks["audio"].dtype == torch.bool
    assert set(inputs.masks) == {"audio"}
    assert len(inputs) == 4


def test_tensor_positions_are_array_positions(prepared: Prepared) -> None:
    reader = Reader(prepared, Small(Small.Settings()), ["visual"])
    from_array = reader.inputs(np.array([5, 1])).values["visual"]
    assert torch.equal(reader.inputs(torch.tensor([5, 1])).values["visual"], from_array)


def test_a_modality_is_augmented_alike_alone_and_in_company(prepared: Prepared) -> None:
    small, positions = Small(Small.Settings()), np.arange(8)

    def batches(*modalities: str) -> list[dict[str, torch.Tensor]]:
        reader, generator = Reader(prepared, small, modalities), torch.Generator().manual_seed(3)
        return [dict(reader.inputs(positions, generator).values) for _ in range(2)]

    both, visual, audio = batches("audio", "visual"), batches("visual"), batches("audio")
    for step in range(2):
        assert torch.equal(both[step]["visual"], visual[step]["visual"])
        assert torch.equal(both[step]["audio"], audio[step]["audio"])
    assert not torch.equal(both[0]["audio"], both[1]["audio"])
    plain = Reader(prepared, small, ["audio"]).inputs(positions).values["audio"]
    assert not torch.equal(plain, audio[0]["audio"])
    shift = (audio[0]["audio"] - plain)[:, 0, 0], (both[0]["visual"] - batches("visual")[0]["visual"]).abs().max()
    assert shift[0].unique().numel() > 1
    assert shift[1] == 0


def test_the_files_stay_as_they_are(prepared: Prepared) -> None:
    class Careless(Small):
        def load(self, modality: str, stored: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
            return stored.fill_(0).float()

    reader = Reader(prepared, Careless(Small.Settings()), ["visual"])
    reader.inputs(np.arange(40))
    assert prepared.verify() == []
    assert reader._values["visual"].any()


def test_an_unknown_modality_is_named(prepared: Prepared) -> None:
    with pytest.raises(DataError, match="no modality 'text'; it has audio, visual"):
        Reader(prepared, Small(Small.Settings()), ["text"])
