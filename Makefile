# `make demo` and `make test` do all the set-up on a fresh machine; the environment is made once in .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Tests spend most of their time in single threads: two files at once. `--dist loadfile` keeps what a file prepares in one process.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile

.PHONY: demo docs test test-slow lint types clean

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

demo: $(VENV)/.installed
	$(BIN)/nst demo

docs: $(VENV)/.installed
	$(BIN)/python docs/build.py

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed
	$(BIN)/mypy

test: lint types
	$(PYTEST) -m 'not slow'

test-slow: $(VENV)/.installed
	$(PYTEST) -m slow

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .pytest_cache .ruff_cache
