# Needs Python >= 3.10, make and git; everything else goes into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Python compiles what it imports; to compile all of torch beforehand takes as long as the rest of the installation.
PIP := $(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt

.PHONY: help install demo test test-fast install-vllm test-vllm install-interop test-interop test-page test-gpu test-real check format family address clean

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

demo: $(VENV)/installed  ## Systems 1 and 2 end to end on the tiny family: offline, CPU, a few minutes
	@$(BIN)/distill demo

test: $(VENV)/installed-dev  ## all tests that need no GPU
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -rs --numprocesses auto --dist worksteal

test-fast: $(VENV)/installed-dev  ## the tests that take seconds, for while you work
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow and not gpu and not real" --numprocesses auto --dist worksteal

.venv-vllm/installed: pyproject.toml constraints-vllm.txt
	@test -x .venv-vllm/bin/python || $(PYTHON) -m venv .venv-vllm
	@echo "installing into .venv-vllm"
	@.venv-vllm/bin/python -m pip install --quiet torch==2.13.0
	@.venv-vllm/bin/python -m pip install --quiet --no-deps --requirement constraints-vllm.txt
	@.venv-vllm/bin/python -m pip install --quiet --no-deps --editable .
	@touch $@

install-vllm: .venv-vllm/installed

test-vllm: install-vllm  ## the engine vllm against a real vLLM on this CPU, in .venv-vllm (3 GB, Linux; about ten minutes)
	.venv-vllm/bin/python -m pytest -rs tests/generation/engines/test_vllm*.py

.venv-interop/installed: constraints-interop.txt
	@test -x .venv-interop/bin/python || $(PYTHON) -m venv .venv-interop
	@echo "installing into .venv-interop"
	@.venv-interop/bin/python -m pip install --quiet --no-compile torch==2.13.0
	@.venv-interop/bin/python -m pip install --quiet --no-compile --no-deps --requirement constraints-interop.txt
	@touch $@

install-interop: .venv-interop/installed

test-interop: $(VENV)/installed-dev install-interop  ## students as transformers 4 and llama.cpp read them, in .venv-interop (1 GB)
	$(if $(DIR),DISTILL_LAB_REAL=$(abspath $(DIR))) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -rs tests/interop

$(VENV)/installed-page: $(VENV)/installed-dev
	@$(PIP) --editable '.[page]'
	@touch $@

test-page: $(VENV)/installed-page  ## the report page in a Chromium (Debian: apt install chromium; else .venv/bin/playwright install chromium)
	$(BIN)/python -m pytest -rs tests/report/test_page_in_browser.py

test-gpu: $(VENV)/installed-dev  ## what needs a CUDA GPU (about half an hour); without one each check says so
	$(BIN)/python -m pytest -rs tests/gpu

test-real: $(VENV)/installed-dev  ## the lab on two real models: make test-real DIR=folder with a directory for each
	DISTILL_LAB_REAL=$(abspath $(DIR)) $(BIN)/python -m pytest -rs tests/test_real.py

check: $(VENV)/installed-dev  ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(VENV)/installed-dev  ## fix what can be fixed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

family: $(VENV)/installed  ## make the tiny family again from its seed (about 100 minutes on one core; resumes)
	$(BIN)/python -m scripts.tiny_family.build --out family

address:  ## write this repository's address into badge, notebook and citation: make address URL=https://github.com/you/name
	@$(PYTHON) scripts/address.py "$(URL)"

clean:  ## remove .venv and caches, never runs
	rm -rf $(VENV) .pytest_cache .ruff_cache *.egg-info
