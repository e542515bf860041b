# One word each; every target sets up .venv by itself when that is needed.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

export UV_COMPILE_BYTECODE = 1

.PHONY: setup run test lint docs soak slurm benchmarks constraints

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python -e . --group dev -c constraints.txt
	touch $(READY)

run: $(READY)
	$(BIN)/bench run

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

soak: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "slow or not slow" --timeout=3600
	$(BIN)/bench run --config docs/collapse/bench.yaml --results results/collapse

slurm: $(READY)
	tests/slurm/run

docs: $(READY)
	$(BIN)/python docs/reference.py

benchmarks: $(READY)
	$(BIN)/python -m benchmarks

constraints: $(READY)
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-header --no-annotate \
		pyproject.toml --group dev -o constraints.txt
