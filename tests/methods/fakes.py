"""A harness small enough to read, for tests of strategies: a real model, a real loop, everything in memory."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from bench import plugins
from bench.api import (
    Batch,
    EncoderSpec,
    Fusion,
    Inputs,
    Model,
    Output,
    Run,
    SiteMeans,
    SiteSample,
    Strategy,
    TaskSpec,
)
from bench.encoders import build

STREAMS = {"ogm": 1, "pmr": 2}
MODALITIES = ("audio", "visual", "text")


def plugin(name: str) -> Any:
    """The class of a method file."""
    return plugins.load("methods", name).plugin


def strategy(name: str, task: TaskSpec, **settings: Any) -> Strategy:
    """A strategy with some settings given."""
    kind = plugin(name)
    return kind(kind.Settings(**settings), task)


class TinyRun(Run):
    """A data set of random vectors or sequences, and a model of one fusion and small encoders of different widths."""

    def __init__(
        self, fusion: str = "concat", modalities: int = 2, samples: int = 48, classes: int = 3, **settings: Any
    ) -> None:
        torch.manual_seed(0)
        names = MODALITIES[:modalities]
        one_width = fusion != "concat"
        dims = {m: 8 if one_width else 8 + 4 * i for i, m in enumerate(names)}
        family = "sequence" if one_width else "vector"
        shapes = {m: (3 + i, 5) if one_width else (5,) for i, m in enumerate(names)}
        self.task = TaskSpec(names, dims, classes, samples)
        encoders = {m: build(EncoderSpec(family, dim=dims[m], depth=1, heads=2), shapes[m]) for m in names}
        kind = plugin(fusion)
        built: Fusion = kind(kind.Settings(**settings), self.task)
        probes = {} if fusion == "concat" else {m: nn.Linear(dims[m], classes) for m in names}
        self.model = Model(encoders, built, probes)
        self.values = {m: torch.randn(samples, *shapes[m]) for m in names}
        self.target = torch.arange(samples) % classes
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.epoch, self.num_epochs, self.step = 0, 10, 0
        self.logged: dict[str, list[float]] = defaultdict(list)

    def generator(self, stream: str) -> Generator:
        return Generator().manual_seed(1000 * self.epoch + STREAMS[stream])

    def log(self, name: str, value: float | Tensor) -> None:
        self.logged[name].append(value)  # type: ignore[arg-type]  # turned into a number when it is read

    @contextmanager
    def quiet(self) -> Iterator[None]:
        modes = {module: module.training for module in self.model.modules()}
        state = torch.get_rng_state()
        self.model.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            torch.set_rng_state(state)
            for module, training in modes.items():
                module.training = training

    def batch(self, index: Tensor) -> Batch:
        """The samples at some positions of the train split."""
        return Batch(Inputs({m: x[index] for m, x in self.values.items()}), self.target[index], index)

    def batches(self, size: int = 16) -> Iterator[Batch]:
        """All of train in order."""
        for index in torch.arange(len(self.target)).split(size):
            yield self.batch(index)

    def sweep(self, fraction: float = 1.0, stream: str | None = None) -> Iterator[tuple[Batch, Output]]:
        count = math.ceil(fraction * len(self.target))
        order = torch.arange(len(self.target))
        if stream is not None:
            order = torch.randperm(len(order), generator=self.generator(stream))
        with self.quiet():
            pairs = [(b, self.model(b.inputs)) for b in map(self.batch, order[:count].split(7))]
        yield from pairs

    def site_means(self, site: str) -> SiteMeans:
        samples: list[SiteSample] = []
        place = self.model.fusion.sites()[site]
        place.tap = samples.append
        for _ in self.sweep():
            pass
        place.tap = None
        keys = {m: torch.cat([s.mean_keys[m] for s in samples]) for m in self.task.modalities}
        return means_of(torch.cat([s.query for s in samples]), keys)

    def new_optimizer(self, params: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD(params, lr=0.1)

    def train(self, *strategies: Strategy, epochs: int = 2) -> list[float]:
        """The sum of the loss terms at every step, in the harness's step order."""
        losses = []
        for self.epoch in range(epochs):
            for s in strategies:
                s.epoch_start(self)
            for batch in self.batches():
                losses.append(self.train_step(batch, *strategies))
        return losses

    def train_step(self, batch: Batch, *strategies: Strategy) -> float:
        """One step; returns the loss that was minimised."""
        self.optimizer.zero_grad()
        output = self.model(batch.inputs)
        terms = self.model.fusion.terms(output, batch)
        for s in strategies:
            s.terms(self, batch, output, terms)
        for m, logits in output.unimodal.get("probe", {}).items():
            terms[f"probe/{m}"] = F.cross_entropy(logits, batch.target)
        loss = torch.stack(list(terms.values())).sum()
        loss.backward()
        for s in strategies:
            s.grads(self, batch, output)
        self.optimizer.step()
        return loss.item()


def means_of(query: Tensor, keys: Mapping[str, Tensor]) -> SiteMeans:
    """Exact means in float64 from queries [sample, dim] and mean keys [sample, dim] per modality."""
    query = query.double()
    rows = {m: k.double() for m, k in keys.items()}
    return SiteMeans(
        query=query.mean(dim=0),
        query_norm=float(query.norm(dim=1).mean()),
        keys={m: k.mean(dim=0) for m, k in rows.items()},
        cosines={m: float(F.cosine_similarity(query, k, dim=1).mean()) for m, k in rows.items()},
    )


class NoHostSync(TorchDispatchMode):
    """Inside it, reading a tensor's value on the host (what `.item()` and `if tensor` do) is an error."""

    READS = ("aten::_local_scalar_dense", "aten::is_nonzero", "aten::equal", "aten::nonzero", "aten::masked_select")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.name().split(".")[0] in self.READS:
            raise AssertionError(f"{func.name()} waits for the device")
        return func(*args, **(kwargs or {}))
