"""Every table of a report is LaTeX that compiles; `make soak` runs it where there is a pdflatex."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from bench.report.across import across
from bench.report.across import table as across_table
from bench.report.build import build
from bench.report.cell import Cell
from bench.report.layout import Table
from bench.report.tables import tables
from bench.store import Store
from tests import stored

STRANGE = r"50% & more_$#{~^}\ <rho|beta> ±"
"""A label with everything that LaTeX takes for a command."""
COMPILER = shutil.which("pdflatex")


def made(folder: Path) -> dict[str, Table]:
    """Tables of stored trials, of a paper's data set, and over data sets."""
    store = Store(folder / "results")
    rows = []
    for label, right in (("audio", (12, 13)), ("vanilla_mt+rollingq", (14, 15)), (STRANGE, (9, 8))):
        method = label if label != STRANGE else "concat"
        specs = [stored.spec(method if method != "audio" else "unimodal", seed=seed) for seed in range(2)]
        for spec, hits in zip(specs, right, strict=True):
            stored.store_trial(store, spec, test=(1, hits, 20), site="rollingq" in label)
        rows.append((label, [[spec] for spec in specs]))
    found = dict(build(store, stored.request(rows), lambda _: stored.truth()).tables)
    means = {"concat": 49.0, "vanilla_mt": 48.1, "vanilla_mt+rollingq": 51.2}
    paper = [
        Cell(method, method, "crema_d", "crema_d", protocol, "accuracy", mean=mean, values=(mean,), seeds=(0,))
        for protocol in ("honest", "published")
        for method, mean in means.items()
    ]
    found |= {f"{name} beside the paper": table for name, table in tables(paper).items()}
    several = [
        Cell(f"{m}", f"{m} {STRANGE}", f"set_{d}", f"set_{d}", "honest", "accuracy", mean=mean + d)
        for d in range(3)
        for m, mean in means.items()
    ]
    return {**found, "across": across_table(across(several))}


@pytest.mark.slow
@pytest.mark.skipif(COMPILER is None, reason="no pdflatex here")
def test_every_table_compiles(tmp_path: Path) -> None:
    assert COMPILER is not None
    found = made(tmp_path)
    assert {"accuracy", "cost", "paper", "comparisons", "selection", "across"} <= found.keys()
    assert "published beside the paper" in found
    body = "\n\\clearpage\n".join(table.latex for table in found.values())
    text = f"\\documentclass{{article}}\n\\usepackage{{booktabs}}\n\\begin{{document}}\n{body}\n\\end{{document}}\n"
    (tmp_path / "all.tex").write_text(text, encoding="utf-8")
    command = [COMPILER, "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stdout[-3000:]
    log = (tmp_path / "all.log").read_text(errors="replace")
    assert "Missing character" not in log
    assert "LaTeX Error" not in log
    assert (tmp_path / "all.pdf").stat().st_size > 10_000
