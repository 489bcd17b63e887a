# `make demo` and `make test` do all the set-up on a fresh machine; the environment is made once in .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Tests spend most of their time in single threads: two files at once. `--dist loadfile` keeps what a file prepares in one process.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile

.PHONY: demo docs test test-slow test-lowest audit lint types clean

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

# The quick tests on the lowest versions that pyproject.toml admits; needs some 8 GB of disk and downloads a torch of its own.
test-lowest:
	$(PYTHON) -m venv $(VENV)/lowest
	$(VENV)/lowest/bin/python -m pip install --quiet uv
	$(VENV)/lowest/bin/uv pip install --quiet --python $(VENV)/lowest/bin/python --resolution lowest-direct --editable '.[dev]'
	$(VENV)/lowest/bin/python -m pytest -n 2 --dist loadfile -m 'not slow'

# Our code by bandit, and the installed packages by pip-audit, which asks the advisory database.
audit: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[audit]'
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive nst_data nst_train cli examples
	$(BIN)/pip-audit --skip-editable

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .pytest_cache .ruff_cache
