"""bench.yaml and the command line, merged into one frozen `Config`; the only reader of YAML.

Every value keeps its source: errors name `bench.yaml:12:3` or the option it came from.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from bench.contract.data import EncoderSpec
from bench.errors import RequestError, unknown
from bench.protocols import ProtocolName
from bench.recipes import RECIPES, Recipe

Path_ = tuple[str | int, ...]

TUNING_SEEDS = 1_000_000
"""Seeds from here on belong to `bench tune`: no result is read off a seed that settings were chosen on."""


def split_list(text: str) -> list[str]:
    """The items of a comma-separated list of method or data set texts."""
    return [item.strip() for item in re.split(r",(?=\s*[a-z_])", text) if item.strip()]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class RecipeConfig(_Section):
    """Overrides of the data set's recipe; None leaves it as it is."""

    name: str | None = None
    optimizer: Literal["sgd", "adam", "adamw"] | None = None
    lr: Annotated[float, Field(gt=0)] | None = None
    momentum: Annotated[float, Field(ge=0, lt=1)] | None = None
    weight_decay: Annotated[float, Field(ge=0)] | None = None
    batch_size: Annotated[int, Field(ge=1)] | None = None
    epochs: Annotated[int, Field(ge=1)] | None = None
    warmup_epochs: Annotated[float, Field(ge=0)] | None = None
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    precision: Literal["fp32", "bf16", "fp16"] | None = None
    air_samples: Annotated[int, Field(ge=1)] | None = None
    eval_batch_size: Annotated[int, Field(ge=1)] | None = None
    threads: Annotated[int, Field(ge=1)] | None = None
    compile: bool | None = None

    @field_validator("name")
    @classmethod
    def _known(cls, name: str | None) -> str | None:
        if name is not None and name not in RECIPES:
            raise ValueError(f"unknown recipe {name!r}; known: {', '.join(RECIPES)}")
        return name

    def resolve(self, default: str, epochs: int | None) -> Recipe:
        """The recipe of a data set whose own is `default` (with its own number of epochs), overridden."""
        recipe = RECIPES[self.name or default]
        if epochs is not None and self.name is None:
            recipe = dataclasses.replace(recipe, epochs=epochs)
        given = {k: v for k, v in self.model_dump(exclude={"name"}).items() if v is not None}
        return dataclasses.replace(recipe, **given)


class EncoderConfig(_Section):
    """Overrides of every modality's encoder; None leaves the data set's."""

    family: Literal["vit", "resnet"] | None = None
    """For the modalities that are images."""
    dim: Annotated[int, Field(ge=1)] | None = None
    depth: Annotated[int, Field(ge=0)] | None = None
    heads: Annotated[int, Field(ge=1)] | None = None
    weights: str | None = None

    def resolve(self, spec: EncoderSpec) -> EncoderSpec:
        """A data set's encoder, overridden."""
        given = {k: v for k, v in self.model_dump().items() if v is not None}
        if spec.family not in ("vit", "resnet"):
            given = {k: v for k, v in given.items() if k not in ("family", "weights")}
        return dataclasses.replace(spec, **given)


class ExecuteConfig(_Section):
    """Where trials run."""

    executor: Literal["local", "inline", "slurm", "ray"] = "local"
    slots: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    device: str = "auto"
    snapshot_gb: Annotated[float, Field(ge=0)] = 20.0
    """Disk for weights and states that only save training time, in results/trajectories."""


class SlurmConfig(_Section):
    """What each job of the `slurm` executor asks for; None is the cluster's default."""

    jobs: Annotated[int, Field(ge=1)] = 4
    """How many `bench run` are submitted."""
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    gpus: Annotated[int, Field(ge=0)] = 0
    cpus: Annotated[int, Field(ge=1)] = 1
    """Without GPUs, and unless `execute.slots` says otherwise, as many trials at a time."""
    memory_gb: Annotated[float, Field(gt=0)] | None = None
    time: Annotated[int, Field(ge=1)] | Annotated[str, Field(pattern=r"^(\d+-)?\d+(:\d+){0,2}$")] = 240
    """Minutes, or as sbatch writes it: 1-12:00:00."""
    setup: tuple[str, ...] = ()
    """Lines of shell that a job begins with."""
    options: dict[str, bool | int | str] = {}
    """Further options of sbatch by their long names."""


class RayConfig(_Section):
    """Where the `ray` executor runs, and what share of a machine each trial gets."""

    address: Annotated[str, Field(pattern=r"^(auto|[\w.\-]+:\d+)$")] | None = None
    """`auto` or HOST:PORT of a cluster this machine belongs to; None: one of its own for as long as it runs."""
    host: str = "127.0.0.1"
    """Where a cluster of its own listens."""
    cpus: Annotated[float, Field(gt=0)] = 1.0
    gpus: Annotated[float, Field(ge=0)] | None = None
    """None: one where the cluster has any."""

    @field_validator("cpus", "gpus")
    @classmethod
    def _share(cls, value: float | None) -> float | None:
        if value is not None and value > 1 and value != int(value):
            raise ValueError("a share is a part of one, or a whole number")
        return value


class TrackingConfig(_Section):
    """Whether and where results are mirrored into MLflow."""

    mlflow: bool = True
    uri: str | None = None


class TuneConfig(_Section):
    """The budget of `bench tune`."""

    trials: Annotated[int, Field(ge=1)] = 50
    methods: tuple[str, ...] = ("rollingq",)


class Config(_Section):
    """Everything a run needs to know, with defaults."""

    methods: tuple[str, ...] = (
        "audio",
        "visual",
        "ensemble",
        "concat",
        "ogm",
        "pmr",
        "vanilla_mt",
        "mbt",
        "mmml",
        "rollingq",
        "mmml:readout=attn+rollingq",
    )
    datasets: tuple[str, ...] = ("planted", "av_digits")
    protocol: tuple[ProtocolName, ...] = ("honest",)
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = (0, 1, 2)
    folds: tuple[Annotated[int, Field(ge=0)], ...] | Literal["all"] = (0,)
    recipe: RecipeConfig = RecipeConfig()
    encoder: EncoderConfig = EncoderConfig()
    execute: ExecuteConfig = ExecuteConfig()
    slurm: SlurmConfig = SlurmConfig()
    ray: RayConfig = RayConfig()
    tracking: TrackingConfig = TrackingConfig()
    tune: TuneConfig = TuneConfig()
    settings: dict[str, dict[str, Any]] = {}
    """Plugin name -> settings that hold wherever the plugin is named without them."""

    @field_validator("methods", "datasets", "protocol", mode="before")
    @classmethod
    def _list(cls, value: Any) -> Any:
        items = split_list(value) if isinstance(value, str) else value
        if isinstance(items, list | tuple) and not items:
            raise ValueError("the list is empty; name at least one, or all")
        return tuple(items) if isinstance(items, list) else items

    @field_validator("seeds", mode="before")
    @classmethod
    def _seeds(cls, value: Any) -> Any:
        if isinstance(value, bool):
            raise ValueError("expected a number of seeds or a list of seeds")
        if isinstance(value, str):
            seeds = _numbers(value, "a number of seeds or a list of seeds, e.g. 3 or 0,1,2")
            value = seeds if "," in value else seeds[0]
        if isinstance(value, int):
            if value < 1:
                raise ValueError("at least one seed is needed")
            return tuple(range(value))
        if isinstance(value, list | tuple) and not value:
            raise ValueError("the list is empty; give a number of seeds or a list of seeds")
        if isinstance(value, list | tuple) and len(set(value)) < len(value):
            raise ValueError(f"a seed is named twice: {list(value)}")
        if isinstance(value, list | tuple) and any(isinstance(seed, int) and seed >= TUNING_SEEDS for seed in value):
            raise ValueError(f"seeds from {TUNING_SEEDS} on are kept for `bench tune`; name smaller ones")
        return value

    @field_validator("protocol", "seeds", "folds", mode="after")
    @classmethod
    def _distinct(cls, value: Any) -> Any:
        if isinstance(value, tuple) and len(set(value)) < len(value):
            raise ValueError(f"one is named twice: {list(value)}")
        return value

    @field_validator("folds", mode="before")
    @classmethod
    def _folds(cls, value: Any) -> Any:
        if isinstance(value, str) and value != "all":
            value = _numbers(value, "folds, e.g. 0,1, or all")
        if isinstance(value, int) and not isinstance(value, bool):
            value = [value]
        if isinstance(value, list | tuple) and not value:
            raise ValueError("the list is empty; name at least one fold, or all")
        return value


def _numbers(text: str, what: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise ValueError(f"expected {what}") from None


@dataclasses.dataclass(frozen=True)
class Sources:
    """Where every value came from."""

    places: Mapping[Path_, str]
    default: str

    def place(self, path: Iterable[str | int], key: bool = False) -> str:
        """The file position or option of a value (or of its key), or of the nearest value around it."""
        path = tuple(path)
        if key and (*path, "#key") in self.places:
            return self.places[(*path, "#key")]
        while path and path not in self.places:
            path = path[:-1]
        return self.places.get(path, self.default)


def load(file: Path | None, overrides: Mapping[str, Any], assignments: Iterable[str]) -> tuple[Config, Sources]:
    """The configuration from a file, command line options and `--set key=value` assignments, in that order.

    Raises RequestError with one line per mistake.
    """
    values: dict[str, Any] = {}
    places: dict[Path_, str] = {}
    if file is not None:
        values, places = _read(file)
    for key, value in overrides.items():
        _place(values, places, (key,), value, f"--{key}")
    for assignment in assignments:
        _assign(values, places, assignment)
    sources = Sources(places, str(file) if file else "command line")
    try:
        return Config.model_validate(values), sources
    except ValidationError as error:
        raise RequestError("\n".join(_explain(error, sources))) from None


def schema() -> dict[str, Any]:
    """The JSON schema of bench.yaml, for editors."""
    return Config.model_json_schema()


def _place(values: dict[str, Any], places: dict[Path_, str], path: tuple[str, ...], value: Any, where: str) -> None:
    for old in [p for p in places if p[: len(path)] == path]:
        del places[old]
    inner = values
    for word in path[:-1]:
        if not isinstance(inner.setdefault(word, {}), dict):
            raise RequestError(f"{where}: {word!r} is not a section")
        inner = inner[word]
    inner[path[-1]] = value
    places[path] = where


def _assign(values: dict[str, Any], places: dict[Path_, str], assignment: str) -> None:
    key, sign, text = assignment.partition("=")
    path = tuple(key.split("."))
    if not sign or not all(re.fullmatch(r"[a-z_]\w*", word) for word in path):
        raise RequestError(f"--set {assignment}: expected key=value, e.g. recipe.epochs=5 or rollingq.rho=2")
    try:
        value = yaml.load(text, _Loader) if text else ""
    except yaml.YAMLError as error:
        raise RequestError(f"--set {assignment}: the value is not YAML: {str(error).splitlines()[0]}") from None
    if path[0] not in Config.model_fields and len(path) == 2:
        path = ("settings", *path)  # PLUGIN.SETTING=VALUE
        value = text
    elif path[0] not in Config.model_fields:
        raise unknown("key", path[0], Config.model_fields, f"--set {assignment}")
    _place(values, places, path, value, f"--set {key}")


class _Loader(yaml.SafeLoader):
    """YAML with numbers such as 1e-3, only true/false as booleans, no dates, no base-60 numbers."""


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern) for tag, pattern in resolvers if tag in ("tag:yaml.org,2002:null", "tag:yaml.org,2002:merge")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(true|false|True|False)$"), list("tfTF"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?(0|[1-9][0-9]*)$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?$"),
    list("-+.0123456789"),
)


def _read(file: Path) -> tuple[dict[str, Any], dict[Path_, str]]:
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RequestError(f"{file}: there is no such file; name one with --config") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{file}: cannot be read: {error}") from None
    try:
        node = yaml.compose(text, _Loader)
        places = dict(_marks(node, file)) if node else {}
        values = yaml.load(text, _Loader) or {}
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        at = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise RequestError(f"{file}{at}: {error.problem or 'is not YAML'}") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise RequestError(f"{file}: is not YAML: {error}") from None
    if not isinstance(values, dict):
        raise RequestError(f"{file}:1:1: expected `key: value` lines, found a {type(values).__name__}")
    return values, places


def _marks(node: yaml.Node, file: Path, path: Path_ = ()) -> Iterator[tuple[Path_, str]]:
    def at(mark: yaml.Mark) -> str:
        return f"{file}:{mark.line + 1}:{mark.column + 1}"

    yield path, at(node.start_mark)
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise RequestError(f"{at(key.start_mark)}: expected a name as key, found a {key.id}")
            if key.value in seen:
                raise RequestError(f"{at(key.start_mark)}: key {key.value!r} is given twice")
            seen.add(key.value)
            yield (*path, key.value, "#key"), at(key.start_mark)
            yield from _marks(value, file, (*path, key.value))
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            yield from _marks(value, file, (*path, i))


def _explain(error: ValidationError, sources: Sources) -> Iterator[str]:
    for e in error.errors(include_url=False):
        path = tuple(e["loc"])
        extra = e["type"] == "extra_forbidden"
        where = sources.place(path, key=extra)
        if extra:
            known = _fields_at(path[:-1])
            yield str(unknown("key", str(path[-1]), known, where))
        else:
            name = ".".join(str(p) for p in path)
            yield f"{where}: {name}: {e['msg'].removeprefix('Value error, ')} (found {e['input']!r})"


def _fields_at(path: Path_) -> list[str]:
    model: Any = Config
    for word in path:
        model = model.model_fields[str(word)].annotation
    return list(model.model_fields)
