"""A finished trial as a model that can be asked: its stored weights, its data, and the targets on the scoring side."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from bench import streams
from bench.api import DataSet, DataSpec, Fusion, Inputs, Model, Output, TaskSpec, Tokens
from bench.assembly import build_model, restored, task_of
from bench.data.prepared import Prepared
from bench.data.reader import Reader
from bench.data.splits import split_positions
from bench.errors import ResultsError
from bench.plan import TrialSpec
from bench.scoring import Truth
from bench.segments import read_outputs
from bench.store import Store
from bench.train import AUTOCAST, Evaluation

Key = TypeVar("Key")
Change = Callable[[str, Tensor, np.ndarray], Tensor]
"""(modality, values [batch, ...], positions [batch] of the samples) -> values; equal changes are made once a batch."""


@dataclass(frozen=True)
class Condition:
    """What is done to modalities before a model sees them; a modality that is not named stays as it is."""

    inputs: Mapping[str, Change] = field(default_factory=dict)
    """To what the encoder reads."""
    tokens: Mapping[str, Change] = field(default_factory=dict)
    """To the tokens that the fusion reads."""


CLEAN = Condition()


@dataclass(frozen=True)
class Moments:
    """Of a modality over the train split, padding left out; `mean` and `std` over all values of all samples."""

    mean: float
    std: float
    average: Tensor  # the mean sample [...]


class Material:
    """One data set under one split and fold: what all its trials share."""

    def __init__(self, prepared: Prepared, dataset: DataSet, split: str, fold: int, device: torch.device) -> None:
        self.prepared, self.dataset, self.device = prepared, dataset, device
        self.data: DataSpec = prepared.spec
        self.index: pd.DataFrame = prepared.index
        self.ids: np.ndarray = prepared.index["sample_id"].to_numpy(dtype=str)
        self.positions = split_positions(prepared.index, fold=fold, kind=split)
        self.truth = Truth.of(prepared, split, fold)
        self._readers: dict[tuple[str, ...], Reader] = {}
        self._moments: dict[str, Moments] = {}

    def reader(self, modalities: tuple[str, ...]) -> Reader:
        """Inputs of these modalities."""
        if modalities not in self._readers:
            self._readers[modalities] = Reader(self.prepared, self.dataset, modalities, self.device)
        return self._readers[modalities]

    def moments(self, modality: str) -> Moments:
        """Of a modality's inputs over the whole train split, as the encoder reads them."""
        if modality not in self._moments:
            reader = self.reader((modality,))
            batches = (reader.inputs(chunk) for chunk in chunks(self.positions["train"], 256))
            self._moments[modality] = moments((i.values[modality], i.masks.get(modality)) for i in batches)
        return self._moments[modality]


class LoadedTrial:
    """A finished trial in evaluation mode, with the weights of its stored epoch; nothing here changes it.

    `truth.targets[split]`, `positions[split]` and everything `evaluate` returns are in the order of the split.
    """

    def __init__(self, spec: TrialSpec, model: Model, task: TaskSpec, material: Material, store: Store) -> None:
        self.spec, self.task, self.material, self.store = spec, task, material, store
        self.model = model.to(material.device).eval()
        self.reader = material.reader(task.modalities)
        self.record: Mapping[str, Any] = store.read(spec.id, "record.json")
        self.data, self.index, self.ids = material.data, material.index, material.ids
        self.positions, self.truth, self.device = material.positions, material.truth, material.device
        self._token_moments: dict[str, Moments] = {}

    @classmethod
    def open(cls, store: Store, spec: TrialSpec, material: Material) -> LoadedTrial:
        """A finished trial of a store. Raises ResultsError if its weights cannot be read or do not fit."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        file = store.trial(spec.id) / "weights.safetensors"
        task = task_of(spec, material.data)
        model = build_model(spec, task, material.data)
        try:
            weights: dict[str, Tensor] = load_file(file)
            # Heads that a strategy brought along have no part in what is evaluated.
            model.load_state_dict({name: w for name, w in weights.items() if not name.startswith("heads.")})
        except (OSError, SafetensorError, RuntimeError) as error:
            first = str(error).splitlines()[0]
            raise ResultsError(f"{file}: cannot be used: {first}; remove the folder and run again") from None
        return cls(spec, model, task, material, store)

    @property
    def modalities(self) -> tuple[str, ...]:
        """Those the fusion reads, in order."""
        return self.task.modalities

    @property
    def encodes_apart(self) -> bool:
        """Whether every modality's tokens depend on this modality alone."""
        return type(self.model.fusion).encode is Fusion.encode

    def score(self, logits: np.ndarray, split: str = "test") -> float:
        """The metric of record."""
        return self.truth.score(split, logits)[self.truth.metric]

    def logits(self, split: str, condition: Condition = CLEAN) -> np.ndarray:
        """Logits [sample, outputs] of a split."""
        return self.evaluate(split, {0: condition})[0].logits

    def evaluate(
        self, split: str, conditions: Mapping[Key, Condition], batch_size: int | None = None
    ) -> dict[Key, Evaluation]:
        """Logits, unimodal logits and attention mass of a split under every condition.

        What conditions have in common is computed once. Without changes these are the outputs that were stored.
        """
        parts: dict[Key, list[Output]] = {key: [] for key in conditions}
        for positions, inputs in self.batches(split, batch_size):
            encoded: dict[Any, dict[str, Tokens]] = {}
            with self.quiet():
                for key, condition in conditions.items():
                    tokens = self._changed(self._encode(inputs, positions, condition, encoded), positions, condition)
                    output = self.model.fuse(tokens)
                    parts[key].append(Output(output.logits, {}, {"best": output.best_unimodal()}, _mass(output)))
        return {key: _joined(outputs) for key, outputs in parts.items()}

    def batches(self, split: str, batch_size: int | None = None) -> Iterator[tuple[np.ndarray, Inputs]]:
        """Positions and inputs of a split, cut as they were when the trial was evaluated in training."""
        for positions in chunks(self.positions[split], batch_size or self.spec.recipe.eval_batch_size):
            yield positions, self.reader.inputs(positions)

    def encode(self, inputs: Inputs, modalities: Sequence[str] | None = None) -> dict[str, Tokens]:
        """Tokens as the fusion reads them; of some modalities only where they are encoded apart."""
        wanted = self.modalities if modalities is None else modalities
        encoders: dict[str, Any] = {m: self.model.encoders[m] for m in wanted}
        return self.model.fusion.encode(encoders, inputs)

    def token_moments(self, modality: str) -> Moments:
        """Of the tokens that the fusion reads of a modality, over the whole train split."""
        if not self._token_moments:
            sums = {m: _Sums() for m in self.modalities}
            for _, inputs in self.batches("train"):
                with self.quiet():
                    for m, tokens in self.encode(inputs).items():
                        sums[m].add(tokens.x, tokens.mask)
            self._token_moments = {m: s.moments() for m, s in sums.items()}
        return self._token_moments[modality]

    def outputs(self, epoch: int) -> dict[str, np.ndarray] | None:
        """What was stored of an epoch, `val/logits`, `val/unimodal/<m>`, `val/mass/<m>` and the same of test.

        None where trajectories were left behind when the trial was copied here.
        """
        folder, segment = self.store.trajectories, self.record["segments"][epoch]
        try:
            return read_outputs(folder, segment, epoch)
        except (OSError, ResultsError):
            return None

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """No gradients, the recipe's precision, and whatever a fusion draws at evaluation from a stream of its own."""
        kind = AUTOCAST.get(self.spec.recipe.precision)
        cast: Any = nullcontext() if kind is None else torch.autocast(self.device.type, dtype=kind)
        with torch.no_grad(), streams.seeded(self.spec.seed, "analysis"), cast:
            yield

    def _encode(
        self, inputs: Inputs, positions: np.ndarray, condition: Condition, encoded: dict[Any, dict[str, Tokens]]
    ) -> dict[str, Tokens]:
        changes = {m: condition.inputs.get(m) for m in self.modalities}
        groups = [{m: change} for m, change in changes.items()] if self.encodes_apart else [changes]
        found: dict[str, Tokens] = {}
        for group in groups:
            key = tuple(group.items())
            if key not in encoded:
                values = dict(inputs.values)
                for m, change in group.items():
                    values[m] = values[m] if change is None else change(m, values[m], positions)
                encoded[key] = self.encode(Inputs(values, inputs.masks), list(group))
            found |= encoded[key]
        return found

    def _changed(self, tokens: dict[str, Tokens], positions: np.ndarray, condition: Condition) -> dict[str, Tokens]:
        changed = dict(tokens)
        for m, change in condition.tokens.items():
            changed[m] = dataclasses.replace(tokens[m], x=change(m, tokens[m].x, positions))
        return changed


def material_of(prepared: Prepared, spec: TrialSpec, device: torch.device) -> Material:
    """The material of a trial."""
    dataset_class, settings = restored("datasets", spec.dataset)
    return Material(prepared, dataset_class(settings), spec.split, spec.fold, device)


def chunks(positions: np.ndarray, size: int) -> list[np.ndarray]:
    """Positions in order, in as few parts of at most `size` as it takes, cut as training cuts them."""
    return np.array_split(positions, max(1, math.ceil(len(positions) / size)))


@dataclass
class _Sums:
    """Sums in float64 over batches [batch, ...], so that it does not matter how they were cut."""

    count: float = 0.0
    total: float = 0.0
    squares: float = 0.0
    each: Tensor | None = None
    weight: Tensor | None = None

    def add(self, values: Tensor, mask: Tensor | None) -> None:
        """Add a batch; `mask` [batch, steps] is True where a step is valid."""
        x = values.double()
        valid = torch.ones_like(x) if mask is None else mask[(...,) + (None,) * (x.ndim - 2)].expand_as(x).double()
        self.count += float(valid.sum())
        self.total += float((x * valid).sum())
        self.squares += float((x**2 * valid).sum())
        each, weight = (x * valid).sum(dim=0), valid.sum(dim=0)
        self.each = each if self.each is None else self.each + each
        self.weight = weight if self.weight is None else self.weight + weight

    def moments(self) -> Moments:
        """What the sums amount to."""
        assert self.each is not None
        assert self.weight is not None
        mean = self.total / self.count
        variance = max(0.0, self.squares / self.count - mean**2)
        return Moments(mean, math.sqrt(variance), (self.each / self.weight.clamp_min(1)).float())


def moments(batches: Iterator[tuple[Tensor, Tensor | None]]) -> Moments:
    """Of batches of values [batch, ...] with their masks [batch, steps]."""
    sums = _Sums()
    for values, mask in batches:
        sums.add(values, mask)
    return sums.moments()


def _mass(output: Output) -> dict[str, Tensor]:
    return {name: x for name, x in output.auxiliary.items() if name.startswith("attention_mass/")}


def _joined(outputs: Sequence[Output]) -> Evaluation:
    def join(tensors: Sequence[Tensor]) -> np.ndarray:
        return torch.cat(list(tensors)).float().cpu().numpy()

    first = outputs[0]
    return Evaluation(
        logits=join([o.logits for o in outputs]),
        unimodal={m: join([o.unimodal["best"][m] for o in outputs]) for m in first.unimodal["best"]},
        mass={
            name.removeprefix("attention_mass/"): join([o.auxiliary[name] for o in outputs]) for name in first.auxiliary
        },
    )
