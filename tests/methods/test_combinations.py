"""RollingQ beside other strategies and on every fusion that offers a query: two tiny epochs, and the contract."""

from __future__ import annotations

import math

import pytest

from bench import names
from bench.conformance import running
from bench.conformance.world import TWO, Subject, World, train
from tests.world import make_world

COMPOSED = (
    "vanilla_mt+rollingq:beta=0+ogm",
    "vanilla_mt+rollingq:beta=0+pmr",
    "vanilla_mt:layers=2:heads=2+rollingq:beta=0",
    "vanilla_mt+rollingq:beta=0:schedule=adaptive:cooldown=1+ogm",
    "mmml:readout=attn+rollingq:beta=0",
    "mult:layers=1:readout=attn+rollingq:beta=0",
    "jmt:steps=4:readout=attn+rollingq:beta=0",
)
composed = pytest.mark.parametrize("text", COMPOSED)


def subject(text: str, modalities: tuple[str, ...], rotates: bool = True) -> Subject:
    """What a composition trains, in the contract's own small world; without the rotation if wanted."""
    method = names.resolve_method(text, modalities)
    kept = [part for part in method.strategies if rotates or part.name != "rollingq"]
    strategies = {part.name: (part.plugin, part.settings) for part in kept}
    return Subject(method.base.plugin, method.base.settings, strategies)


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """The stored epochs of every composition after two epochs on planted data, by its canonical text."""
    folder = tmp_path_factory.mktemp("combinations") / "world"
    world = make_world(folder, ",".join(COMPOSED), "recipe.epochs=2")
    outcomes = world.run()
    assert {outcome.status for outcome in outcomes} == {"finished"}, [outcome.text for outcome in outcomes]
    return {o.spec.method: world.store.read(o.spec.id, "record.json")["epochs"] for o in outcomes}


@composed
def test_runs_rotates_and_is_stored(records, text):
    first, second = records[names.resolve_method(text, ("audio", "visual")).canonical]
    assert [action["strategy"] for action in first["actions"]] == ["rollingq"]
    assert {name: site["num_rotations"] for name, site in second["sites"].items()} == {
        name: int(name == first["actions"][0]["values"]["site"]) for name in first["sites"]
    }
    assert all(math.isfinite(value) for epoch in (first, second) for value in epoch["losses"].values())


@composed
def test_keeps_the_contract(text):
    running.restored(subject(text, TWO))
    running.evaluates(subject(text, TWO))


@composed
def test_the_rotation_changes_what_follows_it_and_nothing_before(text):
    still, rotating = (train(subject(text, TWO, rotates).training(World(TWO))) for rotates in (False, True))
    assert still[0].losses == rotating[0].losses
    assert still[1].losses != rotating[1].losses
