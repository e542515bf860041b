"""Attention against quality: a model whose attention follows quality is told from one whose attention does not."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from bench.analysis.attention import LEVELS, AttentionQuality, binned, levels_of, look
from bench.analysis.loaded import CLEAN, LoadedTrial
from bench.assembly import task_of
from tests.analysis.asking import QUALITY, ByHand, asked, opened, trained
from tests.world import make_world

DIM = 16


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("attention"), "vanilla_mt", "recipe.epochs=1")


def loudness(x: Tensor) -> Tensor:
    """A key along one channel, as long as the mean token: what a good sample has more of."""
    keys = torch.zeros(len(x), DIM)
    keys[:, 0] = x.mean(dim=1).square().mean(dim=1)
    return keys


def deafness(x: Tensor) -> Tensor:
    """A key whose length has nothing to do with the sample's class or its noise."""
    keys = torch.zeros(len(x), DIM)
    keys[:, 0] = 0.1 * torch.sin(1e5 * x[:, 0, 0])
    return keys


def by_hand(trial: LoadedTrial, make) -> LoadedTrial:
    """A trial whose single query looks along the channel of the keys."""
    attention = trial.model.fusion.attention
    with torch.no_grad():
        attention.key.weight.copy_(torch.eye(DIM))
        attention.query.weight.zero_()
        attention.query.bias.copy_(20.0 * torch.eye(DIM)[0])
    for m in trial.modalities:
        trial.model.encoders[m] = ByHand(DIM, make)
    return trial


def test_attention_that_follows_quality_is_seen(world):
    found = AttentionQuality().measure(by_hand(opened(world), loudness)).values
    for source, least in (("truth", 0.6), ("noise", 0.2)):
        one = found[source]["share"]["audio"]
        assert one["r"] > least
        assert one["low"] > least - 0.1
        assert one["r"] > 2 * one["null"]
        assert one["p"] < 0.002
    assert found["noise"]["share"]["audio"]["pairs"] == 2 * found["truth"]["share"]["audio"]["pairs"] == 400
    assert max(found["shift"].values()) < -0.1
    assert found["truth"]["log_ratio"]["audio"]["r"] > 0.6


def test_attention_that_ignores_quality_is_silent(world):
    found = AttentionQuality().measure(by_hand(opened(world), deafness)).values
    one = found["truth"]["share"]["audio"]
    assert abs(one["r"]) < 2 * one["null"]
    assert one["low"] < 0 < one["high"]
    assert max(abs(x) for x in found["shift"].values()) < 0.05


def test_shuffled_quality_stays_inside_the_null(world):
    trial, order = by_hand(opened(world), loudness), np.random.default_rng(0)
    quality = {f"quality_{m}": trial.index[f"quality_{m}"].to_numpy() for m in trial.modalities}
    shuffled = order.permutation(len(trial.index))
    trial.index = trial.index.assign(**{name: column[shuffled] for name, column in quality.items()})
    one = AttentionQuality().measure(trial).values["truth"]["share"]["audio"]
    assert one["low"] < 0 < one["high"]
    assert abs(one["r"]) < 2 * one["null"]


def test_probes_are_the_quality_where_nothing_is_disturbed(world):
    """By hand for one sample in reverse: a probe that is always right makes its modality's quality the larger one."""
    trial = by_hand(opened(world), loudness)
    quality = trial.index["quality_audio"].to_numpy()[trial.positions["test"]]
    seen = look(trial, CLEAN)
    right = trial.truth.targets["test"].astype(int)
    logits = np.zeros((len(right), 3), dtype=np.float32)
    logits[np.arange(len(right)), right] = 10 * quality
    evaluate = trial.evaluate

    def with_probes(split, conditions, batch_size=None):
        found = evaluate(split, conditions, batch_size)
        for evaluation in found.values():
            evaluation.unimodal["audio"][:] = logits
            evaluation.unimodal["visual"][:] = 0
        return found

    trial.evaluate = with_probes
    found = AttentionQuality().measure(trial).values
    likely = np.exp(10 * quality) / (np.exp(10 * quality) + 2)
    expected = np.corrcoef(seen.share["audio"], likely - 1 / 3)[0, 1]
    assert found["probe"]["share"]["audio"]["r"] == pytest.approx(expected, abs=1e-4)


def test_the_same_question_has_the_same_answer_in_any_batches(world):
    trial = opened(world)
    whole = look(trial, CLEAN)
    trial.spec = dataclasses.replace(trial.spec, recipe=dataclasses.replace(trial.spec.recipe, eval_batch_size=7))
    parts = look(trial, CLEAN)
    for measure in ("share", "log_ratio", "cosine"):
        for m in trial.modalities:
            np.testing.assert_allclose(getattr(whole, measure)[m], getattr(parts, measure)[m], atol=1e-5)


def test_levels_are_drawn_by_sample():
    ids = np.array([f"{k:04d}" for k in range(2000)])
    levels = levels_of(ids, "audio", 0)
    assert set(levels) == set(LEVELS)
    assert min(np.bincount((levels * 4).astype(int))[[0, 1, 2, 4]]) > 400
    np.testing.assert_array_equal(levels_of(ids[::-1], "audio", 0)[::-1], levels)
    assert (levels_of(ids, "visual", 0) != levels).mean() > 0.6
    assert (levels_of(ids, "audio", 1) != levels).mean() > 0.6


def test_bins_are_means_in_order():
    x = np.array([5.0, 1, 2, 4, 3, 6])
    np.testing.assert_allclose(binned(x, 10 * x), [np.arange(1, 7), 10 * np.arange(1, 7)])
    assert binned(np.arange(100), np.arange(100)).shape == (2, 10)


def test_tables_and_figures_of_trained_rows(world):
    rows = asked(world, AttentionQuality())
    table, more = AttentionQuality().tables(rows)
    assert {"r, added noise", "r, probes", "r, true quality", "Shift"} < set(table.sections[0].frame.columns)
    assert len(more.sections[0].frame) == 3
    assert set(more.values["quality"]) == {"noise", "probe", "truth"}
    (figure,) = AttentionQuality().figures(rows).values()
    assert figure.startswith("<svg")


def test_three_modalities_are_each_measured(tmp_path):
    world = trained(
        tmp_path,
        "vanilla_mt",
        "recipe.epochs=1",
        datasets="planted:preset=three:samples=60:classes=3:tokens=3",
    )
    (row,) = asked(world, AttentionQuality())
    found = row.measurements[0].values
    assert set(found["truth"]["share"]) == set(found["noise"]["cosine"]) == {"audio", "visual", "text"}
    assert found["noise"]["share"]["text"]["pairs"] == 3 * 30
    assert AttentionQuality().figures([row])


def test_rows_without_a_site_are_skipped_with_a_reason(world):
    other = make_world(world.folder, "concat,audio", datasets=QUALITY)
    for spec in other.plan.trials:
        task = task_of(spec, other.datasets[0].prepared.spec)
        assert AttentionQuality().skips(spec, task) == "no attention in which modalities compete"
