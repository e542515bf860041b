"""One epoch of training: the order of a step, what it may not do, and what an evaluation may not depend on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from bench import api
from bench.api import Batch, Output, Run, Strategy, TaskSpec
from bench.data.prepared import prepare
from bench.data.reader import Reader
from bench.errors import TrialError
from bench.recipes import RECIPES
from bench.streams import derive
from bench.train import Training, lr_factor
from tests.methods.fakes import NoHostSync
from tests.training import RECIPE, SAMPLES, SHAPES, losses_of, training_of

EVERYTHING = np.arange(SAMPLES)
TASK = TaskSpec(tuple(SHAPES), dict.fromkeys(SHAPES, 16), 3, SAMPLES)


class Watching(Strategy):
    """Notes every hook it is called for, under a name."""

    def __init__(self, name: str, notes: list[str]) -> None:
        super().__init__(api.Settings(), TASK)
        self.name, self.notes = name, notes
        self.batches: list[Batch] = []
        self.means: list[float] = []

    def setup(self, run: Run) -> None:
        assert not hasattr(run, "optimizer")
        self.notes.append(f"{self.name}.setup")

    def epoch_start(self, run: Run) -> None:
        self.notes.append(f"{self.name}.epoch_start")

    def terms(self, run: Run, batch: Batch, output: Output, terms: dict[str, Tensor]) -> None:
        self.notes.append(f"{self.name}.terms")
        self.batches.append(batch)
        self.means.append(terms["joint"].item() if "joint" in terms else math.nan)

    def grads(self, run: Run, batch: Batch, output: Output) -> None:
        self.notes.append(f"{self.name}.grads")

    def epoch_end(self, run: Run) -> None:
        self.notes.append(f"{self.name}.epoch_end")


def noted(place: Any, name: str, notes: list[str], word: str, patch: pytest.MonkeyPatch) -> None:
    """Note every call of a method before it runs."""
    original = getattr(place, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        notes.append(word)
        return original(*args, **kwargs)

    patch.setattr(place, name, call)


def test_a_step_is_in_the_documented_order(monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []
    watch: dict[str, Strategy] = {"first": Watching("first", notes), "second": Watching("second", notes)}
    training = training_of("concat", watch=watch, clip_norm=1.0, batch_size=SAMPLES)
    assert notes == ["first.setup", "second.setup"]
    notes.clear()
    noted(training.optimizer, "zero_grad", notes, "zero_grad", monkeypatch)
    noted(training.model, "forward", notes, "model", monkeypatch)
    noted(training.model.fusion, "terms", notes, "fusion.terms", monkeypatch)
    noted(TaskSpec, "loss", notes, "loss", monkeypatch)
    noted(training.scaler, "unscale_", notes, "unscale", monkeypatch)
    noted(nn.utils, "clip_grad_norm_", notes, "clip", monkeypatch)
    noted(training.optimizer, "step", notes, "step", monkeypatch)
    head = next(training.model.fusion.parameters())
    head.register_post_accumulate_grad_hook(lambda p: notes.append("backward"))
    training.train(0)
    assert notes == [
        "first.epoch_start",
        "second.epoch_start",
        "zero_grad",
        "model",
        "fusion.terms",
        "loss",
        "first.terms",
        "second.terms",
        "loss",
        "loss",
        "backward",
        "unscale",
        "first.grads",
        "second.grads",
        "clip",
        "step",
        "first.epoch_end",
        "second.epoch_end",
    ]


def test_sites_are_measured_after_the_last_hook_of_an_epoch() -> None:
    notes: list[str] = []
    training = training_of("vanilla_mt", watch={"watching": Watching("watching", notes)}, batch_size=SAMPLES)
    training.model.register_forward_pre_hook(lambda m, _: notes.append("train" if m.training else "measure"))
    training.train(0)
    assert notes[-2:] == ["watching.epoch_end", "measure"]
    assert notes.count("train") == 1


class OwnsBackward(Watching):
    """Backward of its own."""

    owns: ClassVar[frozenset[str]] = frozenset({"backward"})

    def backward(self, run: Run, batch: Batch, output: Output, terms: dict[str, Tensor]) -> None:
        (2 * terms["joint"]).backward(retain_graph=True)


def test_the_owner_of_backward_replaces_it_and_the_probes_are_trained_all_the_same() -> None:
    grads = {}
    for name, watch in (("plain", Watching("w", [])), ("owned", OwnsBackward("w", []))):
        training = training_of("vanilla_mt", watch={"w": watch}, batch_size=SAMPLES, momentum=0.0)
        with _before_step(training) as seen:
            training.train(0)
        (grads[name],) = seen
    for name, grad in grads["plain"].items():
        factor = 1.0 if name.startswith("probes.") else 2.0
        assert torch.allclose(grads["owned"][name], factor * grad, atol=1e-6), name
        assert name == "fusion.attention.key.bias" or grad.abs().max() > 0


class OwnsStep(Watching):
    """A step of its own."""

    owns: ClassVar[frozenset[str]] = frozenset({"step"})

    def train_step(self, run: Run, batch: Batch) -> dict[str, Tensor]:
        return {"mine": batch.target.float().mean()}


class OwnsEpoch(Watching):
    """An epoch of its own."""

    owns: ClassVar[frozenset[str]] = frozenset({"epoch"})

    def train_epoch(self, run: Run, batches: Callable[[], Iterator[Batch]]) -> list[dict[str, Tensor]]:
        return [{"mine": batch.target.float().sum()} for batch in batches()]


@pytest.mark.parametrize("owner", [OwnsStep, OwnsEpoch])
def test_the_owner_of_a_step_or_an_epoch_replaces_it(owner: type[Watching]) -> None:
    notes: list[str] = []
    training = training_of("concat", watch={"w": owner("w", notes)})
    before = {name: p.clone() for name, p in training.model.named_parameters()}
    record = training.train(0)
    assert record.losses == {"mine": pytest.approx(float(training.targets.float().mean()))}
    assert notes == ["w.setup", "w.epoch_start", "w.epoch_end"]
    assert all(torch.equal(p, before[name]) for name, p in training.model.named_parameters())


class _BeforeStep:
    """The gradients at every optimizer step inside this context, by parameter name, and the learning rates."""

    def __init__(self, training: Training) -> None:
        self.training = training
        self.seen: list[dict[str, Tensor]] = []
        self.rates: list[float] = []

    def __enter__(self) -> list[dict[str, Tensor]]:
        self.handle = register_optimizer_step_pre_hook(self._look)
        return self.seen

    def __exit__(self, *_: object) -> None:
        self.handle.remove()

    def _look(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        self.rates.append(optimizer.param_groups[0]["lr"])
        named = self.training.model.named_parameters()
        self.seen.append({name: p.grad.clone() for name, p in named if p.grad is not None})


_before_step = _BeforeStep


def test_the_schedule_of_the_published_recipe_peaks_at_step_262() -> None:
    recipe = RECIPES["published"]
    steps, epochs = 105, recipe.epochs
    assert (epochs, int(recipe.warmup_epochs * steps)) == (30, 262)
    rates = [recipe.lr * lr_factor(step, steps, recipe.warmup_epochs, epochs) for step in range(steps * epochs)]
    assert rates[0] == 0.0
    assert rates[131] == pytest.approx(0.5e-3)
    assert max(rates) == rates[262] == pytest.approx(1e-3)
    assert rates[:263] == sorted(rates[:263])
    assert rates[262:] == sorted(rates[262:], reverse=True)
    halfway = 262 + (3150 - 262) // 2
    assert rates[halfway] == pytest.approx(0.5e-3)
    assert 0 < rates[-1] < 1e-9


@pytest.mark.parametrize(("epochs", "peak"), [(1, 26), (4, 105), (11, 262)])
def test_a_warm_up_takes_at_most_a_quarter_of_a_short_training(epochs: int, peak: int) -> None:
    factors = [lr_factor(step, 105, 2.5, epochs) for step in range(105 * epochs)]
    assert factors.index(1.0) == peak


def test_every_step_is_made_with_the_rate_of_its_own_number() -> None:
    training = training_of("concat")
    looking = _before_step(training)
    with looking:
        for epoch in range(3):
            training.train(epoch)
    assert looking.rates == [RECIPE.lr * lr_factor(step, 3, 0.5, 3) for step in range(9)]
    assert looking.rates[:2] == [0.0, RECIPE.lr]


@pytest.mark.parametrize(
    "method", ["concat", "concat+ogm", "concat+pmr", "vanilla_mt+rollingq", "mmml", "mbt", "jmt", "unimodal"]
)
def test_no_step_waits_for_the_device(method: str) -> None:
    training = training_of(method, clip_norm=1.0)
    training.model.train()
    for strategy in training.strategies.values():
        strategy.epoch_start(training)
    batches = list(training._batches())
    with NoHostSync():  # type: ignore[no-untyped-call]  # its base is untyped
        for batch in batches:
            training._train_step(batch, training.model)
    with pytest.raises(AssertionError, match="waits for the device"), NoHostSync():  # type: ignore[no-untyped-call]  # likewise
        batches[0].target.sum().item()


def test_clipping_leaves_the_probes_out() -> None:
    wide, narrow = (training_of("vanilla_mt", clip_norm=norm, batch_size=SAMPLES) for norm in (1e9, 1e-3))
    grads = []
    for training in (wide, narrow):
        with _before_step(training) as seen:
            training.train(0)
        grads += seen
    probes = [name for name in grads[0] if name.startswith("probes.")]
    assert len(probes) == 4
    assert all(torch.equal(grads[0][name], grads[1][name]) for name in probes)
    clipped = [grad for name, grad in grads[1].items() if name not in probes]
    assert torch.stack([g.norm() for g in clipped]).norm().item() == pytest.approx(1e-3, rel=1e-3)
    assert all(grads[0][name].abs().max() > 0 for name in probes)


def test_no_gradient_of_a_probe_leaves_the_probe() -> None:
    with_probes, without = training_of("vanilla_mt"), training_of("vanilla_mt", probes=False)
    for training in (with_probes, without):
        losses_of(training)
    assert len(with_probes.model.probes) == 2
    there = dict(with_probes.model.named_parameters())
    for name, p in without.model.named_parameters():
        assert torch.equal(p, there[name]), name


def test_bf16_trains_close_to_fp32_and_keeps_fp32_weights() -> None:
    exact, rounded = losses_of(training_of("vanilla_mt")), losses_of(training := training_of_bf16())
    assert {p.dtype for p in training.model.parameters()} == {torch.float32}
    for one, other in zip(exact, rounded, strict=True):
        assert other == pytest.approx(one, rel=0.03)
    assert exact != rounded
    assert training.evaluate(EVERYTHING).logits.dtype == np.float32


def training_of_bf16() -> Training:
    return training_of("vanilla_mt", precision="bf16")


TRAINED = training_of("vanilla_mt")
losses_of(TRAINED)
REFERENCE = TRAINED.evaluate(EVERYTHING)


@settings(max_examples=25, deadline=None)
@given(order=st.permutations(range(SAMPLES)), count=st.integers(1, SAMPLES), size=st.integers(1, SAMPLES + 5))
def test_an_evaluation_depends_neither_on_batches_nor_on_order_nor_on_the_other_samples(
    order: list[int], count: int, size: int
) -> None:
    chosen = np.array(order[:count])
    TRAINED.recipe = training_of("concat", eval_batch_size=size).recipe
    found = TRAINED.evaluate(chosen)
    assert found.logits.shape == (count, 3)
    assert np.allclose(found.logits, REFERENCE.logits[chosen], atol=1e-5)
    for m in SHAPES:
        assert np.allclose(found.unimodal[m], REFERENCE.unimodal[m][chosen], atol=1e-5)
        assert np.allclose(found.mass[m], REFERENCE.mass[m][chosen], atol=1e-6)


def test_an_evaluation_has_every_sample_once() -> None:
    training = training_of("concat", eval_batch_size=20)
    found = training.evaluate(EVERYTHING)
    assert found.logits.shape == (SAMPLES, 3)
    assert {m: x.shape for m, x in found.unimodal.items()} == dict.fromkeys(SHAPES, (SAMPLES, 3))
    assert len(np.unique(found.logits, axis=0)) == SAMPLES


def test_an_epoch_sees_every_sample_once_in_an_order_of_its_own() -> None:
    orders = _orders("concat", seed=0)
    assert all(sorted(order) == list(range(SAMPLES)) for order in orders)
    assert len({tuple(order) for order in [*orders, *_orders("concat", seed=1)]}) == 6


@pytest.mark.parametrize("method", ["concat+ogm", "vanilla_mt+rollingq", "mbt", "unimodal:modality=visual"])
def test_all_methods_of_a_seed_see_the_same_batches(method: str) -> None:
    assert _orders(method, seed=0) == _orders("concat", seed=0)


def _orders(method: str, seed: int) -> list[list[int]]:
    watching = Watching("w", [])
    training = training_of(method, seed=seed, watch={"w": watching})
    per_epoch = []
    for epoch in range(3):
        watching.batches.clear()
        training.train(epoch)
        assert [len(b.index) for b in watching.batches] == [20, 20, 13]
        per_epoch.append(torch.cat([b.index for b in watching.batches]).tolist())
        assert all(torch.equal(b.target, training.targets[b.index]) for b in watching.batches)
    return per_epoch


def test_a_modality_is_augmented_in_training_alike_alone_and_in_company(tmp_path: Path) -> None:
    small = Augmented(Augmented.Settings())
    prepared = prepare("augmented", small, "c0de", tmp_path, tmp_path / "prepared")
    seen: dict[str, list[Tensor]] = {}
    for method, modalities in (("concat", ("audio", "visual")), ("unimodal:modality=visual", ("visual",))):
        watching = Watching("w", [])
        training = training_of(method, watch={"w": watching}, reader=Reader(prepared, small, modalities))
        training.train(0)
        training.train(1)
        seen[method] = [batch.inputs.values["visual"] for batch in watching.batches]
    together, alone = seen.values()
    assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))
    stored = Reader(prepared, small, ("visual",)).inputs(EVERYTHING).values["visual"]
    assert not torch.equal(torch.cat(alone[:3]).sum(dim=0), stored.sum(dim=0))


class Augmented(api.DataSet):
    """The shapes of `tests.training`, with noise added in training."""

    def describe(self, root: Path) -> api.DataSpec:
        encoder = api.EncoderSpec("sequence")
        return api.DataSpec({m: api.ModalitySpec(encoder, s, s, "float32") for m, s in SHAPES.items()}, 3)

    def samples(self, root: Path) -> list[api.Sample]:
        return [api.Sample(f"{k:02d}", float(k % 3), dict.fromkeys(SHAPES, str(k))) for k in range(SAMPLES)]

    def read(self, root: Path, modality: str, key: str) -> api.Item:
        rng = np.random.default_rng([derive(modality), int(key)])
        return api.Item(rng.standard_normal(SHAPES[modality]).astype(np.float32))

    def load(self, modality: str, stored: Tensor, generator: torch.Generator | None) -> Tensor:
        return stored if generator is None else stored + torch.randn(stored.shape, generator=generator)


def test_an_epochs_loss_is_the_mean_over_samples_not_over_batches() -> None:
    watching = Watching("w", [])
    record = training_of("concat", watch={"w": watching}).train(0)
    sizes = [20, 20, 13]
    assert record.losses["joint"] == pytest.approx(np.average(watching.means, weights=sizes), rel=1e-5)
    assert record.losses["joint"] != pytest.approx(np.mean(watching.means), rel=1e-6)
    assert set(record.losses) == {"joint", "probe/audio", "probe/visual"}


class Diverging(Watching):
    """A loss that is infinite in the second epoch."""

    def terms(self, run: Run, batch: Batch, output: Output, terms: dict[str, Tensor]) -> None:
        if run.epoch == 1:
            terms["joint"] = terms["joint"] + math.inf


def test_a_loss_that_is_not_finite_ends_the_epoch_it_happens_in() -> None:
    training = training_of("concat", watch={"w": Diverging("w", [])})
    training.train(0)
    with pytest.raises(TrialError, match="non-finite loss: epoch 1: joint = inf") as caught:
        training.train(1)
    assert caught.value.cause == "non-finite loss"


def test_logits_that_are_not_finite_are_not_scored() -> None:
    training = training_of("concat")
    next(training.model.fusion.parameters()).data.fill_(math.nan)
    with pytest.raises(TrialError, match="non-finite loss: epoch 0: the model's outputs are not finite"):
        training.evaluate(EVERYTHING)


class Logging(Watching):
    """Logs a tensor and a number."""

    def grads(self, run: Run, batch: Batch, output: Output) -> None:
        run.log("logged/tensor", batch.target.new_tensor(run.step, dtype=torch.float32))
        run.log("logged/number", 2.0 * run.step)


def test_what_is_logged_is_averaged_over_the_epochs_steps() -> None:
    training = training_of("concat", watch={"w": Logging("w", [])})
    assert training.train(0).diagnostics == {"logged/tensor": 1.0, "logged/number": 2.0}
    assert training.train(1).diagnostics == {"logged/tensor": 1.0, "logged/number": 2.0}


def test_the_epochs_record_holds_the_means_a_rotation_would_be_made_from() -> None:
    training = training_of("vanilla_mt")
    record = training.train(0)
    ((site, measured),) = record.sites.items()
    exact = training.site_means(site)
    assert measured.cosines == pytest.approx(exact.cosines, abs=1e-6)
    assert measured.query_norm == pytest.approx(exact.query_norm)
    assert measured.num_rotations == 0
    assert set(measured.last_batch) == set(SHAPES)


def test_the_last_batch_is_measured_before_its_step() -> None:
    """With a single batch, what it shows is what the untrained model shows of the same samples without dropout."""
    training = training_of("vanilla_mt:dropout=0", batch_size=SAMPLES)
    fresh = training_of("vanilla_mt:dropout=0", batch_size=SAMPLES)
    ((site, measured),) = training.train(0).sites.items()
    assert measured.last_batch == pytest.approx(fresh.site_means(site).cosines, abs=1e-6)
    trained = [training.train(epoch) for epoch in (1, 2)][-1].sites[site]
    assert trained.last_batch != pytest.approx(trained.cosines, abs=1e-6)
