# Needs Python >= 3.10, make and git; everything else goes into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt

.PHONY: help install demo test check format family clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

install: $(VENV)/installed  ## .venv with the lab in it

$(VENV)/installed: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV)"
	@$(PIP) --editable .
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	@$(PIP) --editable '.[dev]'
	@touch $@

demo: $(VENV)/installed  ## System 1 end to end on the tiny family: offline, CPU, a few minutes
	@$(BIN)/distill demo

test: $(VENV)/installed-dev  ## all tests that need no GPU
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist worksteal

check: $(VENV)/installed-dev  ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(VENV)/installed-dev  ## mend what can be mended
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

family: $(VENV)/installed  ## make the tiny family again from its seed (about 100 minutes on one core; resumes)
	$(BIN)/python -m distill_lab.tiny.build --out family

clean:  ## remove .venv and caches, never runs
	rm -rf $(VENV) .pytest_cache .ruff_cache *.egg-info
