"""CREMA-D from raw files in each layout to a prepared set to training, and what is found wrong on the way."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from raw_layouts import crema_clips, sound, write_crema_d, write_wav

from bench import names
from bench.api import DataError, DataSet
from bench.data import media
from bench.data.prepared import Prepared, prepare
from bench.data.selection import select
from bench.data.spectrogram import log_stft
from bench.data.splits import split_positions

TINY = "crema_d:size=32"


def crema_d(text: str = TINY) -> tuple[DataSet, str]:
    part, dataset = names.resolve_dataset(text)
    return dataset, part.code


def prepared_from(root: Path, store: Path, text: str = TINY, **options: object) -> Prepared:
    return select([text], root, store, {}, **options)[0][0].prepared  # type: ignore[arg-type]  # options vary


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("raw") / "CREMA-D"
    write_crema_d(root)
    return root


@pytest.mark.parametrize("layout", ["flv", "mp4", "frames"])
def test_from_raw_files_to_training(tmp_path: Path, layout: str) -> None:
    from tests.world import make_world

    raw, store = tmp_path / "raw", tmp_path / "prepared"
    write_crema_d(raw / "CREMA-D", layout)
    prepared_from(raw, store)
    shutil.rmtree(raw)  # a run needs no raw files
    tiny = ("encoder.weights=none", "recipe.epochs=2", "recipe.warmup_epochs=0.5")
    world = make_world(tmp_path / "work", "concat,vanilla_mt", *tiny, datasets=TINY)
    outcomes = world.run()
    assert [o.status for o in outcomes] == ["finished"] * 2


def test_what_is_stored(raw: Path, tmp_path: Path) -> None:
    prepared = prepared_from(raw, tmp_path)
    assert prepared.index["sample_id"].tolist() == crema_clips()
    assert prepared.targets().tolist() == [5, 4, 3, 1, 0, 2] * 6  # ANG DIS FEA HAP NEU SAD in the published order
    assert set(prepared.index["group"]) == {str(1001 + actor) for actor in range(6)}
    first = prepared.index.iloc[0]
    assert (first["age"], first["sex"], first["sentence"], first["intensity"]) == (20.0, "Female", "DFA", "XX")
    assert prepared.array("audio").shape == (36, 1, 188, 257)
    assert prepared.array("visual").shape == (36, 3, 37, 37, 3)
    frames = media.frames(raw / "VideoFlash" / f"{crema_clips()[4]}.flv")
    assert len(frames) == 3
    assert (prepared.array("visual")[4, 1] == media.square(frames[1], 37)).all()
    dataset, _ = crema_d()
    shown = dataset.load("visual", torch.from_numpy(prepared.array("visual")[:2].copy()), None)
    assert shown.shape == (2, 3, 32, 32)
    middle = torch.from_numpy(prepared.array("visual")[:2, 1, 2:34, 2:34].copy()).permute(0, 3, 1, 2) / 255
    assert torch.allclose(shown[:, 0], (middle[:, 0] - 0.485) / 0.229, atol=1e-5)


def test_the_released_spectrogram(raw: Path) -> None:
    import librosa

    dataset, _ = crema_d()
    clip = crema_clips()[3]
    ours = dataset.read(raw, "audio", f"AudioWAV/{clip}.wav").values
    wave, _ = librosa.load(raw / "AudioWAV" / f"{clip}.wav", sr=22050)
    theirs = np.log(np.abs(librosa.stft(np.tile(wave, 3)[: 3 * 22050], n_fft=512, hop_length=353)) + 1e-7)
    assert ours.shape == (1, 188, 257)
    assert np.allclose(np.exp(ours[0].T), np.exp(theirs), rtol=1e-2, atol=1e-5)


def test_the_spectrogram_of_the_papers(raw: Path) -> None:
    dataset, _ = crema_d("crema_d:audio=paper")
    clip = crema_clips()[3]
    stored = dataset.read(raw, "audio", f"AudioWAV/{clip}.wav").values
    wave = torch.from_numpy(np.tile(media.waveform(raw / "AudioWAV" / f"{clip}.wav", 16000), 2)[:48000])
    assert stored.shape == (1, 299, 257)
    assert torch.allclose(torch.from_numpy(stored[0]).T, log_stft(wave, 512, 159, centre=False))
    loaded = dataset.load("audio", torch.from_numpy(stored)[None], None)
    assert (float(loaded.mean()), float(loaded.std())) == pytest.approx((0, 1), abs=1e-2)


def test_full_size_has_the_published_tokens(raw: Path) -> None:
    dataset, _ = crema_d("crema_d")
    modalities = dataset.describe(raw).modalities
    tokens = [1 + (m.shape[-2] // 16) * (m.shape[-1] // 16) for m in modalities.values()]
    assert tokens == [177, 197]
    assert modalities["visual"].stored_shape == (3, 256, 256, 3)
    assert all((m.encoder.dim, m.encoder.depth, m.encoder.edge) == (768, 4, "crop") for m in modalities.values())


def test_actors_are_apart_in_folds_and_not_in_the_published_lists(raw: Path, tmp_path: Path) -> None:
    index = prepared_from(raw, tmp_path).index
    tested = []
    for fold in range(5):
        positions = split_positions(index, fold)
        groups = {part: set(index["group"].iloc[where]) for part, where in positions.items()}
        assert all(groups.values())
        assert not groups["train"] & groups["test"]
        assert not groups["train"] & groups["val"]
        tested += positions["test"].tolist()
    assert sorted(tested) == list(range(36))
    published = split_positions(index, kind="published")
    assert published["test"].tolist() == list(range(0, 36, 6))
    assert len(published["train"]) == 30


def test_lists_may_be_elsewhere_and_wrong_ones_are_named(tmp_path: Path) -> None:
    clips = write_crema_d(tmp_path / "raw", actors=3, lists=False)
    train, test = tmp_path / "a.csv", tmp_path / "b.csv"
    train.write_text("".join(f"{c},{c[9:12]}\n" for c in clips[1:]))
    test.write_text(f"{clips[0]},ANG\n")
    dataset, _ = crema_d(f"{TINY}:train_list={train}:test_list={test}")
    assert [s.metadata["published_split"] for s in dataset.samples(tmp_path / "raw")] == ["test", *["train"] * 17]
    wrong = {
        "../../etc/passwd,ANG": r"b\.csv:1: '\.\./\.\./etc/passwd' names no clip",
        f"{clips[0]},SAD": "is listed as SAD, and its name says ANG",
        f"{clips[1]},DIS": "is listed a second time",
    }
    for line, reason in wrong.items():
        test.write_text(line + "\n")
        with pytest.raises(DataError, match=reason):
            dataset.samples(tmp_path / "raw")
    alone, _ = crema_d(f"{TINY}:train_list={train}")
    with pytest.raises(DataError, match="only a train list"):
        alone.samples(tmp_path / "raw")


def test_the_same_lists_elsewhere_are_the_same_set_and_others_are_not(tmp_path: Path) -> None:
    clips = write_crema_d(tmp_path / "raw", actors=3, lists=False)
    listed = {"train": clips[1:], "test": clips[:1]}
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
        for split, names_ in listed.items():
            (tmp_path / place / split).write_text("\n".join(names_))
    texts = [f"{TINY}:train_list={tmp_path / p / 'train'}:test_list={tmp_path / p / 'test'}" for p in ("one", "two")]
    first = prepared_from(tmp_path / "raw", tmp_path / "store", texts[0])
    assert prepared_from(tmp_path / "gone", tmp_path / "store", texts[1]).folder == first.folder
    (tmp_path / "two" / "train").write_text("\n".join(clips[2:]))
    with pytest.raises(DataError, match="no folder AudioWAV"):
        prepared_from(tmp_path / "gone", tmp_path / "store", texts[1])


def test_limit_takes_the_first_clips_of_every_actor(raw: Path, tmp_path: Path) -> None:
    prepared = prepared_from(raw, tmp_path, f"{TINY}:limit=2")
    assert prepared.index["sample_id"].tolist() == [c for c in crema_clips() if "ANG" in c or "DIS" in c]
    with pytest.raises(DataError, match=r"Prepared with other settings or by other code: crema_d:.*limit=2"):
        prepared_from(tmp_path / "gone", tmp_path, TINY)


def test_serial_and_parallel_are_the_same_and_a_flipped_bit_is_found(raw: Path, tmp_path: Path) -> None:
    text = f"{TINY}:limit=2"
    serial, parallel = (prepared_from(raw, tmp_path / str(n), text, workers=n) for n in (1, 2))
    for file in ("audio.npy", "visual.npy"):
        assert (serial.folder / file).read_bytes() == (parallel.folder / file).read_bytes()
    assert serial.fingerprint == parallel.fingerprint
    assert serial.verify() == []
    content = bytearray((serial.folder / "visual.npy").read_bytes())
    content[-7] ^= 4
    (serial.folder / "visual.npy").write_bytes(content)
    assert serial.verify() == ["visual.npy"]
    assert prepared_from(raw, tmp_path / "1", text, overwrite=True).verify() == []


def test_every_kind_of_damage_is_named_and_left_out(tmp_path: Path) -> None:
    clips = write_crema_d(tmp_path / "raw", actors=5)
    raw = tmp_path / "raw"
    flv = raw / "VideoFlash" / f"{clips[0]}.flv"
    flv.write_bytes(flv.read_bytes()[: flv.stat().st_size // 3])
    write_wav(raw / "AudioWAV" / f"{clips[1]}.wav", np.zeros(0))
    (raw / "AudioWAV" / f"{clips[2]}.wav").unlink()
    (raw / "VideoFlash" / f"{clips[3]}.flv").unlink()
    hidden = tmp_path / "hidden.wav"
    write_wav(hidden, sound(0, 1.0))
    (raw / "AudioWAV" / f"{clips[4]}.wav").unlink()
    (raw / "AudioWAV" / f"{clips[4]}.wav").symlink_to(hidden)
    dataset, code = crema_d()
    with pytest.raises(DataError, match=r"5 sources cannot be read, which takes 5 of 30 samples \(0 are tolerated\)"):
        prepare("crema_d", dataset, code, raw, tmp_path / "store")
    prepared = prepare("crema_d", dataset, code, raw, tmp_path / "store", allow_missing=True)
    assert prepared.index["sample_id"].tolist() == clips[5:]
    assert prepared.manifest["counts"]["left_out"] == 5
    lines = (prepared.folder / "left_out.csv").read_text().splitlines()
    reasons = {line.split(",")[0]: line for line in lines[1:]}
    expected = ["is cut short|cannot be decoded", "holds no sound", "no such file", "no such file", "leads out of"]
    assert list(reasons) == clips[:5]
    for clip, text in zip(clips, expected, strict=False):
        assert re.search(text, reasons[clip])


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    dataset, _ = crema_d()
    assert "no folder AudioWAV or audio" in str(dataset.unusable(tmp_path))
    (tmp_path / "AudioWAV").mkdir()
    assert "no folder VideoFlash" in str(dataset.unusable(tmp_path))
    (tmp_path / "VideoFlash").mkdir()
    assert dataset.unusable(tmp_path) is None
    (tmp_path / "VideoDemographics.csv").write_text("ActorID,Age\n1001,20\n")
    with pytest.raises(DataError, match="no column Ethnicity, Race, Sex"):
        dataset.samples(tmp_path)
