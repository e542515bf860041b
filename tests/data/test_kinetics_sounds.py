"""Kinetics-Sounds from clips or from what others prepared to a prepared set to training."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from raw_layouts import picture, sound, video_id, write_kinetics, write_prepared_kinetics, write_video

from bench import names
from bench.api import DataError, DataSet
from bench.data import media
from bench.data.prepared import Prepared
from bench.data.selection import select
from bench.data.spectrogram import log_stft
from bench.data.splits import split_hash, split_positions

TINY = "kinetics_sounds:size=32"


def kinetics(text: str = TINY) -> DataSet:
    return names.resolve_dataset(text)[1]


def prepared_from(root: Path, store: Path, text: str = TINY) -> Prepared:
    return select([text], root, store, {})[0][0].prepared


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("raw") / "KS"
    write_kinetics(root)
    return root


@pytest.mark.parametrize("layout", ["clips", "prepared"])
def test_from_raw_files_to_training(tmp_path: Path, layout: str) -> None:
    from tests.world import make_world

    raw = tmp_path / "raw"
    (write_kinetics if layout == "clips" else write_prepared_kinetics)(raw)
    prepared_from(raw, tmp_path / "prepared")
    shutil.rmtree(raw)  # a run needs no raw files
    tiny = ("encoder.weights=none", "recipe.epochs=2", "recipe.warmup_epochs=0.5", "recipe.batch_size=4")
    world = make_world(tmp_path / "work", "rollingq", *tiny, datasets=TINY)
    assert world.plan.trials[0].strategies[0].settings["max_rotations"] == 3
    assert [o.status for o in world.run()] == ["finished"]


def test_what_is_stored(raw: Path, tmp_path: Path) -> None:
    prepared = prepared_from(raw, tmp_path)
    assert len(prepared.index) == 12  # the row of another class is passed over
    assert prepared.index["sample_id"].iloc[0] == f"{video_id(1)}_3"
    assert prepared.index["group"].iloc[0] == video_id(1)
    assert prepared.index["split"].value_counts().to_dict() == {"train": 9, "test": 3}
    by_label = dict(zip(prepared.index["label"], prepared.targets().tolist(), strict=True))
    assert by_label == {"blowing nose": 0, "playing drums": 11, "tap dancing": 27}
    assert prepared.array("audio").shape == (12, 1, 1024, 128)
    assert prepared.array("visual").shape == (12, 3, 37, 37, 3)
    clip = next((raw / "train").rglob(f"{video_id(1)}_*.mp4"))
    frames = media.frames(clip)
    assert len(frames) == 4
    assert (prepared.array("visual")[0, 2] == media.square(frames[3], 37)).all()
    # 4 s are 398 frames, and AAC adds a few; what follows is zeros, shifted and scaled.
    assert np.unique(prepared.array("audio")[0, 0, 420:]).tolist() == pytest.approx([4.503877 / 10.282552], abs=1e-3)
    assert split_positions(prepared.index)["val"].size > 0


def test_shapes_and_the_long_spectrogram(raw: Path) -> None:
    spec = kinetics("kinetics_sounds").describe(raw)
    tokens = [1 + (m.shape[-2] // 16) * (m.shape[-1] // 16) * (m.shape[1] if len(m.shape) == 4 else 1)
              for m in spec.modalities.values()]  # fmt: skip
    assert tokens == [513, 589]
    long = kinetics("kinetics_sounds:audio=spectrogram")
    assert long.describe(raw).modalities["audio"].shape == (1, 1004, 257)
    sample = long.samples(raw)[0]
    stored = long.read(raw, "audio", sample.sources["audio"]).values
    wave = media.waveform(next((raw / "train").rglob(f"{video_id(1)}_*.mp4")), 16000)
    tiled = torch.from_numpy(np.tile(wave, 3)[:160000])
    assert torch.allclose(torch.from_numpy(stored[0]).T, log_stft(tiled, 512, 159, centre=False))


def test_banks_that_others_computed_are_taken_as_they_are(tmp_path: Path) -> None:
    write_prepared_kinetics(tmp_path / "raw")
    prepared = prepared_from(tmp_path / "raw", tmp_path / "store")
    name = f"{video_id(1)}_1"
    assert prepared.index["sample_id"].iloc[0] == name
    assert prepared.targets()[0] == 1
    bank = np.load(tmp_path / "raw" / "train_spec" / f"{name}.npy")
    assert (prepared.array("audio")[0, 0] == bank.astype(np.float16)).all()
    np.save(tmp_path / "raw" / "train_spec" / f"{name}.npy", bank.T)
    with pytest.raises(DataError, match=r"expected floats \[1024, 128\]"):
        kinetics().read(tmp_path / "raw", "audio", f"train_spec/{name}.npy")


def test_missing_and_broken_clips_are_left_out_counted_and_change_the_split_hash(tmp_path: Path) -> None:
    whole, holed = tmp_path / "whole", tmp_path / "holed"
    for root in (whole, holed):
        write_kinetics(root)
    gone, broken = (next(holed.rglob(f"{video_id(n)}_*.mp4")) for n in (1, 4))
    gone.unlink()
    broken.write_bytes(broken.read_bytes()[:2000])
    one = prepared_from(whole, tmp_path / "1")
    other = prepared_from(holed, tmp_path / "2")
    assert other.manifest["counts"]["left_out"] == 2
    lost = {f"{video_id(1)}_3", f"{video_id(4)}_12"}
    lines = (other.folder / "left_out.csv").read_text().splitlines()[1:]
    assert {line.split(",")[0] for line in lines} == lost
    assert lost == set(one.index["sample_id"]) - set(other.index["sample_id"])
    assert split_hash(one.index, split_positions(one.index)) != split_hash(other.index, split_positions(other.index))


@pytest.mark.parametrize("line", ["{id},30,40,tap dancing", "{id}_30,10,27", "{id}_30 10 27", "{id}_30,tap_dancing"])
def test_forms_of_lists(tmp_path: Path, line: str) -> None:
    for split, number in (("train", 1), ("test", 2)):
        (tmp_path / f"{split}.txt").write_text(line.format(id=video_id(number)) + "\n")
    write_video(tmp_path / "any" / f"{video_id(1)}_000030_000040.mp4", picture(1, 2.0), sound(1, 2.0))
    write_video(tmp_path / f"{video_id(2)}.mp4", picture(2, 2.0), sound(2, 2.0))
    samples = kinetics().samples(tmp_path)
    assert [(s.id, s.group, s.target, s.split) for s in samples] == [
        (f"{video_id(1)}_30", video_id(1), 27.0, "train"),
        (f"{video_id(2)}_30", video_id(2), 27.0, "test"),
    ]
    assert [s.sources["visual"] for s in samples] == [
        f"any/{video_id(1)}_000030_000040.mp4#t=30,40",
        f"{video_id(2)}.mp4#t=30,40",
    ]


def test_a_whole_video_gives_the_seconds_of_its_clip(tmp_path: Path) -> None:
    name = video_id(3)
    write_video(tmp_path / f"{name}.mp4", picture(3, 15.0), np.concatenate([0 * sound(3, 4.0), sound(3, 11.0)]))
    dataset = kinetics()
    frames = media.frames(tmp_path / f"{name}.mp4")
    item = dataset.read(tmp_path, "visual", f"{name}.mp4#t=4,14")
    assert (item.values[0] == media.square(frames[5], 37)).all()  # the second of ten
    heard = dataset.read(tmp_path, "audio", f"{name}.mp4#t=4,14").values[0]
    begins = dataset.read(tmp_path, "audio", f"{name}.mp4#t=2,12").values[0]
    assert heard[:190].mean() > begins[:190].mean() + 0.1  # here two seconds of silence come first
    assert np.abs(heard[:700] - begins[200:900]).max() < 0.1  # the mean of the ten seconds differs a little


def test_wrong_lists_are_named(tmp_path: Path) -> None:
    (tmp_path / "test.csv").write_text(f"{video_id(1)},0,10,tap dancing\n")
    wrong = {
        "../../etc/passwd,10,3": r"train\.csv:1: '\.\./\.\./etc/passwd' names no clip",
        f"{video_id(2)},10,31": "class 31; allowed: 0 to 30",
        f"{video_id(2)},a,b,tap dancing": "are no seconds",
        video_id(2): "expected a clip and its class",
        f"{video_id(1)},0,10,tap dancing": r"test\.csv:1: .* is listed a second time",
        "youtube_id,label\nx,tap dancing": "expected the columns youtube_id, time_start",
    }
    for text, reason in wrong.items():
        (tmp_path / "train.csv").write_text(text + "\n")
        with pytest.raises(DataError, match=reason):
            kinetics().samples(tmp_path)
    (tmp_path / "train.csv").unlink()
    assert "no train list" in str(kinetics().unusable(tmp_path))


def test_drawn_folds_where_a_video_is_in_both_lists(tmp_path: Path) -> None:
    lines = {"train": range(11), "test": range(8, 14)}
    for split, numbers in lines.items():
        text = "\n".join(f"{video_id(n)}_{n if split == 'train' else 50},10,{n % 3}" for n in numbers)
        (tmp_path / f"{split}.txt").write_text(text)
    drawn = kinetics(f"{TINY}:split=drawn").samples(tmp_path)
    assert {s.split for s in drawn} == {""}
    assert [s.metadata["published_split"] for s in drawn] == ["train"] * 11 + ["test"] * 6
    assert len({s.group for s in drawn}) == 14
    assert len(kinetics(f"{TINY}:limit=2").samples(tmp_path)) == 4
