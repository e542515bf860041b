"""How much the memory of a process that reads a whole set grows when the set is twenty times larger."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from bench.api import DataSet, DataSpec, EncoderSpec, Item, ModalitySpec, Sample
from bench.data.prepared import Prepared, prepare
from bench.data.reader import Reader
from benchmarks.measured import Measured

SMALL, TIMES, SHAPE = 200, 20, (64, 512)
"""128 KiB a sample: 25 MiB and 500 MiB."""


class Blocks(DataSet):
    """Noise."""

    def describe(self, root: Path) -> DataSpec:
        """One modality."""
        return DataSpec({"audio": ModalitySpec(EncoderSpec("sequence"), SHAPE, SHAPE, "float32")}, 2)

    def samples(self, root: Path) -> list[Sample]:
        """As many as the folder's name says."""
        return [Sample(f"{k:06d}", k % 2, {"audio": str(k)}) for k in range(int(root.name))]

    def read(self, root: Path, modality: str, key: str) -> Item:
        """Every sample its own number."""
        return Item(np.full(SHAPE, float(key), dtype=np.float32))


def run() -> Iterator[Measured]:
    """Growth as a share of what the small set takes: of all resident pages, and of those that cannot be dropped."""
    with tempfile.TemporaryDirectory(prefix="bench-memory-") as scratch:
        used = []
        for count in (SMALL, SMALL * TIMES):
            folder = prepare("blocks", Blocks(Blocks.Settings()), "c0de", Path(str(count)), Path(scratch)).folder
            command = [sys.executable, "-m", "benchmarks.memory", str(folder)]
            answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
            used.append([int(word) / 1024 for word in answer])
    (small_all, small_own), (large_all, large_own) = used
    for what, small, large in (("peak memory", small_all, large_all), ("memory of its own", small_own, large_own)):
        detail = {"small MiB": round(small), "large MiB": round(large), "set MiB": SMALL * TIMES // 8}
        growth = 100 * (large / small - 1)
        yield Measured(f"{what} over an epoch, {TIMES} times the data", growth, 5, "at most", "% more", detail)


def read_all(folder: Path) -> tuple[int, int]:
    """KiB resident at the peak, and without pages of files, after two passes over a set in random order."""
    prepared = Prepared.open(folder)
    reader = Reader(prepared, Blocks(Blocks.Settings()), ("audio",))
    for _ in range(2):
        for index in torch.randperm(len(prepared.index)).split(64):
            reader.inputs(index).values["audio"].sum()
    lines = Path("/proc/self/status").read_text().splitlines()
    status = {key: value.split()[0] for key, value in (line.split(":", 1) for line in lines) if value.split()}
    return int(status["VmHWM"]), int(status["RssAnon"])


if __name__ == "__main__":
    print(*read_all(Path(sys.argv[1])))
