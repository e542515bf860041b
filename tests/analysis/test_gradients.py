"""Gradients by branch of trained models: exact to rounding, and as they must be where one modality says nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bench.analysis.gradients import BranchGradients, shares
from tests.analysis.asking import asked, opened, trained

DATA = "planted:preset=symmetric:samples=60:classes=3:tokens=4"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return trained(
        tmp_path_factory.mktemp("gradients"), "vanilla_mt,rollingq,concat,audio", "recipe.epochs=2", datasets=DATA
    )


@pytest.fixture(scope="module")
def rows(world):
    return asked(world, BranchGradients())


def test_the_closed_form_holds_on_a_trained_model(rows):
    assert [row.label for row in rows] == ["vanilla_mt", "rollingq", "concat"]
    for row in rows[:2]:
        assert row.measurements[0].at("error") < 1e-10
    assert not rows[2].measurements[0].has("error")
    assert rows[2].measurements[0].values["sites"] == {}


def test_nothing_of_the_trial_is_changed(world):
    trial = opened(world)
    before = trial.logits("test")
    BranchGradients().measure(trial)
    assert next(trial.model.parameters()).dtype == torch.float32
    assert all(p.grad is None for p in trial.model.parameters())
    np.testing.assert_array_equal(trial.logits("test"), before)


def test_it_does_not_depend_on_the_batches(world):
    trial = opened(world)
    whole = BranchGradients().measure(trial).values
    object.__setattr__(trial.spec.recipe, "batch_size", 7)
    parts = BranchGradients().measure(trial).values
    for kind in ("tokens", "parameters", "share"):
        assert parts[kind] == pytest.approx(whole[kind], rel=1e-9)


def test_targets_belong_to_their_samples(world):
    """By the other road: float32 autograd of the mean loss over train gives the norms of the branches."""
    trial = opened(world)
    found = BranchGradients().measure(trial).values["parameters"]
    inputs = trial.reader.inputs(trial.positions["train"])
    targets = torch.from_numpy(trial.truth.targets["train"])
    trial.task.loss(trial.model(inputs).logits, targets).backward()
    for m in trial.modalities:
        grads = [p.grad for p in trial.model.branch(m)]
        assert float(torch.stack([g.norm() for g in grads if g is not None]).norm()) == pytest.approx(
            found[m], rel=1e-4
        )


def test_a_branch_that_the_fusion_does_not_see_gets_nothing(world):
    trial = opened(world, world.spec("concat"))
    head = trial.model.fusion.head
    assert head.weight.shape == (3, 32)
    with torch.no_grad():
        head.weight[:, 16:] = 0
    found = BranchGradients().measure(trial).values
    assert found["share"] == {"audio": 1.0, "visual": 0.0}
    assert found["parameters"]["visual"] == 0


def test_twin_branches_share_evenly(world):
    """Null: two branches with the same weights and the same inputs."""
    trial = opened(world, world.spec("concat"))
    trial.model.encoders["visual"] = trial.model.encoders["audio"]
    with torch.no_grad():
        trial.model.fusion.head.weight[:, 16:] = trial.model.fusion.head.weight[:, :16]
    inputs = trial.reader.inputs
    trial.reader = type("Twins", (), {"inputs": lambda _, at: _twins(inputs(at))})()
    found = BranchGradients().measure(trial).values
    assert found["share"] == pytest.approx({"audio": 0.5, "visual": 0.5})


def _twins(inputs):
    inputs.values["visual"] = inputs.values["audio"]
    return inputs


def test_shares_by_hand():
    assert shares({"a": 3.0, "v": 1.0}) == {"a": 0.75, "v": 0.25}
    assert shares({"a": 0.0, "v": 0.0}) == {"a": 0.5, "v": 0.5}


def test_tables_and_figures_of_trained_rows(rows):
    analysis = BranchGradients()
    table, terms = analysis.tables(rows)
    assert len(table.sections[0].frame) == 3
    assert list(terms.sections[0].frame["Site"]) == ["attention, audio", "attention, visual"] * 2
    assert [one.name for one in analysis.tables(rows[2:])] == ["gradients"]
    (figure,) = analysis.figures(rows).values()
    assert figure.startswith("<svg")
