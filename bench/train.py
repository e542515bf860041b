"""Training by epochs, in the step order of the contract.

One step::

    zero_grad -> model(batch.inputs) -> fusion.terms -> each strategy.terms, left to right -> probe terms
    -> backward -> unscale -> each strategy.grads, left to right -> clip (probes excluded) -> optimizer step

Nothing in a step waits for the device: losses and diagnostics are summed there and read once per epoch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor, nn

from bench import streams
from bench.api import Action, Batch, EpochRecord, Model, Output, Run, SiteMeans, Strategy, TaskSpec
from bench.data.reader import Reader
from bench.errors import TrialError
from bench.recipes import Recipe
from bench.sites import tapped

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Evaluation:
    """Outputs for a list of samples, in their order, as float32 on the host."""

    logits: np.ndarray  # [sample, outputs]
    unimodal: Mapping[str, np.ndarray]  # m -> [sample, outputs], from the best source
    mass: Mapping[str, np.ndarray]  # m -> [sample], empty without an attention site


class _EnoughError(Exception):
    """The steps that were wanted are done."""


class Training(Run):
    """One model in training: `train(epoch)` trains one epoch, `state_dict` is all that must survive."""

    def __init__(
        self,
        model: Model,
        strategies: Mapping[str, Strategy],
        task: TaskSpec,
        recipe: Recipe,
        seed: int,
        reader: Reader,
        positions: np.ndarray,
        targets: Tensor,
        device: torch.device,
    ) -> None:
        self.model, self.task, self.recipe, self.seed = model.to(device), task, recipe, seed
        self.strategies, self.reader, self.device = dict(strategies), reader, device
        self.positions = torch.from_numpy(np.ascontiguousarray(positions))
        self.targets = targets.to(device)
        self.epoch, self.step, self.num_epochs = 0, 0, recipe.epochs
        self.steps_per_epoch = math.ceil(len(positions) / recipe.batch_size)
        self._sums: dict[str, Tensor] = {}
        self._totals: list[Tensor] = []
        self._limit: int | None = None
        self._logged: dict[str, tuple[Tensor | float, int]] = {}
        self._owner = {owned: s for s in self.strategies.values() for owned in s.owns}
        for strategy in self.strategies.values():
            strategy.setup(self)
        self.model.to(device)
        self._clipped = [p for name, p in self.model.named_parameters() if not name.startswith("probes.")]
        self._clipped = [p for p in self._clipped if p.requires_grad]
        self.optimizer = self.new_optimizer([p for p in self.model.parameters() if p.requires_grad])
        self.scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "fp16")
        self._forward: Callable[..., Output] = torch.compile(self.model) if recipe.compile else self.model
        air = streams.permutation(len(positions), seed, "air")[: recipe.air_samples]
        self._air_index = torch.from_numpy(np.sort(air))

    def train(self, epoch: int) -> EpochRecord:
        """Train one epoch and measure the attention sites. Raises TrialError when a loss is not finite."""
        self.epoch, self.step = epoch, 0
        self._sums, self._totals, self._logged = {}, [], {}
        self.model.train()
        started = time.perf_counter()
        with streams.seeded(self.seed, epoch, "dropout"):
            for strategy in self.strategies.values():
                strategy.epoch_start(self)
            last_batch = self._train_batches()
            for strategy in self.strategies.values():
                strategy.epoch_end(self)
        losses = self._epoch_losses()
        seconds = time.perf_counter() - started
        sites = self.model.fusion.sites()
        with tapped(sites) as sums:
            for _ in self._pass(self._air_index) if sites else ():
                pass
        return EpochRecord(
            epoch=epoch,
            losses=losses,
            lr=float(self.optimizer.param_groups[0]["lr"]),
            sites={name: sums[name].record(site, last_batch[name]) for name, site in sites.items()},
            diagnostics=self._diagnostics(),
            steps=self.steps_per_epoch,
            train_seconds=seconds,
            num_epochs=self.num_epochs,
        )

    def step_losses(self) -> np.ndarray:
        """The sum of all loss terms at every step of the epoch so far, float32 [step]."""
        return torch.stack(self._totals).cpu().numpy() if self._totals else np.zeros(0, dtype=np.float32)

    def first_steps(self, epoch: int, count: int) -> np.ndarray:
        """`step_losses` of the first steps of an epoch; where that is not all of it, nothing can be trained after."""
        self._limit = count
        with suppress(_EnoughError):
            self.train(epoch)
        self._limit = None
        return self.step_losses()

    def apply(self, action: Action) -> dict[str, float]:
        """Carry out an action between epochs; returns what it logged."""
        self._logged = {}
        self.strategies[action.strategy].apply(self, action)
        return self._diagnostics()

    def evaluate(self, positions: np.ndarray) -> Evaluation:
        """Outputs for samples by position, in evaluation mode. Raises TrialError when a logit is not finite."""
        parts: list[Output] = []
        with self.quiet():
            for chunk in np.array_split(positions, max(1, math.ceil(len(positions) / self.recipe.eval_batch_size))):
                with self._autocast():
                    parts.append(self.model(self.reader.inputs(chunk)))
        logits = torch.cat([p.logits for p in parts]).float().cpu().numpy()
        if not np.isfinite(logits).all():
            raise TrialError("non-finite loss", f"epoch {self.epoch}: the model's outputs are not finite")
        best = [p.best_unimodal() for p in parts]
        masses = [name for name in parts[0].auxiliary if name.startswith("attention_mass/")]
        return Evaluation(
            logits=logits,
            unimodal={m: torch.cat([b[m] for b in best]).float().cpu().numpy() for m in best[0]},
            mass={
                name.removeprefix("attention_mass/"): torch.cat([p.auxiliary[name] for p in parts])
                .float()
                .cpu()
                .numpy()
                for name in masses
            },
        )

    def state_dict(self) -> dict[str, Any]:
        """Everything that later epochs depend on; random streams are derived and need no place here."""
        return {
            "epoch": self.epoch,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "strategies": {name: s.state_dict() for name, s in self.strategies.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become what `state_dict` described."""
        self.epoch = int(state["epoch"])
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        for name, strategy in self.strategies.items():
            # A trial that shares this state has no place for a strategy that did nothing so far.
            if name in state["strategies"]:
                strategy.load_state_dict(state["strategies"][name])

    def generator(self, stream: str) -> Generator:
        """A random generator of its own for this (seed, epoch, stream), on the model's device."""
        return streams.generator(self.seed, self.epoch, stream, device=self.device)

    def log(self, name: str, value: float | Tensor) -> None:
        """Add to the mean of a diagnostic over this epoch; a tensor stays on its device until the epoch ends."""
        value = value.detach() if isinstance(value, Tensor) else value
        total, count = self._logged.get(name, (0.0, 0))
        self._logged[name] = (total + value, count + 1)

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Evaluation mode without gradients; modes and random state come back afterwards."""
        modes = {module: module.training for module in self.model.modules()}
        self.model.eval()
        try:
            with torch.no_grad(), streams.untouched():
                yield
        finally:
            for module, training in modes.items():
                module.training = training

    def sweep(self, fraction: float = 1.0, stream: str | None = None) -> Iterator[tuple[Batch, Output]]:
        """Batches of the train split without augmentation, under `quiet()`, with the model's outputs."""
        count = max(1, round(fraction * len(self.positions)))
        if stream is None:
            index = torch.arange(count)
        else:
            chosen = streams.permutation(len(self.positions), self.seed, self.epoch, stream)[:count]
            index = torch.from_numpy(np.sort(chosen))
        yield from self._pass(index)

    def site_means(self, site: str) -> SiteMeans:
        """Exact means over the whole train split at a site: one evaluation pass."""
        with tapped({site: self.model.fusion.sites()[site]}) as sums:
            for _ in self._pass(torch.arange(len(self.positions))):
                pass
        return sums[site].means()

    def new_optimizer(self, params: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
        """An optimizer of the recipe's kind and hyperparameters."""
        r = self.recipe
        if r.optimizer == "sgd":
            return torch.optim.SGD(params, lr=r.lr, momentum=r.momentum, weight_decay=r.weight_decay, fused=True)
        kind = torch.optim.Adam if r.optimizer == "adam" else torch.optim.AdamW
        return kind(params, lr=r.lr, weight_decay=r.weight_decay)

    def _train_batches(self) -> dict[str, dict[str, float]]:
        if "epoch" in self._owner:
            for terms in self._owner["epoch"].train_epoch(self, self._batches):
                self._count(terms, 1)
            return {name: {} for name in self.model.fusion.sites()}
        sites = self.model.fusion.sites()
        last: dict[str, dict[str, float]] = {}
        for batch in self._batches():
            self._set_lr()
            if self.step + 1 < self.steps_per_epoch:
                self._train_step(batch, self._forward)
            else:
                with tapped(sites) as sums:
                    self._train_step(batch, self.model)
                last = {name: s.by_modality("cosine") for name, s in sums.items()}
            self.step += 1
        return last

    def _train_step(self, batch: Batch, forward: Callable[..., Output]) -> None:
        if "step" in self._owner:
            self._count(self._owner["step"].train_step(self, batch), len(batch.index))
            return
        self.optimizer.zero_grad(set_to_none=True)
        with self._autocast():
            output = forward(batch.inputs)
            terms = self.model.fusion.terms(output, batch)
            for strategy in self.strategies.values():
                strategy.terms(self, batch, output, terms)
            probes = {
                f"probe/{m}": self.task.loss(logits, batch.target)
                for m, logits in output.unimodal.get("probe", {}).items()
            }
        if "backward" in self._owner:
            self._owner["backward"].backward(self, batch, output, terms)
            if probes:
                self.scaler.scale(sum_of(probes)).backward()
        else:
            self.scaler.scale(sum_of({**terms, **probes})).backward()
        self.scaler.unscale_(self.optimizer)
        for strategy in self.strategies.values():
            strategy.grads(self, batch, output)
        if self.recipe.clip_norm is not None:
            nn.utils.clip_grad_norm_(self._clipped, self.recipe.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self._count({**terms, **probes}, len(batch.index))

    def _batches(self) -> Iterator[Batch]:
        order = torch.from_numpy(streams.permutation(len(self.positions), self.seed, self.epoch, "order"))
        augment = streams.generator(self.seed, self.epoch, "augment")
        for number, index in enumerate(order.split(self.recipe.batch_size)):
            if number == self._limit:
                raise _EnoughError
            inputs = self.reader.inputs(self.positions[index], augment)
            on_device = index.to(self.device, non_blocking=True)
            yield Batch(inputs, self.targets[on_device], on_device)

    def _pass(self, index: Tensor) -> Iterator[tuple[Batch, Output]]:
        for chunk in index.split(self.recipe.eval_batch_size):
            on_device = chunk.to(self.device)
            batch = Batch(self.reader.inputs(self.positions[chunk]), self.targets[on_device], on_device)
            with self.quiet(), self._autocast():
                output = self.model(batch.inputs)
            yield batch, output

    def _autocast(self) -> Any:
        kind = AUTOCAST.get(self.recipe.precision)
        return nullcontext() if kind is None else torch.autocast(self.device.type, dtype=kind)

    def _set_lr(self) -> None:
        step = self.epoch * self.steps_per_epoch + self.step
        factor = lr_factor(step, self.steps_per_epoch, self.recipe.warmup_epochs, self.num_epochs)
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.lr * factor

    def _count(self, terms: Mapping[str, Tensor], samples: int) -> None:
        if terms:
            self._totals.append(torch.stack([term.detach().float() for term in terms.values()]).sum())
        for name, term in terms.items():
            value = term.detach().float() * samples
            self._sums[name] = self._sums[name] + value if name in self._sums else value

    def _epoch_losses(self) -> dict[str, float]:
        if not self._sums:
            return {}
        values = torch.stack(list(self._sums.values())).cpu() / len(self.positions)
        losses = dict(zip(self._sums, values.tolist(), strict=True))
        bad = {name: value for name, value in losses.items() if not math.isfinite(value)}
        if bad:
            seen = ", ".join(f"{name} = {value}" for name, value in bad.items())
            raise TrialError("non-finite loss", f"epoch {self.epoch}: {seen}")
        return losses

    def _diagnostics(self) -> dict[str, float]:
        return {name: float(total) / count for name, (total, count) in self._logged.items()}


def lr_factor(step: int, steps_per_epoch: int, warmup_epochs: float, num_epochs: int) -> float:
    """The factor on the learning rate: linear from 0 over the warm-up steps, then half a cosine to 0.

    With 105 steps an epoch and 2.5 warm-up epochs the peak is step 262. A warm-up never takes more than a quarter
    of the training, so that a run of few epochs still trains.
    """
    total = steps_per_epoch * num_epochs
    warmup = min(int(warmup_epochs * steps_per_epoch), total // 4)
    if step < warmup:
        return step / warmup
    return 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def sum_of(terms: Mapping[str, Tensor]) -> Tensor:
    """The sum of named loss terms."""
    return torch.stack(list(terms.values())).sum()
