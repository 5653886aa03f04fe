# What is done with this repository. Every target makes the virtual environment and installs what it lacks: all that a
# machine needs is Python 3.11 or newer with pip, make, gcc and git.

VENV := .venv
BIN := $(VENV)/bin
PYTHON := $(shell for python in python3.11 python3 python3.12 python3.13 python3.14; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)

INSTALL = $(PYTHON) -m pip --python $(BIN)/python install -qq --disable-pip-version-check -c constraints.txt

.NOTPARALLEL:
.PHONY: help demo test test-slow lint bench clean

help:
	@echo "make demo       the whole job in demo/, offline: train a small captioner, caption, measure, export"
	@echo "make test       the fast tests        make test-slow  the others"
	@echo "make lint       style, types, and who may import whom"
	@echo "make bench      time things against what they should keep up with"

demo: $(VENV)/with-models
	@$(BIN)/cutline demo demo

test: $(VENV)/with-dev
	@$(BIN)/python -m pytest -q -n 2 --dist loadfile -m 'not slow'

test-slow: $(VENV)/with-dev
	@$(BIN)/python -m pytest -q -n 2 --dist loadfile -m slow --timeout 900

lint: $(VENV)/with-dev
	@failed=; \
	$(BIN)/ruff check -q --output-format concise || failed=1; \
	$(BIN)/ruff format -q --check || failed=1; \
	$(BIN)/mypy || failed=1; \
	$(BIN)/lint-imports --no-logo || failed=1; \
	test -z "$$failed"

bench: $(VENV)/with-dev
	@set -e; for benchmark in $$(grep -l __main__ benchmarks/*.py); do echo "== $$benchmark"; $(BIN)/python $$benchmark; done

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis

# The one who installs is the pip of PYTHON, since not every Python can put a pip into a new environment by itself.
$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Cutline needs Python 3.11 or newer: install it, or say make PYTHON=/path/to/python" >&2; exit 1; }
	@$(PYTHON) -m venv --without-pip $(VENV)

$(VENV)/with-%: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing into $(VENV) what 'cutline[$*]' needs; once, a minute or a few."
	@$(INSTALL) pip -e '.[$*]'
	@$(INSTALL) --no-deps open_clip_torch  # for the vocabulary in it: nothing imports it, so it needs nothing
	@touch $@
	@test $* != dev || touch $(VENV)/with-models  # which is part of it
