"""The class token's row alone against the full attention of the released code: equal numbers, and how much faster."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from bench.api import Tokens
from bench.layers import ClassTokenAttention
from benchmarks.measured import Measured, interleaved, ratio, spread

BATCH, DIM, LENGTHS = 8, 768, {"audio": 177, "visual": 197}
"""Tokens of a 257 x 188 spectrogram and of a frame of 224 x 224, class tokens included."""


def run() -> Iterator[Measured]:
    """The largest difference of outputs and gradients, and the ratio of times of forward and backward."""
    torch.manual_seed(0)
    attention = ClassTokenAttention(DIM, dropout=0.0)
    attention.site.rotate(torch.linalg.qr(torch.randn(DIM, DIM))[0])
    x = {m: torch.randn(BATCH, length, DIM, requires_grad=True) for m, length in LENGTHS.items()}

    def step(full: bool) -> Callable[[], list[Tensor]]:
        def forward_and_backward() -> list[Tensor]:
            attention.full = full
            attended, mass = attention({m: Tokens(value) for m, value in x.items()})
            wanted = [*x.values(), *(p for n, p in attention.named_parameters() if n != "key.bias")]
            return [attended, *mass.values(), *torch.autograd.grad(attended.square().sum(), wanted)]

        return forward_and_backward

    row, full = step(False), step(True)
    apart = max(
        float((a - b).detach().abs().max() / b.detach().abs().max()) for a, b in zip(row(), full(), strict=True)
    )
    seconds = interleaved({"class row": row, "full": full}, repetitions=15)
    faster = ratio(seconds, "full", "class row")
    yield Measured("largest relative difference of outputs and gradients", apart, 1e-4, "at most", "")
    yield Measured("forward and backward of the fusion", faster, 1.0, "at least", "x faster", spread(seconds))
