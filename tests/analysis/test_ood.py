"""Detection of what a model was not trained for: models that know or cannot know, and halves that do not differ."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from bench import names
from bench.analysis.contract import Measurement
from bench.analysis.ood import ATTENTION, OutOfDistribution, certainty, elsewhere, partners
from bench.data.prepared import prepare
from bench.errors import RequestError
from tests.analysis.asking import ByHand, asked, opened, trained

DIM, CLASSES = 16, 3
DATA = "planted:preset=symmetric:samples=300:classes=3:tokens=4"
MORE = "planted:preset=symmetric:samples=300:classes=6:tokens=4"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    made = trained(tmp_path_factory.mktemp("ood"), "vanilla_mt,concat", "recipe.epochs=1", datasets=DATA)
    for text in (MORE, "planted:preset=collapse:samples=40:tokens=4"):
        part, dataset = names.resolve_dataset(text)
        prepare(part.name, dataset, part.code, made.folder, made.folder.parent / "prepared")
    return made


def knowing(trial):
    """A model that is sure of what lies along its classes' prototypes, and of nothing else."""
    rows = [trial.positions["train"], trial.truth.targets["train"]]
    inputs = trial.reader.inputs(rows[0])
    for m in trial.modalities:
        x = inputs.values[m].mean(dim=1)
        prototypes = torch.stack([x[rows[1] == c].mean(dim=0) for c in range(CLASSES)])  # [C, 16]
        prototypes = prototypes / prototypes.norm(dim=1, keepdim=True)

        def likeness(values, prototypes=prototypes):
            keys = torch.zeros(len(values), DIM)
            keys[:, :CLASSES] = values.mean(dim=1) @ prototypes.T
            return keys

        trial.model.encoders[m] = ByHand(DIM, likeness)
    attention, head = trial.model.fusion.attention, trial.model.fusion.head
    with torch.no_grad():
        attention.query.weight.zero_()
        attention.query.bias.zero_()  # attends to all alike
        attention.class_token.zero_()
        for part in (attention.value, attention.out):
            part.weight.copy_(torch.eye(DIM))
        head.weight.copy_(3 * torch.eye(DIM)[:CLASSES])
    return trial


def test_a_model_that_knows_its_classes_tells_others(world):
    found = OutOfDistribution(OutOfDistribution.Settings(near=MORE)).measure(knowing(opened(world))).values["kinds"]
    for kind in ("near", "mismatched pairs"):
        assert found[kind]["max_logit"]["auroc"] > 0.6
        assert found[kind]["max_logit"]["low"] > 0.5
    assert found["null"]["max_logit"]["low"] < 0.5 < found["null"]["max_logit"]["high"]


def test_halves_of_test_do_not_differ(world, monkeypatch):
    """In 20 draws the interval misses one half at most three times, as one of 95 % may."""
    trial = opened(world)
    known = certainty(trial, (inputs for _, inputs in trial.batches("test")))
    monkeypatch.setattr("bench.analysis.ood.certainty", lambda *_: known)  # the halves come from test alone
    outside = 0
    for seed in range(20):
        null = OutOfDistribution(OutOfDistribution.Settings(seed=seed)).measure(trial).values["kinds"]["null"]
        assert set(null) == {"msp", "max_logit", "energy", "entropy", ATTENTION}
        outside += not null["msp"]["low"] <= 0.5 <= null["msp"]["high"]
    assert outside <= 3


def test_a_blind_model_tells_nothing(world):
    trial = opened(world)
    nn.init.zeros_(trial.model.fusion.head.weight)
    found = OutOfDistribution().measure(trial).values["kinds"]
    for kind in ("noise in audio", "mismatched pairs", "null"):
        for score in ("msp", "entropy"):
            assert (found[kind][score]["auroc"], found[kind][score]["fpr95"]) == (0.5, 1.0)


def test_pairs_are_of_different_classes_and_keep_the_first_modality(world):
    trial = opened(world)
    target = trial.truth.targets["test"]
    other = partners(target, 0)
    assert (target[other] != target).all()
    assert (partners(target, 1) != other).mean() > 0.5
    (_, clean), (mixed,) = next(trial.batches("test")), list(OutOfDistribution()._mismatched(trial))
    torch.testing.assert_close(mixed.values["audio"], clean.values["audio"])
    torch.testing.assert_close(mixed.values["visual"], clean.values["visual"][other])


def test_one_class_has_no_partner():
    with pytest.raises(ValueError, match="two classes"):
        partners(np.zeros(4), 0)


def test_near_takes_only_the_classes_that_training_never_had(world):
    trial = opened(world)
    (near,), (far,) = (list(elsewhere(trial, MORE, further_classes=further)) for further in (True, False))
    assert 50 < len(near) < 100
    assert len(far) == 150


@pytest.mark.parametrize(
    ("text", "further", "message"),
    [
        (DATA, True, "0 test samples of a class beyond the 3 of training"),
        ("planted:preset=collapse:samples=40:tokens=4", False, r"visual of .* has the shape \[4, 32\].*\[4, 16\]"),
        ("planted:samples=8", False, "is not prepared in .*bench data prepare planted:samples=8"),
    ],
)
def test_data_that_cannot_stand_outside_is_refused(world, text, further, message):
    with pytest.raises(RequestError, match=message):
        list(elsewhere(opened(world), text, further_classes=further))


def test_data_that_does_not_fit_is_left_out_and_said(world):
    """The other kinds are measured nevertheless: another data set of the same request may have it fit."""
    analysis = OutOfDistribution(OutOfDistribution.Settings(far="planted:preset=collapse:samples=40:tokens=4"))
    rows = asked(world, analysis)
    assert set(rows[0].measurements[0].values["kinds"]) == {
        "noise in audio",
        "noise in visual",
        "mismatched pairs",
        "null",
    }
    (note,) = analysis.tables(rows)[0].sections[-1].notes
    assert note.startswith("Left out: visual of planted:preset=collapse:samples=40:tokens=4 has the shape [4, 32]")


def test_certainty_of_known_samples_is_that_of_the_stored_logits(world):
    trial = opened(world)
    found = certainty(trial, (inputs for _, inputs in trial.batches("test")))
    stored = world.store.arrays(trial.spec.id, "logits.npz")["test"][trial.record["selected_epoch"]]
    np.testing.assert_array_equal(found["max_logit"], stored.max(axis=1))


def test_attention_entropy_is_largest_where_attention_is_even(world):
    trial = opened(world)
    with torch.no_grad():
        trial.model.fusion.attention.query.weight.zero_()
    found = certainty(trial, (inputs for _, inputs in trial.batches("test")))
    keys = 1 + sum(t.x.shape[1] for t in trial.encode(next(trial.batches("test"))[1]).values())
    np.testing.assert_allclose(found[ATTENTION], -np.log(keys), rtol=1e-5)


def test_what_has_nothing_to_detect_comes_last(world):
    """Also where the first row lacks kinds, as one with a single modality does."""
    rows = asked(world, OutOfDistribution())
    (answer,) = rows[0].answers
    kinds = answer.measured.values["kinds"]
    few = Measurement({"kinds": {kind: kinds[kind] for kind in ("noise in audio", "null")}, "unfit": {}})
    rows[0] = dataclasses.replace(rows[0], answers=(dataclasses.replace(answer, measured=few),))
    (table,) = OutOfDistribution().tables(rows)
    assert [s.title.split(": ")[-1] for s in table.sections][-2:] == ["mismatched pairs", "nothing to detect"]


def test_tables_and_figures_of_trained_rows(world):
    analysis = OutOfDistribution(OutOfDistribution.Settings(near=MORE, far=MORE))
    rows = asked(world, analysis)
    (table,) = analysis.tables(rows)
    assert [s.title.split(": ")[-1] for s in table.sections] == [
        "noise in audio",
        "noise in visual",
        "mismatched pairs",
        "held-out classes",
        "another data set",
        "nothing to detect",
    ]
    assert list(table.sections[0].frame["Attention entropy"] == "") == [False, True]
    assert set(table.values["score"]) == {"msp", "max_logit", "energy", "entropy", ATTENTION}
    (figure,) = analysis.figures(rows).values()
    assert figure.startswith("<svg")
