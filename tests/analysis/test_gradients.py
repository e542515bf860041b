"""Gradients by branch of trained models: exact to rounding, and as they must be where one modality says nothing."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from bench.analysis.gradients import BranchGradients, shares
from tests.analysis.asking import asked, opened
from tests.analysis.conftest import ROTATED
from tests.world import make_world

PAIR = ("audio", "visual")


@pytest.fixture(scope="module")
def rows(collapsed):
    return asked(collapsed, BranchGradients())


def test_the_closed_form_holds_on_a_trained_model(rows):
    *attending, plain = rows
    assert [row.label for row in rows] == ["vanilla_mt", ROTATED, "vanilla_mt:layers=2", "concat"]
    for row in attending:
        assert row.measurements[0].at("error") < 1e-10
    assert not plain.measurements[0].has("error")
    assert plain.measurements[0].values["sites"] == {}


def test_one_modality_alone_is_skipped(collapsed):
    assert asked(make_world(collapsed.folder, "audio"), BranchGradients()) == []


def test_nothing_of_the_trial_is_changed(collapsed):
    trial = opened(collapsed)
    before = trial.logits("test")
    BranchGradients().measure(trial)
    assert next(trial.model.parameters()).dtype == torch.float32
    assert all(p.grad is None for p in trial.model.parameters())
    np.testing.assert_array_equal(trial.logits("test"), before)


def test_it_does_not_depend_on_the_batches(collapsed):
    trial = opened(collapsed)
    whole = BranchGradients().measure(trial).values
    trial.spec = dataclasses.replace(trial.spec, recipe=dataclasses.replace(trial.spec.recipe, batch_size=7))
    parts = BranchGradients().measure(trial).values
    for kind in ("tokens", "parameters", "share"):
        assert parts[kind] == pytest.approx(whole[kind], rel=1e-9)


def test_targets_belong_to_their_samples(collapsed):
    """By the other road: float32 autograd of the mean loss over train gives the norms of the branches."""
    trial = opened(collapsed)
    found = BranchGradients().measure(trial).values["parameters"]
    inputs = trial.reader.inputs(trial.positions["train"])
    targets = torch.from_numpy(trial.truth.targets["train"])
    trial.task.loss(trial.model(inputs).logits, targets).backward()
    for m in trial.modalities:
        grads = [p.grad for p in trial.model.branch(m)]
        assert float(torch.stack([g.norm() for g in grads if g is not None]).norm()) == pytest.approx(
            found[m], rel=1e-4
        )


def test_a_branch_that_the_fusion_does_not_see_gets_nothing(collapsed):
    trial = opened(collapsed, collapsed.spec("concat"))
    head = trial.model.fusion.head
    assert head.weight.shape == (3, 32)
    with torch.no_grad():
        head.weight[:, 16:] = 0
    found = BranchGradients().measure(trial).values
    assert found["share"] == {"audio": 1.0, "visual": 0.0}
    assert found["parameters"]["visual"] == 0


def test_twin_branches_share_evenly(collapsed):
    """Null: two branches with the same weights and the same inputs."""
    trial = opened(collapsed, collapsed.spec("concat"))
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


def test_tables_of_trained_rows(rows):
    analysis = BranchGradients()
    table, terms = analysis.tables(rows)
    assert len(table.sections[0].frame) == 4
    both = [f"{site}, {m}" for site in ("attention", "attention", "attention", "further.0.attention") for m in PAIR]
    assert list(terms.sections[0].frame["Site"]) == both
    assert [one.name for one in analysis.tables(rows[3:])] == ["gradients"]


def test_where_no_gradient_arrives_there_is_no_error_to_show(rows):
    """As of a model whose loss has no gradient: the closed form cannot be held against anything."""
    (answer,) = rows[0].answers
    values = {name: x for name, x in answer.measured.values.items() if name != "error"}
    row = dataclasses.replace(
        rows[0], answers=(dataclasses.replace(answer, measured=dataclasses.replace(answer.measured, values=values)),)
    )
    _, terms = BranchGradients().tables([row])
    assert set(terms.sections[0].frame["Error"]) == {""}


def test_the_figure_of_trained_rows(rows):
    analysis = BranchGradients()
    (figure,) = analysis.figures(rows).values()
    assert figure.startswith("<svg")
