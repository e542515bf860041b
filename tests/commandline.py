"""The real command line inside the test's process, in a folder of its own; trials are trained without child processes.

Starting a training process takes seconds, nearly all of them to import torch; `tests/test_errors.py` does it once.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from bench import cli, plugins
from tests.world import DATASET, TINY, InProcess

DONE, SOME_FAILED, WRONG_REQUEST, INTERRUPTED = 0, 1, 2, 130
"""Exit codes: what scripts of users rely on."""
SMALL = ("--datasets", DATASET, *(word for assign in TINY for word in ("--set", assign)))
NO_MIRROR = ("--set", "tracking.mlflow=false")


@dataclass(frozen=True)
class Answer:
    """What a command printed and how it ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one JSON document on standard output."""
        return json.loads(self.out)


class InThisProcess(InProcess):
    """Stands in for the executor of the command line."""

    def __init__(self, devices: Sequence[str]) -> None:
        self.devices = list(devices)

    def __enter__(self) -> InThisProcess:
        return self

    def __exit__(self, *_: object) -> None:
        return None


@dataclass
class CommandLine:
    """A workplace in which commands are typed."""

    folder: Path
    prepared: Path
    data_root: Path
    patch: pytest.MonkeyPatch
    executor: type[InProcess] | None = field(default=InThisProcess)

    @property
    def results(self) -> Path:
        return self.folder / "results"

    def __call__(self, *words: str) -> Answer:
        """Type `bench *words` in this folder."""
        forget_plugins()
        out, err = io.StringIO(), io.StringIO()
        with self.patch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            patch.chdir(self.folder)
            patch.setattr(sys, "argv", ["bench", *words])
            patch.setattr(plugins, "__path__", [*plugins.__path__])
            for name, value in (("BENCH_PREPARED", self.prepared), ("BENCH_DATA", self.data_root), ("COLUMNS", 200)):
                patch.setenv(name, str(value))
            patch.setattr(os, "sched_getaffinity", lambda _: {0})  # with one core data are prepared in this process
            if self.executor is not None:
                patch.setattr("bench.execute.local.LocalExecutor", self.executor)
            try:
                cli.main()
            except SystemExit as ended:
                code = ended.code
        forget_plugins()
        assert isinstance(code, int)
        return Answer(code, out.getvalue(), err.getvalue())

    def run(self, *words: str) -> Answer:
        """`bench run` on a hundred planted samples, one seed, three epochs, without MLflow."""
        return self("run", *SMALL, "--seeds", "1", *NO_MIRROR, *words)

    def plan(self, *words: str) -> Any:
        """`bench plan` of the same."""
        answer = self("plan", "--no-time", *SMALL, "--seeds", "1", *NO_MIRROR, *words, "--format", "json")
        assert answer.code == DONE, answer.err
        return answer.json


def forget_plugins() -> None:
    """As a new process would be: plugin files are read again, and those of another folder are gone."""
    for name in [name for name in sys.modules if name.startswith("bench.plugins.")]:
        folder = Path(str(sys.modules[name].__file__ or "")).parent.parent
        if not (folder / "bench" / "plugins.py").is_file():
            del sys.modules[name]
    plugins.names.cache_clear()
    plugins.find.cache_clear()
