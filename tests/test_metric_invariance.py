"""A score does not depend on how its samples were cut into batches, ordered or dealt out; every sample counts once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.conformance.world import MemoryReader
from bench.scoring import Truth
from bench.train import Evaluation, Training
from tests import training, world

PIECES = st.integers(1, 70)
"""Batch sizes, of fewer and of more than all samples."""
ORDERS = st.integers(0, 2**32 - 1).map(lambda seed: np.random.default_rng(seed).permutation(training.SAMPLES).tolist())
METHODS = ("concat", "vanilla_mt+rollingq")


@cache
def trained(method: str) -> Training:
    """One epoch of a method."""
    made = training.training_of(method)
    made.train(0)
    return made


def truth(kind: str = "classes", order: Sequence[int] | None = None) -> Truth:
    """The targets of 53 samples as the test part, in some order."""
    target = training.targets().numpy()
    target = target if order is None else target[list(order)]
    if kind == "classes":
        return Truth({"val": target, "test": target}, "classes", "accuracy")
    return Truth({"val": target - 1.0, "test": target - 1.0}, "regression", "mae", (-3.0, 3.0))


def evaluated(method: str, batch_size: int, positions: Sequence[int]) -> Evaluation:
    """The outputs for samples by position, with a batch size of its own."""
    made = trained(method)
    before = made.recipe
    made.recipe = type(before)(**{**vars(before), "eval_batch_size": batch_size})
    try:
        return made.evaluate(np.array(positions))
    finally:
        made.recipe = before


def joined(parts: Sequence[Evaluation]) -> Evaluation:
    """What several workers found, one after another."""
    return Evaluation(
        logits=np.concatenate([p.logits for p in parts]),
        unimodal={m: np.concatenate([p.unimodal[m] for p in parts]) for m in parts[0].unimodal},
        mass={m: np.concatenate([p.mass[m] for p in parts]) for m in parts[0].mass},
    )


def same(found: Evaluation, expected: Evaluation) -> None:
    """Equal but for the rounding of another batch size."""
    assert len(found.logits) == training.SAMPLES
    np.testing.assert_allclose(found.logits, expected.logits, atol=1e-5)
    for ours, theirs in ((found.unimodal, expected.unimodal), (found.mass, expected.mass)):
        assert ours.keys() == theirs.keys()
        for name in ours:
            np.testing.assert_allclose(ours[name], theirs[name], atol=1e-5)


def scores(found: Evaluation, of: Truth) -> dict[str, Any]:
    """Every score of classes: of the model, and of each modality's own logits."""
    return {"all": of.score("test", found.logits), **{m: of.score("test", x) for m, x in found.unimodal.items()}}


@pytest.mark.parametrize("method", METHODS)
@settings(deadline=None, max_examples=12)
@given(batch_size=PIECES)
def test_the_batch_size_does_not_matter(method: str, batch_size: int) -> None:
    found, whole = (evaluated(method, n, range(training.SAMPLES)) for n in (batch_size, training.SAMPLES))
    same(found, whole)
    assert scores(found, truth()) == scores(whole, truth())


@pytest.mark.parametrize("method", METHODS)
@settings(deadline=None, max_examples=8)
@given(order=ORDERS, batch_size=PIECES)
def test_the_order_of_samples_does_not_matter(method: str, order: list[int], batch_size: int) -> None:
    found, whole = evaluated(method, batch_size, order), evaluated(method, training.SAMPLES, range(training.SAMPLES))
    np.testing.assert_allclose(found.logits, whole.logits[order], atol=1e-5)
    ours, theirs = scores(found, truth(order=order)), scores(whole, truth())
    for name, expected in theirs.items():
        assert ours[name] == pytest.approx(expected)


@settings(deadline=None, max_examples=12)
@given(workers=st.integers(1, 9), batch_size=PIECES)
def test_the_number_of_workers_does_not_matter(workers: int, batch_size: int) -> None:
    dealt = np.array_split(np.arange(training.SAMPLES), workers)
    found = joined([evaluated("concat", batch_size, part.tolist()) for part in dealt])
    whole = evaluated("concat", training.SAMPLES, range(training.SAMPLES))
    same(found, whole)
    assert scores(found, truth()) == scores(whole, truth())


@settings(deadline=None, max_examples=30)
@given(order=ORDERS, cut=st.integers(0, training.SAMPLES), kind=st.sampled_from(["classes", "regression"]))
def test_every_metric_is_of_the_whole_split(order: list[int], cut: int, kind: str) -> None:
    """Of logits in any order; a part of a split is never taken for the whole."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(training.SAMPLES, training.CLASSES if kind == "classes" else 1))
    found, whole = truth(kind, order).score("test", logits[order]), truth(kind).score("test", logits)
    assert found == pytest.approx(whole)
    if cut < training.SAMPLES:
        with pytest.raises(ValueError, match=f"test has {training.SAMPLES} samples and {cut} were scored"):
            truth(kind).score("test", logits[:cut])


@settings(deadline=None, max_examples=12)
@given(batch_size=PIECES, count=st.integers(1, training.SAMPLES))
def test_a_pass_over_train_sees_every_sample_once(batch_size: int, count: int) -> None:
    """The measurements at attention sites and strategies' own passes, whatever is left for the last batch."""
    made = training.training_of("concat", eval_batch_size=batch_size)
    made.positions = made.positions[:count]
    seen = [int(i) for batch, _ in made.sweep() for i in batch.index]
    assert sorted(seen) == list(range(count))


@settings(deadline=None, max_examples=8)
@given(batch_size=PIECES)
def test_an_epoch_trains_on_every_sample_once(batch_size: int) -> None:
    """The order is that of the seed and the epoch, the batch size only cuts it."""
    made = training.training_of("concat", batch_size=batch_size)
    orders = [int(i) for batch in made._batches() for i in batch.index]
    assert sorted(orders) == list(range(training.SAMPLES))
    assert orders == [int(i) for batch in training.training_of("concat")._batches() for i in batch.index]


class OneDevice(MemoryReader):
    """Counts what is asked of a device."""

    asked = 0

    def inputs(self, positions: Any, generator: Any = None) -> Any:
        """The samples, counted."""
        self.asked += len(positions)
        return super().inputs(positions, generator)


@settings(deadline=None, max_examples=8)
@given(batch_size=PIECES, devices=st.integers(1, 4))
def test_devices_share_a_split_without_rest(batch_size: int, devices: int) -> None:
    """Dealt out card by card, put back in order: the same scores, and each sample loaded once."""
    whole = evaluated("concat", training.SAMPLES, range(training.SAMPLES))
    parts, logits = [], np.empty_like(whole.logits)
    for device in range(devices):
        mine = np.arange(device, training.SAMPLES, devices)
        reader = OneDevice(training.inputs(), tuple(training.SHAPES))
        made = training.training_of("concat", reader=reader, eval_batch_size=batch_size)
        made.model.load_state_dict(trained("concat").model.state_dict())
        logits[mine] = made.evaluate(mine).logits
        parts.append(reader.asked)
    assert sum(parts) == training.SAMPLES
    assert truth().score("test", logits) == truth().score("test", whole.logits)


def test_a_trial_scores_the_number_of_samples_in_its_split(tmp_path: Any) -> None:
    """With batches that leave a rest in train (96 by 36), val and test (7 by 7): what is stored is of everybody."""
    made = world.make_world(
        tmp_path / "here", "concat,vanilla_mt", "recipe.batch_size=36", "recipe.eval_batch_size=7", "recipe.epochs=2"
    )
    made.run()
    for spec in made.plan.trials:
        sizes = made.store.read(spec.id, "record.json")["split_sizes"]
        logits, samples = (made.store.arrays(spec.id, name) for name in ("logits.npz", "samples.npz"))
        assert all(sizes[split] % 7 for split in ("val", "test"))
        for split in ("val", "test"):
            assert logits[split].shape[:2] == (2, sizes[split])
        assert {len(x) for name, x in samples.items() if name.startswith("test")} <= {sizes["test"]}
        score, of = made.store.read(spec.id, "scores.json"), Truth.of(made.datasets[0].prepared, "honest", 0)
        assert len(of.targets["test"]) == sizes["test"]
        hits = logits["test"][score["selected_epoch"]].argmax(axis=1) == of.targets["test"]
        assert score["test"]["accuracy"] == hits.sum() / sizes["test"]
