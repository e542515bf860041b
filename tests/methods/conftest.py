"""Tasks, tokens and models small enough to check a fusion by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch

from bench import encoders, plugins
from bench.api import Batch, EncoderSpec, Fusion, Inputs, Model, TaskSpec, Tokens

NAMES = ("audio", "visual", "text", "motion")


@pytest.fixture
def task_of() -> Callable[..., TaskSpec]:
    """A task with the first modalities of a fixed list, all of one width unless `dims` says otherwise."""

    def make(count: int = 2, dim: int = 8, outputs: int = 3, kind: str = "classes", dims: Sequence[int] = ()) -> Any:
        widths = list(dims) or [dim] * count
        names = NAMES[: len(widths)]
        return TaskSpec(names, dict(zip(names, widths, strict=True)), outputs, 100, kind)

    return make


@pytest.fixture
def fusion_of() -> Callable[..., Fusion]:
    """A fusion by its name, on a task, with settings."""

    def make(name: str, task: TaskSpec, **settings: Any) -> Any:
        plugin = plugins.load("methods", name).plugin
        torch.manual_seed(0)
        return plugin(plugin.Settings(**settings), task)

    return make


@pytest.fixture
def tokens_of() -> Callable[..., dict[str, Tokens]]:
    """Random tokens in float64; masked ones keep their class token and end in padding of random length."""

    def make(task: TaskSpec, batch: int = 4, lengths: Sequence[int] = (), masked: bool = False, seed: int = 1) -> Any:
        generator = torch.Generator().manual_seed(seed)
        sizes = list(lengths) or [5 + 2 * position for position in range(len(task.modalities))]
        found = {}
        for m, length in zip(task.modalities, sizes, strict=True):
            x = torch.randn(batch, length, task.dims[m], dtype=torch.float64, generator=generator)
            valid = torch.randint(1, length + 1, (batch, 1), generator=generator)
            found[m] = Tokens(x, (torch.arange(length) < valid) if masked else None)
        return found

    return make


@pytest.fixture
def model_of() -> Callable[..., Model]:
    """A fusion on small transformers over sequences of six steps with four values."""

    def make(fusion: Fusion) -> Any:
        torch.manual_seed(2)
        task = fusion.task
        used = fusion.uses(fusion.settings, task.modalities)
        specs = {m: EncoderSpec("sequence", dim=task.dims[m], depth=1, heads=2) for m in used}
        return Model({m: encoders.build(spec, (6, 4)) for m, spec in specs.items()}, fusion, {}).double()

    return make


@pytest.fixture
def batch_of() -> Callable[..., Batch]:
    """A training batch for such a model, with masks on every modality if asked for."""

    def make(task: TaskSpec, size: int = 5, masked: bool = False) -> Any:
        generator = torch.Generator().manual_seed(3)
        shape = (size, 6, 4)
        values = {m: torch.randn(*shape, dtype=torch.float64, generator=generator) for m in task.modalities}
        steps = torch.arange(6) < torch.randint(1, 7, (size, 1), generator=generator)
        masks: Mapping[str, Any] = dict.fromkeys(task.modalities, steps) if masked else {}
        if task.kind == "classes":
            target = torch.randint(task.num_outputs, (size,), generator=generator)
        else:
            target = torch.randn(size, dtype=torch.float64, generator=generator)
        return Batch(Inputs(values, masks), target, torch.arange(size))

    return make


@pytest.fixture
def live_parameters() -> Callable[..., set[str]]:
    """The names of the parameters that some of these losses, alone or together, give a gradient."""

    def names(model: torch.nn.Module, losses: Sequence[torch.Tensor]) -> Any:
        named = dict(model.named_parameters())
        total = torch.stack(list(losses)).sum()
        grads = torch.autograd.grad(total, list(named.values()), allow_unused=True)
        return {n for n, g in zip(named, grads, strict=True) if g is not None and g.abs().max() > 1e-12}

    return names
