"""What a method costs: parameters, MACs, FLOPs, passes of training. No data are needed.

Two counters stand side by side. thop's is what papers print: multiply-adds of the layers it has a rule for, and their
parameters. It does not see matrix products outside layers (attention), nor parameters that no such layer owns.
torch's counts every matrix product and convolution; neither counts softmax, activations or sums.
"""

from __future__ import annotations

import dataclasses
import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Generator, Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from bench import names
from bench.api import (
    Batch,
    DataSpec,
    EncoderSpec,
    Inputs,
    ModalitySpec,
    Model,
    Output,
    Passes,
    Run,
    SiteMeans,
    Strategy,
    TaskSpec,
)
from bench.assembly import build_model, build_strategies, restored, task_of
from bench.composition import reason_to_skip, refuse_illegal
from bench.data.manifest import spec_to_json
from bench.errors import RequestError
from bench.latency import Latency, bare_loss, latency, zero_batch
from bench.plan import PartSpec, TrialSpec
from bench.recipes import RECIPES, Recipe

__all__ = [
    "TABLE4",
    "Cost",
    "Latency",
    "TrainingCost",
    "inputs_of",
    "latency",
    "measure",
    "spec_of",
    "table4",
    "table4_data",
    "training_cost",
]

_T = TypeVar("_T")

PAPER_FACTOR = 128
"""Published GFLOPs are thop's GMACs per sample times 128: batch 64, two operations per multiply-add."""


@dataclass(frozen=True)
class Cost:
    """What a model holds, and what one sample costs it in evaluation.

    Parameters are those of the model as built, probes and strategies' heads included; buffers, a rotation among them,
    are none. `thop_*` and `true_gflops` are those of attention computed in full, as published, with a rotation
    where a strategy may rotate; `executed_gflops` is what runs here.
    """

    params: int
    trainable: int
    probe_params: int
    thop_gmacs: float
    thop_params: int
    true_gflops: float
    executed_gflops: float

    @property
    def published_gflops(self) -> float:
        """GFLOPs as the papers print them."""
        return PAPER_FACTOR * self.thop_gmacs

    def to_json(self) -> dict[str, float | int]:
        """Plain values by field name."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class TrainingCost:
    """What a whole training costs per train sample; scoring val and test after each epoch is not in it."""

    epochs: int
    num_train: int
    extra: Passes
    """What the strategies add, at most."""
    measuring: float
    """Forward passes in which the harness measures attention sites."""
    forward_gflops: float
    step_gflops: float
    """One forward and one backward."""

    @property
    def forwards(self) -> float:
        """Forward passes per train sample."""
        return self.epochs + self.extra.forwards + self.measuring

    @property
    def backwards(self) -> float:
        """Backward passes per train sample."""
        return self.epochs + self.extra.backwards

    @property
    def total_gflops(self) -> float:
        """All passes over all samples."""
        backward = self.step_gflops - self.forward_gflops
        return self.num_train * (self.forwards * self.forward_gflops + self.backwards * backward)

    def to_json(self) -> dict[str, Any]:
        """Plain values by name, sums included."""
        sums = {"forwards": self.forwards, "backwards": self.backwards, "total_gflops": self.total_gflops}
        return dataclasses.asdict(self) | sums


def measure(spec: TrialSpec, data: DataSpec) -> Cost:
    """What a trial's model costs per sample; computed once per process for equal models and shapes."""
    return _measured(_Question.of(spec, data))


def training_cost(spec: TrialSpec, data: DataSpec) -> TrainingCost:
    """What a trial's training costs, extra passes of its strategies included."""
    plugins = [restored("methods", part) for part in spec.strategies]
    passes = [plugin.extra_passes(settings, spec.recipe.epochs) for plugin, settings in plugins]
    has_sites, step = _step_flops(_Question.of(spec, data))
    measured = min(spec.recipe.air_samples, spec.num_train) / spec.num_train if has_sites else 0.0
    return TrainingCost(
        epochs=spec.recipe.epochs,
        num_train=spec.num_train,
        extra=Passes(math.fsum(p.forwards for p in passes), math.fsum(p.backwards for p in passes)),
        measuring=measured * spec.recipe.epochs,
        forward_gflops=measure(spec, data).executed_gflops,
        step_gflops=step * 1e-9,
    )


def spec_of(
    text: str, data: DataSpec, encoders: Mapping[str, EncoderSpec] | None = None, recipe: Recipe = RECIPES["published"]
) -> TrialSpec:
    """A method as a trial of one sample on shapes alone. Raises RequestError for what no data set allows."""
    method = names.resolve_method(text, tuple(data.modalities))
    if method.derived:
        raise RequestError(f"{text!r} is computed from other rows and has no cost of its own; ask for those")
    refuse_illegal(method)
    chosen = dict(encoders or {m: spec.encoder for m, spec in data.modalities.items()})
    dims = {m: encoder.dim for m, encoder in chosen.items()}
    reason = reason_to_skip(method, TaskSpec(tuple(chosen), dims, data.num_outputs, 1, data.kind))
    if reason is not None:
        raise RequestError(f"{text!r} does not apply to these shapes: {reason}")
    return TrialSpec(
        method=method.canonical,
        data="",
        fusion=PartSpec.of(method.base),
        strategies=tuple(PartSpec.of(part) for part in method.strategies),
        dataset=PartSpec("", {}, ""),
        fingerprint="",
        split="",
        fold=0,
        split_hash="",
        num_train=1,
        encoders=chosen,
        weights={},
        recipe=recipe,
        seed=0,
    )


def inputs_of(task: TaskSpec, data: DataSpec, batch: int, device: torch.device | str = "cpu") -> Inputs:
    """Zeros of the shapes a task's encoders see, all steps valid where a mask is stated."""
    values = {m: torch.zeros(batch, *data.modalities[m].shape, device=device) for m in task.modalities}
    masked = [m for m in task.modalities if data.modalities[m].masked]
    masks = {m: torch.ones(values[m].shape[:2], dtype=torch.bool, device=device) for m in masked}
    return Inputs(values, masks)


@dataclass(frozen=True)
class _Question:
    """A trial reduced to what its cost depends on: equal where `key` is equal."""

    key: str
    spec: TrialSpec = field(compare=False)
    data: DataSpec = field(compare=False)

    @classmethod
    def of(cls, spec: TrialSpec, data: DataSpec) -> _Question:
        parts = [part.identity() for part in (spec.fusion, *spec.strategies)]
        # Weights cost nothing, and asking a hub for them would.
        encoders = {m: dataclasses.replace(encoder, weights="none") for m, encoder in spec.encoders.items()}
        plain = {m: dataclasses.asdict(encoder) for m, encoder in encoders.items()}
        key = json.dumps([parts, plain, spec_to_json(data)], sort_keys=True)
        return cls(key, dataclasses.replace(spec, encoders=encoders), data)

    def build(self, device: str) -> tuple[Model, TaskSpec, dict[str, Strategy]]:
        """The model in evaluation mode, with the heads its strategies bring."""
        with torch.device(device):
            task = task_of(self.spec, self.data)
            model, strategies = build_model(self.spec, task, self.data), build_strategies(self.spec, task)
            for strategy in strategies.values():
                strategy.setup(_Setup(model, task, self.spec.recipe.epochs))
        return model.eval().to(device), task, strategies


@cache
def _measured(question: _Question) -> Cost:
    return _off_data(lambda device: _count_all(question, device))


def _count_all(question: _Question, device: str) -> Cost:
    model, task, strategies = question.build(device)
    inputs = inputs_of(task, question.data, 1, device)
    params = list(model.parameters())
    executed = _flops(model, inputs) if _computes_in_full(model, False) else None
    _computes_in_full(model, True)
    true, in_sites, macs, thop_params = _full_counts(model, inputs)
    executed = true if executed is None else executed
    rotations = sum(site.dim**2 for site in model.fusion.sites().values())
    if any(strategy.rotates for strategy in strategies.values()):
        macs, thop_params = macs + rotations, thop_params + rotations
    else:
        true -= in_sites  # the identity that every site applies is no part of such a method
    return Cost(
        params=sum(p.numel() for p in params),
        trainable=sum(p.numel() for p in params if p.requires_grad),
        probe_params=sum(p.numel() for p in model.probes.parameters()),
        thop_gmacs=macs * 1e-9,
        thop_params=thop_params,
        true_gflops=true * 1e-9,
        executed_gflops=executed * 1e-9,
    )


@cache
def _step_flops(question: _Question) -> tuple[bool, int]:
    """Whether there are attention sites, and FLOPs of one forward and backward of a sample."""

    def count(device: str) -> tuple[bool, int]:
        model, task, _ = question.build(device)
        inputs = inputs_of(task, question.data, 1, device)
        with _every_product_seen(), FlopCounterMode(display=False) as counter:
            bare_loss(model, task, zero_batch(task, inputs)).backward()
        return bool(model.fusion.sites()), counter.get_total_flops()

    return _off_data(count)


def _off_data(count: Callable[[str], _T]) -> _T:
    """The count on the meta device, or on the CPU for a model that looks at values while it runs."""
    try:
        return count("meta")
    except RuntimeError:  # what meta tensors raise when they are asked for a value, or lack an operator
        return count("cpu")


def _computes_in_full(model: nn.Module, full: bool) -> bool:
    """Set every module that can skip what nobody reads (its attribute `full`); whether there is any."""
    skipping = [vars(module) for module in model.modules() if "full" in vars(module)]
    for attributes in skipping:
        attributes["full"] = full
    return bool(skipping)


def _flops(model: Model, inputs: Inputs) -> int:
    """FLOPs of a forward pass by torch's counter."""
    with torch.no_grad(), _every_product_seen(), FlopCounterMode(display=False) as counter:
        model(inputs)
    return counter.get_total_flops()


def _full_counts(model: Model, inputs: Inputs) -> tuple[int, int, float, int]:
    """FLOPs, those of them inside attention sites, thop's MACs and thop's parameters, all of one forward pass.

    thop leaves hooks and buffers behind: the model is of no use afterwards.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it compares versions by a deprecated module, at import and at every call
        import thop
        from thop.profile import register_hooks

        # thop looks a type up as it is, and would not see timm's subclass of LayerNorm.
        kinds = {type(module) for module in model.modules()} - register_hooks.keys()
        bases = {kind: next((b for b in kind.__mro__ if b in register_hooks), None) for kind in kinds}
        rules = {kind: register_hooks[base] for kind, base in bases.items() if base is not None}
        with _every_product_seen(), FlopCounterMode(display=False) as counter:
            macs, params = thop.profile(model, inputs=(inputs,), custom_ops=rules, verbose=False)
    counts = counter.get_flop_counts()
    sites = [f"{type(model).__name__}.fusion.{name}" for name in model.fusion.sites()]
    return counter.get_total_flops(), sum(sum(counts[site].values()) for site in sites), float(macs), int(params)


@contextmanager
def _every_product_seen() -> Iterator[None]:
    """Without the fused kernels of torch's own attention and recurrent layers, which its counter does not see."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.backends.mkldnn.flags(enabled=False, allow_tf32=None):  # None: as it is
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


class _Setup(Run):
    """What a strategy's `setup` may use: the model, before there are data."""

    def __init__(self, model: Model, task: TaskSpec, num_epochs: int) -> None:
        self.model, self.task = model, task
        self.epoch, self.num_epochs, self.step = 0, num_epochs, 0

    def generator(self, stream: str) -> Generator:
        return Generator()

    def log(self, name: str, value: float | Tensor) -> None:
        del name, value  # nobody reads it

    def quiet(self) -> AbstractContextManager[None]:
        return nullcontext()

    def sweep(self, fraction: float = 1.0, stream: str | None = None) -> Iterator[tuple[Batch, Output]]:
        return iter(())

    def site_means(self, site: str) -> SiteMeans:
        raise RequestError(f"the means at {site} were asked for before training; `setup` has no data")

    def new_optimizer(self, params: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD(params, lr=0.0)


TABLE4 = {
    "mbt": "mbt:layers=4:tokens=2:heads=1:head=mean",
    "mmml": "mmml:layers=1:readout=mlp:class_token=encoder",
    "jmt": "jmt:lite=true:readout=mean",
    "rollingq": "rollingq",
}
"""Rows of RollingQ's Table 4 -> the methods whose cost reproduces them."""

_TABLE4_REASONS = {
    "mbt": "Published: four blocks with two bottleneck tokens per modality on top of the encoders.",
    "mmml": "Published with its two trained unimodal heads in place of probes.",
    "jmt": "Published with audio padded to the length of the visual tokens, which is not executed.",
    "rollingq": "Published with the rotation as a layer; here it is a buffer, and true FLOPs hold its product.",
}


def table4_data() -> DataSpec:
    """CREMA-D as Table 4 was measured: a 257 x 188 spectrogram with its axes swapped, and one frame of 224 x 224."""
    encoder = EncoderSpec("vit", dim=768, depth=4, heads=12, patch=(16, 16), edge="crop")
    shapes = {"audio": (1, 188, 257), "visual": (3, 224, 224)}
    return DataSpec({m: ModalitySpec(encoder, shape, shape, "float32") for m, shape in shapes.items()}, num_outputs=6)


def table4() -> list[dict[str, Any]]:
    """The rows of RollingQ's Table 4 as printed there, each beside its true cost and why the two differ."""
    data = table4_data()
    rows = []
    for row, text in TABLE4.items():
        spec = spec_of(text, data)
        cost = measure(spec, data)
        rows.append(
            {
                "method": row,
                "params_m": 1e-6 * cost.thop_params,
                "gflops_published_convention": cost.published_gflops,
                "true_params_m": 1e-6 * cost.params,
                "true_gflops_per_sample": cost.true_gflops,
                "executed_gflops_per_sample": cost.executed_gflops,
                "note": f"{_TABLE4_REASONS[row]} {_difference(spec, data, cost)}",
            }
        )
    return rows


def _difference(spec: TrialSpec, data: DataSpec, cost: Cost) -> str:
    """What thop leaves out of a model, and what published numbers add to thop's."""
    bare = measure(dataclasses.replace(spec, strategies=()), data)
    unseen = bare.params - bare.thop_params
    added = cost.thop_params - bare.thop_params
    products = cost.true_gflops - 2 * cost.thop_gmacs
    text = (
        f"thop leaves out {unseen:,} parameters that no counted layer owns (class tokens, positions) and attention's "
        f"two matrix products, and counts norms: 2 x GMACs fall short of true GFLOPs by {products:.3f} per sample."
    )
    return f"{text} The rotation adds {added:,} parameters and MACs." if added else text
