"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

DONE, SOME_FAILED, WRONG_REQUEST, TAINTED, INTERRUPTED = 0, 1, 2, 3, 130
"""Exit codes."""


def with_place(assign: list[str] | None, executor: str | None, device: str | None) -> list[str]:
    """The assignments of `--set`, and what `--executor` and `--device` assign."""
    given = {"executor": executor, "device": device}
    return [*(assign or ()), *(f"execute.{key}={value}" for key, value in given.items() if value)]


Results = Annotated[Path | None, typer.Option("--results", help="Results folder. [default: beside bench.yaml]")]
DataRoot = Annotated[
    Path | None, typer.Option("--data-root", help="Raw data. [default: $BENCH_DATA, else ~/.cache/bench/data]")
]
Prepared = Annotated[
    Path | None,
    typer.Option("--prepared", help="Prepared arrays. [default: $BENCH_PREPARED, else ~/.cache/bench/prepared]"),
]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="A bench.yaml. [default: the one in this folder]")]
Methods = Annotated[str | None, typer.Option("--methods", help="E.g. vanilla_mt,rollingq:rho=2,concat+ogm or all.")]
Datasets = Annotated[str | None, typer.Option("--datasets", help="E.g. planted,av_mnist:samples=5000 or all.")]
Seeds = Annotated[str | None, typer.Option("--seeds", help="How many, or a list: 5 or 0,1,7.")]
Folds = Annotated[str | None, typer.Option("--folds", help="A list of folds, or all.")]
Protocol = Annotated[str | None, typer.Option("--protocol", help="honest, published, or both.")]
AllowMixed = Annotated[
    bool, typer.Option("--allow-mixed", help="Show rows with different effective splits, and say so.")
]
Assign = Annotated[
    list[str] | None,
    typer.Option("--set", help="KEY=VALUE: recipe.epochs=5, or PLUGIN.SETTING=VALUE. Repeatable."),
]
Format = Annotated[Literal["text", "json"], typer.Option("--format", help="For people or for programs.")]
ExecutorName = Annotated[
    Literal["local", "inline", "slurm", "ray"] | None,
    typer.Option("--executor", help="Where trials run. [default: execute.executor of bench.yaml, local]"),
]
Device = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
