"""Commands around MLflow."""

from __future__ import annotations

from typing import Annotated

import typer

from bench.cli.options import Assign, ConfigFile, Results
from bench.cli.place import workplace


def sync(results: Results = None, config: ConfigFile = None, assign: Assign = None) -> None:
    """Mirror everything that is stored into MLflow; what is there already is left alone."""
    from bench.store import Store
    from bench.tracking import sync as synchronise

    place = workplace(config, results, None, None, {}, assign)
    count = synchronise(Store(place.results), place.config.tracking.uri)
    print(f"{count} trials added")


def ui(
    results: Results = None,
    config: ConfigFile = None,
    port: Annotated[int, typer.Option(help="On 127.0.0.1.")] = 5000,
) -> None:
    """Open the MLflow UI on loopback."""
    from bench.store import Store
    from bench.tracking import serve

    place = workplace(config, results, None, None, {}, None)
    print(f"http://127.0.0.1:{port} (Ctrl-C ends it)")
    raise typer.Exit(serve(Store(place.results), place.config.tracking.uri, port))
