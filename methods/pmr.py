"""PMR: pull the features of the modality that lags towards the prototypes of their classes.

A prototype is the mean feature of a class in one modality. How well a modality's features find their own prototype
says whether it lags; if it does, a cross-entropy over distances to the prototypes speeds its encoder up, past the
fusion. In the first epochs an entropy term keeps the modality ahead from becoming certain too soon.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from bench import api
from bench.api import Batch, Capability, Output, Passes, Run, Strategy, TaskSpec, setting


def prototype_log_probabilities(
    features: Float[Tensor, "batch dim"], prototypes: Float[Tensor, "classes dim"], seen: Bool[Tensor, " classes"]
) -> Float[Tensor, "batch classes"]:
    """log softmax of the negative distances; a class without a prototype is infinitely far."""
    # The matrix-product form of cdist loses digits where a feature is close to its prototype.
    distances = torch.cdist(features.float(), prototypes, compute_mode="donot_use_mm_for_euclid_dist")
    return (-distances).masked_fill(~seen, -torch.inf).log_softmax(dim=1)


def prototype_loss(
    log_q: Float[Tensor, "batch classes"], target: Int[Tensor, " batch"], seen: Bool[Tensor, " classes"]
) -> Float[Tensor, ""]:
    """Mean cross-entropy over the samples whose class has a prototype; zero where none has."""
    known = seen[target]  # [B]
    own = log_q.gather(1, target.unsqueeze(1)).squeeze(1)  # [B]: -inf where the class is not known
    return -own.where(known, 0.0).sum() / known.sum().clamp_min(1)


def entropy(log_q: Float[Tensor, "batch classes"], seen: Bool[Tensor, " classes"]) -> Float[Tensor, ""]:
    """Mean entropy of the distributions over prototypes, in nats."""
    return -(log_q.exp() * log_q.masked_fill(~seen, 0.0)).sum(dim=1).mean()  # 0 log 0 = 0, gradient included


def lag_coefficients(scores: Float[Tensor, " modalities"], graded: bool = True) -> Float[Tensor, " modalities"]:
    """How much each modality is sped up: clip(s_best / s_m - 1, 0, 1), or 1 for all but the best if not graded."""
    best = scores.max()
    if not graded:
        return (scores < best).to(scores.dtype)
    return (best / scores.clamp_min(1e-8) - 1).clamp(0.0, 1.0)


class PMR(Strategy):
    """Prototypical modality rebalance.

    Differs from the paper: any number of modalities, each compared with the best, which is the paper's rule for two;
    a class that the sweep misses keeps its prototype, or counts as infinitely far until it has one (the released
    code divides by zero there); prototypes come from inputs without augmentation, of a seeded tenth of train.
    `graded=false:mu=0:momentum=0` is the released form: a hard switch between the modalities, no entropy term, and
    prototypes without memory, as in every command its authors published.
    """

    paper = "Fan, Xu, Wang, Wang and Guo, PMR: Prototypical Modal Rebalance for Multimodal Learning, CVPR 2023"
    reference = "fanyunfeng-bit/Modal-Imbalance-PMR (MIT)"
    home = "concat"

    @dataclass(frozen=True)
    class Settings(api.Settings):
        """Strength of both terms, and how prototypes are made."""

        alpha: float = setting(1.0, low=0.0, search=(0.1, 4.0), log=True, neutral=0.0, help="weight of the pull")
        momentum: float = setting(0.2, low=0.0, high=1.0, help="share of the old prototype in the new one")
        mu: float = setting(0.01, low=0.0, neutral=0.0, help="weight of the entropy of the modality ahead")
        per_epochs: int = setting(5, low=0, help="epochs with the entropy term")
        fraction: float = setting(0.1, low=0.001, high=1.0, help="share of train that prototypes are made of")
        graded: bool = setting(True, help="speed up by how far a modality lags; false: a hard switch, as released")

    settings: Settings

    def __init__(self, settings: Settings, task: TaskSpec) -> None:
        super().__init__(settings, task)
        self.prototypes: dict[str, Tensor] = {}  # m -> [classes, dim]
        self.seen = torch.zeros(task.num_outputs, dtype=torch.bool)

    @classmethod
    def requires(cls, settings: Settings) -> frozenset[Capability]:
        """Prototypes are class means of features, and a modality lags behind another."""
        return frozenset({Capability.CLASSES, Capability.FEATURES, Capability.SEVERAL_MODALITIES})

    @classmethod
    def extra_passes(cls, settings: Settings, num_epochs: int) -> Passes:
        """The sweep that prototypes are made of, every epoch."""
        return Passes(forwards=settings.fraction * num_epochs)

    def epoch_start(self, run: Run) -> None:
        """Move the prototypes to the features of this epoch."""
        counts, means = self._class_means(run)
        present = counts > 0
        old_seen = self.seen.to(present.device)
        for m, new in means.items():
            old = self.prototypes[m].to(new.device) if m in self.prototypes else new
            mixed = new.lerp(old, self.settings.momentum)
            moved = torch.where(old_seen.unsqueeze(1), mixed, new)
            self.prototypes[m] = torch.where(present.unsqueeze(1), moved, old)
        self.seen = old_seen | present

    def _class_means(self, run: Run) -> tuple[Tensor, dict[str, Tensor]]:
        """Samples per class [classes] in this epoch's sweep and, per modality, their mean features."""
        counts = torch.zeros(())
        sums: dict[str, Tensor] = {}
        for batch, output in run.sweep(self.settings.fraction, stream="pmr"):
            membership = F.one_hot(batch.target, self.task.num_outputs).float()  # [B, C]
            counts = counts.to(membership.device) + membership.sum(dim=0)
            for m, feature in output.features.items():
                # A product and no scatter: the order of additions is fixed on a GPU too.
                total = membership.T @ feature.float()  # [C, D]
                sums[m] = sums[m] + total if m in sums else total
        if not sums:
            raise ValueError(f"pmr: fraction={self.settings.fraction} of the train split holds no sample; raise it")
        return counts, {m: total / counts.clamp_min(1).unsqueeze(1) for m, total in sums.items()}

    def terms(self, run: Run, batch: Batch, output: Output, terms: dict[str, Tensor]) -> None:
        """Add `pmr/<m>` and, in the first epochs, `pmr/entropy/<m>`."""
        pull = self.settings.alpha > 0
        calm = self.settings.mu > 0 and run.epoch < self.settings.per_epochs
        if not pull and not calm:
            return
        log_q = {m: prototype_log_probabilities(z, self.prototypes[m], self.seen) for m, z in output.features.items()}
        column = batch.target.unsqueeze(1)  # [B, 1]
        scores = torch.stack([log.detach().gather(1, column).exp().sum() for log in log_q.values()])  # [M]
        lag = lag_coefficients(scores, self.settings.graded)
        best = scores.argmax()
        for position, (m, log) in enumerate(log_q.items()):
            run.log(f"pmr/coefficient/{m}", lag[position])
            if pull:
                loss = prototype_loss(log, batch.target, self.seen)
                terms[f"pmr/{m}"] = self.settings.alpha * lag[position] * loss
            if calm:
                ahead = lag.sum() * (best == position)
                terms[f"pmr/entropy/{m}"] = -self.settings.mu * ahead * entropy(log, self.seen)

    def state_dict(self) -> dict[str, Tensor]:
        """Prototypes [classes, dim] per modality and which classes have one [classes]."""
        return {"seen": self.seen} | {f"prototypes/{m}": values for m, values in self.prototypes.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take prototypes up again; the next epoch moves them to the model's device."""
        self.seen = state["seen"].clone()
        prefix = "prototypes/"
        self.prototypes = {k.removeprefix(prefix): v.clone() for k, v in state.items() if k.startswith(prefix)}
