"""One trial in a training process: from its specification to stored outputs of every epoch.

The process has train targets only. It never opens the file of targets: the parent hands those of train over, and
scores what is written here.
"""

from __future__ import annotations

import platform
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench import plugins
from bench.api import DataError
from bench.assembly import build_model, build_strategies, restored, task_of
from bench.cost import measure
from bench.data.prepared import Prepared
from bench.data.reader import Reader
from bench.errors import TrialError
from bench.plan import TrialSpec
from bench.train import Evaluation, Training
from bench.trajectory import Visit, Walk, lineage_of


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
    evaluated: tuple[str, ...] = ("val", "test")


def run(job: Job, emit: Callable[[Visit], None]) -> dict[str, Any]:
    """Walk a trial, calling `emit` after every epoch; returns what is to be recorded of the process.

    Raises TrialError with a typed cause for whatever ends it early.
    """
    started = time.time()
    try:
        for folder in reversed(job.plugin_folders):
            plugins.use_folder(Path(folder))
        torch.set_num_threads(job.spec.recipe.threads)
        trained = 0
        prepared = Prepared.open(job.prepared)
        cost = measure(job.spec, prepared.spec)
        for visit in walk(job, prepared).epochs():
            trained += visit.trained
            emit(visit)
    except TrialError:
        raise
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise TrialError("out of memory", f"{_first_line(error)}; {_smaller(job.spec)}") from error
    except DataError as error:
        raise TrialError("data", str(error)) from error
    except Exception as error:
        if "can't allocate memory" in str(error) or "out of memory" in str(error):
            raise TrialError("out of memory", f"{_first_line(error)}; {_smaller(job.spec)}") from error
        raise TrialError("error", "".join(traceback.format_exception(error))) from error
    return {
        "started": started,
        "finished": time.time(),
        "device": device_name(torch.device(job.device)),
        "trained_epochs": trained,
        "versions": versions(),
        "cost": cost.to_json(),
    }


def device_name(device: torch.device) -> str:
    """What the device calls itself."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU"


def versions() -> dict[str, str]:
    """The versions that numbers may depend on."""
    return {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}


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
            model, strategies, task, spec.recipe, spec.seed, reader, job.positions["train"], targets, device
        )

    def evaluate(training: Training) -> dict[str, Evaluation]:
        return {s: training.evaluate(job.positions[s]) for s in job.evaluated if len(job.positions[s])}

    codes = {part.name: part.code for part in spec.strategies}
    deciding = {name: (strategy, codes[name]) for name, strategy in build_strategies(spec, task).items()}
    lineage = lineage_of(spec, job.evaluated, device.type)
    return Walk(job.trajectories, lineage, deciding, spec.recipe.epochs, start, evaluate)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _smaller(spec: TrialSpec) -> str:
    batch = spec.recipe.batch_size
    return f"batch_size was {batch}; --set recipe.batch_size={max(1, batch // 2)} would halve what a step needs"
