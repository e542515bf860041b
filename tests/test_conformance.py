"""Every plugin keeps the contract, those not written yet included; and every check fails where it should."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Generator, Tensor, nn

from bench import api, plugins
from bench.api import (
    Action,
    Batch,
    Capability,
    DataSet,
    DataSpec,
    Derived,
    EncoderSpec,
    EpochRecord,
    Fusion,
    Item,
    Kind,
    ModalitySpec,
    Output,
    Run,
    Sample,
    Strategy,
    TaskSpec,
    Tokens,
    setting,
)
from bench.conformance import Check, checks_for, checks_of
from bench.names import Part

GROUPS: tuple[plugins.Group, ...] = ("methods", "datasets")


def every_check() -> list[Any]:
    return [
        pytest.param(check, id=f"{name}-{check.name.replace(' ', '_')}")
        for group in GROUPS
        for name in plugins.names(group)
        for check in checks_for(group, name)
    ]


@pytest.mark.parametrize("check", every_check())
def test_plugin_keeps_the_contract(check: Check) -> None:
    check.run()


class GoodFusion(Fusion):
    """A linear layer on the sum of linear maps of the features."""

    paper = "none: a test"
    reference = "none"

    @dataclass(frozen=True)
    class Settings(api.Settings):
        """None."""

    def __init__(self, settings: Any, task: TaskSpec) -> None:
        super().__init__(settings, task)
        self.inner = nn.ModuleDict({m: nn.Linear(task.dims[m], 8) for m in task.modalities})
        self.head = nn.Linear(8, task.num_outputs)

    def pooled(self, tokens: Tokens) -> Tensor:
        return tokens.pooled

    def forward(self, tokens: Mapping[str, Tokens]) -> Output:
        features = {m: tokens[m].pooled for m in self.task.modalities}
        mixed = torch.stack([self.inner[m](self.pooled(tokens[m])) for m in features]).sum(dim=0)
        return Output(self.head(mixed.tanh()), features)


class LooseSettings(GoodFusion):
    """Settings that are not frozen."""

    @dataclass
    class Settings:
        alpha: float = 1.0


class SearchesBeyondBounds(GoodFusion):
    """A search range that leaves what is allowed."""

    @dataclass(frozen=True)
    class Settings(api.Settings):
        alpha: float = setting(0.5, low=0.0, high=1.0, search=(0.0, 2.0))


class Undocumented(GoodFusion):
    pass


class WithoutPaper(GoodFusion):
    """Says nothing of where it comes from."""

    paper = ""


class TwoOnly(GoodFusion):
    """Reads two modalities, whatever the task has."""

    def forward(self, tokens: Mapping[str, Tokens]) -> Output:
        first, second = tokens
        return super().forward({first: tokens[first], second: tokens[second]})


class WrongShape(GoodFusion):
    """Flattens its logits."""

    def forward(self, tokens: Mapping[str, Tokens]) -> Output:
        output = super().forward(tokens)
        return Output(output.logits.repeat(1, 2)[:, : self.task.num_outputs + 1], output.features)


class Idle(GoodFusion):
    """Has a layer it never uses."""

    def __init__(self, settings: Any, task: TaskSpec) -> None:
        super().__init__(settings, task)
        self.spare = nn.Linear(3, 3)


class FalselyDead(GoodFusion):
    """Lists a parameter that is alive."""

    dead_parameters: ClassVar[Mapping[str, str]] = {"head.*": "a mistake"}


class InexactSplit(GoodFusion):
    """Claims exact logits that do not add up."""

    @classmethod
    def provides(cls, settings: Any) -> frozenset[Capability]:
        return super().provides(settings) | {Capability.EXACT_UNIMODAL}

    def forward(self, tokens: Mapping[str, Tokens]) -> Output:
        output = super().forward(tokens)
        output.unimodal["exact"] = dict.fromkeys(output.features, output.logits)
        return output


class SilentSite(GoodFusion):
    """Claims an attention site and has none."""

    @classmethod
    def provides(cls, settings: Any) -> frozenset[Capability]:
        return super().provides(settings) | {Capability.ATTENTION_SITE}


class DetachedFeatures(GoodFusion):
    """Cuts its features off the graph."""

    def forward(self, tokens: Mapping[str, Tokens]) -> Output:
        output = super().forward(tokens)
        return Output(output.logits, {m: z.detach() for m, z in output.features.items()})


class UnsaidHeads(GoodFusion):
    """Has trained heads and does not say so."""

    def forward(self, tokens: Mapping[str, Tokens]) -> Output:
        output = super().forward(tokens)
        output.unimodal["head"] = {m: self.head(self.inner[m](z)) for m, z in output.features.items()}
        return output


class EqualWidthsUnsaid(GoodFusion):
    """Needs encoders of one width and does not say so."""

    def __init__(self, settings: Any, task: TaskSpec) -> None:
        super().__init__(settings, task)
        self.inner = nn.ModuleDict({m: nn.Linear(task.dim, 8) for m in task.modalities})


class SharedSuffix(GoodFusion):
    """Puts one parameter into every branch."""

    def suffix_params(self, modality: str) -> list[nn.Parameter]:
        return [self.head.weight]


class LooseSuffix(GoodFusion):
    """Puts a parameter into a branch that the model does not have."""

    def suffix_params(self, modality: str) -> list[nn.Parameter]:
        return [nn.Parameter(torch.zeros(2))]


class AttachedProbe(GoodFusion):
    """Gives logits with a graph the name of probes, so that their loss reaches the encoders."""

    @classmethod
    def provides(cls, settings: Any) -> frozenset[Capability]:
        return super().provides(settings) | {Capability.UNIMODAL_HEADS}

    def forward(self, tokens: Mapping[str, Tokens]) -> Output:
        output = super().forward(tokens)
        output.unimodal["probe"] = {m: self.head(self.inner[m](z)) for m, z in output.features.items()}
        return output


class BatchCentred(GoodFusion):
    """Subtracts the mean over whatever batch it is given."""

    def pooled(self, tokens: Tokens) -> Tensor:
        return tokens.pooled - tokens.pooled.mean(dim=0)


class OutsideRandomness(GoodFusion):
    """Draws from a stream that no seed of the harness governs."""

    def pooled(self, tokens: Tokens) -> Tensor:
        return tokens.pooled * (1 + float(np.random.rand()) * self.training)


class Forgetful(GoodFusion):
    """Counts steps where no state dict sees it."""

    steps = 0

    def pooled(self, tokens: Tokens) -> Tensor:
        self.steps += self.training
        return tokens.pooled * (1 + 0.1 * self.steps)


class NeedsAStep(GoodFusion):
    """Averages over the valid steps and divides by none of them."""

    def pooled(self, tokens: Tokens) -> Tensor:
        if tokens.mask is None:
            return tokens.pooled
        valid = tokens.mask[:, 1:].unsqueeze(-1).to(tokens.x.dtype)
        return (tokens.x[:, 1:] * valid).sum(dim=1) / valid.sum(dim=1)


class BlindToMasks(GoodFusion):
    """Averages over padding too."""

    def pooled(self, tokens: Tokens) -> Tensor:
        return tokens.x.mean(dim=1)


BROKEN_FUSIONS = [
    (LooseSettings, "settings are well formed", "subclass of bench.api.Settings"),
    (SearchesBeyondBounds, "settings are well formed", "must lie in 0.0 to 1.0"),
    (Undocumented, "documented", "docstring"),
    (WithoutPaper, "documented", "paper"),
    (TwoOnly, "builds for two and three modalities", "too many values"),
    (WrongShape, "builds for two and three modalities", "logits: expected"),
    (Idle, "every parameter gets a gradient", "fusion.spare.weight"),
    (FalselyDead, "every parameter gets a gradient", "dead_parameters"),
    (InexactSplit, "provides says the truth", "add up"),
    (SilentSite, "provides says the truth", "attention site"),
    (DetachedFeatures, "provides says the truth", "detached"),
    (UnsaidHeads, "provides says the truth", "does not state"),
    (EqualWidthsUnsaid, "requires says the truth", "different widths"),
    (SharedSuffix, "branches are disjoint and complete", "fusion.head.weight"),
    (LooseSuffix, "branches are disjoint and complete", "the model does not have"),
    (AttachedProbe, "probe gradients stay out", "must be detached"),
    (BatchCentred, "evaluation is deterministic and free of batch size", "differ by"),
    (OutsideRandomness, "the same seed gives the same training", "one seed"),
    (Forgetful, "save and load give the same model", "saved copy"),
    (NeedsAStep, "finite under missing modalities", "not finite"),
    (BlindToMasks, "padding has no influence", "padded steps"),
]


class GoodStrategy(Strategy):
    """Adds a weighted penalty on the logits."""

    paper = "none: a test"
    reference = "none"

    @dataclass(frozen=True)
    class Settings(api.Settings):
        weight: float = setting(0.1, low=0.0, neutral=0.0)

    def terms(self, run: Run, batch: Batch, output: Output, terms: dict[str, Tensor]) -> None:
        if self.settings.weight:
            terms["penalty"] = self.settings.weight * output.logits.square().mean()


class StepUnowned(GoodStrategy):
    """Overrides a step it does not own."""

    def train_step(self, run: Run, batch: Batch) -> dict[str, Tensor]:
        return {}


class Homeless(GoodStrategy):
    """Requires what its home does not have."""

    @classmethod
    def requires(cls, settings: Any) -> frozenset[Capability]:
        return frozenset({Capability.ATTENTION_SITE})


class PairsOnly(GoodStrategy):
    """Knows two modalities."""

    def terms(self, run: Run, batch: Batch, output: Output, terms: dict[str, Tensor]) -> None:
        first, second = output.features.values()
        terms["near"] = (first - second).square().mean()


class NotANumber(GoodStrategy):
    """Divides zero by zero."""

    def terms(self, run: Run, batch: Batch, output: Output, terms: dict[str, Tensor]) -> None:
        terms["nan"] = output.logits.sum() * 0 / 0


class IdleHead(GoodStrategy):
    """Brings a head and never uses it."""

    def setup(self, run: Run) -> None:
        run.model.heads["spare"] = nn.Linear(3, 3)


class BorrowedHead(GoodStrategy):
    """Calls the fusion's head its own."""

    def setup(self, run: Run) -> None:
        head = run.model.fusion.head
        assert isinstance(head, nn.Module)
        run.model.heads["borrowed"] = head


class BatchHook(GoodStrategy):
    """Makes the fusion depend on the batch."""

    def setup(self, run: Run) -> None:
        def centre(_: nn.Module, __: object, output: Output) -> None:
            output.logits = output.logits - output.logits.mean(dim=0)

        run.model.fusion.register_forward_hook(centre)


class StrayNoise(GoodStrategy):
    """Draws from numpy's global state."""

    def terms(self, run: Run, batch: Batch, output: Output, terms: dict[str, Tensor]) -> None:
        terms["noise"] = float(np.random.rand()) * output.logits.square().mean()


class LostState(GoodStrategy):
    """Counts epochs and does not save the count."""

    epochs = 0

    def epoch_start(self, run: Run) -> None:
        self.epochs += 1

    def terms(self, run: Run, batch: Batch, output: Output, terms: dict[str, Tensor]) -> None:
        terms["growing"] = self.epochs * output.logits.square().mean()


class ClassesUnsaid(GoodStrategy):
    """Needs classes and does not say so."""

    def terms(self, run: Run, batch: Batch, output: Output, terms: dict[str, Tensor]) -> None:
        terms["own"] = output.logits.gather(1, batch.target.unsqueeze(1)).mean()


class NeverNeutral(GoodStrategy):
    """Scales the loss even where its weight is zero."""

    def terms(self, run: Run, batch: Batch, output: Output, terms: dict[str, Tensor]) -> None:
        terms["joint"] = terms["joint"] * 1.5


class ImpureDecision(GoodStrategy):
    """Acts every second time it is asked."""

    asked = 0

    def decide(self, history: Sequence[EpochRecord]) -> Action | None:
        self.asked += 1
        return Action("test", "act") if self.asked % 2 else None

    def apply(self, run: Run, action: Action) -> None:
        run.log("acted", 1.0)


class DecidesForNothing(GoodStrategy):
    """Decides and has no way to act."""

    def decide(self, history: Sequence[EpochRecord]) -> Action | None:
        return None


BROKEN_STRATEGIES = [
    (StepUnowned, "owns what it overrides", "add it to owns"),
    (DecidesForNothing, "owns what it overrides", "decide and apply"),
    (Homeless, "home provides what it requires", "an attention site"),
    (PairsOnly, "trains with two and three modalities", "too many values"),
    (NotANumber, "trains with two and three modalities", "non-finite loss"),
    (IdleHead, "every parameter gets a gradient", "heads.spare"),
    (BorrowedHead, "branches are disjoint and complete", "fusion.head"),
    (BatchHook, "evaluation is deterministic and free of batch size", "differ by"),
    (StrayNoise, "the same seed gives the same training", "one seed"),
    (LostState, "save and load give the same model", "after save and load"),
    (ClassesUnsaid, "requires says the truth", "int64"),
    (NeverNeutral, "neutral settings equal the bare fusion", "in the bare fusion"),
    (ImpureDecision, "decide is a pure function of the records", "the same actions"),
]


class GoodRow(Derived):
    """The mean of the parts."""

    paper = "none: a test"
    reference = "none"

    def parts(self, modalities: Sequence[str]) -> list[str]:
        return [f"unimodal:modality={m}" for m in modalities]

    def combine(self, logits: Sequence[np.ndarray], kind: Kind) -> np.ndarray:
        return np.stack(logits).mean(axis=0)


class RowOfRows(GoodRow):
    """Combines a row that is itself combined."""

    def parts(self, modalities: Sequence[str]) -> list[str]:
        return ["ensemble"]


class InPlace(GoodRow):
    """Writes into its first part."""

    def combine(self, logits: Sequence[np.ndarray], kind: Kind) -> np.ndarray:
        total = logits[0]
        total += logits[1]
        return total


class AcrossSamples(GoodRow):
    """Centres over the samples it is given."""

    def combine(self, logits: Sequence[np.ndarray], kind: Kind) -> np.ndarray:
        mean: np.ndarray = super().combine(logits, kind)
        return mean - mean.mean(axis=0)


BROKEN_ROWS = [
    (RowOfRows, "parts are trained methods", "itself derived"),
    (InPlace, "combines sample by sample", "in place"),
    (AcrossSamples, "combines sample by sample", "other samples"),
]


class GoodData(DataSet):
    """Forty noise vectors."""

    title, source, licence = "Noise", "generated", "none needed"
    known_faults = ("none known",)
    groups = "pair"
    embedded = True

    def describe(self, root: Path) -> DataSpec:
        return DataSpec({"sensor": ModalitySpec(EncoderSpec("vector", dim=8), (4,), (4,), "float32")}, 2)

    def samples(self, root: Path) -> list[Sample]:
        return [Sample(str(i), float(i % 2), {"sensor": str(i)}, group=f"pair{i // 2}") for i in range(40)]

    def read(self, root: Path, modality: str, key: str) -> Item:
        return Item(np.random.default_rng(int(key)).normal(size=4).astype(np.float32))


class Unlicensed(GoodData):
    """States no licence."""

    licence = ""


class CrashesWithoutFiles(GoodData):
    """Opens a file to describe itself."""

    def describe(self, root: Path) -> DataSpec:
        (root / "header").read_text()
        return super().describe(root)


class WrongEncoder(GoodData):
    """Gives vectors to an encoder of sequences."""

    def describe(self, root: Path) -> DataSpec:
        return DataSpec({"sensor": ModalitySpec(EncoderSpec("sequence", dim=8), (4,), (4,), "float32")}, 2)


class SameIds(GoodData):
    """Calls every sample the same."""

    def samples(self, root: Path) -> list[Sample]:
        return [Sample("one", s.target, s.sources, group=s.group) for s in super().samples(root)]


class ThirdOfTwo(GoodData):
    """Has a target that is no class."""

    def samples(self, root: Path) -> list[Sample]:
        return [Sample(s.id, 2 * s.target, s.sources, group=s.group) for s in super().samples(root)]


class LeakingGroups(GoodData):
    """Splits its pairs."""

    def samples(self, root: Path) -> list[Sample]:
        split = {0: "train", 1: "test"}
        return [
            Sample(s.id, s.target, s.sources, split[int(s.target)], s.group)  # type: ignore[arg-type]  # two of three
            for s in super().samples(root)
        ]


class WrongWidth(GoodData):
    """Reads five values where four are described."""

    def read(self, root: Path, modality: str, key: str) -> Item:
        return Item(np.zeros(5, dtype=np.float32))


class InPlaceLoad(GoodData):
    """Scales the stored values themselves."""

    def load(self, modality: str, stored: Tensor, generator: Generator | None) -> Tensor:
        return stored.mul_(0.5)


class RandomLoad(GoodData):
    """Augments where it must not."""

    def load(self, modality: str, stored: Tensor, generator: Generator | None) -> Tensor:
        return stored + torch.randn(stored.shape)


class NewEveryTime(GoodData):
    """Reads something else each time."""

    def read(self, root: Path, modality: str, key: str) -> Item:
        return Item(np.random.default_rng().normal(size=4).astype(np.float32))


BROKEN_DATA = [
    (Unlicensed, "documented", "licence"),
    (CrashesWithoutFiles, "describes itself without raw files", "FileNotFoundError"),
    (WrongEncoder, "its specification is complete", "sequence encoder takes"),
    (SameIds, "samples have unique ids and targets in range", "not unique"),
    (ThirdOfTwo, "samples have unique ids and targets in range", "allowed 0 to 1"),
    (LeakingGroups, "groups do not cross honest splits", "both train and test"),
    (WrongWidth, "reads what it describes", "expected stored shape"),
    (NewEveryTime, "reads what it describes", "differently a second time"),
    (InPlaceLoad, "loads the described shapes", "load('sensor')"),
    (RandomLoad, "loads the described shapes", "not repeatable"),
    (NewEveryTime, "prepared twice it is the same", "fingerprints"),
]
BROKEN = [*BROKEN_FUSIONS, *BROKEN_STRATEGIES, *BROKEN_ROWS, *BROKEN_DATA]
GOOD: tuple[type[Any], ...] = (GoodFusion, GoodStrategy, GoodRow, GoodData)


def checks(plugin: type[Any]) -> dict[str, Check]:
    found = checks_of(Part("test", plugin, plugin.Settings(), "code"))
    return {check.name: check for check in found}


@pytest.mark.parametrize("plugin", GOOD)
def test_a_sound_plugin_passes_every_check(plugin: type[Any]) -> None:
    results = [check.result() for check in checks(plugin).values()]
    assert [r for r in results if not r.ok] == []


@pytest.mark.parametrize(("plugin", "name", "says"), BROKEN, ids=[f"{p.__name__}-{n}" for p, n, _ in BROKEN])
def test_a_broken_plugin_fails_its_check(plugin: type[Any], name: str, says: str) -> None:
    result = checks(plugin)[name].result()
    assert not result.ok
    assert says in result.message


def test_every_check_is_seen_to_fail() -> None:
    seen = {(kind, name) for broken, kind in KINDS for _, name, _ in broken}
    known = {(kind, name) for _, kind in KINDS for name in checks(kind)}
    known |= {(GoodStrategy, name) for name in checks(ImpureDecision)}
    shared = {"settings are well formed", "documented"}  # one function for all kinds of plugins that have it
    assert {(k.__name__, n) for k, n in known - seen if n not in shared} == set()


KINDS: tuple[tuple[Sequence[tuple[type[Any], str, str]], type[Any]], ...] = (
    (BROKEN_FUSIONS, GoodFusion),
    (BROKEN_STRATEGIES, GoodStrategy),
    (BROKEN_ROWS, GoodRow),
    (BROKEN_DATA, GoodData),
)
