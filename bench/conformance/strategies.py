"""Contract tests of a strategy, on its home fusion."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from bench import names
from bench.api import Action, EpochRecord, Strategy
from bench.composition import reason_to_skip, refuse_illegal, replaces
from bench.conformance import running
from bench.conformance.findings import Check, expect
from bench.conformance.running import EVERYTHING, listed
from bench.conformance.settings import described, neutral, variants
from bench.conformance.world import THREE, TOKENS, TWO, Subject, World, at_home, train
from bench.names import Method, Part

OWNED = {"joint": "terms", "backward": "backward", "step": "train_step", "epoch": "train_epoch"}
"""What can be owned, and the hook that does it."""


def checks(name: str, kind: type[Strategy], settings: Any) -> list[Check]:
    """Everything a strategy has to keep."""

    def home(world: World, chosen: Any = settings) -> Subject:
        return at_home(name, kind, chosen, world)

    found = [
        Check("documented", lambda: running.documented(kind)),
        Check("owns what it overrides", lambda: owns(kind)),
        Check("home provides what it requires", lambda: fits_home(name, kind, settings)),
        Check("trains with two and three modalities", lambda: trains(name, kind, settings)),
        Check("every parameter gets a gradient", lambda: running.gradients(home(World(TOKENS)), World(TOKENS))),
        Check("branches are disjoint and complete", lambda: running.parameters_accounted(home(World(TOKENS)))),
        Check("evaluation is deterministic and free of batch size", lambda: running.evaluates(home(World(TOKENS)))),
        Check("the same seed gives the same training", lambda: running.same_again(home(World(TOKENS)))),
        Check("save and load give the same model", lambda: running.restored(home(World(TOKENS)))),
        Check("requires says the truth", lambda: requires(name, kind, settings)),
    ]
    still = neutral(settings)
    if still is not None:
        found.append(Check("neutral settings equal the bare fusion", lambda: does_nothing(name, kind, still)))
    if replaces(kind, "decide"):
        found.append(Check("decide is a pure function of the records", lambda: decides(name, kind, settings)))
    return found


def owns(kind: type[Strategy]) -> None:
    """Whoever owns something has the hook for it, and whoever has an exclusive hook owns it."""
    stray = kind.owns - set(OWNED)
    expect(not stray, f"{kind.__name__}.owns: allowed are {', '.join(OWNED)}; found {listed(stray)}")
    for owned, hook in OWNED.items():
        if owned in kind.owns:
            expect(replaces(kind, hook), f"{kind.__name__} owns {owned!r} but does not override {hook}")
        elif owned != "joint":
            expect(
                not replaces(kind, hook),
                f"{kind.__name__} overrides {hook}, which is only called for the owner of {owned!r}; add it to owns",
            )
    expect(
        replaces(kind, "decide") == replaces(kind, "apply"),
        f"{kind.__name__}: decide and apply are two halves of one thing; expected both or neither",
    )


def fits_home(name: str, kind: type[Strategy], settings: Any) -> None:
    """On its home the composition is legal, and it applies to a classification with several modalities."""
    for chosen in variants(settings):
        world = World(TWO)
        home = names.resolve_method(kind.home, world.modalities)
        method = Method(name, home.base, (*home.strategies, Part(name, kind, chosen, "")))
        refuse_illegal(method)
        reason = reason_to_skip(method, at_home(name, kind, chosen, world).task(world))
        expect(reason is None, f"{name} does not apply to its own home {kind.home!r}: {reason}")


def trains(name: str, kind: type[Strategy], settings: Any) -> None:
    """Losses are finite with two and three modalities, and with two for every choice of settings."""
    for chosen in variants(settings):
        for modalities in (TWO, THREE) if chosen == settings else (TWO,):
            world = World(modalities)
            where = f"on {', '.join(modalities)} with {described(chosen)}"
            running.finite_losses(at_home(name, kind, chosen, world).training(world), where, epochs=2)


def requires(name: str, kind: type[Strategy], settings: Any) -> None:
    """Where neither strategy nor home requires classes or equal widths, it trains without them."""
    for world, where in (
        (World(TOKENS, kind="regression"), "on a regression"),
        (World(TOKENS, widths=(32, 48, 64)), "with encoders of different widths"),
    ):
        home = names.resolve_method(kind.home, world.modalities)
        method = Method(name, home.base, (*home.strategies, Part(name, kind, settings, "")))
        subject = at_home(name, kind, settings, world)
        if reason_to_skip(method, subject.task(world)) is None:
            running.finite_losses(subject.training(world), where)


def does_nothing(name: str, kind: type[Strategy], settings: Any) -> None:
    """At its neutral settings training equals that of the bare home, loss for loss and logit for logit."""
    world = World(TOKENS)
    subject = at_home(name, kind, settings, world)
    others = {other: s for other, s in subject.strategies.items() if other != name}
    bare = dataclasses.replace(subject, strategies=others).training(world)
    steered = subject.training(world)
    for plain, record in zip(train(bare), train(steered), strict=True):
        for term, value in plain.losses.items():
            expect(
                record.losses.get(term) == value,
                f"{name} with {described(settings)} in epoch {record.epoch}: {term} is {record.losses.get(term)}, "
                f"and {value} in the bare fusion",
            )
        extra = {term: value for term, value in record.losses.items() if term not in plain.losses and value != 0}
        expect(not extra, f"{name} with {described(settings)} adds {extra} to the loss of the bare fusion")
    running.compare(
        bare.evaluate(EVERYTHING), steered.evaluate(EVERYTHING), f"{name} with {described(settings)} and bare", 0.0
    )


def decides(name: str, kind: type[Strategy], settings: Any) -> None:
    """Used and fresh instances decide alike, twice, from records as they are stored; actions are plain values."""
    for chosen in variants(settings):
        world = World(TOKENS)
        subject = at_home(name, kind, chosen, world)
        training = subject.training(world)
        history = train(training)
        used, fresh = training.strategies[name], kind(chosen, subject.task(world))
        decided = [_actions(used, history), _actions(used, history), _actions(fresh, history)]
        expect(
            decided[0] == decided[1] == decided[2],
            f"{name} with {described(chosen)}: expected the same actions twice and from a fresh instance, "
            f"found {decided}",
        )


def _actions(strategy: Strategy, history: Sequence[EpochRecord]) -> list[str | None]:
    """The key of what is decided after every epoch."""
    return [_plain(strategy.decide(tuple(history[: n + 1]))) for n in range(len(history))]


def _plain(action: Action | None) -> str | None:
    if action is None:
        return None
    key = action.key()
    expect(
        json.loads(key) == [action.strategy, action.kind, dict(action.values)],
        f"an action's values must survive JSON; found {dict(action.values)}",
    )
    return key
