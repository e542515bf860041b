"""What does not fit together is refused by name, and what does not apply to a data set is skipped with its reason."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import pytest
from torch import Tensor

from bench import api, names, plugins
from bench.api import Batch, Capability, Output, Run, Strategy, TaskSpec
from bench.composition import reason_to_skip, refuse_illegal
from bench.errors import RequestError
from bench.names import Method, Part, resolve_method

AV = ("audio", "visual")


def task(*modalities: str, kind: Any = "classes", dims: tuple[int, ...] = ()) -> TaskSpec:
    widths = dims or (8,) * len(modalities)
    return TaskSpec(modalities, dict(zip(modalities, widths, strict=True)), 3, 10, kind)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("concat+rollingq", "'rollingq' requires an attention site, and 'concat' does not provide it"),
        ("sum+rollingq", "requires an attention site"),
        ("mmml+rollingq", "'rollingq' requires an attention site, and 'mmml' does not provide it"),
        ("mbt+rollingq", "requires an attention site"),
        ("audio+ogm", "'ogm' requires several modalities"),
        ("unimodal+pmr", "'pmr' requires several modalities"),
        ("unimodal+rollingq", "requires an attention site, several modalities"),
    ],
)
def test_a_missing_capability_is_named(text: str, says: str) -> None:
    with pytest.raises(RequestError) as caught:
        refuse_illegal(resolve_method(text, AV), "bench.yaml:3:5")
    assert says in str(caught.value)
    assert str(caught.value).startswith(f"bench.yaml:3:5: {text!r} is not possible")


@pytest.mark.parametrize(
    "text",
    ["rollingq", "ogm", "pmr", "mmml:readout=attn+rollingq", "vanilla_mt+rollingq+ogm", "mbt+ogm", "audio", "ensemble"],
)
def test_what_fits_is_not_refused(text: str) -> None:
    refuse_illegal(resolve_method(text, AV))


class _Owner(Strategy):
    @dataclass(frozen=True)
    class Settings(api.Settings):
        pass


class _Joint(_Owner):
    owns = frozenset({"joint"})


class _Step(_Owner):
    owns = frozenset({"step"})


class _Epoch(_Owner):
    owns = frozenset({"epoch"})


class _Terms(_Owner):
    def terms(self, run: Run, batch: Batch, output: Output, terms: dict[str, Tensor]) -> None:
        terms["more"] = output.logits.mean()


class _Grads(_Owner):
    def grads(self, run: Run, batch: Batch, output: Output) -> None:
        run.log("seen", 1.0)


class _EpochEnd(_Owner):
    def epoch_end(self, run: Run) -> None:
        run.log("seen", 1.0)


def composed(*strategies: type[Strategy]) -> Method:
    base = resolve_method("concat", AV).base
    parts = tuple(Part(f"s{n}", kind, kind.Settings(), "") for n, kind in enumerate(strategies))
    return Method("mine", base, parts)


@pytest.mark.parametrize(
    ("strategies", "says"),
    [
        ((_Joint, _Joint), "'s0' and 's1' both own 'joint'"),
        ((_Step, _Step), "'s0' and 's1' both own 'step'"),
        ((_Step, _Grads), "'s0' owns the step, so s1.grads would never be called"),
        ((_Grads, _Step), "'s1' owns the step, so s0.grads would never be called"),
        ((_Epoch, _Terms), "'s0' owns the epoch, so s1.terms would never be called"),
    ],
)
def test_two_owners_and_silent_hooks_are_refused(strategies: tuple[type[Strategy], ...], says: str) -> None:
    with pytest.raises(RequestError) as caught:
        refuse_illegal(composed(*strategies))
    assert says in str(caught.value)


@pytest.mark.parametrize("strategies", [(_Joint, _Step), (_Step, _EpochEnd), (_Terms, _Grads)])
def test_what_does_not_get_in_the_way_is_not_refused(strategies: tuple[type[Strategy], ...]) -> None:
    refuse_illegal(composed(*strategies))


@pytest.mark.parametrize(
    ("text", "where", "says"),
    [
        ("concat", task("audio"), "it fuses several modalities and the data set has one (audio)"),
        (
            "unimodal:modality=visual",
            task("audio", "text"),
            "the data set has no modality 'visual' (it has audio, text)",
        ),
        ("ogm", task("audio", "text", kind="regression"), Capability.CLASSES),
        ("vanilla_mt", task("audio", "text", dims=(8, 16)), Capability.EQUAL_DIMS),
        ("vanilla_mt+rollingq", task("audio", "text", dims=(8, 16)), Capability.EQUAL_DIMS),
    ],
)
def test_a_legal_row_that_does_not_apply_is_skipped_with_its_reason(text: str, where: TaskSpec, says: str) -> None:
    method = resolve_method(text, where.modalities)
    refuse_illegal(method)
    reason = reason_to_skip(method, where)
    assert reason is not None
    assert says in reason


@pytest.mark.parametrize("text", ["audio", "concat", "rollingq", "mbt", "mmml"])
def test_a_row_that_applies_has_no_reason_to_be_skipped(text: str) -> None:
    assert reason_to_skip(resolve_method(text, AV), task(*AV)) is None


def test_refusing_builds_no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def built(self: object, *_: object) -> None:
        raise AssertionError(f"{type(self).__name__} was built")

    for name in plugins.names("methods"):
        monkeypatch.setattr(plugins.load("methods", name).plugin, "__init__", built)
    for text in ("concat+rollingq", "mmml+rollingq", "audio+ogm"):
        with pytest.raises(RequestError):
            refuse_illegal(names.resolve_method(text, AV))


def test_refusing_imports_no_encoder() -> None:
    code = (
        "import sys\n"
        "from bench.composition import refuse_illegal\n"
        "from bench.names import resolve_method\n"
        "try: refuse_illegal(resolve_method('concat+rollingq', ('audio', 'visual')))\n"
        "except Exception as error: print(type(error).__name__)\n"
        "print([m for m in sys.modules if m == 'timm' or m.startswith('bench.encoders')])\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split("\n")[:2] == ["RequestError", "[]"]
