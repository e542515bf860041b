"""Oracles O1 to O5 of OGM-GE: coefficients worked out by hand, and what happens to the gradients."""

from __future__ import annotations

import importlib

import pytest
import torch
from fakes import NoHostSync, TinyRun, strategy

from bench.api import Batch, Output

ogm = importlib.import_module("bench.plugins.methods.ogm")


def known_output(run: TinyRun, batch: Batch, certainty: dict[str, float]) -> Output:
    """An output whose unimodal logits favour the true class by `certainty`, so that the scores are known."""
    output: Output = run.model(batch.inputs)
    one_hot = torch.nn.functional.one_hot(batch.target, run.task.num_outputs).float()
    output.unimodal = {"exact": {m: c * one_hot for m, c in certainty.items()}}
    return output


def gradients_after(run: TinyRun, **settings: object) -> tuple[dict[str, list[torch.Tensor]], ...]:
    """Gradients of every branch before and after the hook, with audio ahead."""
    batch = next(run.batches())
    output = known_output(run, batch, {"audio": 4.0, "visual": 0.5})
    run.model.fusion.terms(output, batch)["joint"].backward()
    before = {m: [p.grad.clone() for p in run.model.branch(m)] for m in run.task.modalities}
    s = strategy("ogm", run.task, **settings)
    s.epoch_start(run)
    s.grads(run, batch, output)
    return before, {m: [p.grad.clone() for p in run.model.branch(m)] for m in run.task.modalities}


@pytest.mark.parametrize(
    ("scores", "alpha", "ratio", "expected"),
    [
        ((3.0, 2.0), 0.8, "pairwise", (0.166345, 1.0)),
        ((3.0, 2.0, 1.0), 0.3, "pairwise", (0.411741, 0.620051, 1.0)),
        ((3.0, 2.0, 1.0), 0.3, "min", (0.283702, 0.462950, 1.0)),
        ((2.0, 2.0), 0.8, "pairwise", (1.0, 1.0)),
        ((0.7, 0.7, 0.7), 0.8, "pairwise", (1.0, 1.0, 1.0)),
    ],
)
def test_coefficients_worked_by_hand(scores, alpha, ratio, expected):
    k = ogm.coefficients(torch.tensor(scores), alpha, ratio)
    torch.testing.assert_close(k, torch.tensor(expected), atol=2e-6, rtol=0)


def test_pairwise_and_min_agree_for_two_modalities():
    scores = torch.tensor([5.0, 3.0])
    assert torch.equal(ogm.coefficients(scores, 0.4, "min"), ogm.coefficients(scores, 0.4, "pairwise"))


def test_a_modality_without_any_score_is_survived():
    k = ogm.coefficients(torch.tensor([1.0, 0.0]), 0.3)
    torch.testing.assert_close(k, torch.tensor([0.0, 1.0]))


def test_scores_are_summed_probabilities_of_the_true_class():
    logits = {"audio": torch.zeros(2, 2), "visual": torch.tensor([[0.75, 0.25], [0.1, 0.9]]).log()}
    scores = ogm.true_class_scores(logits, torch.tensor([0, 0]))
    torch.testing.assert_close(scores, torch.tensor([1.0, 0.85]), atol=1e-6, rtol=0)


def test_every_tensor_of_the_branch_ahead_is_scaled_and_the_other_left_alone():
    run = TinyRun()
    before, after = gradients_after(run, alpha=0.5, ge=False)
    k = float(run.logged["ogm/coefficient/audio"][0])
    assert 0 < k < 0.5
    assert float(run.logged["ogm/coefficient/visual"][0]) == 1.0
    for b, a in zip(before["audio"], after["audio"], strict=True):
        torch.testing.assert_close(a, k * b)
        assert b.abs().max() > 0
    assert all(torch.equal(b, a) for b, a in zip(before["visual"], after["visual"], strict=True))


def test_matrix_scope_leaves_vectors_alone():
    before, after = gradients_after(TinyRun(), alpha=0.5, ge=False, scope="matrix")
    changed = {b.ndim > 1: not torch.equal(b, a) for b, a in zip(before["audio"], after["audio"], strict=True)}
    assert changed == {True: True, False: False}


def test_noise_has_the_spread_of_the_gradient_before_scaling_and_no_mean():
    run = TinyRun()
    before, after = gradients_after(run, alpha=0.5)
    k = float(run.logged["ogm/coefficient/audio"][0])
    pooled = []
    for m, scale in (("audio", k), ("visual", 1.0)):
        for b, a in zip(before[m], after[m], strict=True):
            if b.ndim < 2:
                torch.testing.assert_close(a, scale * b)
            else:
                pooled.append(((a - scale * b) / b.std()).flatten())
    noise = torch.cat(pooled)  # standard normal if the spread is right
    count = len(noise)
    assert count > 1000
    assert abs(float(noise.mean())) < 4 / count**0.5
    assert abs(float(noise.std()) - 1) < 4 / (2 * count) ** 0.5


def test_noise_differs_between_steps_and_repeats_with_the_epoch():
    first, again = (gradients_after(TinyRun())[1]["audio"][0] for _ in range(2))
    assert torch.equal(first, again)
    run = TinyRun()
    s = strategy("ogm", run.task)
    s.epoch_start(run)
    assert not torch.equal(*(torch.randn(4, generator=s.noise) for _ in range(2)))


@pytest.mark.parametrize(("modalities", "fusion"), [(2, "concat"), (3, "concat"), (2, "vanilla_mt")])
def test_without_strength_the_losses_are_those_of_the_bare_fusion(modalities, fusion):
    bare = TinyRun(fusion, modalities)
    steered = TinyRun(fusion, modalities)
    torch.manual_seed(1)
    expected = bare.train()
    torch.manual_seed(1)
    assert steered.train(strategy("ogm", steered.task, alpha=0.0, ge=False)) == expected


def test_probes_give_the_scores_where_a_fusion_has_none_of_its_own():
    run = TinyRun("vanilla_mt", 3)
    run.train(strategy("ogm", run.task), epochs=1)
    assert {f"ogm/coefficient/{m}" for m in run.task.modalities} == set(run.logged)


@pytest.mark.parametrize(
    ("starts", "ends", "active"), [(0, -1, [0, 1, 2, 3]), (1, 2, [1, 2]), (3, -1, [3]), (0, 0, [0])]
)
def test_the_window_is_inclusive(starts, ends, active):
    run = TinyRun(samples=16)
    run.num_epochs = 4
    s = strategy("ogm", run.task, starts=starts, ends=ends)
    seen = []
    for run.epoch in range(4):
        run.logged.clear()
        s.epoch_start(run)
        run.train_step(next(run.batches()), s)
        seen += [run.epoch] if run.logged else []
    assert seen == active


def test_a_constant_coefficient_cancels_under_adam():
    def weights(alpha: float) -> torch.Tensor:
        run = TinyRun()
        optimizer = torch.optim.Adam(run.model.parameters(), lr=1e-2, eps=1e-30)
        s = strategy("ogm", run.task, alpha=alpha, ge=False)
        s.epoch_start(run)
        for batch in run.batches():
            optimizer.zero_grad()
            output = known_output(run, batch, {"audio": 4.0, "visual": 0.5})
            run.model.fusion.terms(output, batch)["joint"].backward()
            s.grads(run, batch, output)
            optimizer.step()
        return torch.nn.utils.parameters_to_vector(run.model.branch("audio"))

    torch.testing.assert_close(weights(0.5), weights(0.0), atol=1e-5, rtol=0)


def test_a_frozen_encoder_is_an_error_that_names_the_modality():
    run = TinyRun()
    run.model.encoders["visual"].requires_grad_(False)
    with pytest.raises(ValueError, match="branch of 'visual' has no tensor"):
        strategy("ogm", run.task).epoch_start(run)


def test_a_step_never_waits_for_the_device():
    run = TinyRun(modalities=3)
    batch = next(run.batches())
    output = run.model(batch.inputs)
    run.model.fusion.terms(output, batch)["joint"].backward()
    s = strategy("ogm", run.task)
    s.epoch_start(run)
    with NoHostSync():
        s.grads(run, batch, output)
    with pytest.raises(AssertionError, match="waits"), NoHostSync():
        output.logits.sum().item()
