"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

DONE, SOME_FAILED, WRONG_REQUEST, INTERRUPTED = 0, 1, 2, 130
"""Exit codes."""


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
Protocol = Annotated[str | None, typer.Option("--protocol", help="honest.")]
Assign = Annotated[
    list[str] | None,
    typer.Option("--set", help="KEY=VALUE: recipe.epochs=5, or PLUGIN.SETTING=VALUE. Repeatable."),
]
Format = Annotated[Literal["text", "json"], typer.Option("--format", help="For people or for programs.")]
Device = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
