# Everything runs in $(VENV), made with plain `python3 -m venv` and pip. `make demo` is all a new user needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Several test processes share the cores: threads that wait for each other must not spin.
PYTEST := OMP_WAIT_POLICY=passive $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-reference lint bench docs pico clean check-system

help:
	@echo 'make demo        install llamalab into $(VENV) and take the tour (offline, built-in model)'
	@echo 'make test        ruff, mypy and the tests'
	@echo 'make test-all    every test, the slow ones and the comparisons with PyTorch included'
	@echo 'make lint        ruff and mypy'
	@echo 'make bench       generation speed against bare llama.cpp'
	@echo 'make docs        build the documentation into site/'
	@echo 'make pico        train the built-in model again from its seed (about two hours on two cores)'
	@echo 'make clean       remove $(VENV), caches and packages (a training in build/ stays)'

demo: $(VENV)/.ready
	@$(BIN)/llamalab demo

test: lint
	$(PYTEST)

test-all: $(VENV)/.ready-reference
	$(PYTEST) -m ''

test-reference: $(VENV)/.ready-reference
	$(PYTEST) -m 'reference and not slow'

lint: $(VENV)/.ready-test
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/.ready-test
	$(BIN)/python benchmarks/generate.py

docs: $(VENV)/.ready-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

pico: $(VENV)/.ready-test
	@echo 'Training pico from its seed: about two hours on two cores. An interrupted training goes on where it stopped.'
	$(BIN)/python -m training.train --out build/pico
	$(BIN)/python -m training.export --out build/pico --to src/llamalab/models/pico.gguf --dtype Q8_0
	$(BIN)/python -m training.evaluate --json > build/pico/evaluation.json
	$(BIN)/python -m training.card --log build/pico/log.jsonl --results build/pico/evaluation.json

clean:
	rm -rf $(VENV) dist site .mypy_cache .pytest_cache .ruff_cache .hypothesis

# One stamp per set of packages; each is as old as the last install that pyproject.toml asked for.
$(VENV)/.ready: pyproject.toml
	@$(MAKE) --no-print-directory check-system
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -c 'import llama_cpp' 2>/dev/null || printf '%s\n' \
	  'Installing llamalab into $(VENV). The first time, pip compiles llama.cpp for this machine:' \
	  '5 to 10 minutes on two cores, with no output meanwhile. pip keeps the result, so later installs take seconds.'
	$(BIN)/python -m pip install --disable-pip-version-check -q -e '.[arena]'
	@touch $@

$(VENV)/.ready-test: $(VENV)/.ready
	$(BIN)/python -m pip install --disable-pip-version-check -q -e '.[test]'
	@touch $@

$(VENV)/.ready-reference: $(VENV)/.ready-test
	$(BIN)/python -m pip install --disable-pip-version-check -q -e '.[test,reference]'
	@touch $@

$(VENV)/.ready-docs: $(VENV)/.ready
	$(BIN)/python -m pip install --disable-pip-version-check -q -e '.[docs]'
	@touch $@

# What pip cannot install, said at once rather than after a page of compiler output.
check-system:
	@command -v $(PYTHON) >/dev/null || { \
	  echo 'error: no $(PYTHON) found. On Debian or Ubuntu: sudo apt-get install python3 python3-venv build-essential' >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: llamalab needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V 2>&1)." \
	       'Name a newer one: make PYTHON=python3.12 ...' >&2; exit 1; }
	@missing=; \
	command -v "$${CC:-cc}" >/dev/null && command -v "$${CXX:-c++}" >/dev/null || missing='a C and C++ compiler'; \
	$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || missing="$${missing:+$$missing, and }Python's venv module"; \
	test -z "$$missing" || { \
	  echo "error: llamalab needs $$missing. On Debian or Ubuntu: sudo apt-get install build-essential python3-venv" >&2; \
	  exit 1; }
