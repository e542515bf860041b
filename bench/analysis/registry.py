"""The analyses there are, in the order of `bench analyse all`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bench import names
from bench.analysis.attention import AttentionQuality
from bench.analysis.contract import Analysis
from bench.analysis.contribution import Contribution
from bench.analysis.gradients import BranchGradients
from bench.analysis.keys import KeyGeometry
from bench.analysis.missing import Missing
from bench.analysis.noise import NoiseGrid
from bench.analysis.ood import OutOfDistribution
from bench.errors import RequestError, unknown

_KINDS = (AttentionQuality, NoiseGrid, Missing, OutOfDistribution, KeyGeometry, BranchGradients, Contribution)
ANALYSES: Mapping[str, type[Analysis]] = {kind.name: kind for kind in _KINDS}


def resolve(text: str, assignments: Sequence[str] = ()) -> list[Analysis]:
    """The analyses of a list such as `noise,missing` or `all`, with settings `NAME.SETTING=VALUE`.

    Raises RequestError for what does not exist.
    """
    wanted = list(ANALYSES) if text == "all" else list(dict.fromkeys(text.split(",")))
    given: dict[str, dict[str, str]] = {}
    for assignment in assignments:
        name, setting, value = _parts(assignment)
        if name not in wanted:
            raise RequestError(f"--set {assignment}: {name} is not among what is asked for: {', '.join(wanted)}")
        given.setdefault(name, {})[setting] = value
    for name in wanted:
        if name not in ANALYSES:
            raise unknown("analysis", name, {*ANALYSES, "all"})
    kinds = [ANALYSES[name] for name in wanted]
    return [kind(names.fill(kind.Settings, given.get(kind.name, {}), kind.name)) for kind in kinds]


def split_assignments(assignments: Sequence[str]) -> tuple[list[str], list[str]]:
    """`--set` of analyses, and all the others."""
    own = [a for a in assignments if a.partition(".")[0] in ANALYSES]
    return own, [a for a in assignments if a not in own]


def _parts(assignment: str) -> tuple[str, str, str]:
    key, sign, value = assignment.partition("=")
    name, dot, setting = key.partition(".")
    if not (sign and dot and setting):
        raise RequestError(f"--set {assignment}: expected {name}.SETTING=VALUE")
    return name, setting, value
