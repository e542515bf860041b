"""A data set states its facts and turns raw files into items."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from torch import Generator, Tensor

from bench.contract.flow import Kind
from bench.contract.hyperparameters import Settings
from bench.errors import BenchError


@dataclass(frozen=True)
class EncoderSpec:
    """Which encoder a modality gets; every row of a cell gets the same."""

    family: Literal["vit", "sequence", "vector", "resnet"]
    dim: int = 64
    depth: int = 2
    heads: int = 4
    patch: tuple[int, int] = (16, 16)
    edge: Literal["pad", "crop"] = "pad"
    """What happens to a height or width that is no multiple of the patch: zeros are added, or the rest is cut."""
    weights: str = "none"
    """`none`, the path of a file, or a timm tag to be fetched from the hub."""


@dataclass(frozen=True)
class ModalitySpec:
    """One modality: its encoder, the per-sample shape an encoder sees, and how it is stored."""

    encoder: EncoderSpec
    shape: tuple[int, ...]
    """Per sample after `DataSet.load`: [C, H, W], [C, frames, H, W], [steps, dim] or [dim]."""
    stored_shape: tuple[int, ...]
    dtype: str
    masked: bool = False
    """Whether a mask [steps] is stored beside it."""


@dataclass(frozen=True)
class DataSpec:
    """What a data set looks like with its settings filled in."""

    modalities: Mapping[str, ModalitySpec]
    num_outputs: int
    kind: Kind = "classes"
    metric: str = "accuracy"
    class_names: tuple[str, ...] = ()
    """What each class is called in the source, in order; empty where that is nothing but its number."""
    scale: tuple[float, float] | None = None
    """The ends of a sentiment scale around 0, for regression: it is then also scored as Acc-2, Acc-7 and F1."""


@dataclass(frozen=True)
class Sample:
    """One sample before preparation.

    `sources[m]` is a key that `DataSet.read` understands; samples may share one. `split` is the official one or
    empty; `group` is what must not cross a split (actor, video, speaker), empty where there is none.
    """

    id: str
    target: float
    sources: Mapping[str, str]
    split: Literal["train", "val", "test", ""] = ""
    group: str = ""
    metadata: Mapping[str, str | float] = field(default_factory=dict)


@dataclass(frozen=True)
class Item:
    """What is stored of one source: values of `stored_shape` and, for masked modalities, a mask [steps]."""

    values: np.ndarray
    mask: np.ndarray | None = None


class DataError(BenchError):
    """Data that cannot be used: names the file, what was found and how to mend it."""


class DataSet(ABC):
    """A data set states its facts and turns raw files into items, once.

    `samples` and `read` see the raw files; `load` turns stored rows into encoder inputs, batch by batch, on the
    training device.
    """

    Settings: ClassVar[type[Settings]] = Settings
    title: ClassVar[str] = ""
    source: ClassVar[str] = ""
    licence: ClassVar[str] = ""
    groups: ClassVar[str] = ""
    """What a group is: `actor`, `video`, ...; empty where samples are independent."""
    known_faults: ClassVar[Sequence[str]] = ()
    recipe: ClassVar[str] = "small"
    epochs: ClassVar[int | None] = None
    """Overrides the recipe's number of epochs."""
    published_settings: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Plugin name -> settings that its paper used on this data set."""
    embedded: ClassVar[bool] = False
    """Whether it needs no files."""
    listed: ClassVar[bool] = True
    """Whether `--datasets all` includes it."""
    tolerated_loss: ClassVar[float] = 0.01
    """The share of samples that may be lost to missing or unreadable sources before preparing is refused."""

    def __init__(self, settings: Any) -> None:
        self.settings = settings

    @abstractmethod
    def describe(self, root: Path) -> DataSpec:
        """Modalities, shapes and outputs; reads at most file headers."""

    def unusable(self, root: Path) -> str | None:
        """None if its raw files are there; else what is missing and what would mend it."""
        return None

    def fetch(self, root: Path) -> None:
        """Downloads the raw files that are missing into `root`, where a public source has them; else does nothing.

        DataError, within seconds, if the source cannot be reached or gives something else.
        """
        return

    def raw_key(self, root: Path) -> str:
        """Identifies the content of raw files that a user may edit in place; a new key prepares them again."""
        return ""

    def group_of(self, sample_id: str) -> str:
        """The group that an id names by itself; empty where it names none."""
        return ""

    @abstractmethod
    def samples(self, root: Path) -> list[Sample]:
        """All samples, in a fixed order."""

    @abstractmethod
    def read(self, root: Path, modality: str, key: str) -> Item:
        """One source as it will be stored; raises DataError naming the file if it cannot be read."""

    def load(self, modality: str, stored: Tensor, generator: Generator | None) -> Tensor:
        """A stored batch as encoder input [batch, *shape]; augmented from `generator` if one is given."""
        return stored.float()
