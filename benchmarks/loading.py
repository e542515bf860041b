"""Batches of prepared arrays against a loader that opens files sample by sample, on the same clips and one core."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import librosa
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms  # type: ignore[import-untyped]  # it has no stubs

from bench import names
from bench.data.prepared import prepare
from bench.data.reader import Reader
from benchmarks.clips import write_clips
from benchmarks.measured import Measured, interleaved, ratio, spread

CLIPS, BATCH, REPETITIONS = 64, 64, 5
NORMALISE = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
TRAIN = transforms.Compose(
    [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip(), transforms.ToTensor(), NORMALISE]
)
EVALUATE = transforms.Compose([transforms.Resize((224, 224)), transforms.ToTensor(), NORMALISE])


def run() -> Iterator[Measured]:
    """How many times faster an epoch of prepared batches is, for training and for evaluation."""
    with tempfile.TemporaryDirectory(prefix="bench-loading-") as scratch:
        root = Path(scratch)
        clips = write_clips(root, CLIPS)
        part, dataset = names.resolve_dataset("crema_d", {})
        prepared = prepare("crema_d", dataset, part.code, root, root / "prepared")
        reader = Reader(prepared, dataset, ("audio", "visual"))
        generator = torch.Generator().manual_seed(0)
        order = torch.arange(CLIPS)

        def batches(augmented: bool) -> Callable[[], object]:
            return lambda: [reader.inputs(i, generator if augmented else None).values for i in order.split(BATCH)]

        for what, goal, augmented in (("training", 12, True), ("evaluation", 20, False)):
            seconds = interleaved(
                {"per sample": _per_sample(root / "crema_d", clips, augmented), "prepared": batches(augmented)},
                REPETITIONS,
            )
            faster = ratio(seconds, "per sample", "prepared")
            detail = {"samples/s": round(CLIPS / min(seconds["prepared"])), **spread(seconds)}
            yield Measured(f"{what} batches, one core", faster, goal, "at least", "x faster", detail)


def _per_sample(folder: Path, clips: Sequence[str], augmented: bool) -> Callable[[], list[tuple[Tensor, Tensor]]]:
    transform = TRAIN if augmented else EVALUATE

    def sample(clip: str) -> tuple[Tensor, Tensor]:
        sound, rate = librosa.load(folder / "AudioWAV" / f"{clip}.wav", sr=22050)
        sound = np.clip(np.tile(sound, 2)[: 3 * int(rate)], -1.0, 1.0)
        spectrogram = np.log(np.abs(librosa.stft(sound, n_fft=512, hop_length=353)) + 1e-7)
        frames = sorted((folder / "Image-01-FPS" / clip).iterdir())
        frame = random.choice(frames) if augmented else frames[len(frames) // 2]
        return torch.from_numpy(spectrogram).unsqueeze(0), transform(Image.open(frame).convert("RGB"))

    def epoch() -> list[tuple[Tensor, Tensor]]:
        loaded = [sample(clip) for clip in clips]
        batches = [loaded[i : i + BATCH] for i in range(0, len(loaded), BATCH)]
        return [(torch.stack([a for a, _ in batch]), torch.stack([v for _, v in batch])) for batch in batches]

    return epoch
