"""Which fusions and strategies fit together, and which methods fit a data set; decided without building a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.api import TASK_CAPABILITIES, Capability, Fusion, Strategy, TaskSpec
from bench.errors import RequestError
from bench.names import Method, Part

_SKIPPED_BY_STEP_OWNER = ("terms", "backward", "grads")


def refuse_illegal(method: Method, where: str = "") -> None:
    """Raise RequestError if no data set could make this composition meaningful; the missing capability is named."""
    if method.derived:
        return
    fusion: type[Fusion] = method.base.plugin
    provided = fusion.provides(method.base.settings)
    at = f"{where}: " if where else ""
    for part in method.strategies:
        missing = part.plugin.requires(part.settings) - provided - TASK_CAPABILITIES
        if missing:
            what = ", ".join(sorted(missing))
            has = ", ".join(sorted(provided)) or "nothing"
            raise RequestError(
                f"{at}{method.label!r} is not possible: {part.name!r} requires {what}, "
                f"and {method.base.text!r} does not provide it (it provides {has})"
            )
    _refuse_two_owners(method, at)


def replaces(strategy: type[Any], hook: str) -> bool:
    """Whether a strategy has its own version of a hook."""
    own, default = (getattr(kind, hook) for kind in (strategy, Strategy))
    # A class method is bound anew each time it is asked for; its function is the same.
    return getattr(own, "__func__", own) is not getattr(default, "__func__", default)


def reason_to_skip(method: Method, task: TaskSpec) -> str | None:
    """Why a legal method does not apply to a data set, or None if it does."""
    fusion: type[Fusion] = method.base.plugin
    modalities = ", ".join(task.modalities)
    unused = [m for m in fusion.uses(method.base.settings, task.modalities) if m not in task.modalities]
    if unused:
        return f"the data set has no modality {unused[0]!r} (it has {modalities})"
    if Capability.SEVERAL_MODALITIES in fusion.provides(method.base.settings) and len(task.modalities) < 2:
        return f"it fuses several modalities and the data set has one ({modalities})"
    required = fusion.requires(method.base.settings).union(*(p.plugin.requires(p.settings) for p in method.strategies))
    missing = (required & TASK_CAPABILITIES) - task.capabilities()
    if missing:
        return f"it requires {', '.join(sorted(missing))}"
    return None


def _refuse_two_owners(method: Method, at: str) -> None:
    owners: dict[str, str] = {}
    for part in method.strategies:
        for owned in sorted(part.plugin.owns):
            if owned in owners:
                raise RequestError(
                    f"{at}{method.label!r} is not possible: {owners[owned]!r} and {part.name!r} both own {owned!r}"
                )
            owners[owned] = part.name
    for owned in ("step", "epoch"):
        if owned in owners:
            _refuse_silent(method.strategies, owners[owned], owned, f"{at}{method.label!r}")


def _refuse_silent(strategies: Sequence[Part], owner: str, owned: str, label: str) -> None:
    for part in strategies:
        hooks = [hook for hook in _SKIPPED_BY_STEP_OWNER if part.name != owner and replaces(part.plugin, hook)]
        if hooks:
            raise RequestError(
                f"{label} is not possible: {owner!r} owns the {owned}, so {part.name}.{hooks[0]} would never be called"
            )
