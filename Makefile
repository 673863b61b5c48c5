# Everything a newcomer needs: `make demo`, `make test`. Each installs what it lacks into .venv.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
DEMO   := runs/demo

.PHONY: demo test test-gpu lint types check torture bench bench-gpu clean

# torch has thousands of files that are never imported: only those that are get compiled, when they first are.
INSTALL := $(BIN)/pip install --quiet --no-compile
unexport PYTHONDONTWRITEBYTECODE

# A stamp a set of extras: made again when pyproject.toml changes.
$(VENV)/run.stamp: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --editable '.[plot]'
	touch $@

$(VENV)/dev.stamp: pyproject.toml $(VENV)/run.stamp
	$(INSTALL) --editable '.[dev,plot]'
	touch $@

demo: $(VENV)/run.stamp  ## what ffstream is for, in a minute; `make clean` starts it afresh
	$(BIN)/ffstream demo --output $(DEMO)

test: $(VENV)/dev.stamp  ## the whole test suite; tests marked gpu run where there is one
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal --durations 10

test-gpu: $(VENV)/dev.stamp  ## what only a GPU can show; its self-check comes first
	$(BIN)/ffstream doctor --check --device cuda
	$(BIN)/python -m pytest -m gpu

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/dev.stamp
	$(BIN)/mypy

check: lint types test

torture: $(VENV)/dev.stamp  ## crashes, losses of power, full and failing disks, rot, nonsense; hours, gone on with
	$(BIN)/python -m tests.torture --report benchmarks/reliability

bench: $(VENV)/dev.stamp  ## every figure of benchmarks/README.md; MNIST=folder holding MNIST/raw
	$(BIN)/python -m benchmarks.run --data-root "$(MNIST)"
	$(BIN)/python -m benchmarks.report

bench-gpu: $(VENV)/dev.stamp
	$(BIN)/python -m benchmarks.run --device cuda --data-root "$(MNIST)"
	$(BIN)/python -m benchmarks.report

clean:
	rm -rf runs/demo
