"""Augmentation: every sample draws for itself, the same from the same generator, and nothing is invented."""

from __future__ import annotations

import torch
from torch import Generator

from bench.data.augment import horizontal_flip, mask_band, random_crop, time_shift


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def test_a_crop_is_a_window_of_the_padded_image() -> None:
    images = torch.arange(1, 1 + 6 * 2 * 5 * 4, dtype=torch.float32).view(6, 2, 5, 4)
    cropped = random_crop(images, 2, seeded())
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2))
    found = []
    for sample in range(6):
        windows = {
            (top, left): padded[sample, :, top : top + 5, left : left + 4] for top in range(5) for left in range(5)
        }
        found += [place for place, window in windows.items() if torch.equal(window, cropped[sample])]
    assert len(found) == 6
    assert len(set(found)) > 1
    assert torch.equal(cropped, random_crop(images, 2, seeded()))
    assert not torch.equal(cropped, random_crop(images, 2, seeded(1)))


def test_the_frames_of_a_clip_are_cropped_and_flipped_together() -> None:
    frame = torch.rand(4, 3, 1, 6, 6)
    clip = frame.expand(-1, -1, 2, -1, -1).contiguous()
    for augmented in (random_crop(clip, 2, seeded()), horizontal_flip(clip, seeded())):
        assert augmented.shape == clip.shape
        assert torch.equal(augmented[:, :, 0], augmented[:, :, 1])


def test_flips_happen_with_their_probability() -> None:
    images = torch.rand(400, 1, 2, 3)
    flipped = horizontal_flip(images, seeded())
    mirrored = [torch.equal(a, b.flip(-1)) for a, b in zip(flipped, images, strict=True)]
    kept = [torch.equal(a, b) for a, b in zip(flipped, images, strict=True)]
    assert sum(mirrored) + sum(kept) == 400
    assert 150 < sum(mirrored) < 250
    assert torch.equal(horizontal_flip(images, seeded(), 1.0), images.flip(-1))
    assert torch.equal(horizontal_flip(images, seeded(), 0.0), images)


def test_a_time_shift_rolls_each_sample() -> None:
    x = torch.rand(30, 2, 7)
    shifted = time_shift(x, 2, seeded())
    shifts = [
        next(s for s in range(-2, 3) if torch.equal(before.roll(s, -1), after))
        for before, after in zip(x, shifted, strict=True)
    ]
    assert set(shifts) == {-2, -1, 0, 1, 2}


def test_a_masked_band_is_connected_and_no_wider_than_allowed() -> None:
    x = torch.ones(200, 1, 5, 9)
    masked = mask_band(x, axis=2, widest=3, generator=seeded())
    widths = set()
    for sample in masked:
        rows = (sample == 0).all(dim=(0, 2)).nonzero().flatten().tolist()
        assert rows == list(range(rows[0], rows[0] + len(rows))) if rows else True
        assert (sample == 0).sum() == len(rows) * 9
        widths.add(len(rows))
    assert widths == {0, 1, 2, 3}
