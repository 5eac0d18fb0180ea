# Every target makes .venv when it is missing. Python 3.11 or newer.
PYTHON ?= python3
BIN := .venv/bin
# one BLAS thread per process: tasks say themselves how many they use
export OMP_NUM_THREADS ?= 1

.PHONY: help demo test lint format bench clean

help:
	@echo "make demo    a potential for alanine dipeptide from one structure, about 5 minutes on 2 cores"
	@echo "make test    all tests"
	@echo "make lint    ruff and mypy"
	@echo "make bench   all benchmarks, quick settings (tests/benchmarks/README.md has the full ones)"

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	@touch $@

demo: .venv/.installed
	$(BIN)/farwalk demo --dir demo

test: .venv/.installed
	$(BIN)/python -m pytest tests

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/.installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: .venv/.installed
	set -e; for script in walk npt roofline neighbors train selection exploration volume driver simulate; do $(BIN)/python tests/benchmarks/$$script.py --smoke; done

clean:
	rm -rf .venv demo
