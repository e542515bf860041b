"""Contract tests that hold for anything that can be trained: a bare fusion, or strategies on their home."""

from __future__ import annotations

import dataclasses
import fnmatch
import inspect
import io
import math
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from bench.conformance.findings import expect
from bench.conformance.world import RECIPE, SAMPLES, TOKENS, TWO, Subject, World, train
from bench.streams import untouched
from bench.train import Evaluation, Training

EVERYTHING = np.arange(SAMPLES)
TOLERANCE = 1e-5
ALIVE = 1e-10
"""A gradient whose largest value is below this, in float64, is rounding."""


def documented(plugin: type[Any]) -> None:
    """A docstring, a paper and a source, all of its own."""
    own = vars(plugin)
    expect(bool(inspect.cleandoc(own.get("__doc__") or "")), f"{plugin.__name__}: expected a docstring, found none")
    for what in ("paper", "reference"):
        text = getattr(plugin, what)
        expect(
            isinstance(text, str) and bool(text.strip()),
            f"{plugin.__name__}.{what}: expected authors, title and venue, or a repository, or `none`; found {text!r}",
        )


def gradients(subject: Subject, world: World) -> None:
    """Every trainable parameter gets a gradient within one epoch of three steps, but for those listed as dead."""
    double = dataclasses.replace(world, double=True)
    training = subject.training(double)
    with largest_gradients(training.model) as largest:
        training.train(0)
    patterns = subject.fusion.dead_parameters
    for name, value in largest.items():
        inside = name.removeprefix("fusion.")
        listed = next((p for p in patterns if name != inside and fnmatch.fnmatch(inside, p)), None)
        if listed is None:
            expect(
                value > ALIVE,
                f"parameter {name} of {subject.fusion.__name__} got no gradient within 3 steps (at most {value:.3g}); "
                "use it, remove it, or list it in dead_parameters with the reason",
            )
        else:
            expect(
                value <= ALIVE,
                f"parameter {name} is listed in dead_parameters ({listed!r}) but gets gradients up to {value:.3g}; "
                "take it out of the list",
            )


@contextmanager
def largest_gradients(model: nn.Module) -> Iterator[dict[str, float]]:
    """The largest absolute gradient every trainable parameter had at any optimizer step inside this context."""
    largest = {name: 0.0 for name, p in model.named_parameters() if p.requires_grad and p.numel()}

    def look(*_: Any) -> None:
        for name, p in model.named_parameters():
            if p.grad is not None and name in largest:
                largest[name] = max(largest[name], float(p.grad.abs().max()))

    handle = register_optimizer_step_pre_hook(look)
    try:
        yield largest
    finally:
        handle.remove()


def parameters_accounted(subject: Subject) -> None:
    """Branches, the rest of the fusion, probes and heads share no parameter and are all that is trained."""
    model = subject.training(World(TOKENS)).model
    names_ = {p: name for name, p in model.named_parameters()}
    parts = {f"the branch of {m}": model.branch(m) for m in model.encoders}
    upstream = {p for branch in parts.values() for p in branch}
    parts["the fusion's own part"] = [p for p in model.fusion.parameters() if p.requires_grad and p not in upstream]
    parts["the probes"] = list(model.probes.parameters())
    parts["the strategies' heads"] = [p for p in model.heads.parameters() if p.requires_grad]
    owner: dict[nn.Parameter, str] = {}
    for part, params in parts.items():
        for p in params:
            name = names_.get(p)
            expect(name is not None, f"{part} holds a parameter {list(p.shape)} that the model does not have")
            expect(p not in owner, f"{name} is in {part} and in {owner.get(p)}; expected it in one of them")
            owner[p] = part
    for p, name in names_.items():
        expect(
            p in owner or not p.requires_grad, f"{name} is trained but is in no branch, fusion, probe or strategy head"
        )
    for m, encoder in model.encoders.items():
        missing = [names_[p] for p in encoder.parameters() if owner.get(p) != f"the branch of {m}"]
        expect(not missing, f"{', '.join(missing[:3])}: expected in the branch of {m}")


def same_again(subject: Subject) -> None:
    """The same seed trains to the same losses and logits, whatever else draws random numbers."""
    first, second = subject.training(World(TWO)), subject.training(World(TWO))
    with global_randomness(1):
        losses = [record.losses for record in train(first)]
    with global_randomness(2):
        again = [record.losses for record in train(second)]
    expect(losses == again, f"two trainings with one seed differ: losses {losses} and then {again}")
    compare(first.evaluate(EVERYTHING), second.evaluate(EVERYTHING), "two trainings with one seed", 0.0)


@contextmanager
def global_randomness(seed: int) -> Iterator[None]:
    """The global generators of Python, numpy and torch at a seed; their states come back afterwards."""
    states = random.getstate(), np.random.get_state()
    try:
        with untouched():
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


def evaluates(subject: Subject) -> None:
    """Evaluation gives the same outputs twice, by any batch size, and training does not notice it."""
    training, untouched = subject.training(World(TWO)), subject.training(World(TWO))
    train(training, 0, 1)
    train(untouched, 0, 1)
    first = training.evaluate(EVERYTHING)
    compare(first, training.evaluate(EVERYTHING), "two evaluations", 0.0)
    for size, count in ((1, 8), (7, SAMPLES)):
        training.recipe = dataclasses.replace(RECIPE, eval_batch_size=size)
        some = training.evaluate(EVERYTHING[:count])
        compare(_first(first, count), some, f"batches of {SAMPLES} and of {size} samples", TOLERANCE)
    training.recipe = RECIPE
    backwards = training.evaluate(EVERYTHING[::-1].copy())
    expect(
        bool(np.allclose(first.logits, backwards.logits[::-1], atol=TOLERANCE, rtol=TOLERANCE)),
        "logits of a sample depend on the order of the samples",
    )
    after, plain = training.train(1).losses, untouched.train(1).losses
    expect(after == plain, f"evaluating between two epochs changes the second: losses {plain} become {after}")


def restored(subject: Subject) -> None:
    """A state that is saved, read weights-only and loaded gives the same logits and the same further training."""
    world = World(TWO)
    training, fresh = subject.training(world), subject.training(world, seed=1)
    fresh.seed = training.seed  # another initialisation, but the same streams from here on
    train(training)
    buffer = io.BytesIO()
    torch.save(training.state_dict(), buffer)
    buffer.seek(0)
    fresh.load_state_dict(torch.load(buffer, weights_only=True))
    compare(training.evaluate(EVERYTHING), fresh.evaluate(EVERYTHING), "a model and its saved copy", 0.0)
    on, resumed = training.train(RECIPE.epochs).losses, fresh.train(RECIPE.epochs).losses
    expect(on == resumed, f"training goes on differently after save and load: losses {on} become {resumed}")
    compare(training.evaluate(EVERYTHING), fresh.evaluate(EVERYTHING), "going on and going on from a file", 0.0)


def finite_losses(training: Training, where: str, epochs: int = 1) -> None:
    """Epochs of three steps train and every loss is a finite number."""
    for record in train(training, 0, epochs):
        expect(bool(record.losses), f"{where}: no loss term was reported in epoch {record.epoch}")
        for name, value in record.losses.items():
            expect(math.isfinite(value), f"{where}: {name} = {value} in epoch {record.epoch}")


def compare(one: Evaluation, other: Evaluation, what: str, tolerance: float) -> None:
    """Both evaluations have equal outputs up to a tolerance, absolute and relative."""
    pairs = {"logits": (one.logits, other.logits)}
    pairs |= {f"unimodal logits of {m}": (x, other.unimodal[m]) for m, x in one.unimodal.items()}
    pairs |= {f"attention mass of {m}": (x, other.mass[m]) for m, x in one.mass.items()}
    for name, (a, b) in pairs.items():
        worst = float(np.abs(a - b).max())
        expect(
            bool(np.allclose(a, b, atol=tolerance, rtol=tolerance)),
            f"{what}: {name} differ by up to {worst:.3g}, allowed {tolerance}",
        )


def _first(evaluation: Evaluation, count: int) -> Evaluation:
    unimodal = {m: x[:count] for m, x in evaluation.unimodal.items()}
    return Evaluation(evaluation.logits[:count], unimodal, {m: x[:count] for m, x in evaluation.mass.items()})


def listed(items: Iterable[object]) -> str:
    """Items in order, or `none`."""
    return ", ".join(sorted(str(item) for item in items)) or "none"
