"""A trial's specification made into a model and strategies, every component initialised from a stream of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from bench import encoders, names, plugins
from bench.api import Capability, DataSpec, EncoderSpec, Fusion, Model, Strategy, TaskSpec
from bench.errors import RequestError
from bench.layers import xavier
from bench.plan import PartSpec, TrialSpec
from bench.streams import seeded


def task_of(spec: TrialSpec, data: DataSpec) -> TaskSpec:
    """What the fusion and the strategies may know: the modalities the fusion uses, in order."""
    fusion, settings = restored("methods", spec.fusion)
    used: tuple[str, ...] = fusion.uses(settings, tuple(data.modalities))
    return TaskSpec(used, {m: spec.encoders[m].dim for m in used}, data.num_outputs, spec.num_train, data.kind)


def build_strategies(spec: TrialSpec, task: TaskSpec) -> dict[str, Strategy]:
    """Fresh strategies by name, in the order of the method."""
    parts = [(part.name, *restored("methods", part)) for part in spec.strategies]
    return {name: plugin(settings, task) for name, plugin, settings in parts}


def build_model(spec: TrialSpec, task: TaskSpec, data: DataSpec) -> Model:
    """A fresh model of a trial."""
    fusion, settings = restored("methods", spec.fusion)
    return assemble(fusion, settings, task, spec.encoders, data, training_seed(spec))


def training_seed(spec: TrialSpec) -> int:
    """The seed of everything random in a trial's training: its own, moved by strategies that ask for other luck."""
    parts = [restored("methods", part) for part in spec.strategies]
    offsets: list[int] = [plugin.seed_offset(settings) for plugin, settings in parts]
    return spec.seed + sum(offsets)


def assemble(
    fusion_class: type[Fusion],
    settings: Any,
    task: TaskSpec,
    encoder_specs: Mapping[str, EncoderSpec],
    data: DataSpec,
    seed: int,
) -> Model:
    """Encoders, a fusion and the probes it needs.

    Initialisation depends on (seed, component) alone, so all methods of one seed start from the same encoders.
    """
    built = {}
    for m in task.modalities:
        with seeded(seed, f"encoders.{m}"):
            built[m] = encoders.build(encoder_specs[m], data.modalities[m].shape)
    with seeded(seed, "fusion"):
        fusion = fusion_class(settings, task)
    has_heads = Capability.UNIMODAL_HEADS in fusion_class.provides(settings)
    return Model(built, fusion, {} if has_heads else _probes(task, seed))


def restored(group: plugins.Group, part: PartSpec) -> tuple[type[Any], Any]:
    """The plugin class and settings of a part; RequestError if its code is no longer that of the spec."""
    loaded = plugins.load(group, part.name)
    if loaded.code != part.code:
        raise RequestError(f"{loaded.origin}: the file changed since this trial was planned; run again")
    return loaded.plugin, names.fill(loaded.plugin.Settings, part.settings, part.name)


def _probes(task: TaskSpec, seed: int) -> dict[str, nn.Module]:
    probes: dict[str, nn.Module] = {}
    for m in task.modalities:
        with seeded(seed, f"probes.{m}"):
            probes[m] = nn.Linear(task.dims[m], task.num_outputs)
            xavier(probes[m])
    return probes
