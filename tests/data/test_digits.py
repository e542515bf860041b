"""`av_digits` and `av_mnist`: what belongs together, what must stay apart, and files that are not what they seem."""

from __future__ import annotations

import gzip
import hashlib
import io
import wave
import zipfile
from pathlib import Path

import numpy as np
import pytest

from bench import plugins
from bench.api import DataError, DataSet
from bench.data.formants import Speaker, say
from bench.data.prepared import prepare
from bench.data.splits import split_positions

DIGITS, MNIST = plugins.load("datasets", "av_digits"), plugins.load("datasets", "av_mnist")


def test_digits_are_spoken_by_others_in_every_split() -> None:
    samples = DIGITS.plugin(DIGITS.plugin.Settings()).samples(Path())
    speakers = {name: {s.group for s in samples if s.split == name} for name in ("train", "val", "test")}
    assert {name: len(found) for name, found in speakers.items()} == {"train": 12, "val": 4, "test": 4}
    assert len(set.union(*speakers.values())) == 20
    assert [sum(s.split == name for s in samples) for name in speakers] == [1200, 240, 357]
    for speaker in set.union(*speakers.values()):  # a speaker says all digits: nothing is learned from the voice alone
        assert len({s.target for s in samples if s.group == speaker}) == 10


def test_every_sample_has_an_utterance_of_its_own_and_reads_the_same_twice() -> None:
    dataset = DIGITS.plugin(DIGITS.plugin.Settings(snr_db=float("inf")))
    spec = dataset.describe(Path())
    one, again, other = (dataset.read(Path(), "audio", key).values for key in ("0", "0", "10"))  # both are zeros
    assert one.shape == spec.modalities["audio"].stored_shape
    assert (one == again).all()
    assert not (one == other).all()
    assert dataset.read(Path(), "visual", "5").values.shape == (1, 8, 8)


def test_noise_has_the_stated_level() -> None:
    clean = DIGITS.plugin(DIGITS.plugin.Settings(image_noise=0.0))
    noisy = DIGITS.plugin(DIGITS.plugin.Settings(image_noise=8.0))
    difference = [
        (noisy.read(Path(), "visual", str(k)).values - clean.read(Path(), "visual", str(k)).values).astype(float)
        for k in range(50)
    ]
    assert np.std(difference) == pytest.approx(0.5, rel=0.05)


def test_the_synthesiser_speaks_at_the_speakers_pitch() -> None:
    speaker = Speaker(pitch=125.0, tract=1.0, tempo=1.0, breath=0.0)
    waves = [say(9, speaker, np.random.default_rng(k)) for k in range(8)]
    assert all(np.sqrt(np.mean(w**2)) == pytest.approx(1.0) for w in waves)
    assert all(1200 < len(w) < 6000 for w in waves)
    pitches = []
    for w in waves:
        middle = w[len(w) // 3 : len(w) // 3 + 800]
        correlation = np.correlate(middle, middle, "full")[799:]
        pitches.append(8000 / (40 + np.argmax(correlation[40:100])))
    assert np.median(pitches) == pytest.approx(125, rel=0.08)


@pytest.fixture
def mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small AV-MNIST on disk: 60 + 20 images and an archive of all 3,000 recordings, each 100 samples long."""
    module = __import__(MNIST.plugin.__module__, fromlist=["FILES"])
    for name in ("_members", "_archive", "_idx", "_components"):
        getattr(module, name).cache_clear()
    folder = tmp_path / "av_mnist"
    folder.mkdir()
    rng = np.random.default_rng(0)
    sums = {}
    for file, count in (("train", 60), ("t10k", 20)):
        labels, images = np.arange(count, dtype=np.uint8) % 10, rng.integers(0, 256, (count, 28, 28)).astype(np.uint8)
        for kind, axes, array in (("labels-idx1", 1, labels), ("images-idx3", 3, images)):
            header = bytes([0, 0, 8, axes]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
            content = header + array.tobytes()
            (folder / f"{file}-{kind}-ubyte.gz").write_bytes(gzip.compress(content))
            sums[f"{file}-{kind}-ubyte"] = hashlib.md5(content, usedforsecurity=False).hexdigest()
    monkeypatch.setattr(module, "FILES", sums)
    monkeypatch.setattr(
        module,
        "SPLITS",
        {
            "train": ("train", 0, 50, range(10, 50)),
            "val": ("train", 50, 60, range(5, 10)),
            "test": ("t10k", 0, 20, range(5)),
        },
    )
    with zipfile.ZipFile(folder / "free-spoken-digit-dataset-master.zip", "w") as archive:
        for digit in range(10):
            for speaker in ("ann", "bob", "cy", "dan", "eve", "fay"):
                for take in range(50):
                    sound = io.BytesIO()
                    with wave.open(sound, "wb") as w:
                        w.setparams((1, 2, 8000, 100, "NONE", ""))
                        w.writeframes(rng.integers(-9000, 9000, 100).astype("<i2").tobytes())
                    archive.writestr(f"fsdd/recordings/{digit}_{speaker}_{take}.wav", sound.getvalue())
        archive.writestr("../../outside/recordings/notes.txt", "never unpacked")
    yield tmp_path
    for name in ("_members", "_archive", "_idx", "_components"):
        getattr(module, name).cache_clear()


def av_mnist(**settings: object) -> DataSet:
    return MNIST.plugin(MNIST.plugin.Settings(**settings))


def test_images_meet_recordings_of_their_digit_and_no_recording_crosses(mnist: Path, tmp_path: Path) -> None:
    samples = av_mnist().samples(mnist)
    assert [sum(s.split == name for s in samples) for name in ("train", "val", "test")] == [50, 10, 20]
    takes = {"train": range(10, 50), "val": range(5, 10), "test": range(5)}
    for s in samples:
        digit, _, take = s.sources["audio"].split("_")
        assert float(digit) == s.target
        assert int(take) in takes[s.split]
        assert s.group == s.sources["audio"]
    prepared = prepare("av_mnist", av_mnist(), MNIST.code, mnist, tmp_path / "store")
    split_positions(prepared.index)  # refuses shared groups and shared rows
    assert prepared.array("visual").dtype == np.uint8
    assert sorted(p.name for p in mnist.iterdir()) == ["av_mnist", "store"]


def test_clean_images_are_stored_as_they_are_and_weak_ones_keep_their_energy(mnist: Path) -> None:
    with gzip.open(mnist / "av_mnist" / "train-images-idx3-ubyte.gz") as file:
        images = np.frombuffer(file.read()[16:], np.uint8).reshape(-1, 28, 28)
    clean = av_mnist(energy=1.0).read(mnist, "visual", "train/00007").values
    assert (clean[0] == images[7]).all()
    weak = np.stack([av_mnist().read(mnist, "visual", f"train/{k:05d}").values[0] for k in range(50)]).astype(float)
    centred = images[:50] - images[:50].mean(axis=0)
    kept = ((weak - images[:50].mean(axis=0)) ** 2).sum() / (centred**2).sum()
    assert 0.24 < kept < 0.29  # the first count of components that reaches 25 %


def test_a_damaged_or_missing_file_is_named(mnist: Path) -> None:
    folder = mnist / "av_mnist"
    labels = folder / "t10k-labels-idx1-ubyte.gz"
    labels.write_bytes(gzip.compress(gzip.decompress(labels.read_bytes())[:-1] + b"\x07"))
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte.gz: the content has MD5"):
        av_mnist().samples(mnist)
    labels.unlink()
    assert "no t10k-labels-idx1-ubyte.gz" in str(av_mnist().unusable(mnist))
    with pytest.raises(DataError, match=r"no t10k-labels-idx1-ubyte.gz"):
        av_mnist().samples(mnist)


def test_an_archive_without_all_recordings_is_refused(mnist: Path) -> None:
    archive = mnist / "av_mnist" / "free-spoken-digit-dataset-master.zip"
    archive.unlink()
    assert "no free-spoken-digit-dataset*.zip" in str(av_mnist().unusable(mnist))
    with zipfile.ZipFile(archive, "w") as empty:
        empty.writestr("recordings/0_ann_0.wav", b"")
    with pytest.raises(DataError, match="1 recordings instead of 3000"):
        av_mnist().samples(mnist)
