"""One trial in a training process: from its specification to stored outputs of every epoch.

The process has train targets only. It never opens the file of targets: the parent hands those of train over, and
scores what is written here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import platform
import time
import traceback
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench import guard, plugins
from bench.api import DataError, TaskSpec
from bench.assembly import build_model, build_strategies, restored, task_of, training_seed
from bench.cost import measure
from bench.data.prepared import Prepared
from bench.data.reader import Reader
from bench.errors import BenchError, RequestError, ResultsError, TrialError
from bench.guard import Places
from bench.plan import PartSpec, TrialSpec
from bench.train import Evaluation, Training
from bench.trajectory import BusyError, Deciding, Visit, Walk, lineage_of


@dataclass(frozen=True)
class Job:
    """Everything a training process is given. `positions[split]` are into the prepared arrays."""

    spec: TrialSpec
    prepared: Path
    trajectories: Path
    plugin_folders: tuple[str, ...]
    positions: dict[str, np.ndarray]
    train_targets: np.ndarray
    device: str
    sources: tuple[Path, ...] = ()
    """Where raw files are, which a method has no business with."""
    evaluated: tuple[str, ...] = ("val", "test")
    companions: tuple[tuple[PartSpec, ...], ...] = ()
    """The strategies of other planned trials that begin alike: a state is kept where one of them parts."""
    restore: int | None = None
    """An epoch whose weights are to be made again, should they not be stored."""
    until: int | None = None
    """Ends the trial after so many epochs, with all that a later job needs to go on; None: after the last."""
    measured: bool = True
    """Whether parameters and operations are counted too."""
    guarded: bool = True
    """Whether the process has train targets only; in the parent's own process nobody can tell who reads what."""


def run(job: Job, emit: Callable[[Visit], None]) -> dict[str, Any]:
    """Walk a trial, calling `emit` after every epoch; returns what is to be recorded of the process.

    Raises TrialError with a typed cause for whatever ends it early, BusyError where another process trains what it
    needs, ResultsError where the results folder cannot be used.
    """
    way = visits(job)
    while True:
        try:
            visit = next(way)
        except StopIteration as end:
            info: dict[str, Any] = end.value
            return info
        emit(visit)


def visits(job: Job) -> Generator[Visit, None, dict[str, Any]]:
    """The epochs of a trial as they are stored; what is to be recorded of the process is the generator's value.

    Raises as `run` does. A trial whose code reached for targets ends as `tainted`, and with it this process: whatever
    was left behind in it, no other trial is trained here.
    """
    places = closed_to(job)
    if job.guarded and any(note.watched for note in guard.notes()):
        raise TrialError("killed", "an earlier trial tainted this training process; run again")
    way = _visits(job)
    while True:
        try:
            with guard.watching(places) if job.guarded else contextlib.nullcontext():
                visit = _next(way)
        except StopIteration as end:
            info: dict[str, Any] = end.value
            return info
        yield visit


def closed_to(job: Job) -> Places:
    """What a training process has no business with."""
    settings = (job.spec.dataset.settings[name] for name in job.spec.dataset.places)
    given = (Path(str(place)) for place in settings if place)
    return Places.of([job.prepared.parent], job.trajectories.parent, [*job.sources, *given])


def _next(way: Generator[Visit, None, dict[str, Any]]) -> Visit:
    try:
        visit = next(way)
    except (StopIteration, TrialError, BusyError, ResultsError) as end:
        _refuse_tainted(end)
        raise
    _refuse_tainted()
    return visit


def _refuse_tainted(cause: Exception | None = None) -> None:
    found = [str(note) for note in guard.notes() if note.watched]
    if found:
        raise TrialError("tainted", "\n".join(dict.fromkeys(found))) from cause


def _visits(job: Job) -> Generator[Visit, None, dict[str, Any]]:
    started, clock = time.time(), time.perf_counter()
    try:
        for folder in reversed(job.plugin_folders):
            plugins.use_folder(Path(folder))
        torch.set_num_threads(job.spec.recipe.threads)
        trained = 0
        prepared = Prepared.open(job.prepared)
        data, _ = restored("datasets", job.spec.dataset)
        with guard.without_samples(data) if job.guarded else contextlib.nullcontext():
            way = walk(job, prepared)
            for visit in way.epochs():
                trained += visit.trained
                yield visit
            if job.restore is not None:
                way.restore(job.restore)
        cost = measure(job.spec, prepared.spec).to_json() if job.measured else None
    except (TrialError, ResultsError, BusyError):
        raise
    except DataError as error:
        raise TrialError("data", str(error)) from error
    except BenchError as error:
        raise TrialError("error", str(error)) from error
    except Exception as error:
        if not _is_out_of_memory(error):
            raise TrialError("error", "".join(traceback.format_exception(error))) from error
        text = _first_line(error)
    else:
        return {
            "started": started,
            "finished": started + time.perf_counter() - clock,  # clocks are set back
            "device": device_name(torch.device(job.device)),
            "trained_epochs": trained,
            "versions": versions(),
            "cost": cost,
            "guard": "guarded" if job.guarded else "unguarded",
        }
    # Only here is what the trial had allocated free again.
    raise TrialError("out of memory", f"{text}; batch_size was {job.spec.recipe.batch_size}; {_what_fits(job)}")


def device_name(device: torch.device) -> str:
    """What the device calls itself."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU"


def versions() -> dict[str, str]:
    """The versions that numbers may depend on."""
    libraries = {name: importlib.metadata.version(name) for name in ("torch", "torchvision", "timm", "numpy")}
    return {"python": platform.python_version(), **libraries}


def walk(job: Job, prepared: Prepared) -> Walk:
    """The way of a trial through stored and new epochs."""
    spec, device = job.spec, torch.device(job.device)
    dataset_class, settings = restored("datasets", spec.dataset)
    dataset = dataset_class(settings)
    task = task_of(spec, prepared.spec)
    reader = Reader(prepared, dataset, task.modalities, device)
    targets = torch.from_numpy(job.train_targets)

    def start() -> Training:
        model, strategies = build_model(spec, task, prepared.spec), build_strategies(spec, task)
        return Training(
            model, strategies, task, spec.recipe, training_seed(spec), reader, job.positions["train"], targets, device
        )

    def evaluate(training: Training) -> dict[str, Evaluation]:
        return {s: training.evaluate(job.positions[s]) for s in job.evaluated if len(job.positions[s])}

    codes = {part.name: part.code for part in spec.strategies}
    deciding = {name: (strategy, codes[name]) for name, strategy in build_strategies(spec, task).items()}
    lineage = lineage_of(spec, job.evaluated, device.type, job.guarded)
    return Walk(
        job.trajectories,
        lineage,
        deciding,
        spec.recipe.epochs,
        start,
        evaluate,
        companions=list(_companions(job, task)),
        until=job.until,
        refuse=_refuse_tainted if job.guarded else lambda: None,
    )


def smaller_batch(batch_size: int) -> str:
    """What to type for a batch of half the size."""
    return f"--set recipe.batch_size={max(1, batch_size // 2)}"


def _companions(job: Job, task: TaskSpec) -> Iterator[Deciding]:
    for parts in job.companions:
        with contextlib.suppress(RequestError):  # its file was edited; it will say so itself
            made = [(part, *restored("methods", part)) for part in parts]
            yield {part.name: (plugin(settings, task), part.code) for part, plugin, settings in made}


def _is_out_of_memory(error: Exception) -> bool:
    texts = ("can't allocate memory", "out of memory")  # the allocators of the CPU and of other devices
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(text in str(error) for text in texts)


def _what_fits(job: Job) -> str:
    """The largest halving of the batch size with which a first step and an evaluation went through, tried here."""
    size = job.spec.recipe.batch_size // 2
    while size >= 1:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if _fits(job, size):
            return f"a step fits with --set recipe.batch_size={size} --set recipe.eval_batch_size={size}"
        size //= 2
    return "not even a batch of one sample fits: a smaller encoder (--set encoder.dim=...) or another device is needed"


def _fits(job: Job, size: int) -> bool:
    recipe = dataclasses.replace(job.spec.recipe, batch_size=size, eval_batch_size=size)
    few = {split: positions[:size] for split, positions in job.positions.items()}
    smaller = dataclasses.replace(
        job,
        spec=dataclasses.replace(job.spec, recipe=recipe),
        positions=few,
        train_targets=job.train_targets[:size],
    )
    try:
        way = walk(smaller, Prepared.open(job.prepared))
        training = way.start()
        training.train(0)
        way.evaluate(training)
    except Exception as error:
        if _is_out_of_memory(error):
            return False
        raise TrialError("out of memory", f"{_first_line(error)} with a batch of {size}") from error
    return True


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
