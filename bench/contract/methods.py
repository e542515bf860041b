"""A method is a fusion and its strategies; both see the harness only through what stands here."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Generator, Tensor, nn

from bench.contract.flow import Batch, Capability, Inputs, Kind, Output, TaskSpec, Tokens
from bench.contract.hyperparameters import Settings
from bench.contract.records import Action, EpochRecord
from bench.contract.sites import AttentionSite, SiteMeans


class Encoder(nn.Module, ABC):
    """One modality's input to `Tokens`: a stem, stages that a fusion may run by itself, a final norm."""

    dim: int
    stages: nn.ModuleList  # each called as stage(x, mask) -> x
    norm: nn.Module

    @abstractmethod
    def stem(self, x: Tensor, mask: Tensor | None = None) -> Tokens:
        """Tokens before the first stage."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tokens:
        """Tokens after all stages and the norm."""
        tokens = self.stem(x, mask)
        hidden = tokens.x
        for stage in self.stages:
            hidden = stage(hidden, tokens.mask)
        return dataclasses.replace(tokens, x=self.norm(hidden))


class Plugin:
    """What fusions and strategies share: settings and a paper trail."""

    Settings: ClassVar[type[Settings]] = Settings
    paper: ClassVar[str] = ""
    """Authors, title, venue."""
    reference: ClassVar[str] = ""
    """Repository of the reference code and its licence."""
    aliases: ClassVar[Mapping[str, str]] = {}
    """Further names, each with the method text it stands for."""
    listed: ClassVar[bool] = True
    """Whether `--methods all` includes it."""

    @classmethod
    def requires(cls, settings: Any) -> frozenset[Capability]:
        """What the task (and, for a strategy, the fusion) must provide."""
        return frozenset()


class Fusion(nn.Module, Plugin, ABC):
    """What turns tokens of all modalities into logits. Override `forward`; the rest has defaults."""

    dead_parameters: ClassVar[Mapping[str, str]] = {}
    """Parameter name pattern (fnmatch) -> why it gets no gradient."""

    def __init__(self, settings: Any, task: TaskSpec) -> None:
        super().__init__()
        self.settings = settings
        self.task = task

    @classmethod
    def provides(cls, settings: Any) -> frozenset[Capability]:
        """What strategies may build on."""
        return frozenset({Capability.JOINT_LOGITS, Capability.FEATURES, Capability.SEVERAL_MODALITIES})

    @classmethod
    def uses(cls, settings: Any, modalities: Sequence[str]) -> tuple[str, ...]:
        """The modalities this fusion reads, in order; encoders are built for these only."""
        return tuple(modalities)

    def encode(self, encoders: Mapping[str, Encoder], inputs: Inputs) -> dict[str, Tokens]:
        """Tokens per modality; override for fusion inside the encoders."""
        return {m: encoder(inputs.values[m], inputs.masks.get(m)) for m, encoder in encoders.items()}

    @abstractmethod
    def forward(self, tokens: Mapping[str, Tokens]) -> Output:
        """Logits and unimodal parts of a batch."""

    def terms(self, output: Output, batch: Batch) -> dict[str, Tensor]:
        """Named loss terms; their sum is minimised."""
        return {"joint": self.task.loss(output.logits, batch.target)}

    def sites(self) -> dict[str, AttentionSite]:
        """The attention sites inside, by module path."""
        return {name: module for name, module in self.named_modules() if isinstance(module, AttentionSite)}

    def suffix_params(self, modality: str) -> list[nn.Parameter]:
        """Parameters of the fusion that belong to one modality's branch."""
        return []


class Model(nn.Module):
    """Encoders, a fusion, and detached probes for the modalities without a trained head."""

    def __init__(self, encoders: Mapping[str, Encoder], fusion: Fusion, probes: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict(dict(encoders))
        self.fusion = fusion
        self.probes = nn.ModuleDict(dict(probes))
        self.heads = nn.ModuleDict()  # for strategies that bring their own, in `setup`

    def forward(self, inputs: Inputs, present: frozenset[str] | None = None) -> Output:
        """The output for a batch; modalities not in `present` are replaced by zero raw input."""
        if present is not None:
            values = {m: x if m in present else torch.zeros_like(x) for m, x in inputs.values.items()}
            inputs = Inputs(values, inputs.masks)
        encoders: dict[str, Encoder] = dict(self.encoders.items())  # type: ignore[arg-type]  # ModuleDict is untyped
        return self.fuse(self.fusion.encode(encoders, inputs))

    def fuse(self, tokens: Mapping[str, Tokens]) -> Output:
        """The output for tokens that the fusion's `encode` made."""
        output: Output = self.fusion(tokens)
        if self.probes:
            output.unimodal["probe"] = {m: probe(output.features[m].detach()) for m, probe in self.probes.items()}
        return output

    def branch(self, modality: str) -> list[nn.Parameter]:
        """The trainable parameters of one modality upstream of the fusion."""
        params = [*self.encoders[modality].parameters(), *self.fusion.suffix_params(modality)]
        return [p for p in params if p.requires_grad]


class Run(ABC):
    """The only object strategies see: the model in training and what may be asked of the harness."""

    model: Model
    task: TaskSpec
    optimizer: torch.optim.Optimizer
    epoch: int
    num_epochs: int
    step: int
    """Index of the step within the epoch."""

    @abstractmethod
    def generator(self, stream: str) -> Generator:
        """A random generator of its own for this (seed, epoch, stream), on the model's device."""

    @abstractmethod
    def log(self, name: str, value: float | Tensor) -> None:
        """Add to the mean of a diagnostic over this epoch; a tensor stays on its device until the epoch ends."""

    @abstractmethod
    def quiet(self) -> AbstractContextManager[None]:
        """Evaluation mode without gradients; modes and random state come back afterwards."""

    @abstractmethod
    def sweep(self, fraction: float = 1.0, stream: str | None = None) -> Iterator[tuple[Batch, Output]]:
        """Batches of the train split without augmentation, under `quiet()`, with the model's outputs.

        With a `stream`, a fraction of the samples drawn from it for this epoch; else the first ones in order.
        """

    @abstractmethod
    def site_means(self, site: str) -> SiteMeans:
        """Exact means over the whole train split at a site: one evaluation pass."""

    @abstractmethod
    def new_optimizer(self, params: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
        """An optimizer of the main one's kind and hyperparameters for other parameters."""


@dataclass(frozen=True)
class Passes:
    """Forward and backward passes per train sample, over a whole training; a pass over half of them is 0.5."""

    forwards: float = 0.0
    backwards: float = 0.0


class Strategy(Plugin):
    """How training is steered. Override the hooks you need; `owns` those you replace."""

    home: ClassVar[str] = "concat"
    """The method text this strategy stands on when it is named alone."""
    owns: ClassVar[frozenset[str]] = frozenset()
    """Of `joint`, `backward`, `step`, `epoch`: exclusive in a composition."""
    rotates: ClassVar[bool] = False
    """Whether it may rotate an attention site: its cost then counts a dim x dim map at every site."""

    @classmethod
    def extra_passes(cls, settings: Any, num_epochs: int) -> Passes:
        """The most it adds to the one forward and one backward per epoch that every method makes."""
        return Passes()

    @classmethod
    def seed_offset(cls, settings: Any) -> int:
        """What is added to the trial's seed for everything random in its training.

        Tables pair the trial by its own seed nevertheless. Only a placebo has a use for anything but 0.
        """
        return 0

    def __init__(self, settings: Any, task: TaskSpec) -> None:
        self.settings = settings
        self.task = task

    def setup(self, run: Run) -> None:
        """Before the optimizer exists; may add modules to `run.model.heads`."""

    def epoch_start(self, run: Run) -> None:
        """Before the first batch of an epoch."""

    def terms(self, run: Run, batch: Batch, output: Output, terms: dict[str, Tensor]) -> None:
        """Add, scale or (as owner of `joint`) replace loss terms in place."""

    def backward(self, run: Run, batch: Batch, output: Output, terms: dict[str, Tensor]) -> None:
        """Fill the gradients; called only for the owner of `backward`."""

    def grads(self, run: Run, batch: Batch, output: Output) -> None:
        """Edit gradients after backward (unscaled) and before clipping."""

    def train_step(self, run: Run, batch: Batch) -> dict[str, Tensor]:
        """A whole step; called only for the owner of `step`. Returns detached loss terms."""
        return {}

    def train_epoch(self, run: Run, batches: Callable[[], Iterator[Batch]]) -> list[dict[str, Tensor]]:
        """A whole epoch; called only for the owner of `epoch`. Returns detached loss terms per step."""
        return []

    def epoch_end(self, run: Run) -> None:
        """After the last batch of an epoch, before anything is measured."""

    def decide(self, history: Sequence[EpochRecord]) -> Action | None:
        """What to do after the last epoch of `history`: a pure function of the stored records."""
        return None

    def apply(self, run: Run, action: Action) -> None:
        """Carry out an action that `decide` returned."""

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors that must survive an interruption."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """The opposite of `state_dict`."""


class Derived(Plugin, ABC):
    """A row computed from the stored logits of other rows of the same seed, never trained."""

    def __init__(self, settings: Any = None) -> None:
        self.settings = settings

    @abstractmethod
    def parts(self, modalities: Sequence[str]) -> list[str]:
        """The method texts it is computed from."""

    @abstractmethod
    def combine(self, logits: Sequence[np.ndarray], kind: Kind) -> np.ndarray:
        """Logits [sample, outputs] of the derived row from those of its parts."""
