"""What flows through a model: inputs, tokens, outputs, and what the task is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

Kind = Literal["classes", "regression"]


class Capability(StrEnum):
    """What a fusion provides or a task is, and what a strategy or fusion may require."""

    EXACT_UNIMODAL = "exact unimodal logits"  # logits split exactly over the modalities
    UNIMODAL_HEADS = "trained unimodal heads"  # heads with a gradient into their encoder
    JOINT_LOGITS = "joint logits"  # one logit vector computed from all modalities
    ATTENTION_SITE = "an attention site"  # one query competes over keys of several modalities
    SHARED_QUERY = "one query for all samples"  # what competes is one vector, not one per sample or head
    FEATURES = "unimodal features"  # one pooled vector per modality, graph attached
    SEVERAL_MODALITIES = "several modalities"
    CLASSES = "a classification task"
    EQUAL_DIMS = "encoders of equal width"


TASK_CAPABILITIES = frozenset({Capability.CLASSES, Capability.EQUAL_DIMS})
"""Capabilities that depend on the data set: where one is missing the row is skipped there, not refused."""


@dataclass(frozen=True)
class TaskSpec:
    """What a fusion may know of the task: modalities in order, token widths, outputs, size of the train split."""

    modalities: tuple[str, ...]
    dims: Mapping[str, int]
    num_outputs: int
    num_train: int
    kind: Kind = "classes"

    def capabilities(self) -> frozenset[Capability]:
        """The capabilities this task provides."""
        has = {
            Capability.CLASSES: self.kind == "classes",
            Capability.EQUAL_DIMS: len(set(self.dims.values())) == 1,
        }
        return frozenset(capability for capability, present in has.items() if present)

    @property
    def dim(self) -> int:
        """The width all modalities share; ValueError where they do not."""
        if len(set(self.dims.values())) != 1:
            raise ValueError(f"encoders have different widths: {dict(self.dims)}")
        return next(iter(self.dims.values()))

    def loss(self, logits: Float[Tensor, "batch outputs"], target: Tensor) -> Float[Tensor, ""]:
        """Mean cross-entropy, or mean absolute error of the first output for regression."""
        if self.kind == "classes":
            return F.cross_entropy(logits, target)
        return F.l1_loss(logits[:, 0], target.to(logits.dtype))


@dataclass(frozen=True)
class Inputs:
    """Encoder inputs of a batch: `values[m]` [batch, ...]; `masks[m]` [batch, steps], True = valid, where stated."""

    values: Mapping[str, Tensor]
    masks: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return int(next(iter(self.values.values())).shape[0])


@dataclass(frozen=True)
class Batch:
    """A training batch; `index` is each sample's position in the train split. Evaluation has `Inputs` alone."""

    inputs: Inputs
    target: Tensor
    index: Int[Tensor, " batch"]


@dataclass(frozen=True)
class Tokens:
    """Tokens of one modality: x [batch, tokens, dim]; mask [batch, tokens], True = valid, None = all valid."""

    x: Float[Tensor, "batch tokens dim"]
    mask: Bool[Tensor, "batch tokens"] | None = None
    has_class_token: bool = True

    @property
    def pooled(self) -> Float[Tensor, "batch dim"]:
        """The class token, or the mean over valid tokens where there is none."""
        if self.has_class_token:
            return self.x[:, 0]
        if self.mask is None:
            return self.x.mean(dim=1)
        weight = self.mask.to(self.x.dtype).unsqueeze(-1)  # [B, T, 1]
        return (self.x * weight).sum(dim=1) / weight.sum(dim=1).clamp_min(1)


@dataclass
class Output:
    """What a model returns for a batch.

    `logits` [batch, outputs] is what is evaluated. `features[m]` [batch, dim] are pooled, graph attached.
    `unimodal[source][m]` [batch, outputs] with source `exact`, `head` or `probe` (in order of preference).
    `auxiliary` holds further tensors whose first axis is the batch, `attention_mass/<m>` [batch] among them.
    """

    logits: Float[Tensor, "batch outputs"]
    features: dict[str, Tensor]
    unimodal: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    auxiliary: dict[str, Tensor] = field(default_factory=dict)

    def best_unimodal(self) -> dict[str, Tensor]:
        """Logits per modality from the best source there is: exact, then a trained head, then a probe."""
        best: dict[str, Tensor] = {}
        for source in ("probe", "head", "exact"):
            best.update(self.unimodal.get(source, {}))
        return {m: best[m] for m in self.features if m in best}
