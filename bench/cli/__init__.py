"""The command line: the only rooms that print. Heavy libraries are imported inside commands."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

import typer

from bench.cli import analysing, data, ladder, looking, planning, running, tracking, tuning, verifying
from bench.cli.options import DONE, INTERRUPTED, WRONG_REQUEST

app = typer.Typer(
    name="bench",
    help="A referee for multimodal fusion methods: train, compare, tabulate.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help comes in half the time
)
app.command()(running.run)
app.command()(tuning.tune)
app.command()(ladder.ladder)
app.command()(planning.plan)
app.command()(running.report)
app.command()(analysing.analyse)
app.command()(running.status)
app.command()(running.prune)
app.command(name="list")(looking.list_)
app.command()(looking.cost)
app.command()(looking.check)
app.command()(looking.doctor)
app.command()(verifying.verify)
app.command()(tracking.sync)
app.command()(tracking.ui)
app.add_typer(data.app)


def main() -> NoReturn:
    """Run the command line; every error the user can mend is one text on stderr and exit code 2."""
    from bench.errors import BenchError

    # Libraries that would call home, or wait a minute for a hub that is not there.
    for name in ("MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK", "HF_HUB_DISABLE_TELEMETRY"):
        os.environ.setdefault(name, "true")
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler writes to stderr
    try:
        app()
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(WRONG_REQUEST)
    except (KeyboardInterrupt, SystemExit) as ended:
        if isinstance(ended, SystemExit) and ended.code != INTERRUPTED:
            raise
        # Typer makes an exit of Ctrl-C, without a word.
        print("stopped; the same command goes on where this one ended", file=sys.stderr)
        sys.exit(INTERRUPTED)
    sys.exit(DONE)
