"""Spectrograms follow librosa's conventions and have the shapes the public code feeds its encoders."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bench.data.spectrogram import log_mel, log_stft, mel_filters, standardised, tile_or_cut


def noise(count: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(count).astype(np.float32)


@pytest.mark.parametrize(
    ("rate", "seconds", "hop", "centre", "shape"),
    [
        (22050, 3, 353, True, (257, 188)),
        (16000, 3, 159, False, (257, 299)),
        (16000, 10, 159, False, (257, 1004)),
        (16000, 3, 159, True, (257, 302)),
    ],
)
def test_shapes_and_values_are_those_of_the_definition(
    rate: int, seconds: int, hop: int, centre: bool, shape: tuple[int, int]
) -> None:
    wave = noise(rate * seconds)
    padded = np.pad(wave.astype(np.float64), 256 if centre else 0)
    frames = np.lib.stride_tricks.sliding_window_view(padded, 512)[::hop]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(512) / 512)
    expected = np.abs(np.fft.rfft(frames * window)).T
    ours = log_stft(torch.from_numpy(wave), 512, hop, centre).numpy()
    assert ours.shape == shape == expected.shape
    np.testing.assert_allclose(np.exp(ours) - 1e-7, expected, atol=1e-4)
    loud = expected > 0.1
    np.testing.assert_allclose(ours[loud], np.log(expected[loud]), atol=1e-4)


@pytest.mark.slow  # librosa takes most of a minute to compile itself
@pytest.mark.parametrize("centre", [True, False])
def test_values_are_librosas(centre: bool) -> None:
    import librosa

    wave = noise(22050 * 3)
    ours = np.exp(log_stft(torch.from_numpy(wave), 512, 353, centre).numpy()) - 1e-7
    np.testing.assert_allclose(ours, np.abs(librosa.stft(wave, n_fft=512, hop_length=353, center=centre)), atol=1e-4)


def test_a_batch_is_its_waves_one_by_one() -> None:
    waves = torch.randn(2, 3, 4000, generator=torch.Generator().manual_seed(0))
    batch = log_stft(waves, 512, 128)
    assert batch.shape == (2, 3, 257, 32)
    torch.testing.assert_close(batch[1, 2], log_stft(waves[1, 2], 512, 128))


def test_mel_triangles_have_equal_area_and_slaneys_centres() -> None:
    filters = mel_filters(8000, 4096, 40).double()
    hertz = torch.linspace(0, 4000, 2049, dtype=torch.float64)
    area = filters.sum(dim=1) * hertz[1]
    torch.testing.assert_close(area, torch.ones(40, dtype=torch.float64), atol=5e-3, rtol=0)
    # 4000 Hz are 15 + 27 ln(4) / ln(6.4) = 35.164 mels; 41 steps; linear up to 15 mels of 200 / 3 Hz.
    step = (15 + 27 * np.log(4) / np.log(6.4)) / 41 * 200 / 3
    peaks = hertz[filters.argmax(dim=1)][:10]
    torch.testing.assert_close(peaks, step * torch.arange(1, 11, dtype=torch.float64), atol=1.0, rtol=0)


@pytest.mark.slow
def test_mel_filters_are_librosas() -> None:
    import librosa

    theirs = librosa.filters.mel(sr=8000, n_fft=256, n_mels=40)
    np.testing.assert_allclose(mel_filters(8000, 256, 40).numpy(), theirs, atol=1e-7)
    wave = np.random.default_rng(1).standard_normal(8000).astype(np.float32)
    power = librosa.feature.melspectrogram(y=wave, sr=8000, n_fft=256, hop_length=128, n_mels=40)
    ours = log_mel(torch.from_numpy(wave), 8000, 256, 128, 40)
    np.testing.assert_allclose(ours.numpy(), np.log(power + 1e-7), atol=1e-4)


def test_short_waves_are_tiled_and_long_ones_cut() -> None:
    wave = torch.tensor([1.0, 2.0, 3.0])
    assert tile_or_cut(wave, 7).tolist() == [1, 2, 3, 1, 2, 3, 1]
    assert tile_or_cut(wave, 2).tolist() == [1, 2]
    assert tile_or_cut(wave[:0], 2).tolist() == [0, 0]


def test_each_spectrogram_is_standardised_by_itself() -> None:
    x = torch.randn(2, 1, 8, 9) * torch.tensor([1.0, 5.0]).view(2, 1, 1, 1) + 3
    ours = standardised(x)
    torch.testing.assert_close(ours.mean(dim=(1, 2, 3)), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.std(dim=(1, 2, 3), correction=0), torch.ones(2), atol=2e-3, rtol=0)
