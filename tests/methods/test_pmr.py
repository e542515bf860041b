"""Oracles P1 to P4 of PMR: the loss over prototypes, the coefficients, and which gradients it may touch."""

from __future__ import annotations

import importlib

import pytest
import torch
from fakes import NoHostSync, TinyRun, strategy

pmr = importlib.import_module("bench.plugins.methods.pmr")

BOTH = torch.tensor([True, True])


def test_distances_five_and_one():
    prototypes = torch.tensor([[5.0, 0.0], [0.0, 1.0]])
    log_q = pmr.prototype_log_probabilities(torch.zeros(1, 2), prototypes, BOTH)
    torch.testing.assert_close(log_q.exp(), torch.tensor([[0.017986, 0.982014]]), atol=1e-6, rtol=0)
    for label, loss in ((0, 4.018150), (1, 0.018150)):
        assert float(pmr.prototype_loss(log_q, torch.tensor([label]), BOTH)) == pytest.approx(loss, abs=1e-6)
    assert float(pmr.entropy(log_q, BOTH)) == pytest.approx(0.090095, abs=1e-6)


@pytest.mark.parametrize(
    ("scores", "graded", "expected"),
    [
        ((3.0, 2.0), True, (0.0, 0.5)),
        ((3.0, 2.0), False, (0.0, 1.0)),
        ((2.0, 2.0), True, (0.0, 0.0)),
        ((2.0, 2.0), False, (0.0, 0.0)),
        ((9.0, 1.0), True, (0.0, 1.0)),
        ((4.0, 5.0, 2.0), True, (0.25, 0.0, 1.0)),
        ((4.0, 5.0, 2.0), False, (1.0, 0.0, 1.0)),
        ((1.0, 0.0), True, (0.0, 1.0)),
    ],
)
def test_coefficients_worked_by_hand(scores, graded, expected):
    torch.testing.assert_close(pmr.lag_coefficients(torch.tensor(scores), graded), torch.tensor(expected))


def test_a_feature_on_its_prototype_has_a_finite_gradient():
    z = torch.tensor([[1.0, 2.0]], requires_grad=True)
    log_q = pmr.prototype_log_probabilities(z, torch.tensor([[1.0, 2.0], [0.0, 0.0]]), BOTH)
    (pmr.prototype_loss(log_q, torch.tensor([0]), BOTH) + pmr.entropy(log_q, BOTH)).backward()
    assert z.grad is not None
    assert z.grad.isfinite().all()


def test_a_class_without_a_prototype_is_infinitely_far_and_its_samples_do_not_count():
    seen = torch.tensor([True, False, True])
    prototypes = torch.tensor([[5.0, 0.0], [9.0, 9.0], [0.0, 1.0]])
    z = torch.zeros(2, 2, requires_grad=True)
    log_q = pmr.prototype_log_probabilities(z, prototypes, seen)
    torch.testing.assert_close(log_q[0].exp(), torch.tensor([0.017986, 0.0, 0.982014]), atol=1e-6, rtol=0)
    loss = pmr.prototype_loss(log_q, torch.tensor([1, 0]), seen)
    assert loss.item() == pytest.approx(4.018150, abs=1e-6)
    h = pmr.entropy(log_q, seen)
    assert h.item() == pytest.approx(0.090095, abs=1e-6)
    (loss + h).backward()
    assert z.grad is not None
    assert z.grad.isfinite().all()
    none = pmr.prototype_loss(log_q, torch.tensor([1, 1]), seen)
    assert none.item() == 0.0


def test_prototypes_are_class_means_of_the_sweep():
    run = TinyRun(modalities=3)
    s = strategy("pmr", run.task, fraction=1.0)
    s.epoch_start(run)
    with run.quiet():
        features = run.model(run.batch(torch.arange(48)).inputs).features
    for m, z in features.items():
        expected = torch.stack([z[run.target == c].mean(dim=0) for c in range(3)])
        torch.testing.assert_close(s.prototypes[m], expected)
    assert s.seen.all()


def test_momentum_mixes_and_an_absent_class_keeps_its_prototype():
    run = TinyRun()
    s = strategy("pmr", run.task, momentum=0.25, fraction=1.0)
    run.target = torch.arange(48) % 2  # no sample of class 2 yet
    s.epoch_start(run)
    first = {m: p.clone() for m, p in s.prototypes.items()}
    assert s.seen.tolist() == [True, True, False]
    with torch.no_grad():
        run.values = {m: x + 1 for m, x in run.values.items()}
    run.target = 1 + torch.arange(48) % 2  # class 0 is gone, class 2 is new
    s.epoch_start(run)
    fresh = strategy("pmr", run.task, fraction=1.0)
    fresh.epoch_start(run)
    for m, p in s.prototypes.items():
        assert torch.equal(p[0], first[m][0])
        torch.testing.assert_close(p[1], 0.25 * first[m][1] + 0.75 * fresh.prototypes[m][1])
        assert torch.equal(p[2], fresh.prototypes[m][2])
    assert s.seen.all()


def test_terms_add_up_to_the_paper_s_loss_for_two_modalities():
    run = TinyRun()
    s = strategy("pmr", run.task, alpha=1.5, mu=0.2, fraction=1.0)
    s.epoch_start(run)
    batch = next(run.batches())
    output = run.model(batch.inputs)
    terms = {}
    s.terms(run, batch, output, terms)
    distances = {m: (z.unsqueeze(1) - s.prototypes[m]).norm(dim=2) for m, z in output.features.items()}
    q = {m: (-d).softmax(dim=1) for m, d in distances.items()}
    score = {m: p[torch.arange(16), batch.target].sum().item() for m, p in q.items()}
    loss = {m: torch.nn.functional.cross_entropy(-d, batch.target) for m, d in distances.items()}
    entropy = {m: -(p * p.log()).sum(dim=1).mean() for m, p in q.items()}
    rho = score["audio"] / score["visual"]
    beta, gamma = min(max(1 / rho - 1, 0), 1), min(max(rho - 1, 0), 1)
    assert max(beta, gamma) > 0
    pull = 1.5 * (beta * loss["audio"] + gamma * loss["visual"])
    calm = -0.2 * (gamma * entropy["audio"] + beta * entropy["visual"])
    torch.testing.assert_close(terms["pmr/audio"] + terms["pmr/visual"], pull)
    torch.testing.assert_close(terms["pmr/entropy/audio"] + terms["pmr/entropy/visual"], calm)


@pytest.mark.parametrize("modalities", [2, 3])
@pytest.mark.parametrize("graded", [True, False])
def test_a_term_reaches_no_parameter_but_its_own_encoder_s(modalities, graded):
    run = TinyRun(modalities=modalities)
    s = strategy("pmr", run.task, graded=graded, mu=0.5)
    s.epoch_start(run)
    batch = next(run.batches())
    terms = {}
    s.terms(run, batch, run.model(batch.inputs), terms)
    assert len(terms) == 2 * modalities
    reached = set()
    for name, term in terms.items():
        m = name.rpartition("/")[2]
        run.model.zero_grad()
        term.backward(retain_graph=True)
        branch = {id(p) for p in run.model.branch(m)}
        touched = {id(p) for p in run.model.parameters() if p.grad is not None and p.grad.abs().max() > 0}
        assert touched <= branch
        reached |= {name} if touched else set()
    lagging = {f"pmr/{m}" for m in run.task.modalities if float(run.logged[f"pmr/coefficient/{m}"][0]) > 0}
    assert len(lagging) == modalities - 1
    assert lagging < reached


@pytest.mark.parametrize("fusion", ["concat", "vanilla_mt"])
def test_without_strength_nothing_is_added_and_the_losses_stay(fusion):
    bare, steered = TinyRun(fusion, 3), TinyRun(fusion, 3)
    s = strategy("pmr", steered.task, alpha=0.0, mu=0.0)
    torch.manual_seed(1)
    expected = bare.train()
    torch.manual_seed(1)
    assert steered.train(s) == expected
    terms = {}
    batch = next(steered.batches())
    s.terms(steered, batch, steered.model(batch.inputs), terms)
    assert terms == {}


def test_the_entropy_term_ends_after_its_epochs():
    run = TinyRun()
    s = strategy("pmr", run.task, per_epochs=2)
    batch = next(run.batches())
    found = []
    for run.epoch in range(3):
        s.epoch_start(run)
        terms = {}
        s.terms(run, batch, run.model(batch.inputs), terms)
        found.append(sorted(terms))
    pulls = ["pmr/audio", "pmr/visual"]
    assert found == [["pmr/audio", "pmr/entropy/audio", "pmr/entropy/visual", "pmr/visual"]] * 2 + [pulls]


def test_the_pull_moves_the_lagging_features_to_their_prototypes():
    run = TinyRun(samples=24)
    s = strategy("pmr", run.task, alpha=4.0, mu=0.0, graded=False, fraction=1.0)
    s.epoch_start(run)
    batch = run.batch(torch.arange(24))

    def losses() -> dict[str, float]:
        features = run.model(batch.inputs).features
        logs = {m: pmr.prototype_log_probabilities(z, s.prototypes[m], s.seen) for m, z in features.items()}
        return {m: pmr.prototype_loss(log, batch.target, s.seen).item() for m, log in logs.items()}

    terms = {}
    s.terms(run, batch, run.model(batch.inputs), terms)
    lagging = next(m for m in run.task.modalities if float(run.logged[f"pmr/coefficient/{m}"][0]) > 0)
    before = losses()
    run.optimizer.zero_grad()
    terms[f"pmr/{lagging}"].backward()
    torch.optim.SGD(run.model.parameters(), lr=1e-3).step()
    after = losses()
    assert after[lagging] < before[lagging]
    assert all(after[m] == before[m] for m in run.task.modalities if m != lagging)


def test_state_survives_saving_and_loading():
    run = TinyRun()
    s = strategy("pmr", run.task)
    s.epoch_start(run)
    again = strategy("pmr", run.task)
    again.load_state_dict({k: v.clone() for k, v in s.state_dict().items()})
    run.epoch = 1
    s.epoch_start(run)
    again.epoch_start(run)
    assert s.state_dict().keys() == again.state_dict().keys() == {"seen", "prototypes/audio", "prototypes/visual"}
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in s.state_dict().items())


def test_a_step_never_waits_for_the_device():
    run = TinyRun(modalities=3)
    s = strategy("pmr", run.task)
    s.epoch_start(run)
    batch = next(run.batches())
    output = run.model(batch.inputs)
    with NoHostSync():
        s.terms(run, batch, output, {})
