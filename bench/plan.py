"""What would run: a configuration and data sets in, trial specifications out. Nothing is trained or written."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from bench import names, plugins
from bench.api import DataError, Derived, EncoderSpec, TaskSpec
from bench.composition import reason_to_skip, refuse_illegal
from bench.config import Config, EncoderConfig, Sources
from bench.data.selection import Selected
from bench.data.splits import num_folds, split_hash, split_positions
from bench.encoders.weights import content_hash
from bench.errors import RequestError, unknown
from bench.names import Method, Part
from bench.protocols import PROTOCOLS, ProtocolName, Split
from bench.recipes import Recipe

NUMERICS_VERSION = 1
"""Raise it when the harness's own numbers move; a golden-loss test fails when they do without it."""


@dataclass(frozen=True)
class PartSpec:
    """One plugin of a trial as plain values."""

    name: str
    settings: Mapping[str, Any]
    code: str
    places: tuple[str, ...] = ()
    """Settings that only say where something lies: not part of the id."""

    @classmethod
    def of(cls, part: Part) -> PartSpec:
        """The plain values of a resolved part."""
        return cls(part.name, dataclasses.asdict(part.settings), part.code, names.places(part.settings))

    def identity(self) -> dict[str, Any]:
        """What belongs to an id."""
        settings = {k: v for k, v in self.settings.items() if k not in self.places}
        return {"name": self.name, "settings": settings, "code": self.code}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> PartSpec:
        """The spec whose plain values these are."""
        return cls(**{**values, "places": tuple(values["places"])})


@dataclass(frozen=True)
class TrialSpec:
    """One training of one method on one data set and split with one seed; everything resolved, nothing implied."""

    method: str
    """The canonical text; a name for people, not part of the id."""
    data: str
    """The data set's canonical text; likewise."""
    fusion: PartSpec
    strategies: tuple[PartSpec, ...]
    dataset: PartSpec
    fingerprint: str
    split: str
    fold: int
    split_hash: str
    num_train: int
    encoders: Mapping[str, EncoderSpec]
    weights: Mapping[str, str]
    """The content hash of every modality's pretrained weights, empty where there are none."""
    recipe: Recipe
    seed: int

    @cached_property
    def id(self) -> str:
        """16 hex digits over everything that can change the numbers, the harness's own version included."""
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()[:16]

    def identity(self) -> dict[str, Any]:
        """What the id is computed from."""
        values = self.to_json()
        values |= {"recipe": self.recipe.identity(), "fusion": self.fusion.identity()}
        values |= {"dataset": self.dataset.identity(), "strategies": [s.identity() for s in self.strategies]}
        del values["method"], values["data"]
        for encoder in values["encoders"].values():
            del encoder["weights"]  # a name or a path: `weights` holds their content
        return {**values, "numerics": NUMERICS_VERSION}

    def to_json(self) -> dict[str, Any]:
        """Plain values, from which `from_json` makes an equal spec."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return plain

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> TrialSpec:
        """The spec that `to_json` wrote."""
        encoders = {m: EncoderSpec(**{**e, "patch": tuple(e["patch"])}) for m, e in values["encoders"].items()}
        return cls(
            **{
                **values,
                "fusion": PartSpec.from_json(values["fusion"]),
                "strategies": tuple(PartSpec.from_json(s) for s in values["strategies"]),
                "dataset": PartSpec.from_json(values["dataset"]),
                "encoders": encoders,
                "recipe": Recipe(**values["recipe"]),
            }
        )


@dataclass(frozen=True)
class Row:
    """One line of a table: a method on a data set under a protocol, and the trials behind it.

    `groups` has one entry per (fold, seed): the single trial, or for a derived row its parts' trials in order.
    """

    label: str
    method: str
    dataset_label: str
    dataset: str
    protocol: str
    metric: str
    derived: str | None
    groups: tuple[tuple[TrialSpec, ...], ...]
    tuned: Mapping[str, Any] | None = None
    """How much was spent on its settings: `trials`, `trained_epochs` and `studies`; None for defaults."""


@dataclass(frozen=True)
class Skipped:
    """A legal row that does not apply to one data set; where `label` is `protocol ...`, all rows of a protocol."""

    label: str
    dataset: str
    reason: str


@dataclass(frozen=True)
class Plan:
    """Rows in the user's order, the distinct trials behind them, and what was left out with its reason."""

    rows: tuple[Row, ...]
    skipped: tuple[Skipped, ...]

    @property
    def trials(self) -> list[TrialSpec]:
        """Every distinct trial, seeds outermost, so that all methods advance together."""
        unique = {spec.id: spec for row in self.rows for group in row.groups for spec in group}
        return sorted(unique.values(), key=lambda spec: (spec.seed, spec.fold))


def make_plan(config: Config, sources: Sources, datasets: Sequence[Selected]) -> Plan:
    """Rows and trials for every method on every selected data set.

    Raises RequestError for unknown names and illegal compositions, and if nothing at all is left to run.
    """
    _refuse_strangers(config, sources)
    everywhere = {m for selected in datasets for m in selected.spec.modalities}
    rows: list[Row] = []
    skipped: list[Skipped] = []
    for selected in datasets:
        protocols: list[ProtocolName] = []
        for name in config.protocol:
            without = why_no_split(selected, PROTOCOLS[name].split)
            if without is None:
                protocols.append(name)
            else:
                skipped.append(Skipped(f"protocol {name}", selected.label, without))
        for text, where in _wanted(config, sources, selected):
            found = _row_method(text, where, selected, everywhere, config.settings)
            reason = found if isinstance(found, str) else _why_not(found, selected, config)
            if isinstance(found, str) or reason is not None:
                skipped.append(Skipped(text, selected.label, str(reason)))
            else:
                rows += [_row(found, selected, config, protocol) for protocol in protocols]
    if not rows:
        reasons = "\n".join(f"  {s.label} on {s.dataset}: {s.reason}" for s in skipped)
        raise RequestError(f"nothing is left to run:\n{reasons}")
    return Plan(tuple(rows), tuple(skipped))


def why_no_split(selected: Selected, split: Split) -> str | None:
    """Why a data set has no published lists, where a split takes them; None where it has, or they are not needed."""
    if split == "honest":
        return None
    if selected.dataset.embedded:
        return "there are no published lists: the data set comes with bench, and so does its split"
    try:
        split_positions(selected.prepared.index, kind=split)
    except DataError as error:
        return str(error)
    return None


def refuse_early(config: Config, sources: Sources, modalities: Sequence[str]) -> None:
    """Raise RequestError for what no data set could make right, before anything is prepared.

    `modalities` are those known so far; a name that could be a further one is left to `make_plan`.
    """
    _refuse_strangers(config, sources)
    for i, text in enumerate(config.methods):
        where = sources.place(("methods", i))
        known = {*plugins.names("methods"), *modalities}
        if text != "all" and names.first_name(text, where) in known:
            refuse_illegal(names.resolve_method(text, tuple(modalities), config.settings, where), where)


def task_of(selected: Selected, num_train: int, encoder: EncoderConfig | None = None) -> TaskSpec:
    """What a fusion may know of a data set, with the encoders' widths."""
    encoders = encoders_of(selected, encoder or EncoderConfig())
    dims = {m: e.dim for m, e in encoders.items()}
    return TaskSpec(tuple(encoders), dims, selected.spec.num_outputs, num_train, selected.spec.kind)


def encoders_of(selected: Selected, override: EncoderConfig) -> dict[str, EncoderSpec]:
    """Every modality's encoder, overridden by the configuration."""
    return {m: override.resolve(spec.encoder) for m, spec in selected.spec.modalities.items()}


def _refuse_strangers(config: Config, sources: Sources) -> None:
    """Raise RequestError for settings of a plugin that does not exist: they would be ignored without a word."""
    known = {*plugins.names("methods"), *plugins.names("datasets")}
    for name, given in config.settings.items():
        if name not in known:
            where = sources.place(("settings", name, *list(given)[:1]))
            raise unknown("section or plugin", name, {*known, *Config.model_fields}, where)


def _wanted(config: Config, sources: Sources, selected: Selected) -> list[tuple[str, str]]:
    wanted: list[tuple[str, str]] = []
    for i, text in enumerate(config.methods):
        where = sources.place(("methods", i))
        texts = names.all_methods(selected.spec.modalities) if text == "all" else [text]
        wanted += [(t, where) for t in texts if t not in {w for w, _ in wanted}]
    return wanted


def _row_method(
    text: str, where: str, selected: Selected, everywhere: set[str], settings: names.Overrides
) -> Method | str:
    modalities = tuple(selected.spec.modalities)
    head = names.first_name(text, where)
    if head in everywhere and head not in modalities and head not in plugins.names("methods"):
        return f"the data set has no modality {head!r} (it has {', '.join(modalities)})"
    method = names.resolve_method(text, modalities, _defaults(selected, settings), where)
    refuse_illegal(method, where)
    return method


def _defaults(selected: Selected, settings: names.Overrides) -> names.Overrides:
    """The settings published for a data set, overridden by the configuration's."""
    published = selected.dataset.published_settings
    return {name: {**published.get(name, {}), **settings.get(name, {})} for name in {*published, *settings}}


def _why_not(method: Method, selected: Selected, config: Config) -> str | None:
    if method.derived:
        return None if len(selected.spec.modalities) > 1 else "it combines modalities and the data set has one"
    return reason_to_skip(method, task_of(selected, 1, config.encoder))


def _row(method: Method, selected: Selected, config: Config, protocol: ProtocolName) -> Row:
    if method.derived:
        plugin: Derived = method.base.plugin(method.base.settings)
        modalities = tuple(selected.spec.modalities)
        defaults = _defaults(selected, config.settings)
        parts = [names.resolve_method(t, modalities, defaults) for t in plugin.parts(modalities)]
    else:
        parts = [method]
    recipe = config.recipe.resolve(selected.dataset.recipe, selected.dataset.epochs)
    encoders = encoders_of(selected, config.encoder)
    weights = {m: content_hash(spec) for m, spec in encoders.items()}
    groups = []
    split = PROTOCOLS[protocol].split
    for fold in _folds(config, selected, split):
        positions = split_positions(selected.prepared.index, fold=fold, kind=split)
        cell = partial(
            TrialSpec,
            data=selected.part.text,
            dataset=PartSpec.of(selected.part),
            fingerprint=selected.prepared.fingerprint,
            split=split,
            fold=fold,
            split_hash=split_hash(selected.prepared.index, positions),
            num_train=len(positions["train"]),
            encoders=encoders,
            weights=weights,
            recipe=recipe,
        )
        groups += [tuple(cell(**_method_fields(part), seed=seed) for part in parts) for seed in config.seeds]
    return Row(
        label=method.label,
        method=method.canonical,
        dataset_label=selected.label,
        dataset=selected.part.text,
        protocol=protocol,
        metric=selected.spec.metric,
        derived=method.base.text if method.derived else None,
        groups=tuple(groups),
    )


def _method_fields(method: Method) -> dict[str, Any]:
    return {
        "method": method.canonical,
        "fusion": PartSpec.of(method.base),
        "strategies": tuple(PartSpec.of(part) for part in method.strategies),
    }


def _folds(config: Config, selected: Selected, split: Split) -> tuple[int, ...]:
    if split != "honest":
        return (0,)  # the lists are published once, whatever folds the honest protocol runs
    available = num_folds(selected.prepared.index)
    if config.folds == "all":
        return tuple(range(available))
    beyond = [fold for fold in config.folds if fold >= available]
    if beyond:
        raise RequestError(f"{selected.label} has folds 0 to {available - 1}; there is no fold {beyond[0]}")
    return config.folds
