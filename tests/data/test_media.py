"""Audio and frames: the right ones come out, and what is empty, cut short, hidden or elsewhere is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from raw_layouts import FPS, RATE, write_frames, write_video, write_wav

from bench.api import DataError
from bench.data import media
from bench.data.augment import horizontal_flip, random_resized_crop
from bench.data.fbank import log_fbank
from bench.data.frames import DEVIATION, MEAN, stored_side, to_inputs, to_store
from bench.data.lists import read_list


def tone(hertz: float, seconds: float, rate: int = RATE) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def pitch(sound: np.ndarray, rate: int) -> float:
    return float(np.abs(np.fft.rfft(sound)).argmax() * rate / len(sound))


def greys(seconds: float) -> np.ndarray:
    """Frames whose grey is ten times their second: 0, 10, 20, ..."""
    second = np.arange(round(seconds * FPS)) // FPS
    return np.broadcast_to((10 * second)[:, None, None, None], (len(second), 48, 64, 3)).astype(np.uint8).copy()


def cut(file: Path, share: float) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])


def test_sound_is_read_and_resampled(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", tone(440, 1.0))
    native = media.waveform(tmp_path / "a.wav", RATE)
    assert native.dtype == np.float32
    assert native == pytest.approx(tone(440, 1.0), abs=1e-4)
    other = media.waveform(tmp_path / "a.wav", 22050)
    assert len(other) == 22050
    assert pitch(other, 22050) == pytest.approx(440, abs=1.5)


def test_a_part_of_a_sound(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", np.concatenate([tone(300, 1.0), tone(900, 1.0), tone(600, 1.0)]))
    part = media.waveform(tmp_path / "a.wav", 8000, start=1.0, seconds=1.0)
    assert len(part) == 8000
    assert pitch(part, 8000) == pytest.approx(900, abs=2)
    with pytest.raises(DataError, match=r"ends after 3\.00 s, before 5 s"):
        media.waveform(tmp_path / "a.wav", 8000, start=5.0)


def test_sound_and_frames_of_an_mp4(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", greys(3.0), tone(440, 3.0))
    assert pitch(media.waveform(tmp_path / "a.mp4", RATE), RATE) == pytest.approx(440, abs=2)
    assert [round(f.mean()) for f in media.frames(tmp_path / "a.mp4")] == pytest.approx([0, 10, 20], abs=2)


@pytest.mark.parametrize("ending", ["flv", "mp4"])
def test_one_frame_per_second_none_twice(tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"a.{ending}"
    write_video(file, greys(3.4))
    assert [round(f.mean()) for f in media.frames(file)] == pytest.approx([0, 10, 20, 30], abs=3)
    assert len(media.frames(file, fps=2)) == 7
    later = media.frames(file, start=1.0, seconds=2.0)
    assert [round(f.mean()) for f in later] == pytest.approx([10, 20], abs=3)


def test_a_truncated_flv_is_found_though_it_decodes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    write_video(tmp_path / "a.flv", rng.integers(0, 255, (75, 48, 64, 3)).astype(np.uint8))
    assert len(media.frames(tmp_path / "a.flv")) == 3
    cut(tmp_path / "a.flv", 0.5)
    with pytest.raises(DataError, match=r"a\.flv: is cut short, its picture ends after 1\.\d+ s of 3\.00 s"):
        media.frames(tmp_path / "a.flv")


def test_a_video_that_does_not_know_its_length_is_held_against_its_sound(tmp_path: Path) -> None:
    write_video(tmp_path / "a.flv", greys(1.0))
    assert len(media.frames(tmp_path / "a.flv", expected=1.5)) == 1
    with pytest.raises(DataError, match=r"the sound beside it lasts 3\.00 s"):
        media.frames(tmp_path / "a.flv", expected=3.0)


def test_a_truncated_wav_or_mp4_is_found(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", tone(440, 2.0))
    cut(tmp_path / "a.wav", 0.5)
    with pytest.raises(DataError, match=r"a\.wav: is cut short, its sound ends after 1\.00 s of 2\.00 s"):
        media.waveform(tmp_path / "a.wav", RATE)
    rng = np.random.default_rng(0)
    write_video(tmp_path / "a.mp4", rng.integers(0, 255, (75, 48, 64, 3)).astype(np.uint8))
    cut(tmp_path / "a.mp4", 0.5)
    with pytest.raises(DataError, match=r"a\.mp4: (is cut short|cannot be decoded)"):
        media.frames(tmp_path / "a.mp4")


def test_what_holds_nothing_is_named(tmp_path: Path) -> None:
    write_wav(tmp_path / "silent.wav", np.zeros(0))
    (tmp_path / "empty.wav").touch()
    (tmp_path / "pointer.flv").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    (tmp_path / "text.mp4").write_text("no film")
    (tmp_path / "folder").mkdir()
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no image")
    write_video(tmp_path / "mute.mp4", greys(1.0))
    for file, reason in {
        "silent.wav": "holds no sound, 0 samples",
        "empty.wav": "is empty",
        "mute.mp4": "no sound",
    }.items():
        with pytest.raises(DataError, match=f"{file}: .*{reason}"):
            media.waveform(tmp_path / file, RATE)
    for file, reason in {"pointer.flv": "git lfs pull", "text.mp4": "cannot be decoded"}.items():
        with pytest.raises(DataError, match=f"{file}: .*{reason}"):
            media.frames(tmp_path / file)
    with pytest.raises(DataError, match="folder: holds no frames"):
        media.images(tmp_path / "folder")
    with pytest.raises(DataError, match=r"broken\.jpg: cannot be decoded"):
        media.image(tmp_path / "broken.jpg")


def test_nothing_outside_the_raw_folder_is_read(tmp_path: Path) -> None:
    root = tmp_path / "raw"
    (root / "AudioWAV").mkdir(parents=True)
    write_wav(tmp_path / "secret.wav", tone(440, 0.1))
    (root / "AudioWAV" / "link.wav").symlink_to(tmp_path / "secret.wav")
    (tmp_path / "elsewhere").symlink_to(root)
    for key in ("../secret.wav", "AudioWAV/link.wav", str(tmp_path / "secret.wav")):
        with pytest.raises(DataError, match="leads out of"):
            media.inside(root, key)
    with pytest.raises(DataError, match="there is no such file"):
        media.inside(root, "AudioWAV/none.wav")
    write_wav(root / "AudioWAV" / "a.wav", tone(440, 0.1))
    assert media.inside(tmp_path / "elsewhere", "AudioWAV/a.wav").is_file()


def test_frames_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    write_frames(tmp_path, greys(1.0)[:2])
    for number in (2, 10, 9):
        (tmp_path / f"shot{number}.jpg").touch()
    assert [f.name for f in media.images(tmp_path)] == [
        "frame_00001.jpg", "frame_00002.jpg", "shot2.jpg", "shot9.jpg", "shot10.jpg",
    ]  # fmt: skip


def levels(x: torch.Tensor) -> torch.Tensor:
    """Which of the pictures 0, 10, 20, ... each frame shows."""
    red = x[:, 0].mean(dim=(-1, -2)) * 0.229 + 0.485
    return (red * 25.5).round().int()


def test_the_middle_of_each_part() -> None:
    assert media.spread(3, 3) == [0, 1, 2]
    assert media.spread(10, 3) == [1, 5, 8]
    assert media.spread(3, 1) == [1]
    assert media.spread(1, 3) == [0, 0, 0]


def test_the_stored_square_is_the_middle() -> None:
    wide = np.zeros((10, 30, 3), dtype=np.uint8)
    wide[:, 10:20] = 200
    assert media.square(wide, 5).shape == (5, 5, 3)
    assert (media.square(wide, 5) == 200).all()
    assert stored_side(224) == 256


def test_frames_of_a_batch() -> None:
    pictures = [np.full((20, 20, 3), 10 * k, dtype=np.uint8) for k in range(9)]
    stored = torch.from_numpy(np.stack([to_store(pictures, 9, 14)] * 32))  # [32, 9, 16, 16, 3]
    plain = to_inputs(stored, 14, 3, None)
    assert plain.shape == (32, 3, 3, 14, 14)
    assert levels(plain)[0].tolist() == [1, 4, 7]
    drawn = levels(to_inputs(stored, 14, 3, torch.Generator().manual_seed(0)))
    for part in range(3):
        assert set(drawn[:, part].tolist()) == {3 * part, 3 * part + 1, 3 * part + 2}


@pytest.mark.parametrize("count", [6, 7])
def test_inputs_are_the_scaled_crops_to_the_bit(count: int) -> None:
    """However it is done, what comes out is (x / 255 - mean) / deviation of the crop, in the order of these steps."""
    stored = torch.randint(0, 256, (5, count, 20, 20, 3), dtype=torch.uint8, generator=seeded())
    mean, deviation = (torch.tensor(values).view(3, 1, 1, 1) for values in (MEAN, DEVIATION))
    middle = stored[:, [1, 3, 5]].movedim(-1, 1).float() / 255
    expected = (middle[..., 1:18, 1:18] - mean) / deviation
    assert torch.equal(to_inputs(stored, 17, 3, None), expected)
    draws = seeded(4)
    drawn = torch.randint(2, (5, 3), generator=draws) + 2 * torch.arange(3)
    chosen = stored[torch.arange(5)[:, None], drawn].movedim(-1, 1).float() / 255
    boxes = horizontal_flip(random_resized_crop(chosen, 17, draws), draws)
    assert torch.equal(to_inputs(stored, 17, 3, seeded(4)), (boxes - mean) / deviation)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_random_boxes_are_resized_alike_for_all_frames() -> None:
    columns = torch.arange(32.0).expand(256, 3, 2, 32, 32)
    cropped = random_resized_crop(columns, 16, torch.Generator().manual_seed(0))
    assert cropped.shape == (256, 3, 2, 16, 16)
    assert torch.equal(cropped[:, 0, 0], cropped[:, 2, 1])
    row = cropped[:, 0, 0, 0]
    width = (row[:, 9] - row[:, 8]) * 16
    assert ((row >= 0) & (row <= 31)).all()
    # Widths of 8 to 100 % of the area with sides as 3 : 4 to 4 : 3.
    assert width.min() > 32 * (0.08 * 0.75) ** 0.5 - 0.1
    assert width.max() > 28
    whole = random_resized_crop(columns, 32, torch.Generator(), scale=(1.0, 1.0), ratio=(1.0, 1.0))
    assert torch.allclose(whole, columns, atol=1e-4)


def test_a_filter_bank_shows_a_tone_where_it_belongs() -> None:
    bank = log_fbank(torch.from_numpy(tone(1000, 10.0).astype(np.float32)), RATE, 128)
    assert bank.shape == (998, 128)  # 1 + (160000 - 400) // 160
    mel = [1127 * np.log(1 + hertz / 700) for hertz in (20, 1000, 8000)]
    assert int(bank.mean(dim=0).argmax()) == pytest.approx(129 * (mel[1] - mel[0]) / (mel[2] - mel[0]) - 1, abs=0.6)
    silence = log_fbank(torch.zeros(16000), RATE, 128)
    assert silence.unique().tolist() == pytest.approx([np.log(2.0**-23)])
    assert log_fbank(torch.zeros(399), RATE, 128).shape == (0, 128)


def test_lists(tmp_path: Path) -> None:
    file = tmp_path / "list.csv"
    file.write_text("a,NEU\n\nb, HAP\n", encoding="utf-8-sig")
    assert [(line.number, line.fields) for line in read_list(file)] == [(1, ("a", "NEU")), (3, ("b", "HAP"))]
    file.write_text("a 10 3\n")
    assert read_list(file)[0].fields == ("a", "10", "3")
    file.write_text("\n")
    with pytest.raises(DataError, match="is empty"):
        read_list(file)
    with pytest.raises(DataError, match="cannot be read"):
        read_list(tmp_path / "none.csv")
