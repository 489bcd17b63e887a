# `make demo` and `make test` do all the set-up on a fresh machine, each in an environment of its own: what nst needs to run in
# .venv-demo; also what its tests need, Spark and Ray among it, in .venv.
PYTHON ?= python3
VENV ?= .venv
DEMO_VENV ?= .venv-demo
BIN := $(VENV)/bin
# Tests spend most of their time in single threads: two files at once. `--dist loadfile` keeps what a file prepares in one process.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile

.PHONY: demo docs test test-slow test-lowest audit release lint types clean

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

# Without warnings: setuptools has one for every editable installation, of which the reader need do nothing.
$(DEMO_VENV)/.installed: pyproject.toml
	@echo "Installing nst into $(DEMO_VENV): some minutes, most of them for PyTorch."
	@$(PYTHON) -m venv $(DEMO_VENV)
	@$(DEMO_VENV)/bin/python -m pip install --quiet --upgrade pip
	@$(DEMO_VENV)/bin/python -W ignore -m pip install --quiet --editable .
	@touch $@

demo: $(DEMO_VENV)/.installed
	$(DEMO_VENV)/bin/nst demo

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

# The quick tests on the lowest versions that pyproject.toml admits, whose warnings are no errors; needs some 8 GB of disk and
# downloads a torch of its own. What it gave: benchmarks/results/lowest.md.
test-lowest:
	$(PYTHON) -m venv $(VENV)/lowest
	$(VENV)/lowest/bin/python -m pip install --quiet uv
	$(VENV)/lowest/bin/uv pip install --quiet --python $(VENV)/lowest/bin/python --resolution lowest-direct --editable '.[dev]'
	$(VENV)/lowest/bin/python -m pytest -n 2 --dist loadfile -m 'not slow' -W default

# Our code by bandit, and the installed packages by pip-audit, which asks the advisory database.
audit: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[audit]'
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive nst_data nst_train cli examples
	$(BIN)/pip-audit --skip-editable

# All that a release must hold, up to the upload, of which it prints the commands. `SKIP_TESTS=1` is for a try.
release: $(VENV)/.installed
	$(BIN)/python .ci/release.py $(if $(filter 1,$(SKIP_TESTS)),--skip-tests)

clean:
	rm -rf $(VENV) $(DEMO_VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
